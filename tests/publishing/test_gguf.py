"""A GGUF file in llama.cpp: what it must do as the checkpoint does, its quantisations, and Ollama's Modelfile."""

import dataclasses
import json
import math

import gguf
import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import GenerationConfig, PreTrainedTokenizerFast

from groundup.common.errors import InputError
from groundup.evaluation.language import score_gguf
from groundup.inference.llama_cpp import Engine, quantize
from groundup.inference.loading import save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.export import gguf_form, make_twin
from groundup.publishing.conversion import export
from groundup.publishing.gguf import (
    CONVERSATIONS,
    Expected,
    hard_texts,
    matrix_type,
    modelfile,
    prove_file,
    write_file,
)
from groundup.tokenization.chat import ALPACA_TEMPLATE, Spelling
from groundup.tokenization.training import train_bpe

TEXTS = [
    "The cat sat on the mat. The dog sat on the log, and it's the frog's bog.\n" * 3,
    "Zażółć gęślą jaźń: für Größe, naïveté & 你好 — 🙂 ok?\n\n\tdef f(x):\n\t\treturn x  # twice 1234\n" * 3,
]
FORMS = {
    "qwen3": {},
    "llama": {"qk_norm": False},
    "arcee": {"qk_norm": False, "gated_mlp": False, "hidden_act": "relu2"},
    "gpt2": {
        "position_embedding": "learned", "norm": "layer_norm", "qk_norm": False, "gated_mlp": False,
        "hidden_act": "gelu_new", "qkv_bias": True, "attention_bias": True, "mlp_bias": True,
    },
}  # fmt: skip
CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe brief.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS, 300)


def make(bpe, form="qwen3", **knobs):
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 96}
    config = GroundupConfig(**sizes, vocab_size=len(bpe), eos_token_id=0, **FORMS[form] | knobs)
    model = GroundupForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def written(path, model, tokenizer, quantization=None):
    twin = make_twin(model, gguf_form(model.config))
    write_file(path, twin, tokenizer, "a name", quantization)
    return path


@pytest.fixture
def checkpoint(tmp_path, bpe):
    model = make(bpe)
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.25, top_p=0.5, repetition_penalty=1.5, eos_token_id=[0, 5]
    )
    save_model(tmp_path / "source", model, bpe)
    return str(tmp_path / "source")


# ---------------------------------------------------------------------------------------------------------------------
# The proof


@pytest.mark.parametrize("form", FORMS)
def test_llama_cpp_gives_the_ids_the_conversations_and_the_greedy_text_of_the_checkpoint(form, bpe, tmp_path):
    model = make(bpe, form)
    file = written(tmp_path / "model.gguf", model, bpe)
    proven = prove_file(file, bpe, Expected.all_of(model, bpe), is_coarse=form == "gpt2")
    assert proven.texts == len(set(hard_texts(bpe))) > 35 and proven.conversations == len(CONVERSATIONS)
    assert proven.tokens > 100 and proven.largest_difference < (5e-3 if form == "gpt2" else 1e-5)
    assert "same ids for" in str(proven)


def test_a_text_that_is_cut_otherwise_is_shown_with_its_first_difference(bpe, tmp_path):
    """Other merges: the file is the model's, the tokenizer is of another text."""
    file = written(tmp_path / "model.gguf", make(bpe), train_bpe([*TEXTS[::-1], "cat dog frog " * 50], 300))
    with pytest.raises(ValueError, match=r"llama.cpp cuts '.*' into other tokens: \[.*\] at token \d+, where ours are"):
        prove_file(file, bpe)


def test_other_weights_are_found_by_their_numbers(bpe, tmp_path):
    model = make(bpe)
    expected = Expected.all_of(model, bpe)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight += 0.01
    file = written(tmp_path / "model.gguf", model, bpe)
    with pytest.raises(ValueError, match=r"after 'Once upon a time' llama.cpp computes other numbers: .* differ by"):
        prove_file(file, bpe, expected)


