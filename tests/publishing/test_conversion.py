"""import and export: every form of GPT-2's files in, stock models out, and what is wrong with a source is said."""

import itertools
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import regex
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2Config, GPT2LMHeadModel
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer

from groundup.cli.main import main
from groundup.common.errors import InputError
from groundup.common.settings import read_yaml
from groundup.inference.loading import load_model, save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.publishing import conversion, importing
from groundup.publishing.conversion import export
from groundup.publishing.importing import import_model
from groundup.publishing.proof import prove
from groundup.tokenization.training import train_bpe

TEXTS = [
    "The cat sat on the mat. The dog sat on the log, and it's the frog's bog.\n" * 3,
    "Zażółć gęślą jaźń: für Größe, naïveté & 你好 — 🙂 ok?\n\n\tdef f(x):\n\t\treturn x  # twice 1234\n" * 3,
]
VOCABULARY = 300
FILES = {
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "configuration_groundup.py", "generation_groundup.py", "modeling_groundup.py", "README.md", "metrics.json",
    "recipe.yaml",
}  # fmt: skip


def perturbed(model):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def peer():
    """Return transformers' GPT-2, two blocks with heads of width 64 as in all of OpenAI's sizes."""
    end = VOCABULARY - 1
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=96, n_embd=128, n_layer=2, n_head=2, bos_token_id=end, eos_token_id=end
    )
    return perturbed(GPT2LMHeadModel(config))


