"""Twins: stock models that compute the same to the last bit; what cannot be one is refused by the knob in the way."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.export import assemble, gguf_form, make_twin, spell_for_transformers_4, write_gguf
from groundup.modeling.stock import obstacles
from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe, train_word_level

SIZES = {
    "vocab_size": 211, "hidden_size": 96, "num_hidden_layers": 3, "num_attention_heads": 6, "num_key_value_heads": 2,
    "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip
KNOBS = {
    "llama": {"qk_norm": False},
    "qwen3": {},
    "arcee": {"qk_norm": False, "gated_mlp": False, "hidden_act": "relu2"},
    "gpt2": {
        "position_embedding": "learned", "norm": "layer_norm", "qk_norm": False, "gated_mlp": False,
        "hidden_act": "gelu_new", "num_key_value_heads": 6, "qkv_bias": True, "attention_bias": True, "mlp_bias": True,
    },
}  # fmt: skip
BOOK = {"qkv_bias": False}  # Raschka's GPT has no bias on queries, keys and values, and a head of its own
THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
LINEAR = {"rope_parameters": {"rope_type": "linear", "rope_theta": 50000.0, "factor": 2.0}}
YARN = {
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 50000.0, "factor": 2.0, "original_max_position_embeddings": 64
    }
}  # fmt: skip
TEXTS = [
    "The cat sat on the mat. The dog sat on the log, and the frog in the bog.\n" * 3,
    "Zażółć gęślą jaźń: für Größe, naïveté & 你好 — 🙂 ok?\n\n\tdef f(x):\n\t\treturn x  # twice 1234\n" * 3,
]


def model_of(target, **knobs):
    torch.manual_seed(0)
    model = GroundupForCausalLM(GroundupConfig(**{**SIZES, **KNOBS[target], **knobs}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def random_ids(*shape):
    return torch.randint(2, 211, shape, generator=torch.Generator().manual_seed(1))


def logits_of(model, *ids, **inputs):
    with torch.no_grad():
        return model(*ids, **inputs).logits


def saved(twin, folder):
    twin.save_pretrained(folder)
    spell_for_transformers_4(folder / "config.json")
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("target", "knobs"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, **THETA}),
        ("llama", {"qkv_bias": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True, **LINEAR}),
        ("qwen3", {}),
        ("qwen3", {"head_dim": 20, "tie_word_embeddings": True}),
        ("qwen3", {"attention_bias": True, **YARN}),
        ("arcee", {}),
        ("arcee", {"qkv_bias": True, "mlp_bias": True, "norm_eps": 1e-4}),
        ("gpt2", {"tie_word_embeddings": True}),
        ("gpt2", BOOK),
        ("gpt2", {"hidden_act": "silu", "intermediate_size": 100, "mlp_bias": False}),
    ],
)
def test_a_twin_computes_the_same_to_the_last_bit_and_writes_the_same(target, knobs, dtype, tmp_path, equal_to_gpt2):
    model = model_of(target, **knobs)
    model = assemble(model.config, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    twin = AutoModelForCausalLM.from_pretrained(saved(make_twin(model, target), tmp_path))
    assert (twin.config.model_type, twin.dtype) == (target, dtype)
    assert twin.config.eos_token_id == 0 and twin.generation_config.eos_token_id == 0
    equal = equal_to_gpt2 if target == "gpt2" else torch.equal
    for shape in [(1, 33), (2, 40), (3, 128)]:
        assert equal(logits_of(twin, random_ids(*shape)), logits_of(model, random_ids(*shape)))
    if dtype == torch.float32:
        ids = random_ids(2, 5)
        options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 30, "do_sample": False}
        assert torch.equal(twin.generate(ids, **options), model.generate(ids, **options))


def test_the_folder_of_a_twin_holds_no_code_and_names_none(tmp_path):
    saved(make_twin(model_of("qwen3"), "qwen3"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert "auto_map" not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    ("target", "knobs", "scaling"),
    [
        ("qwen3", THETA, None),
        ("llama", LINEAR, {"rope_type": "linear", "factor": 2.0}),
        ("gpt2", {}, None),
    ],
)
def test_the_rotary_base_is_spelled_for_transformers_4_too(target, knobs, scaling, tmp_path):
    config = json.loads((saved(make_twin(model_of(target, **knobs), target), tmp_path) / "config.json").read_text())
    assert config.get("rope_theta") == (50000.0 if knobs else None)
    assert config.get("rope_scaling") == scaling


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_transformers_4_reads_every_twin_right(tmp_path):
    """Its own spelling of the rotary base and of the tokenizer's class; where it is wrong, it is wrong silently."""
    old = tmp_path / "transformers-4"
    packages = ["transformers==4.57.3", "tokenizers==0.22.1", "huggingface_hub==0.36.0"]
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", old, *packages]
    subprocess.run(pip, check=True, capture_output=True)
    tokenizer = train_bpe(TEXTS, 300)
    cases = [("qwen3", THETA), ("llama", LINEAR), ("qwen3", YARN), ("arcee", THETA), ("gpt2", {})]
    for number, (target, knobs) in enumerate(cases):
        model = model_of(target, vocab_size=300, **knobs)
        folder = saved(make_twin(model, target), tmp_path / str(number))
        save_tokenizer(tokenizer, folder, 128)
        expected = [logits_of(model, random_ids(2, 40)), logits_of(model, **tokenizer("The cat", return_tensors="pt"))]
        torch.save(expected, folder / "expected.pt")
    code = (
        "import sys, torch, transformers\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "assert transformers.__version__ == '4.57.3'\n"
        "torch.set_num_threads(1)\n"
        "ids = torch.randint(2, 211, (2, 40), generator=torch.Generator().manual_seed(1))\n"
        "for folder in sys.argv[1:]:\n"
        "    model = AutoModelForCausalLM.from_pretrained(folder).eval()\n"
        "    tokenizer, expected = AutoTokenizer.from_pretrained(folder), torch.load(folder + '/expected.pt')\n"
        "    short = tokenizer('The cat', return_tensors='pt')\n"
        "    long = tokenizer('The cat naïve 12 ' * 99, truncation=True)\n"
        "    with torch.no_grad(): found = [model(ids).logits, model(**short).logits]\n"
        "    differences = [(one - other).abs().max().item() for one, other in zip(found, expected)]\n"
        "    written = model.generate(**short, max_new_tokens=3, min_new_tokens=3)[0]\n"
        "    print(differences[0], differences[1] < 1e-5, len(written) - short.input_ids.shape[1], "
        "len(long.input_ids), tokenizer.encode('The cat naïve 12'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(tmp_path / str(number)) for number in range(len(cases)))],
        env=os.environ | {"PYTHONPATH": str(old)}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"0.0 True 3 128 {tokenizer.encode('The cat naïve 12')}"] * len(cases)