def test_another_token_is_an_error_unless_two_logits_are_nearly_the_same(bpe, tmp_path):
    model = make(bpe)
    file = written(tmp_path / "model.gguf", model, bpe)
    first = Expected.all_of(model, bpe)[0]
    best, second = sorted(first.rivals[3].values(), reverse=True)[:2]
    (runner_up,) = [token for token, value in first.rivals[3].items() if value == second]

    def with_a_gap_of(gap):
        rivals = [*first.rivals[:3], first.rivals[3] | {runner_up: best + gap}, *first.rivals[4:]]
        return [dataclasses.replace(first, rivals=rivals)]

    with pytest.raises(
        ValueError, match=r"token 3 is \d+ \(.*\) in llama.cpp and .* although their logits are 0.5 apart"
    ):
        prove_file(file, bpe, with_a_gap_of(0.5))
    proven = prove_file(file, bpe, with_a_gap_of(1e-5))
    assert proven.tokens == 3 and "1e-05 apart, less than rounding" in proven.exceptions[0]


def test_a_chat_template_that_llama_cpp_spells_otherwise_is_an_error(bpe, tmp_path):
    other = train_bpe(TEXTS, 300)
    other.chat_template = bpe.chat_template.replace("<|assistant|>", "<|user|>", 1)
    file = written(tmp_path / "model.gguf", make(bpe), other)
    with pytest.raises(ValueError, match=r"the chat template gives .* in llama.cpp, where ours gives"):
        prove_file(file, bpe)


def test_a_token_that_llama_cpp_alone_stops_at_is_said(bpe, tmp_path):
    """Its name, <|end|>, makes it an end there; the model goes on."""
    model = make(bpe)
    end = bpe.convert_tokens_to_ids("<|end|>")
    with torch.no_grad():
        model.lm_head.weight[end] = 5 * model.model.norm.weight
        model.lm_head.weight[end] += model.lm_head.weight.abs().max()
    expected = [text for text in Expected.all_of(model, bpe) if text.written[0] == end]
    assert expected, "the weights do not make it write the token"
    proven = prove_file(written(tmp_path / "model.gguf", model, bpe), bpe, expected)
    assert "for the end of a text; the model goes on after it" in proven.exceptions[0]


def test_a_file_that_is_cut_short_is_one_line(bpe, tmp_path):
    file = written(tmp_path / "model.gguf", make(bpe), bpe)
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(InputError, match=r"cut short"):
        Engine(file)


# ---------------------------------------------------------------------------------------------------------------------
# Quantisation


@pytest.mark.parametrize("kind", ["Q4_K", "Q5_K", "Q6_K", "Q8_0", "Q5_0", "F16"])
def test_a_matrix_is_rounded_as_little_as_its_type_allows(kind):
    matrix = np.random.default_rng(0).normal(size=(6, 512)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[kind]
    packed = quantize(matrix, kind)
    block, size = gguf.GGML_QUANT_SIZES[kind]
    assert packed.nbytes == 6 * 512 // block * size
    error = np.abs(gguf.dequantize(packed, kind) - matrix).mean()
    bound = {"Q4_K": 0.08, "Q5_K": 0.04, "Q6_K": 0.02, "Q8_0": 0.008, "Q5_0": 0.06, "F16": 1e-3}[kind.name]
    assert 0 < error < bound


def test_matrices_get_the_types_that_llama_cpp_gives_them():
    # `llama-quantize` of llama.cpp prints these for a model of 16 layers.
    def of(place, quantization="q4_k_m", columns=256, is_tied=False):
        return matrix_type(f"{place}.weight", columns, quantization, 16, is_tied)

    assert of("output") == "Q6_K" and of("token_embd") == "Q4_K" and of("token_embd", is_tied=True) == "Q6_K"
    more = [layer for layer in range(16) if of(f"blk.{layer}.attn_v") == "Q6_K"]
    assert more == [0, 1, 4, 7, 10, 13, 14, 15] == [n for n in range(16) if of(f"blk.{n}.ffn_down") == "Q6_K"]
    assert of("blk.0.attn_q") == of("blk.0.attn_output") == of("blk.3.attn_v") == "Q4_K"
    assert of("blk.0.attn_qkv") == "Q5_K" and of("blk.0.attn_qkv", "q5_k_m") == "Q6_K"
    assert of("blk.3.ffn_up", columns=96) == "Q5_0" and of("output", columns=96) == "Q8_0"
    assert of("blk.3.ffn_up", columns=40) == "F16" and of("blk.3.ffn_up", "q8_0") == "Q8_0"


@pytest.mark.parametrize("quantization", ["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"])
def test_export_rounds_a_file_that_llama_cpp_opens(quantization, checkpoint, tmp_path, capsys):
    export(checkpoint=checkpoint, to="gguf", quantize=quantization, out=str(tmp_path / "out"))
    said = capsys.readouterr().err
    assert "before it was rounded, llama.cpp gives the same ids" in said
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "model.gguf", "Modelfile", "recipe.yaml", "metrics.json", "README.md"
    }  # fmt: skip
    fields = gguf.GGUFReader(tmp_path / "out" / "model.gguf").fields
    kind = gguf.LlamaFileType(fields["general.file_type"].contents()).name
    assert kind == f"MOSTLY_{quantization.upper()}"
    about = json.loads((tmp_path / "out" / "metrics.json").read_text())["training"]["llama_cpp"]
    assert about["texts"] > 35 and about["conversations"] == 2 and about["engine"].startswith("xllamacpp ")


