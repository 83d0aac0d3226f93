"""Make twins: the same weights as a stock class, which transformers and every engine that serves its models know.

A twin computes what the original computes, to the last bit. What its class cannot express is refused, never rounded.
What only training sees (dropout of embeddings and residuals, initial weights) has no part in that.

A twin and its tokenizer also go into one GGUF file, which llama.cpp, Ollama and LM Studio run
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md). The package `gguf` writes the bytes and knows the names;
what llama.cpp expects inside the tensors is done here.
"""

import functools
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.initialization import no_init_weights
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX as QWEN2_PATTERN

from .architectures import ARCHITECTURES
from .configuration_groundup import GroundupConfig
from .stock import is_transposed, obstacles, stock_config, to_stock


def make_twin(model: PreTrainedModel, target: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a stock model with the same weights and the same function; `target` is a row of `ARCHITECTURES`.

    `dtype` is that of the twin's weights; default: the model's own, and then the two share their memory where both
    store a tensor alike. Raises `ValueError`, naming every knob that is in the way and the targets that would do.
    """
    config: GroundupConfig = model.config
    if found := obstacles(config, target):
        others = [name for name in ARCHITECTURES if not obstacles(config, name)]
        hint = f"; it has a twin in {' and '.join(others)}" if others else ""
        raise ValueError(f"no {target} model does exactly the same: {', '.join(found)}{hint}")
    twin_config = stock_config(config, target)
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in model.state_dict().items()}
    twin = assemble(twin_config, to_stock(tensors, twin_config))
    twin.generation_config = model.generation_config
    return twin


def assemble(config: PreTrainedConfig, tensors: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Return the causal language model of this config on exactly these weights, in evaluation mode.

    The tensors are taken, not copied. Its dtype is the smallest that holds them all. Raises `ValueError` naming the
    first weights that the model has and `tensors` lack, or the other way round.
    """
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # `.to(dtype)` would round the rotary angles
    kept = {name: tensor.to(dtype) for name, tensor in tensors.items()}
    missing, unexpected = model.load_state_dict(kept, strict=False, assign=True)
    model.tie_weights()
    if config.tie_word_embeddings:
        missing = [name for name in missing if name not in model._tied_weights_keys]
    if missing or unexpected:
        raise ValueError(f"weights that do not belong together: missing {missing[:3]}, not known {unexpected[:3]}")
    return model.eval()


def spell_for_transformers_4(config_file: Path) -> None:
    """Write the rotary settings of a saved config.json a second time, as transformers before version 5 reads them.

    It would take its own default base without a word, and every logit would be wrong.
    """
    values = json.loads(config_file.read_text(encoding="utf-8"))
    rope = values.get("rope_parameters")
    if rope:
        values["rope_theta"] = rope["rope_theta"]
        if rope["rope_type"] != "default":
            values["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    config_file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# GGUF


FORMS = ("qwen3", "llama", "arcee", "gpt2")
# transformers has no name for the width of Qwen3's heads (it takes 128) and for GPT-2's positions (1,024), but heeds
# those of Llama in any file; llama.cpp passes over what is not its own.
_SHARED = "llama.{}"
_END_FIELDS = ("eos_token_id", "eot_token_id", "eom_token_id")  # the end of a text, of a turn, of a message


def gguf_form(config: GroundupConfig) -> str:
    """Return the stock class as which a model of this config goes into a file: one of `FORMS`.

    Raises `ValueError`, naming the knobs in the way of the class that comes nearest.
    """
    found = {form: _obstacles(config, form) for form in FORMS}
    nearest = min(FORMS, key=lambda form: len(found[form]))
    if found[nearest]:
        raise ValueError(f"no GGUF model does exactly the same; for {nearest} there is {', '.join(found[nearest])}")
    return nearest


def _obstacles(config: GroundupConfig, form: str) -> list[str]:
    """List what the class cannot express, and what llama.cpp's version of it cannot."""
    found = obstacles(config, form)
    if form == "gpt2":
        if config.hidden_act != "gelu_new":
            found.append(f"hidden_act={config.hidden_act!r} where it has 'gelu_new'")
        return found
    biases = ("qkv_bias", "attention_bias", *(["mlp_bias"] if form != "qwen3" else []))
    found += [f"{name}=True where it has no biases" for name in biases if getattr(config, name)]
    if "sliding_attention" in config.layer_types:
        found.append(f"sliding_window={config.sliding_window} where it sees the whole text")
    if config.rope_parameters and config.rope_parameters["rope_type"] != "default":
        found.append(f"rope_type={config.rope_parameters['rope_type']!r} where it has 'default'")
    return found


def write_gguf(
    path: Path,
    twin: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    *,
    sampling: Mapping[str, Any] | None = None,
    quantization: tuple[str, Callable[[str, Any], tuple[Any, Any]]] | None = None,
) -> None:
    """Write a twin of one of `FORMS` and its tokenizer to `path`; matrices keep their dtype, vectors are fp32.

    Args:
        path: the file to write.
        twin: the model; it is not changed.
        tokenizer: its tokenizer, with the chat template if there is one.
        name: what the file calls the model.
        sampling: how to draw tokens unless told otherwise, by the writer's method: `temp`, `top_k`, ...
        quantization: the file's type in `gguf.LlamaFileType`, and a function from the name and the values (fp32, numpy)
            of a matrix to the bytes to store and their type.

    Raises `ValueError` for a tokenizer that llama.cpp does not know and for more end tokens than a file can name, and
    `ImportError` without the package `gguf`.
    """
    import gguf

    fields = _tokenizer_fields(tokenizer, twin.config.vocab_size) | _end_tokens(twin, tokenizer)
    fields |= {f"sampling_{setting}": value for setting, value in (sampling or {}).items()}
    writer = gguf.GGUFWriter(path, twin.config.model_type)
    writer.add_name(name)
    dtypes = {torch.float32: "ALL_F32", torch.float16: "MOSTLY_F16", torch.bfloat16: "MOSTLY_BF16"}
    writer.add_file_type(gguf.LlamaFileType[quantization[0] if quantization else dtypes[twin.dtype]])
    if quantization:
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_sizes(writer, twin.config)
    for field, value in fields.items():
        if value is not None:
            getattr(writer, f"add_{field}")(value)
    _add_tensors(writer, twin, quantization[1] if quantization else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_sizes(writer: Any, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if config.model_type == "gpt2":
        writer.add_uint32(_SHARED.format("context_length"), config.n_positions)
        writer.add_feed_forward_length(config.n_inner or 4 * config.n_embd)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    if config.model_type == "qwen3":
        writer.add_uint32(_SHARED.format("rope.dimension_count"), config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def _add_tensors(writer: Any, twin: PreTrainedModel, quantize: Callable[[str, Any], tuple[Any, Any]] | None) -> None:
    import gguf

    config = twin.config
    arch = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for name, tensor in twin.state_dict().items():
        module, leaf = name.rsplit(".", 1)
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue  # a reader that finds no head takes the embedding
        if is_transposed(name, config.model_type):
            tensor = tensor.t()
        if config.model_type in ("llama", "arcee") and module.endswith((".q_proj", ".k_proj")):
            tensor = _interleaved(tensor, config.head_dim)
        if tensor.ndim == 1 or module.endswith("wpe"):
            tensor = tensor.float()
        place = f"{names.get_name(module)}.{leaf}"
        if quantize and tensor.ndim == 2 and not module.endswith("wpe"):
            values, kind = quantize(place, tensor.float().contiguous().numpy())
            writer.add_tensor(place, values, raw_dtype=kind)
        elif tensor.dtype == torch.bfloat16:  # numpy has no such type
            kind = gguf.GGMLQuantizationType.BF16
            writer.add_tensor(place, gguf.quantize(tensor.float().contiguous().numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(place, tensor.contiguous().numpy())


def _interleaved(matrix: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder the rows of each head: llama.cpp's Llama turns neighbours, ours features that lie D / 2 apart."""
    return matrix.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _tokenizer_fields(tokenizer: PreTrainedTokenizerFast, vocab_size: int) -> dict[str, Any]:
    """Return what a GGUF file says of a tokenizer, by the writer's method. Raises `ValueError` as said above."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    pre = _pre_tokenizer(state)
    if pre is None or tokenizer.encode("a") != tokenizer.encode("a", add_special_tokens=False):
        raise ValueError("llama.cpp does not know this tokenizer: only a byte-level BPE of ours or GPT-2's goes along")
    by_id = {place: token for token, place in tokenizer.get_vocab().items()}
    added = {place: 3 if token.special else 4 for place, token in tokenizer.added_tokens_decoder.items()}
    template = tokenizer.chat_template
    return {
        "tokenizer_model": "gpt2",
        "tokenizer_pre": pre,
        "token_list": [by_id.get(place, f"[PAD{place}]") for place in range(vocab_size)],
        "token_types": [added.get(place, 1 if place in by_id else 5) for place in range(vocab_size)],
        "token_merges": [" ".join(pair) for pair in state["model"]["merges"]],
        "bos_token_id": tokenizer.bos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "add_bos_token": False,
        "add_eos_token": False,
        # A comment in place of the mark that only training needs; it trims the white space as the mark did.
        "chat_template": template and re.sub(r"\{%(-?)\s*(?:end)?generation\s*(-?)%\}", r"{#\1 \2#}", template),
    }


def _end_tokens(twin: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    """Return every token at which the model stops, by the writer's method; the tokenizer's own end comes first."""
    stops = getattr(twin.generation_config, "eos_token_id", None)
    stops = twin.config.eos_token_id if stops is None else stops
    stops = [] if stops is None else sorted({stops} if isinstance(stops, int) else set(stops))
    stops.sort(key=lambda stop: stop != tokenizer.eos_token_id)
    if len(stops) > len(_END_FIELDS):
        raise ValueError(
            f"the model stops at {len(stops)} tokens ({', '.join(map(str, stops))}), a GGUF file names at most "
            f"{len(_END_FIELDS)}: leave some out of eos_token_id in generation_config.json"
        )
    return dict(zip(_END_FIELDS, stops or [tokenizer.eos_token_id]))


def _pre_tokenizer(state: dict[str, Any]) -> str | None:
    """Return llama.cpp's name for the way this tokenizer cuts text before the merges, or None."""
    if state["model"]["type"] != "BPE" or state["model"].get("ignore_merges") or state["normalizer"]:
        return None
    match state["pre_tokenizer"]:
        case {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False}:
            return "gpt-2"
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "use_regex": True, "add_prefix_space": False},
            ],
        }:
            return "smollm"
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "use_regex": False, "add_prefix_space": False},
            ],
        } if pattern == QWEN2_PATTERN:
            return "qwen2"
    return None