@pytest.fixture(scope="module")
def vocabulary():
    """Return tokens with ids and merges, learned as GPT-2's were; the last token ends a text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(TEXTS, trainer)
    state = json.loads(backend.to_str())["model"]
    return state["vocab"] | {"<|endoftext|>": VOCABULARY - 1}, [tuple(pair) for pair in state["merges"]]


# ---------------------------------------------------------------------------------------------------------------------
# TensorFlow's checkpoint format, written here as its BundleWriter does: a LevelDB table of protobuf messages.


def varint(value):
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number, value):
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def block(rows, interval=16):
    """Write rows of a table; every 16th key is whole, the others say how much they share with the one before."""
    content, restarts, before = b"", [], b""
    for number, (key, value) in enumerate(rows):
        if number % interval == 0:
            restarts.append(len(content))
            before = b""
        shared = next((i for i, (a, b) in enumerate(zip(before, key)) if a != b), min(len(before), len(key)))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    restarts = restarts or [0]
    return content + struct.pack(f"<{len(restarts) + 1}I", *restarts, len(restarts))


def table(rows, rows_in_a_block=20, compression=0):
    content, index = b"", []

    def place(piece):
        nonlocal content
        handle = varint(len(content)) + varint(len(piece))
        content += piece + bytes([compression]) + b"crc "  # the checksum is not looked at
        return handle

    for start in range(0, len(rows), rows_in_a_block):
        part = rows[start : start + rows_in_a_block]
        index.append((part[-1][0], place(block(part))))
    footer = place(block([])) + place(block(index, interval=1))
    return content + footer.ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)


def write_tensorflow(folder, tensors, dtype=1, **options):
    data, rows = b"", [(b"", field(1, 1) + field(3, field(1, 1)))]
    for name in sorted(tensors):
        values = tensors[name].numpy().astype("<f4")
        shape = b"".join(field(2, field(1, size)) for size in values.shape)
        place = field(4, len(data)) if data else b""
        crc = varint(6 << 3 | 5) + b"crc "
        rows.append((name.encode(), field(1, dtype) + field(2, shape) + place + field(5, values.nbytes) + crc))
        data += values.tobytes()
    (folder / "model.ckpt.index").write_bytes(table(rows, **options))
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(data)


def openai_tensors(peer):
    tensors = {}
    for name, tensor in peer.transformer.state_dict().items():
        path = name.replace("h.", "h", 1) if name.startswith("h.") else name
        *parts, leaf = path.split(".")
        if parts[-1] in ("wte", "wpe"):
            tensors[f"model/{parts[-1]}"] = tensor
        elif leaf == "weight" and tensor.ndim == 2:
            tensors["/".join(["model", *parts, "w"])] = tensor[None]
        else:
            tensors["/".join(["model", *parts, "b" if leaf == "bias" else "g"])] = tensor
    return tensors


# ---------------------------------------------------------------------------------------------------------------------
# The forms of GPT-2's files


def with_tokenizer(folder, vocabulary):
    tokens, merges = vocabulary
    (folder / "vocab.json").write_text(json.dumps(tokens), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def saved_by_transformers(folder, peer, vocabulary):
    peer.save_pretrained(folder)
    GPT2Tokenizer(vocab=vocabulary[0], merges=vocabulary[1]).save_pretrained(folder)
    return folder


def sharded(folder, peer, vocabulary):
    peer.save_pretrained(folder, max_shard_size="300KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    with_tokenizer(folder, vocabulary)
    return folder


def old_tensors(peer):
    """Return tensors as the Hub's files have had them since 2019: no prefix, each block's causal mask a tensor."""
    masks = {f"h.{i}.attn.bias": torch.ones(96, 96).tril()[None, None].contiguous() for i in range(2)}
    masks["h.0.attn.masked_bias"] = torch.tensor(-1e4)
    return {name: tensor.clone() for name, tensor in peer.transformer.state_dict().items()} | masks


def old_safetensors(folder, peer, vocabulary):
    save_file(old_tensors(peer), folder / "model.safetensors")
    peer.config.save_pretrained(folder)
    with_tokenizer(folder, vocabulary)
    return folder


def one_file_with_its_config(folder, peer, vocabulary):
    return old_safetensors(folder, peer, vocabulary) / "model.safetensors"


def one_file_alone(folder, peer, vocabulary):
    save_file(old_tensors(peer), folder / "gpt2.safetensors")
    with_tokenizer(folder, vocabulary)
    return folder / "gpt2.safetensors"


def pickled(folder, peer, vocabulary, **options):
    torch.save(peer.state_dict(), folder / "pytorch_model.bin", **options)
    peer.config.save_pretrained(folder)
    with_tokenizer(folder, vocabulary)
    return folder


def pickled_in_2019(folder, peer, vocabulary):
    return pickled(folder, peer, vocabulary, _use_new_zipfile_serialization=False)


def pickled_in_shards(folder, peer, vocabulary):
    names = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(peer.state_dict())}
    for shard in set(names.values()):
        torch.save({n: t.clone() for n, t in peer.state_dict().items() if names[n] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    peer.config.save_pretrained(folder)
    with_tokenizer(folder, vocabulary)
    return folder


def openai(folder, peer, vocabulary, **options):
    write_tensorflow(folder, openai_tensors(peer), **options)
    sizes = {"n_vocab": VOCABULARY, "n_ctx": 96, "n_embd": 128, "n_head": 2, "n_layer": 2}
    (folder / "hparams.json").write_text(json.dumps(sizes))
    (folder / "checkpoint").write_text('model_checkpoint_path: "model.ckpt"\n')
    with_tokenizer(folder, vocabulary)
    (folder / "vocab.json").rename(folder / "encoder.json")
    (folder / "merges.txt").rename(folder / "vocab.bpe")
    return folder


ALL_FORMS = [
    saved_by_transformers, sharded, old_safetensors, one_file_with_its_config, one_file_alone, pickled,
    pickled_in_2019, pickled_in_shards, openai,
]  # fmt: skip


def random_ids(*shape):
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))


def logits_of(model, ids):
    with torch.no_grad():
        return model(ids).logits


@pytest.mark.parametrize("form", ALL_FORMS, ids=lambda form: form.__name__)
def test_every_form_of_gpt2s_weights_becomes_the_same_whole_checkpoint(form, peer, vocabulary, source, out):
    import_model(source=str(form(source, peer, vocabulary)), out=str(out))
    assert {path.name for path in out.iterdir()} == FILES
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(model) is GroundupForCausalLM and not any(info.values())
    assert torch.equal(logits_of(model, random_ids(2, 40)), logits_of(peer, random_ids(2, 40)))
    assert model.config.eos_token_id == model.generation_config.eos_token_id == VOCABULARY - 1
    expected = GPT2Tokenizer(vocab=vocabulary[0], merges=vocabulary[1])
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    text = TEXTS[1] + "<|endoftext|> it's\u00a0IT'S   x"
    assert tokenizer.encode(text) == expected.encode(text)
    assert tokenizer.eos_token_id == VOCABULARY - 1
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["metrics"] == [] and metrics["training"]["parameters"] == peer.num_parameters()
    recipe = read_yaml(out / "recipe.yaml")
    assert recipe["verb"] == "import" and recipe["weights_read"]
    assert str(source.parent) not in (out / "recipe.yaml").read_text() + (out / "README.md").read_text()


def test_the_settings_of_generation_come_along(peer, vocabulary, source, out):
    saved_by_transformers(source, peer, vocabulary)
    GenerationConfig(max_new_tokens=7, eos_token_id=5).save_pretrained(source)
    import_model(source=str(source), out=str(out))
    loaded = GenerationConfig.from_pretrained(out)
    assert (loaded.max_new_tokens, loaded.eos_token_id) == (7, 5)


def test_half_precision_and_an_own_head_are_kept(vocabulary, source, out):
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=1, n_head=4, tie_word_embeddings=False,
        bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    model = perturbed(GPT2LMHeadModel(config)).to(torch.bfloat16)
    import_model(source=str(saved_by_transformers(source, model, vocabulary)), out=str(out))
    found = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert torch.equal(found["lm_head.weight"], model.lm_head.weight)


def test_an_import_that_is_not_read_back_as_it_was_is_not_kept(peer, vocabulary, source, out, monkeypatch):
    def broken(folder):
        model, tokenizer = load_model(folder)
        return perturbed(model), tokenizer

    monkeypatch.setattr(importing, "load_model", broken)
    with pytest.raises(InputError, match=r"cannot import .* gives other logits, by .* and is not kept"):
        import_model(source=str(saved_by_transformers(source, peer, vocabulary)), out=str(out))
    assert not out.exists()


@pytest.mark.slow
def test_an_imported_checkpoint_is_the_same_for_who_does_not_have_this_package(peer, vocabulary, source, out):
    import_model(source=str(saved_by_transformers(source, peer, vocabulary)), out=str(out))
    assert prove(out, "The cat sat").largest_difference == 0


# ---------------------------------------------------------------------------------------------------------------------
# The tokenizer


def gpt2_encoder(tokens, merges):
    """Return OpenAI's encoder.py (github.com/openai/gpt-2, src/encoder.py): its pattern, its bytes, its merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(b for b in range(256) if b not in letters)}
    pattern = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
    ranks = {pair: rank for rank, pair in enumerate(merges)}

    def encode(text):
        ids = []
        for piece in pattern.findall(text):
            parts = [letters[byte] for byte in piece.encode()]
            while pairs := [p for p in itertools.pairwise(parts) if p in ranks]:
                best, merged, place = min(pairs, key=ranks.__getitem__), [], 0
                while place < len(parts):
                    found = tuple(parts[place : place + 2]) == best
                    merged.append("".join(parts[place : place + 1 + found]))
                    place += 1 + found
                parts = merged
            ids += [tokens[part] for part in parts]
        return ids

    return encode