def test_a_smaller_file_for_fewer_bits(checkpoint, tmp_path):
    sizes = []
    for quantization in (None, "f16", "q8_0", "q4_k_m"):
        file = tmp_path / f"{quantization}.gguf"
        export(checkpoint=checkpoint, to="gguf", quantize=quantization, out=str(file), quiet=True)
        sizes.append(file.stat().st_size)
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0] / 4


def test_bits_per_byte_in_llama_cpp_are_those_of_the_checkpoint(bpe, tmp_path):
    """Characters of several tokens too, for whose first ones llama.cpp tells no probability of its own accord."""
    model, texts = make(bpe), ["The cat: 你好, Größe!\n" * 9, "🙂 jaźń"]
    file = written(tmp_path / "model.gguf", model, bpe)
    value, tokens, bytes_ = score_gguf(file, bpe, texts, 96)
    nats, expected = 0.0, 0
    for text in texts:
        ids, before = bpe.encode(text), bpe.bos_token_id
        for start in range(0, len(ids), 95):  # one less than the context
            row = torch.tensor([before, *ids[start : start + 95]])
            with torch.no_grad():
                logits = model(row[None, :-1]).logits[0]
            nats += torch.nn.functional.cross_entropy(logits, row[1:], reduction="sum").item()
            before, expected = int(row[-1]), expected + len(row) - 1
    assert (tokens, bytes_) == (expected, len("".join(texts).encode())) and expected > 100
    assert value == pytest.approx(nats / math.log(2) / bytes_, rel=1e-5)


def test_the_card_says_what_each_way_to_store_the_weights_costs(checkpoint, tmp_path):
    (tmp_path / "held_out.txt").write_text(TEXTS[0], encoding="utf-8")
    data, out = [str(tmp_path / "held_out.txt")], tmp_path / "out"
    export(checkpoint=checkpoint, to="gguf", quantize="q8_0", eval_data=data, out=str(out), quiet=True)
    rows = json.loads((out / "metrics.json").read_text())["metrics"]
    assert [row["quantization"] for row in rows] == ["fp32", "F16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M"]
    assert rows[0]["size"] > rows[1]["size"] > rows[2]["size"]
    assert abs(rows[1]["value"] - rows[0]["value"]) < abs(rows[5]["value"] - rows[0]["value"]) < 0.5
    card = (out / "README.md").read_text()
    assert "| weights in | file (MB) | bits per byte | more than in fp32 |" in card and "rounded to Q8_0" in card
    assert f"Measured in llama.cpp on held_out.txt: {rows[0]['count']} tokens (" in card
    assert str(tmp_path) not in card + (out / "recipe.yaml").read_text()


