"""Make twins: the same weights as a stock class, which transformers and every engine that serves its models know.

A twin computes what the original computes, to the last bit. What its class cannot express is refused, never rounded.
What only training sees (dropout of embeddings and residuals, initial weights) has no part in that.
"""

import functools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    ArceeConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.initialization import no_init_weights

from .configuration_groundup import GroundupConfig
from .gpt2 import gpt2_config, to_gpt2

# For each stock class the one value of each of our knobs that it can express. Engines know it with one activation.
_ROTARY = {"position_embedding": "rotary", "norm": "rms_norm"}
NEEDS: dict[str, dict[str, Any]] = {
    "gpt2": {"position_embedding": "learned", "norm": "layer_norm", "qk_norm": False, "gated_mlp": False},
    "llama": {**_ROTARY, "qk_norm": False, "gated_mlp": True, "hidden_act": "silu"},
    "qwen3": {**_ROTARY, "qk_norm": True, "gated_mlp": True, "hidden_act": "silu", "mlp_bias": False},
    "arcee": {**_ROTARY, "qk_norm": False, "gated_mlp": False, "hidden_act": "relu2"},
}
_ROTARY_CONFIGS = {"llama": LlamaConfig, "qwen3": Qwen3Config, "arcee": ArceeConfig}
_ATTENTION, _MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
# Fields that our config and the rotary ones have in common.
_SAME = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
    "hidden_act",
    "attention_dropout",
    "initializer_range",
    "tie_word_embeddings",
    "use_cache",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def obstacles(config: GroundupConfig, target: str) -> list[str]:
    """List the knobs that keep a model of this config from a twin of the class `target`; empty where none does."""
    found = [
        f"{knob}={getattr(config, knob)!r} where it has {value!r}"
        for knob, value in {"is_causal": True, "add_cross_attention": False, **NEEDS[target]}.items()
        if getattr(config, knob) != value
    ]
    if "sliding_attention" in config.layer_types:
        found.append(f"sliding_window={config.sliding_window} where it sees the whole text")
    if target == "gpt2":
        if config.num_key_value_heads != config.num_attention_heads:
            found.append(f"num_key_value_heads={config.num_key_value_heads} where it has one for each query head")
        if config.head_dim * config.num_attention_heads != config.hidden_size:
            found.append(f"head_dim={config.head_dim} where its heads share the width between them")
    elif target != "qwen3" and config.hidden_size % config.num_attention_heads:
        found.append(f"hidden_size={config.hidden_size}, which does not divide by num_attention_heads")
    return found


def make_twin(model: PreTrainedModel, target: str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return a stock model with the same weights and the same function: "gpt2", "llama", "qwen3" or "arcee".

    `dtype` is that of the twin's weights; default: the model's own. Raises `ValueError`, naming every knob that is in
    the way and the targets that would do.
    """
    config: GroundupConfig = model.config
    if found := obstacles(config, target):
        others = [name for name in NEEDS if not obstacles(config, name)]
        hint = f"; it has a twin in {' and '.join(others)}" if others else ""
        raise ValueError(f"no {target} model does exactly the same: {', '.join(found)}{hint}")
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in model.state_dict().items()}
    if target == "gpt2":
        twin_config = gpt2_config(config)
        tensors = to_gpt2(_with_biases(tensors, _ATTENTION + _MLP), twin_config)
    else:
        twin_config = _rotary_config(config, target)
        tensors = _with_biases(tensors, _ATTENTION if twin_config.attention_bias else ())
    twin = assemble(twin_config, tensors)
    twin.generation_config = model.generation_config
    return twin


def _rotary_config(config: GroundupConfig, target: str) -> Any:
    fields = {name: getattr(config, name) for name in _SAME}
    if target != "qwen3":
        fields["mlp_bias"] = config.mlp_bias
    return _ROTARY_CONFIGS[target](
        **fields,
        rms_norm_eps=config.norm_eps,
        rope_parameters=dict(config.rope_parameters),
        attention_bias=config.qkv_bias or config.attention_bias,
    )


def _with_biases(tensors: dict[str, torch.Tensor], projections: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Add zeros where one of these projections has no bias: stock classes have biases on all or on none."""
    filled = dict(tensors)
    for name, tensor in tensors.items():
        if name.endswith(tuple(f".{projection}.weight" for projection in projections)):
            filled.setdefault(name.removesuffix("weight") + "bias", tensor.new_zeros(len(tensor)))
    return filled


def assemble(config: PreTrainedConfig, tensors: dict[str, torch.Tensor]) -> PreTrainedModel:
    """Return the causal language model of this config with exactly these weights, in evaluation mode.

    Its dtype is the smallest that holds them all. Raises `ValueError` naming the first weights that the model has and
    `tensors` lack, or the other way round.
    """
    dtype = functools.reduce(torch.promote_types, {tensor.dtype for tensor in tensors.values()})
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)  # `.to(dtype)` would round the rotary angles
    model.tie_weights()
    missing, unexpected = model.load_state_dict(tensors, strict=False)
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


__all__ = ["NEEDS", "assemble", "make_twin", "obstacles", "spell_for_transformers_4"]
