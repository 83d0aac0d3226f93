"""import: stock models of every class in, the same bytes out again; their own tokenizer files; refusals in one line."""

import json
import shutil
import struct
import typing

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from groundup.cli.main import main
from groundup.common.errors import InputError
from groundup.common.options import StockForm
from groundup.modeling import GroundupForCausalLM
from groundup.modeling.architectures import ARCHITECTURES
from groundup.publishing import conversion, importing
from groundup.publishing.conversion import export
from groundup.publishing.importing import import_gpt2, import_model

TEXTS = ["The cat sat on the mat. The dog sat on the log, and it's the frog's bog.\n" * 3, "Zażółć — naïveté 你好 🙂\n"]
SIZES = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2,
}  # fmt: skip
FOLDERS = {
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None},
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {"head_dim": 20, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 9},
    "ministral": {"head_dim": 16, "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"]},
    "arcee": {"mlp_bias": True},
    "starcoder2": {"sliding_window": 9},
}
TEMPLATE = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"


@pytest.fixture(scope="module")
def tokenizer():
    """Make a tokenizer that adds a token before every text, as Llama's does; it comes with a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special)
    backend.train_from_iterator(TEXTS, trainer)
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def stock(kind, dtype=torch.float32, **settings):
    torch.manual_seed(0)
    fields = {name: value for name, value in (SIZES | FOLDERS[kind] | settings).items() if value is not None}
    model = AutoModelForCausalLM.from_config(ARCHITECTURES[kind].config(**fields))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype).eval()


def saved(folder, model, tokenizer, **options):
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.2, top_p=0.9, eos_token_id=[1, 5])
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values))  # laid out in another way than our own files
    return folder


def logits_of(model, length=40):
    ids = torch.randint(3, 300, (2, length), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(ids).logits


def test_what_can_be_imported_is_what_can_be_exported():
    assert set(typing.get_args(StockForm)) == {*ARCHITECTURES, "gguf"} and FOLDERS.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", FOLDERS)
def test_a_folder_comes_in_and_goes_out_with_the_same_bytes(kind, dtype, tokenizer, source, out, tmp_path):
    peer = stock(kind, dtype)
    saved(source, peer, tokenizer)
    import_model(source=source, out=out)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert type(model) is GroundupForCausalLM and model.dtype == dtype and not any(info.values())
    both = [AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for folder in (source, out)]
    assert torch.equal(*map(logits_of, both))
    own = ["chat_template.jinja", "generation_config.json"]
    own += ["tokenizer.json"] * (kind != "qwen2")  # its class cuts text in its own way, whatever the file says
    assert all((out / name).read_bytes() == (source / name).read_bytes() for name in own)
    text = "The cat <pad> naïve</s>"
    assert AutoTokenizer.from_pretrained(out).encode(text) == AutoTokenizer.from_pretrained(source).encode(text)
    export(checkpoint=out, to=kind, out=tmp_path / "back")
    before, after = load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)) for name, tensor in before.items())
    assert (tmp_path / "back" / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    configs = [json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back")]
    for config in configs:  # transformers 4 reads the rotary base elsewhere
        config.pop("rope_theta", None)
    assert configs[0] == configs[1]


def test_shards_half_precision_and_one_file_are_read_alike(tokenizer, source, out, tmp_path):
    peer = stock("llama", torch.float16)
    saved(source, peer, tokenizer, max_shard_size="40KB")
    assert len(list(source.glob("model-*.safetensors"))) > 2
    import_model(source=source, out=out)
    whole = tmp_path / "whole"
    saved(whole, peer, tokenizer)
    (whole / "model.safetensors").rename(whole / "other.safetensors")
    import_gpt2(source=whole / "other.safetensors", out=tmp_path / "again")
    found = load_file(out / "model.safetensors")
    assert {tensor.dtype for tensor in found.values()} == {torch.float16}
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(tensor, again[name]) for name, tensor in found.items())


def test_angles_written_as_transformers_4_did_are_read(tokenizer, source, out):
    saved(source, stock("llama"), tokenizer)
    config = json.loads((source / "config.json").read_text())
    del config["rope_parameters"]
    llama3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
    config |= {"rope_theta": 5e5, "rope_scaling": {"type": "llama3", **llama3}}
    (source / "config.json").write_text(json.dumps(config))
    import_model(source=source, out=out)
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.config.rope_parameters["rope_theta"] == 5e5 and model.config.rope_parameters["factor"] == 8.0
    assert torch.equal(logits_of(model), logits_of(AutoModelForCausalLM.from_pretrained(source)))


def test_a_gguf_file_is_read_with_its_own_tokenizer(bpe, source, out, tmp_path, capsys):
    model = stock("qwen3", vocab_size=len(bpe))
    saved(source, model, bpe)
    import_model(source=source, out=out)
    export(checkpoint=out, to="gguf", out=tmp_path / "file.gguf")
    (tmp_path / "alone").mkdir()
    for name, place in (("as_a_file", tmp_path / "file.gguf"), ("in_a_folder", tmp_path / "alone")):
        if place.is_dir():
            shutil.copy(tmp_path / "file.gguf", place)
        assert main(["import", str(place), "--out", str(tmp_path / name), "--quiet"]) == 0
        again = AutoModelForCausalLM.from_pretrained(tmp_path / name)
        assert type(again) is GroundupForCausalLM and torch.equal(logits_of(again), logits_of(model))
        assert "quantization" not in (tmp_path / name / "config.json").read_text()
        assert AutoTokenizer.from_pretrained(tmp_path / name).encode(TEXTS[1]) == bpe.encode(TEXTS[1])
    assert "Converting" not in capsys.readouterr().err


def test_an_import_that_gives_other_logits_is_not_kept(tokenizer, source, out, monkeypatch):
    saved(source, stock("llama"), tokenizer)

    def broken(*arguments):
        tensors = from_stock(*arguments)
        return tensors | {"model.norm.weight": tensors["model.norm.weight"] * 1.01}

    from_stock = importing.from_stock
    monkeypatch.setattr(importing, "from_stock", broken)
    with pytest.raises(InputError, match=r"gives other logits, by .*, and is not kept"):
        import_model(source=source, out=out)
    assert not out.exists()


# ---------------------------------------------------------------------------------------------------------------------
# What is wrong with a source


def changed(**values):
    def fault(folder):
        config = json.loads((folder / "config.json").read_text()) | values
        (folder / "config.json").write_text(json.dumps(config))

    return fault


def changed_tensors(**tensors):
    def fault(folder):
        known = load_file(folder / "model.safetensors")
        known |= {name.replace("__", "."): tensor for name, tensor in tensors.items()}
        save_file({name: tensor for name, tensor in known.items() if tensor is not None}, folder / "model.safetensors")

    return fault


def pickled(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def cut(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def adapter(folder):
    (folder / "model.safetensors").unlink()
    (folder / "adapter_config.json").write_text("{}")


def without_tokenizer(folder):
    for path in folder.glob("tokenizer*"):
        path.unlink()


def experts(folder):
    shutil.rmtree(folder)
    MixtralForCausalLM(MixtralConfig(**SIZES, num_local_experts=2)).save_pretrained(folder)


def broken_gguf(folder):
    (folder / "model.safetensors").unlink()
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + bytes(4))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (experts, r"a mixtral model cannot be held exactly: it is a mixture of experts \(num_local_experts=2\)"),
        (changed(model_type="what"), r"model_type 'what', which transformers does not know"),
        (changed(model_type="groundup"), r"it is a groundup model already"),
        (changed(hidden_act="gelu"), r"hidden_act='gelu' where it has 'silu'"),
        (changed(quantization_config={"quant_method": "gptq"}), r"its weights are quantized \(gptq\)"),
        (changed(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}), r"rope_type='dynamic'"),
        (changed(num_hidden_layers=3), r"missing layers\.2\.input_layernorm\.weight, .* and 6 more"),
        (changed(attention_bias=True), r"missing layers\.0\.self_attn\.k_proj\.bias"),
        (changed_tensors(lm_head__bias=torch.zeros(320)), r"lm_head\.bias: no tensor of this llama model"),
        (changed_tensors(score__weight=torch.zeros(2, 64)), r"score\.weight: no tensor of this llama model"),
        (changed_tensors(model__norm__weight=torch.ones(63)), r"norm\.weight has shape \(63,\) instead of \(64,\)"),
        (changed_tensors(model__norm__weight=None), r"missing norm\.weight"),
        (pickled, r"pytorch_model\.bin is a pickle, which is read of GPT-2 alone: give llama as safetensors"),
        (cut, r"model\.safetensors is cut short"),
        (adapter, r"holds an adapter: fold it into its base by groundup merge"),
        (without_tokenizer, r"there is no tokenizer beside the weights"),
        (broken_gguf, r"model\.gguf is cut short or no GGUF file that transformers reads"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_one_line_and_nothing_is_left(fault, message, tokenizer, source, out):
    saved(source, stock("llama"), tokenizer)
    fault(source)
    with pytest.raises(InputError, match=message) as caught:
        import_model(source=source, out=out)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
    assert not out.exists()


def test_of_a_repository_that_cannot_be_held_no_weights_are_fetched(source, out, tmp_path, monkeypatch):
    MixtralConfig(**SIZES, num_local_experts=2).save_pretrained(source)
    asked = []

    def fetched(name, allow_patterns):
        asked.extend(allow_patterns)
        return str(source)

    monkeypatch.setattr(importing, "snapshot_download", fetched)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"cannot import someone/experts: a mixtral model cannot be held"):
        import_model(source="someone/experts", out=out)
    assert "config.json" in asked and not any("safetensors" in pattern or ".bin" in pattern for pattern in asked)
    shutil.rmtree(source)
    stock("llama").config.save_pretrained(source)
    with pytest.raises(InputError, match=r"holds none of model\.safetensors"):
        import_model(source="someone/pickled", out=out)
    assert not any(".bin" in pattern for pattern in asked) and not out.exists()


def test_a_gguf_file_without_its_package_says_how_to_get_it(source, out, monkeypatch):
    (source / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(conversion.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'groundup\[gguf\]'"):
        import_model(source=source, out=out)


def test_both_names_of_the_verb_do_the_same(tokenizer, source, tmp_path, capsys):
    saved(source, stock("llama"), tokenizer)
    for name in ("import", "import-gpt2"):
        assert main([name, str(source), "--out", str(tmp_path / name)]) == 0
        said = capsys.readouterr().err
        assert "a LlamaForCausalLM of" in said
        assert "logits equal to LlamaForCausalLM's (largest difference 0e+00)" in said
    recipes = [(tmp_path / name / "recipe.yaml").read_text() for name in ("import", "import-gpt2")]
    assert recipes[0] == recipes[1] and "verb: import\n" in recipes[0]
    card = (tmp_path / "import" / "README.md").read_text()
    assert "It has the weights of `source`" in card and "trained elsewhere" in card and "not taught" not in card
    assert main(["import", str(tmp_path / "nothing")]) == 2
    assert main(["import-gpt2", "--help"]) == 0