@pytest.fixture(scope="module")
def imported_tokenizer(peer, vocabulary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openai")
    import_model(source=str(openai(folder, peer, vocabulary)), out=str(folder / "out"))
    return AutoTokenizer.from_pretrained(folder / "out", trust_remote_code=False)


words = st.sampled_from(["cat", " the", "'s", "IT'S", "  ", "\n\n", "\t", "naïve", "1234", "🙂", "你好", "\u00a0", "…"])


# Of code points that Unicode has not assigned, regex takes many for letters, tokenizers takes them for signs.
characters = st.characters(exclude_categories=["Cs", "Cn"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(words, st.text(characters, max_size=8))).map("".join))
def test_the_tokenizer_is_gpt2s_on_any_text(imported_tokenizer, vocabulary, text):
    text = text.replace("<|endoftext|>", "")
    ids = imported_tokenizer.encode(text)
    assert ids == gpt2_encoder(*vocabulary)(text)
    assert imported_tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_the_tokenizer_may_be_given_by_name(peer, vocabulary, source, out, tmp_path):
    save_file(old_tensors(peer), source / "gpt2.safetensors")
    other = tmp_path / "tokenizer"
    GPT2Tokenizer(vocab=vocabulary[0], merges=vocabulary[1]).save_pretrained(other)
    import_model(source=str(source / "gpt2.safetensors"), tokenizer=str(other), out=str(out))
    assert AutoTokenizer.from_pretrained(out).encode("The cat") == AutoTokenizer.from_pretrained(other).encode(
        "The cat"
    )
    assert read_yaml(out / "recipe.yaml")["settings"]["tokenizer"] == "tokenizer"


# ---------------------------------------------------------------------------------------------------------------------
# The Hub


@pytest.mark.parametrize("form", [saved_by_transformers, pickled], ids=lambda form: form.__name__)
def test_a_name_on_the_hub_is_fetched(form, peer, vocabulary, source, out, tmp_path, monkeypatch):
    """From the cache that an earlier download would have left: the tests have no network."""
    repository = tmp_path / "hub" / "models--someone--gpt2"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(form(source, peer, vocabulary), snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    import_model(source="someone/gpt2")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "runs" / "import-someone-gpt2")
    assert torch.equal(logits_of(model, random_ids(1, 40)), logits_of(peer, random_ids(1, 40)))


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong with a source


class Code:
    def __reduce__(self):
        return (os.system, ("echo harm > harm.txt",))


def cut(name, keep):
    def fault(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * keep)])

    return fault