@pytest.mark.parametrize(
    ("target", "knobs", "message"),
    [
        ("llama", {"qk_norm": True}, r"qk_norm=True where it has False; it has a twin in qwen3"),
        ("qwen3", {"qk_norm": False}, r"qk_norm=False where it has True; it has a twin in llama"),
        ("llama", {"norm": "layer_norm"}, r"norm='layer_norm' where it has 'rms_norm'$"),
        ("llama", {"position_embedding": "learned"}, r"position_embedding='learned' where it has 'rotary'"),
        ("llama", {"hidden_act": "gelu"}, r"hidden_act='gelu' where it has 'silu'"),
        ("llama", {"gated_mlp": False}, r"gated_mlp=False where it has True"),
        ("llama", {"head_dim": 20, "hidden_size": 100}, r"hidden_size=100, which does not divide"),
        ("qwen3", {"mlp_bias": True}, r"mlp_bias=True where it has False"),
        ("llama", {"qk_norm": False, "sliding_window": 8}, r"sliding_window=8 where it sees the whole text"),
        ("qwen3", {"add_cross_attention": True}, r"add_cross_attention=True where it has False"),
        ("arcee", {"hidden_act": "gelu_new"}, r"hidden_act='gelu_new' where it has 'relu2'"),
        ("arcee", {"gated_mlp": True}, r"gated_mlp=True where it has False"),
        ("gpt2", {"norm": "rms_norm"}, r"norm='rms_norm' where it has 'layer_norm'"),
        ("gpt2", {"num_key_value_heads": 2}, r"num_key_value_heads=2 where it has one for each query head"),
        ("gpt2", {"head_dim": 20}, r"head_dim=20 where its heads share the width"),
    ],
)
def test_what_a_stock_class_cannot_express_is_refused_with_the_knob_and_its_value(target, knobs, message):
    model = model_of(target, **knobs)
    with pytest.raises(ValueError, match=message):
        make_twin(model, target)


def test_an_encoder_has_no_twin_and_all_obstacles_are_named_at_once():
    config = GroundupConfig(**SIZES, is_causal=False, norm="layer_norm")
    assert [found.split("=")[0] for found in obstacles(config, "llama")] == ["is_causal", "norm", "qk_norm"]


