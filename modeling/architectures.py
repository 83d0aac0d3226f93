"""List the architectures of transformers that the network can hold exactly, and what each calls the parts of ours.

Import and export (`stock.py`) read the same rows in opposite directions: there is no second list of names.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from transformers import (
    ArceeConfig,
    GPT2Config,
    LlamaConfig,
    MinistralConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Starcoder2Config,
)


@dataclass(frozen=True)
class Architecture:
    """Say how a stock class names the parts of ours.

    Attributes:
        config: its config class.
        knobs: the one value that each of these knobs of ours has in it.
        settings: its name of a setting -> ours.
        modules: its name of a module -> ours, without `model.` before it; several of ours where it keeps them as one.
        biases: its switch -> the knobs of ours that it sets; `ALWAYS` for biases that it cannot be without. It has no
            biases besides.
        windows: which of its layers may be limited to a sliding window: none, all alike, or each by itself.
        only: the one value of settings for which ours has no word.
        prefix: of the names of its modules, except the head's.
        transposed: the modules whose matrices it stores (in, out), where `nn.Linear` has (out, in).
        divides: whether its width must divide by the number of heads even where their own width is given.
    """

    config: type[PreTrainedConfig]
    knobs: dict[str, Any]
    settings: dict[str, str]
    modules: dict[str, tuple[str, ...]]
    biases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    windows: Literal["none", "all", "each"] = "none"
    only: dict[str, Any] = field(default_factory=dict)
    prefix: str = "model."
    transposed: tuple[str, ...] = ()
    divides: bool = False


ALWAYS = ""
# The projections that a bias knob of ours is about.
PROJECTIONS = {
    "qkv_bias": ("q_proj", "k_proj", "v_proj"),
    "attention_bias": ("o_proj",),
    "mlp_bias": ("gate_proj", "up_proj", "down_proj"),
}
_ATTENTION_BIASES = {"attention_bias": ("qkv_bias", "attention_bias")}

_ROTARY = {"position_embedding": "rotary", "norm": "rms_norm", "qk_norm": False}
# Engines know these classes with one activation.
_GATED, _PLAIN = {"gated_mlp": True, "hidden_act": "silu"}, {"gated_mlp": False, "hidden_act": "relu2"}

_SAME_SETTINGS = {
    name: name
    for name in (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "max_position_embeddings",
        "hidden_act",
        "attention_dropout",
        "initializer_range",
        "rope_parameters",
        "tie_word_embeddings",
        "use_cache",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
    )
}
_SETTINGS = {**_SAME_SETTINGS, "rms_norm_eps": "norm_eps"}  # Llama's and of those after it
_HEAD_SETTINGS = {**_SETTINGS, "head_dim": "head_dim"}  # of those whose heads have a width of their own

_SAME_MODULES = {
    name: (name,)
    for name in (
        "embed_tokens",
        "layers.*.input_layernorm",
        "layers.*.self_attn.q_proj",
        "layers.*.self_attn.k_proj",
        "layers.*.self_attn.v_proj",
        "layers.*.self_attn.o_proj",
        "layers.*.post_attention_layernorm",
        "norm",
        "lm_head",
    )
}
_MLP = {"layers.*.mlp.up_proj": ("layers.*.mlp.up_proj",), "layers.*.mlp.down_proj": ("layers.*.mlp.down_proj",)}
_GATED_MLP = {**_MLP, "layers.*.mlp.gate_proj": ("layers.*.mlp.gate_proj",)}
_QK_NORMS = {f"layers.*.self_attn.{name}": (f"layers.*.self_attn.{name}",) for name in ("q_norm", "k_norm")}

ARCHITECTURES: dict[str, Architecture] = {
    # Radford et al. 2019. Variants that compute something else are in `only`.
    "gpt2": Architecture(
        config=GPT2Config,
        knobs={"position_embedding": "learned", "norm": "layer_norm", "qk_norm": False, "gated_mlp": False},
        settings={
            "vocab_size": "vocab_size",
            "n_positions": "max_position_embeddings",
            "n_embd": "hidden_size",
            "n_layer": "num_hidden_layers",
            "n_head": "num_attention_heads",
            "n_inner": "intermediate_size",
            "activation_function": "hidden_act",
            "layer_norm_epsilon": "norm_eps",
            "embd_pdrop": "embedding_dropout",
            "attn_pdrop": "attention_dropout",
            "resid_pdrop": "residual_dropout",
            "initializer_range": "initializer_range",
            "tie_word_embeddings": "tie_word_embeddings",
            "use_cache": "use_cache",
            "bos_token_id": "bos_token_id",
            "eos_token_id": "eos_token_id",
            "pad_token_id": "pad_token_id",
        },
        modules={
            "wte": ("embed_tokens",),
            "wpe": ("embed_positions",),
            "h.*.ln_1": ("layers.*.input_layernorm",),
            "h.*.attn.c_attn": ("layers.*.self_attn.q_proj", "layers.*.self_attn.k_proj", "layers.*.self_attn.v_proj"),
            "h.*.attn.c_proj": ("layers.*.self_attn.o_proj",),
            "h.*.ln_2": ("layers.*.post_attention_layernorm",),
            "h.*.mlp.c_fc": ("layers.*.mlp.up_proj",),
            "h.*.mlp.c_proj": ("layers.*.mlp.down_proj",),
            "ln_f": ("norm",),
            "lm_head": ("lm_head",),
        },
        biases={ALWAYS: ("qkv_bias", "attention_bias", "mlp_bias")},
        only={
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "reorder_and_upcast_attn": False,
            "add_cross_attention": False,
        },
        prefix="transformer.",
        transposed=("h.*.attn.c_attn", "h.*.attn.c_proj", "h.*.mlp.c_fc", "h.*.mlp.c_proj"),
    ),
    # Touvron et al. 2023; SmolLM, TinyLlama and many others are of this class.
    "llama": Architecture(
        config=LlamaConfig,
        knobs={**_ROTARY, **_GATED},
        settings=_HEAD_SETTINGS,
        modules={**_SAME_MODULES, **_GATED_MLP},
        biases={**_ATTENTION_BIASES, "mlp_bias": ("mlp_bias",)},
        divides=True,
    ),
    # Yang et al. 2024 (Qwen2, Qwen2.5): Llama with biases on queries, keys and values alone.
    "qwen2": Architecture(
        config=Qwen2Config,
        knobs={**_ROTARY, **_GATED, "qkv_bias": True},
        settings=_SETTINGS,
        modules={**_SAME_MODULES, **_GATED_MLP},
        biases={ALWAYS: ("qkv_bias",)},
        windows="each",
    ),
    # Yang et al. 2025: Llama with queries and keys normed head by head.
    "qwen3": Architecture(
        config=Qwen3Config,
        knobs={**_ROTARY, **_GATED, "qk_norm": True},
        settings=_HEAD_SETTINGS,
        modules={**_SAME_MODULES, **_GATED_MLP, **_QK_NORMS},
        biases=_ATTENTION_BIASES,
        windows="each",
    ),
    # Jiang et al. 2023: Llama that sees a window of the text.
    "mistral": Architecture(
        config=MistralConfig,
        knobs={**_ROTARY, **_GATED},
        settings=_HEAD_SETTINGS,
        modules={**_SAME_MODULES, **_GATED_MLP},
        windows="all",
    ),
    # Mistral in which some layers see the whole text.
    "ministral": Architecture(
        config=MinistralConfig,
        knobs={**_ROTARY, **_GATED},
        settings=_HEAD_SETTINGS,
        modules={**_SAME_MODULES, **_GATED_MLP},
        windows="each",
    ),
    # Llama without gates.
    "arcee": Architecture(
        config=ArceeConfig,
        knobs={**_ROTARY, **_PLAIN},
        settings=_HEAD_SETTINGS,
        modules={**_SAME_MODULES, **_MLP},
        biases={**_ATTENTION_BIASES, "mlp_bias": ("mlp_bias",)},
        divides=True,
    ),
    # Lozhkov et al. 2024: GPT-2's norm, biases and MLP on rotary positions.
    "starcoder2": Architecture(
        config=Starcoder2Config,
        knobs={"position_embedding": "rotary", "norm": "layer_norm", "qk_norm": False, "gated_mlp": False},
        settings={
            **_SAME_SETTINGS,
            "norm_epsilon": "norm_eps",
            "embedding_dropout": "embedding_dropout",
            "residual_dropout": "residual_dropout",
        },
        modules={
            **_SAME_MODULES,
            "layers.*.mlp.c_fc": ("layers.*.mlp.up_proj",),
            "layers.*.mlp.c_proj": ("layers.*.mlp.down_proj",),
        },
        biases={"use_bias": ("qkv_bias", "attention_bias", "mlp_bias")},
        windows="all",
    ),
}