def removed(name):
    return lambda folder: (folder / name).unlink()


def written(name, content):
    return lambda folder: (folder / name).write_text(json.dumps(content))


def changed(name, **values):
    def fault(folder):
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return fault


def changed_tensors(change):
    def fault(folder):
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")

    return fault


def code_in_the_pickle(folder):
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"wte.weight": Code()}))


def code_in_a_new_pickle(folder):
    torch.save({"wte.weight": Code()}, folder / "pytorch_model.bin")


def a_list_in_the_pickle(folder):
    torch.save([torch.zeros(2)], folder / "pytorch_model.bin")


def removed_shard(folder):
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def second_checkpoint(folder):
    shutil.copy(folder / "model.ckpt.index", folder / "model-2.index")


@pytest.mark.parametrize(
    ("form", "fault", "message"),
    [
        (old_safetensors, cut("model.safetensors", 0.5), r"model\.safetensors is cut short"),
        (old_safetensors, changed_tensors(lambda t: t.pop("ln_f.bias")), r"missing ln_f\.bias"),
        (
            old_safetensors,
            changed_tensors(lambda t: t.update(odd=torch.zeros(1))),
            r"odd: no tensor of this gpt2",
        ),
        (
            old_safetensors,
            changed_tensors(lambda t: t.update({"h.1.ln_2.bias": torch.zeros(7)})),
            r"h\.1\.ln_2\.bias has shape \(7,\) instead of \(128,\)",
        ),
        (old_safetensors, changed("config.json", n_layer=3), r"missing h\.2\.attn\.c_attn\.bias.* and 9 more"),
        (old_safetensors, changed("config.json", model_type="llama"), r"missing embed_tokens\.weight"),
        (old_safetensors, changed("config.json", scale_attn_weights=False), r"scale_attn_weights=False"),
        (old_safetensors, changed("config.json", activation_function="what"), r"hidden_act='what' is unknown"),
        (old_safetensors, changed("config.json", n_head="two"), r"n_head"),
        (old_safetensors, cut("config.json", 0.5), r"config\.json is no JSON"),
        (old_safetensors, written("config.json", [1]), r"config\.json must hold names and values"),
        (old_safetensors, removed("merges.txt"), r"there is no tokenizer beside the weights .* add --tokenizer"),
        (old_safetensors, cut("vocab.json", 0.5), r"vocab\.json or merges\.txt is broken"),
        (old_safetensors, removed("model.safetensors"), r"holds none of model\.safetensors"),
        (sharded, removed_shard, r"model-00002-of-.*safetensors is missing"),
        (sharded, written("model.safetensors.index.json", {}), r"has no weight_map"),
        (pickled, code_in_the_pickle, r"broken or holds more than tensors, and is not opened"),
        (pickled, code_in_a_new_pickle, r"broken or holds more than tensors, and is not opened"),
        (pickled, cut("pytorch_model.bin", 0.5), r"broken or holds more than tensors, and is not opened"),
        (pickled, a_list_in_the_pickle, r"something else than a dictionary of tensors"),
        (openai, cut("model.ckpt.index", 0.5), r"model\.ckpt\.index is cut short or is no TensorFlow checkpoint"),
        (openai, cut("model.ckpt.index", 0), r"model\.ckpt\.index is cut short or is no TensorFlow checkpoint"),
        (openai, cut("model.ckpt.data-00000-of-00001", 0.9), r"of-00001 is cut short at model/wpe"),
        (openai, cut("model.ckpt.data-00000-of-00001", 0.1), r"of-00001 is cut short at model/h0/attn/c_attn/w"),
        (openai, removed("model.ckpt.data-00000-of-00001"), r"of-00001 is missing beside model\.ckpt\.index"),
        (openai, written("hparams.json", {"n_vocab": VOCABULARY}), r"hparams\.json has no n_ctx, n_embd"),
        (openai, second_checkpoint, r"several checkpoints, model-2\.index, model\.ckpt\.index: give one"),
    ],
)
def test_what_is_wrong_with_a_source_is_said_in_one_line_and_nothing_is_left(
    form, fault, message, peer, vocabulary, source, out, monkeypatch
):
    monkeypatch.chdir(source)
    form(source, peer, vocabulary)
    fault(source)
    with pytest.raises(InputError, match=message) as caught:
        import_model(source=str(source), out=str(out))
    assert "\n" not in str(caught.value)
    assert not out.exists() and not (source / "harm.txt").exists()