def test_rounding_is_for_gguf_alone(checkpoint):
    with pytest.raises(InputError, match=r"--quantize is about a file for llama.cpp: add --to gguf"):
        export(checkpoint=checkpoint, to="qwen3", quantize="q8_0")


def test_weights_in_bf16_are_proven_by_the_same_weights_in_fp32(bpe, tmp_path):
    save_model(tmp_path / "source", make(bpe).to(torch.bfloat16), bpe)
    out = tmp_path / "out"
    export(checkpoint=str(tmp_path / "source"), to="gguf", out=str(out))
    assert json.loads((out / "metrics.json").read_text())["training"]["llama_cpp"]["largest_difference"] < 1e-5
    kinds = {tensor.tensor_type.name for tensor in gguf.GGUFReader(out / "model.gguf").tensors}
    assert kinds == {"BF16", "F32"} and not (out / "exact").exists()


# ---------------------------------------------------------------------------------------------------------------------
# How it draws, and Ollama


def test_the_file_and_the_modelfile_say_how_the_model_draws_and_where_it_stops(checkpoint, tmp_path):
    file = tmp_path / "my.gguf"
    export(checkpoint=checkpoint, to="gguf", out=str(file), quiet=True)
    lines = (tmp_path / "my.Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./my.gguf"
    assert [line for line in lines if line.startswith("PARAMETER")] == [
        "PARAMETER num_ctx 96", "PARAMETER temperature 0.25", "PARAMETER top_k 50", "PARAMETER top_p 0.5",
        "PARAMETER min_p 0.0", "PARAMETER repeat_penalty 1.5",
        'PARAMETER stop "<|endoftext|>"', 'PARAMETER stop "<|end|>"',
    ]  # fmt: skip
    with Engine(file) as engine:
        drawn = engine.ask("/completion", prompt="a", n_predict=1)["generation_settings"]
    assert [drawn[name] for name in ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")] == [
        0.25, 50, 0.5, 0, 1.5
    ]  # fmt: skip
    assert drawn["samplers"] == ["penalties", "temperature", "top_k", "top_p", "min_p"]
    assert drawn["repeat_last_n"] == -1


TURNS = [("user", "Hi {{ x }}"), ("assistant", "Ho"), ("user", 'a """b"""')]


@pytest.mark.parametrize("template", ["own", "alpaca", "chatml"])
def test_ollama_gets_the_chat_template_in_its_own_language(template, bpe):
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.chat_template = {"own": bpe.chat_template, "alpaca": ALPACA_TEMPLATE, "chatml": CHATML}[template]
    spelling = Spelling.of(tokenizer)
    for turns in (TURNS, [("system", "Be kind."), *TURNS]):
        said = [{"role": role, "content": content} for role, content in turns]
        assert spelling.spell(turns) == tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
    text = modelfile("model.gguf", make_twin(make(bpe), "qwen3"), tokenizer)
    assert f'TEMPLATE """{spelling.in_go()}"""' in text
    assert text.count("{{ end }}") == (3 if spelling.opening else 2) and text.count('"""') == 2


def test_a_template_that_looks_at_what_is_said_is_left_to_llama_cpp(bpe):
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] + m['content'] | upper }}{% endfor %}x"
    assert Spelling.of(tokenizer) is None
    text = modelfile("model.gguf", make_twin(make(bpe), "qwen3"), tokenizer)
    assert "TEMPLATE" not in text and "# The chat template has no equal" in text


def test_a_tokenizer_of_single_digits_as_smollm_has_goes_along(bpe, tmp_path):
    state = json.loads(bpe.backend_tokenizer.to_str())
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    state["pre_tokenizer"] = {
        "type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, level]
    }  # fmt: skip
    backend = Tokenizer.from_str(json.dumps(state))
    smol = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|endoftext|>")
    smol.add_special_tokens({"additional_special_tokens": [AddedToken("<|end|>", special=True)]})
    assert prove_file(written(tmp_path / "model.gguf", make(bpe), smol), smol).texts > 20