def test_weights_that_do_not_make_the_model_are_named():
    model = model_of("llama")
    tensors = model.state_dict()
    norm = tensors.pop("model.norm.weight")
    with pytest.raises(ValueError, match=r"missing \['model\.norm\.weight'\]"):
        assemble(model.config, tensors)
    with pytest.raises(ValueError, match=r"not known \['other'\]"):
        assemble(model.config, tensors | {"model.norm.weight": norm, "other": norm})


# ---------------------------------------------------------------------------------------------------------------------
# GGUF


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, 300)


def gpt2_tokenizer():
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"])
    backend.train_from_iterator(TEXTS, trainer)
    state = json.loads(backend.to_str())["model"]
    return GPT2Tokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]])


@pytest.mark.parametrize("kind", ["ours", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("form", "knobs"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, **THETA}),
        ("qwen3", {}),
        ("qwen3", {"head_dim": 20, "tie_word_embeddings": True}),
        ("gpt2", {"tie_word_embeddings": True}),
        ("gpt2", BOOK),
    ],
)
def test_a_gguf_file_loads_again_by_an_independent_reader_with_its_tokenizer(form, knobs, dtype, kind, bpe, tmp_path):
    model = model_of(form, vocab_size=310, **knobs)  # more embeddings than tokens
    assert gguf_form(model.config) == form
    twin = make_twin(model, form, dtype)
    tokenizer = bpe if kind == "ours" else gpt2_tokenizer()
    write_gguf(tmp_path / "model.gguf", twin, tokenizer, "a name")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    rounded = {name: tensor.to(dtype).float() for name, tensor in model.state_dict().items()}
    ids = random_ids(2, 40)
    assert torch.equal(logits_of(again, ids), logits_of(assemble(model.config, rounded), ids))
    reread = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    text = TEXTS[1] + " 12345 it's IT'S   x\n\n y\r\nüÜ<|endoftext|>hi" + "<|user|>" * (kind == "ours")
    assert reread.encode(text) == tokenizer.encode(text)
    assert (reread.bos_token, reread.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)
    if kind == "ours":
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
        assert reread.apply_chat_template(turns) == tokenizer.apply_chat_template(turns)
        assert "generation" not in reread.chat_template.replace("add_generation_prompt", "")


@pytest.mark.parametrize(
    ("form", "tied", "width", "heads", "kv_heads", "head_dim"),
    [
        ("qwen3", True, 96, 6, 6, 16), ("qwen3", False, 96, 6, 2, 20), ("qwen3", True, 96, 3, 1, 32),
        ("qwen3", False, 64, 4, 2, 8), ("qwen3", True, 32, 2, 1, 128), ("llama", True, 96, 6, 6, 16),
        ("llama", False, 96, 6, 2, 20), ("llama", True, 64, 4, 2, 8), ("llama", False, 32, 2, 1, 128),
        ("gpt2", True, 96, 6, 6, 16), ("gpt2", False, 32, 2, 2, 16),
    ],
)  # fmt: skip
def test_transformers_finds_every_size_in_the_file(form, tied, width, heads, kv_heads, head_dim, bpe, tmp_path):
    """It takes what the file does not name from the defaults of the class, and then the tensors do not fit."""
    sizes = {"hidden_size": width, "num_attention_heads": heads, "num_key_value_heads": kv_heads, "head_dim": head_dim}
    model = model_of(form, **sizes, tie_word_embeddings=tied, vocab_size=300, max_position_embeddings=48)
    write_gguf(tmp_path / "model.gguf", make_twin(model, gguf_form(model.config)), bpe, "a name")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert again.config.max_position_embeddings == 48
    assert torch.equal(logits_of(again, random_ids(2, 40)), logits_of(model, random_ids(2, 40)))


@pytest.mark.parametrize("stops", [None, 0, 5, [5], [0, 5], [5, 0, 7], (7, 9)])
def test_every_token_at_which_the_model_stops_is_in_the_file(stops, bpe, tmp_path):
    import gguf

    model = model_of("llama", vocab_size=300)
    model.generation_config.eos_token_id = stops
    write_gguf(tmp_path / "model.gguf", make_twin(model, "llama"), bpe, "a name")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    names = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot", "eom")]
    found = [fields[name].contents() for name in names if name in fields]
    wanted = {0} if stops is None else {stops} if isinstance(stops, int) else set(stops)
    assert set(found) == wanted and len(found) == len(wanted)
    assert 0 not in wanted or found[0] == 0  # the tokenizer's own end
    assert [fields[f"tokenizer.ggml.add_{name}_token"].contents() for name in ("bos", "eos")] == [False, False]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert all(types[bpe.convert_tokens_to_ids(token)] == gguf.TokenType.CONTROL for token in bpe.all_special_tokens)