@pytest.mark.parametrize(
    ("options", "message"), [({"dtype": 19}, "not one whole tensor"), ({"compression": 1}, "compr")]
)
def test_a_tensorflow_checkpoint_of_another_kind_is_refused(options, message, peer, vocabulary, source, out):
    with pytest.raises(InputError, match=message):
        import_model(source=str(openai(source, peer, vocabulary, **options)), out=str(out))


def test_a_tokenizer_of_another_model_is_refused(peer, vocabulary, source, out):
    tokens, merges = vocabulary
    old_safetensors(source, peer, (tokens | {"more": VOCABULARY}, merges))
    with pytest.raises(InputError, match=f"tokenizer has {VOCABULARY + 1} tokens, the model only {VOCABULARY}"):
        import_model(source=str(source), out=str(out))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./sourse", r"\./sourse does not exist \(did you mean 'source'\?\)"),
        ("gpt2.safetensors", r"gpt2\.safetensors does not exist"),
        ("nobody/has-this", r"no folder or file nobody/has-this, and the Hub gives none"),
        ("source/notes.txt", r"notes\.txt is no file of weights"),
        ("", "needs a source"),
    ],
)
def test_a_source_that_is_not_there_is_named(name, message, source, out, tmp_path, monkeypatch, vocabulary):
    monkeypatch.chdir(tmp_path)
    with_tokenizer(source, vocabulary)
    (source / "notes.txt").write_text("nothing")
    with pytest.raises(InputError, match=message):
        import_model(source=name, out=str(out))


# ---------------------------------------------------------------------------------------------------------------------
# Export


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, VOCABULARY)


def checkpoint(folder, bpe, dtype=torch.float32, **knobs):
    config = GroundupConfig(
        vocab_size=len(bpe), hidden_size=96, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=2,
        max_position_embeddings=96, bos_token_id=bpe.bos_token_id, eos_token_id=bpe.eos_token_id,
        pad_token_id=bpe.pad_token_id, **knobs,
    )  # fmt: skip
    save_model(folder, perturbed(GroundupForCausalLM(config)).to(dtype), bpe)
    return folder


RELU2 = {"qk_norm": False, "gated_mlp": False, "hidden_act": "relu2"}
TWIN = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("to", "knobs"), [("llama", {"qk_norm": False}), ("qwen3", {}), ("arcee", RELU2)])
def test_a_checkpoint_becomes_a_folder_that_needs_no_code_of_ours(to, knobs, dtype, bpe, source, out):
    checkpoint(source, bpe, dtype, **knobs)
    export(checkpoint=str(source), to=to, out=str(out))
    assert {path.name for path in out.iterdir()} == TWIN | {
        "chat_template.jinja",
        "recipe.yaml",
        "metrics.json",
        "README.md",
    }
    model, twin = AutoModelForCausalLM.from_pretrained(source), AutoModelForCausalLM.from_pretrained(out)
    assert (twin.config.model_type, twin.dtype) == (to, dtype)
    assert torch.equal(logits_of(model, random_ids(2, 40)), logits_of(twin, random_ids(2, 40)))
    tokenizer = AutoTokenizer.from_pretrained(out, trust_remote_code=False)
    assert tokenizer.encode(TEXTS[1] + "<|user|>") == bpe.encode(TEXTS[1] + "<|user|>")
    assert tokenizer.chat_template == bpe.chat_template
    assert json.loads((out / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "auto_map" not in (out / "config.json").read_text()


def test_gpt2_goes_in_and_out_again_with_the_same_bits(peer, vocabulary, source, out, tmp_path):
    saved_by_transformers(source, peer, vocabulary)
    import_model(source=str(source), out=str(tmp_path / "ours"))
    export(checkpoint=str(tmp_path / "ours"), to="gpt2", out=str(out))
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    _, info = GPT2LMHeadModel.from_pretrained(out, output_loading_info=True)
    assert not any(info.values())
    assert AutoTokenizer.from_pretrained(out).encode(TEXTS[1]) == AutoTokenizer.from_pretrained(source).encode(TEXTS[1])


def test_a_gpt2_of_our_own_keeps_its_own_tokenizer(bpe, source, out, tmp_path):
    """transformers would give a model of type gpt2 the pattern of GPT-2's tokenizer, if the class were not named."""
    knobs = {"position_embedding": "learned", "norm": "layer_norm", "qk_norm": False, "gated_mlp": False}
    config = GroundupConfig(vocab_size=len(bpe), hidden_size=48, num_hidden_layers=1, bos_token_id=0, **knobs)
    save_model(source, perturbed(GroundupForCausalLM(config)), bpe)
    export(checkpoint=str(source), to="gpt2", out=str(out))
    assert AutoTokenizer.from_pretrained(out).encode("a 1234\n\nb it'S") == bpe.encode("a 1234\n\nb it'S")
    import_model(source=str(out), out=str(tmp_path / "back"))
    assert AutoTokenizer.from_pretrained(tmp_path / "back").encode("a 1234\n\nb it'S") == bpe.encode("a 1234\n\nb it'S")


@pytest.mark.parametrize("knobs", [{}, {"qk_norm": False}, RELU2], ids=["qwen3", "llama", "arcee"])
def test_a_checkpoint_becomes_one_gguf_file(knobs, bpe, source, out, capsys):
    export(checkpoint=str(checkpoint(source, bpe, **knobs)), to="gguf", out=str(out))
    assert {path.name for path in out.iterdir()} == {
        "model.gguf", "Modelfile", "recipe.yaml", "metrics.json", "README.md"
    }  # fmt: skip
    said = " ".join(capsys.readouterr().err.split())
    assert ("loaded without code of ours: logits equal" in said) == (knobs != RELU2)


@pytest.mark.parametrize("name", ["my_model.gguf", "MY.MODEL.GGUF", "not/yet/there/x.gguf"])
def test_out_with_a_name_of_a_gguf_file_is_that_file(name, bpe, source, tmp_path):
    written = export(checkpoint=str(checkpoint(source, bpe)), to="gguf", out=str(tmp_path / "made" / name), quiet=True)
    assert written == tmp_path / "made" / name and written.read_bytes()[:4] == b"GGUF"
    assert {path.name for path in written.parent.iterdir()} == {written.name, f"{written.stem}.Modelfile"}
    with pytest.raises(InputError, match="is there already"):
        export(checkpoint=str(source), to="gguf", out=str(written))


def test_a_folder_in_the_way_of_a_gguf_file_is_left_and_a_twin_is_no_file(bpe, source, tmp_path):
    (tmp_path / "x.gguf").mkdir()
    with pytest.raises(InputError, match="is there already"):
        export(checkpoint=str(checkpoint(source, bpe)), to="gguf", out=str(tmp_path / "x.gguf"))
    with pytest.raises(InputError, match=r"names a file for llama\.cpp: add --to gguf, or name a folder for qwen3"):
        export(checkpoint=str(source), to="qwen3", out=str(tmp_path / "y.gguf"))
    assert not (tmp_path / "y.gguf").exists()


def test_a_twin_that_computes_something_else_is_no_file_either(bpe, source, tmp_path, monkeypatch):
    make_twin = conversion.make_twin
    monkeypatch.setattr(conversion, "make_twin", lambda *arguments: perturbed(make_twin(*arguments)))
    with pytest.raises(InputError, match=r"gives other logits, by .* and is not kept"):
        export(checkpoint=str(checkpoint(source, bpe)), to="gguf", out=str(tmp_path / "x.gguf"))
    assert list(tmp_path.iterdir()) == [source]


def test_a_twin_loads_where_this_package_is_not(bpe, source, out):
    export(checkpoint=str(checkpoint(source, bpe)), to="qwen3", out=str(out))
    code = (
        "import sys; sys.modules['groundup'] = None\n"
        "import torch\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=False)\n"
        "model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=False)\n"
        "prompt = tokenizer('The cat', return_tensors='pt')\n"
        "print(model.generate(**prompt, do_sample=False, max_new_tokens=20).tolist())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, out], capture_output=True, text=True, cwd=out)
    assert done.returncode == 0, done.stderr
    model, prompt = AutoModelForCausalLM.from_pretrained(source), bpe("The cat", return_tensors="pt")
    assert done.stdout.strip() == str(model.generate(**prompt, do_sample=False, max_new_tokens=20).tolist())


@pytest.mark.parametrize(
    ("to", "knobs", "message"),
    [
        ("llama", {}, r"qk_norm=True where it has False; it has a twin in qwen3"),
        ("gguf", {"sliding_window": 8}, r"sliding_window=8"),
        ("gpt2", {}, r"position_embedding='rotary' where it has 'learned'"),
        ("gguf", {"attention_bias": True}, r"attention_bias=True where it has no biases"),
        ("qwen3", {"is_causal": False}, r"it is an encoder, which sees the tokens that follow"),
    ],
)
def test_what_cannot_be_exact_is_refused_and_nothing_is_left(to, knobs, message, bpe, source, out):
    if not knobs.get("is_causal", True):
        checkpoint(source, bpe)
        changed("config.json", **knobs)(source)
    else:
        checkpoint(source, bpe, **knobs)
    with pytest.raises(InputError, match=message):
        export(checkpoint=str(source), to=to, out=str(out))
    assert not out.exists()


@pytest.mark.parametrize("to", ["qwen3", "gguf"])
def test_a_twin_that_computes_something_else_is_not_kept(to, bpe, source, out, monkeypatch):
    def broken(*arguments):
        return perturbed(make_twin(*arguments))

    make_twin = conversion.make_twin
    monkeypatch.setattr(conversion, "make_twin", broken)
    with pytest.raises(InputError, match=r"gives other logits, by .* and is not kept"):
        export(checkpoint=str(checkpoint(source, bpe)), to=to, out=str(out))
    assert list(out.parent.iterdir()) == [source]


def test_a_stock_model_is_nothing_to_export(peer, vocabulary, source, out):
    with pytest.raises(InputError, match="is a gpt2 model already"):
        export(checkpoint=str(saved_by_transformers(source, peer, vocabulary)), to="gpt2", out=str(out))


def test_gguf_without_its_package_says_how_to_get_it(bpe, source, out, monkeypatch):
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'groundup\[gguf\]'"):
        export(checkpoint=str(source), to="gguf", out=str(out))


def test_both_verbs_take_their_source_without_an_option_and_fail_with_status_2(
    peer, vocabulary, source, out, tmp_path, capsys
):
    saved_by_transformers(source, peer, vocabulary)
    assert main(["import-gpt2", str(source), "--out", str(out), "--quiet"]) == 0
    assert main(["export", str(out), "--to", "gpt2", "--out", str(tmp_path / "twin"), "--quiet"]) == 0
    assert capsys.readouterr().err == ""
    assert main(["export", str(out), "--out", str(tmp_path / "no")]) == 2
    assert main(["export", str(out), "--to", "llama", "--out", str(tmp_path / "no")]) == 2
    assert main(["export", str(out), "--to", "lama", "--out", str(tmp_path / "no")]) == 2
    assert main(["import-gpt2", str(source), "--out", str(out)]) == 2
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 4
    assert "--to 'lama': gpt2, llama, qwen2, qwen3, mistral, ministral, arcee, starcoder2 or gguf is wanted" in said[2]
    assert Path(out / "model.safetensors").is_file() and not (tmp_path / "no").exists()