def test_a_model_that_stops_at_more_tokens_than_a_file_names_is_refused(bpe, tmp_path):
    model = model_of("llama", vocab_size=300)
    model.generation_config.eos_token_id = [0, 5, 6, 7]
    with pytest.raises(ValueError, match=r"stops at 4 tokens .*leave some out of eos_token_id"):
        write_gguf(tmp_path / "model.gguf", make_twin(model, "llama"), bpe, "a name")


def test_a_relu2_model_goes_into_a_gguf_file_as_arcee_with_llamas_order_of_rows(bpe, tmp_path):
    import gguf

    model = model_of("arcee")
    assert gguf_form(model.config) == "arcee"
    write_gguf(tmp_path / "model.gguf", make_twin(model, "arcee"), train_bpe(TEXTS, 270), "a name")
    found = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert len(found) == len(model.state_dict())
    ours = dict(model.named_parameters())
    assert torch.equal(found["blk.2.ffn_up.weight"], ours["model.layers.2.mlp.up_proj.weight"])
    assert torch.equal(found["blk.0.attn_v.weight"], ours["model.layers.0.self_attn.v_proj.weight"])
    # llama.cpp's convert_hf_to_gguf.py, LlamaModel.permute: 2 key heads of width 16.
    key = ours["model.layers.0.self_attn.k_proj.weight"]
    assert torch.equal(found["blk.0.attn_k.weight"], key.reshape(2, 2, 8, 96).swapaxes(1, 2).reshape(32, 96))


@pytest.mark.parametrize(
    ("target", "knobs", "message"),
    [
        ("llama", {"qkv_bias": True}, r"for llama there is qkv_bias=True where it has no biases"),
        ("arcee", {"mlp_bias": True}, r"for arcee there is mlp_bias=True where it has no biases"),
        ("qwen3", YARN, r"for qwen3 there is rope_type='yarn' where it has 'default'"),
        ("qwen3", {"sliding_window": 8}, r"for qwen3 there is sliding_window=8"),
        ("gpt2", {"hidden_act": "relu"}, r"for gpt2 there is hidden_act='relu' where it has 'gelu_new'"),
    ],
)
def test_what_llama_cpp_cannot_express_is_refused_with_the_knob(target, knobs, message):
    with pytest.raises(ValueError, match=message):
        gguf_form(GroundupConfig(**{**SIZES, **KNOBS[target], **knobs}))


def with_another_pattern(tokenizer):
    state = tokenizer.backend_tokenizer.to_str().replace(r"|\\p{N}|", r"|\\p{N}{1,3}|")
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(state))


def with_a_normalizer(tokenizer):
    state = json.loads(tokenizer.backend_tokenizer.to_str()) | {"normalizer": {"type": "NFC"}}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(state)))


@pytest.mark.parametrize("change", [with_another_pattern, with_a_normalizer, lambda _: train_word_level(TEXTS, 40)])
def test_a_tokenizer_that_llama_cpp_does_not_know_is_refused(change, bpe, tmp_path):
    twin = make_twin(model_of("llama", vocab_size=300), "llama")
    with pytest.raises(ValueError, match=re.escape("llama.cpp does not know this tokenizer")):
        write_gguf(tmp_path / "model.gguf", twin, change(bpe), "a name")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("target", KNOBS)
def test_a_twin_keeps_the_settings_that_no_logit_shows(target):
    told = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 4}
    model = model_of(target, attention_dropout=0.25, initializer_range=0.05, use_cache=False, **told).train()
    model.generation_config.temperature = 0.5
    twin = make_twin(model, target)
    for name in (
        "max_position_embeddings", "attention_dropout", "initializer_range", "use_cache",
        "bos_token_id", "eos_token_id", "pad_token_id",
    ):  # fmt: skip
        found = {"attention_dropout": "attn_pdrop"}.get(name, name) if target == "gpt2" else name
        assert getattr(twin.config, found) == getattr(model.config, name), name
    assert twin.generation_config.temperature == 0.5
    assert not twin.training


@pytest.mark.parametrize("tied", [True, False])
def test_a_weight_that_is_missing_is_named_whether_the_head_is_tied_or_not(tied):
    model = model_of("llama", tie_word_embeddings=tied)
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "model.norm.weight"}
    with pytest.raises(ValueError, match=r"missing \['model\.norm\.weight'\]"):
        assemble(model.config, tensors)
