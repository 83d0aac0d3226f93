"""Hold every choice of the architecture in one place.

The defaults are the modern decoder (Llama, Qwen3); `GroundupConfig.preset("gpt2")` sets the knobs of 2019. Field names
are the ones Llama and Qwen3 use; GPT-2's names (`n_embd`, `n_layer`, ...) are read and written as aliases.
"""

from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.modeling_rope_utils import RopeParameters

GPT2_KNOBS: dict[str, Any] = {
    "vocab_size": 50257,
    "max_position_embeddings": 1024,
    "position_embedding": "learned",
    "norm": "layer_norm",
    "norm_eps": 1e-5,
    "qk_norm": False,
    "hidden_act": "gelu_new",
    "gated_mlp": False,
    "qkv_bias": True,
    "attention_bias": True,
    "mlp_bias": True,
    "tie_word_embeddings": True,
    "zero_init": False,
    "initializer_range": 0.02,
    "embedding_dropout": 0.1,
    "attention_dropout": 0.1,
    "residual_dropout": 0.1,
    "bos_token_id": 50256,
    "eos_token_id": 50256,
}

PRESETS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019, table 2.
    "gpt2": {**GPT2_KNOBS, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "gpt2-medium": {**GPT2_KNOBS, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "gpt2-large": {**GPT2_KNOBS, "hidden_size": 1280, "num_hidden_layers": 36, "num_attention_heads": 20},
    "gpt2-xl": {**GPT2_KNOBS, "hidden_size": 1600, "num_hidden_layers": 48, "num_attention_heads": 25},
    # Sizes for one machine: minutes, an hour, and a day on a laptop's processor.
    "nano": {"vocab_size": 2048, "hidden_size": 192, "num_hidden_layers": 4, "max_position_embeddings": 256},
    "micro": {"vocab_size": 4096, "hidden_size": 384, "num_hidden_layers": 6, "max_position_embeddings": 512},
    "small": {"vocab_size": 16384, "hidden_size": 768, "num_hidden_layers": 12, "max_position_embeddings": 1024},
}

# Ways to scale the rotary angles to longer sequences, and what each needs to know. "dynamic" is not among them: it
# scales as a text grows, when keys turned by other angles are in the cache.
ROPE_TYPES: dict[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}


@strict
class GroundupConfig(PreTrainedConfig):
    """Describe the architecture of a groundup model.

    Args:
        vocab_size: tokens in the vocabulary, V.
        hidden_size: width of the residual stream, C.
        intermediate_size: width inside the MLP. Default: 4 C, or 8/3 C (rounded up to 64) where the MLP is gated, so
            that both have the same number of weights.
        num_hidden_layers: blocks.
        num_attention_heads: query heads, H. Default: one for each `head_dim`, or each 64, of the width.
        num_key_value_heads: key and value heads; fewer than H is grouped-query attention (Ainslie et al. 2023).
            Default: H.
        head_dim: width of one head, D. Default: C / H.
        max_position_embeddings: the longest sequence of training, in tokens. A table of learned positions ends there;
            angles go on.
        position_embedding: "rotary" (Su et al. 2021) or "learned" (a table added to the token embedding).
        rope_parameters: base and scaling of the rotary angles, as transformers writes them.
        sliding_window: how many of the latest tokens a "sliding_attention" layer sees, itself included; at least 2.
        layer_types: "full_attention" or "sliding_attention" for each block. Default: all sliding where
            `sliding_window` is set, else all full.
        norm: "rms_norm" (Zhang and Sennrich 2019) or "layer_norm" (Ba et al. 2016).
        norm_eps: added to the variance in every norm.
        qk_norm: whether queries and keys are RMS-normed head by head (Henry et al. 2020).
        hidden_act: activation of the MLP, a name that transformers knows ("silu", "gelu_new", "relu2", ...).
        gated_mlp: whether a second projection gates the activation (Shazeer 2020).
        qkv_bias: whether the query, key and value projections have biases.
        attention_bias: whether the attention's output projection has one.
        mlp_bias: whether the MLP's projections have biases.
        tie_word_embeddings: whether the head shares the token embedding's weights.
        is_causal: False makes an encoder, in which every token sees every other.
        add_cross_attention: whether each block also attends to an encoder's output.
        is_decoder: set by `EncoderDecoderModel`; changes nothing by itself.
        is_encoder_decoder: whether this describes an encoder and a decoder of `num_hidden_layers` blocks each, which
            share the token embedding (`GroundupForConditionalGeneration`).
        decoder_start_token_id: the token that every text of the decoder begins with; never generated.
        embedding_dropout: probability of dropping a feature after the embedding.
        attention_dropout: probability of dropping an attention weight.
        residual_dropout: probability of dropping a feature of a branch before it joins the residual stream.
        classifier_dropout: probability of dropping a feature before a classification head.
        classifier_pooling: what a sequence classifier looks at: the "last" or "first" token that is not padding, or
            the "mean" or "max" over all of them.
        classifier_bag_buckets: how many buckets the linear part of a sequence classifier has for hashed pairs of tokens
            and words, beside the tokens themselves; 0 for a classifier without that part.
        initializer_range: standard deviation of the initial weights.
        zero_init: whether the projections back into the residual stream, and an untied head, start at zero, so that
            every block starts as the identity. False: the projections start at `initializer_range` / sqrt(2 layers),
            as in GPT-2.
        use_cache: whether keys and values are kept for the next token.

    Raises:
        huggingface_hub.errors.StrictDataclassError: (or a subclass) for a wrong type, value or combination; the
            message names the field, the value and what would do.
    """

    model_type = "groundup"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["cache", "past_key_values"]
    attribute_map: ClassVar[dict[str, str]] = {
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_positions": "max_position_embeddings",
        "n_inner": "intermediate_size",
        "activation_function": "hidden_act",
        "layer_norm_epsilon": "norm_eps",
        "rms_norm_eps": "norm_eps",
        "embd_pdrop": "embedding_dropout",
        "attn_pdrop": "attention_dropout",
        "resid_pdrop": "residual_dropout",
    }
    default_theta: ClassVar[float] = 10000.0
    # Which class of the files beside config.json answers to which Auto class, for a reader without this package.
    code_map: ClassVar[dict[str, str]] = {
        "AutoConfig": "configuration_groundup.GroundupConfig",
        "AutoModel": "modeling_groundup.GroundupModel",
        "AutoModelForCausalLM": "modeling_groundup.GroundupForCausalLM",
        "AutoModelForMaskedLM": "modeling_groundup.GroundupForMaskedLM",
        "AutoModelForQuestionAnswering": "modeling_groundup.GroundupForQuestionAnswering",
        "AutoModelForSeq2SeqLM": "modeling_groundup.GroundupForConditionalGeneration",
        "AutoModelForSequenceClassification": "modeling_groundup.GroundupForSequenceClassification",
        "AutoModelForTokenClassification": "modeling_groundup.GroundupForTokenClassification",
    }
    base_model_pp_plan: ClassVar[dict[str, Any]] = {
        "embed_tokens": (["input_ids"], ["inputs_embeds"]),
        "layers": (["hidden_states", "attention_mask"], ["hidden_states"]),
        "norm": (["hidden_states"], ["hidden_states"]),
    }

    vocab_size: int = 4096
    hidden_size: int = 384
    intermediate_size: int | None = None
    num_hidden_layers: int = 6
    num_attention_heads: int | None = None
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    max_position_embeddings: int = 512
    position_embedding: Literal["rotary", "learned"] = "rotary"
    rope_parameters: RopeParameters | dict | None = None
    sliding_window: int | None = None
    layer_types: list[str] | None = None
    norm: Literal["rms_norm", "layer_norm"] = "rms_norm"
    norm_eps: float | int = 1e-6
    qk_norm: bool = True
    hidden_act: str = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False
    is_causal: bool = True
    add_cross_attention: bool = False
    is_decoder: bool = False
    is_encoder_decoder: bool = False
    decoder_start_token_id: int | None = None
    embedding_dropout: float | int = 0.0
    attention_dropout: float | int = 0.0
    residual_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    classifier_pooling: Literal["last", "first", "mean", "max"] = "last"
    classifier_bag_buckets: int = 0
    initializer_range: float | int = 0.02
    zero_init: bool = True
    use_cache: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "GroundupConfig":
        """Return a named size: "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "nano", "micro", "small".

        `overrides` are fields of this class and win over the preset's. Raises `ValueError` for an unknown name.
        """
        if name not in PRESETS:
            raise ValueError(f"unknown preset {name!r}: choose one of {', '.join(PRESETS)}")
        return cls(**{**PRESETS[name], **overrides})

    def __post_init__(self, **kwargs: Any) -> None:
        # The base class sets aliases last; a size derived from a default that an alias then changes would be wrong.
        for alias, name in self.attribute_map.items():
            if alias in kwargs:
                setattr(self, name, kwargs.pop(alias))
        if self.num_attention_heads is None:
            self.num_attention_heads = max(1, self.hidden_size // (self.head_dim or 64))
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self._shared_width()
        if self.intermediate_size is None:
            self.intermediate_size = (
                -(-8 * self.hidden_size // (3 * 64)) * 64 if self.gated_mlp else 4 * self.hidden_size
            )
        if self.layer_types is None:
            kind = "full_attention" if self.sliding_window is None else "sliding_attention"
            self.layer_types = [kind] * max(0, self.num_hidden_layers)
        if isinstance(self.rope_parameters, dict):  # null stands for absent, which the base class fills in
            self.rope_parameters = {name: value for name, value in self.rope_parameters.items() if value is not None}
        rotary_settings = self.rope_parameters or kwargs.get("rope_theta") or kwargs.get("rope_scaling")
        if self.position_embedding == "learned" and rotary_settings:
            raise ValueError("rope_parameters with position_embedding='learned': leave one of them out")
        if not self.is_encoder_decoder:
            self.base_model_tp_plan = self._tensor_parallel_plan()
        kwargs.setdefault("auto_map", self._travelling_classes())
        super().__post_init__(**kwargs)
        if self.position_embedding == "learned":
            # The base class fills this in for every config that has the field; learned positions rotate nothing.
            self.rope_parameters = None

    def _shared_width(self) -> int:
        """Return the width of one head where the heads share that of the residual stream between them."""
        heads = self.num_attention_heads
        if heads > 0 and self.hidden_size % heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} does not divide by num_attention_heads={heads}: "
                "choose a divisor, or set head_dim"
            )
        return self.hidden_size // max(1, heads)

    def _travelling_classes(self) -> dict[str, str]:
        """Return the part of `code_map` that a checkpoint of this architecture can be read as."""
        if self.is_encoder_decoder:
            return {name: self.code_map[name] for name in ("AutoConfig", "AutoModelForSeq2SeqLM")}
        others = ("AutoModelForSeq2SeqLM", "AutoModelForMaskedLM" if self.is_causal else "AutoModelForCausalLM")
        return {name: place for name, place in self.code_map.items() if name not in others}

    def _tensor_parallel_plan(self) -> dict[str, str]:
        """Return how each matrix is cut between devices, for the modules alone that these knobs create."""
        plan = {
            "layers.*.self_attn.q_proj": "colwise",
            "layers.*.self_attn.k_proj": "colwise",
            "layers.*.self_attn.v_proj": "colwise",
            "layers.*.self_attn.o_proj": "rowwise",
            "layers.*.mlp.up_proj": "colwise",
            "layers.*.mlp.down_proj": "rowwise",
        }
        if self.gated_mlp:
            plan["layers.*.mlp.gate_proj"] = "colwise"
        if self.qk_norm:
            plan["layers.*.self_attn.q_norm"] = "replicated_with_grad_allreduce"
            plan["layers.*.self_attn.k_norm"] = "replicated_with_grad_allreduce"
        return plan

    def validate_architecture(self) -> None:
        """Refuse what cannot work, the simplest reason first; run by the base class when a config is made."""
        self._check_sizes()
        self._check_attention()
        self._check_choices()

    def _check_sizes(self) -> None:
        """Refuse sizes that are not positive and probabilities outside [0, 1)."""
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.classifier_bag_buckets < 0:
            raise ValueError(f"classifier_bag_buckets={self.classifier_bag_buckets} must be at least 0")
        for name in ("embedding_dropout", "attention_dropout", "residual_dropout", "classifier_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 0 and below 1")
        for name in ("norm_eps", "initializer_range"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be above 0 and finite")
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and not 0 <= token < self.vocab_size:
                    raise ValueError(f"{name}={value} must lie in the vocabulary, 0 to {self.vocab_size - 1}")

    def _check_attention(self) -> None:
        """Refuse heads, windows and layer types that cannot work together."""
        heads, groups = self.num_attention_heads, self.num_key_value_heads
        if heads % groups:
            raise ValueError(
                f"num_attention_heads={heads} does not divide by num_key_value_heads={groups}: choose a divisor"
            )
        if self.sliding_window is not None and self.sliding_window < 2:
            raise ValueError(f"sliding_window={self.sliding_window} must be at least 2 tokens, or None")
        for kind in self.layer_types or []:
            if kind not in ("full_attention", "sliding_attention"):
                raise ValueError(f"layer_types holds {kind!r}: choose 'full_attention' or 'sliding_attention'")
        if "sliding_attention" in (self.layer_types or []):
            if self.sliding_window is None:
                raise ValueError("layer_types holds 'sliding_attention' but sliding_window is None: set it, in tokens")
            if not self.is_causal:
                raise ValueError("sliding_window needs is_causal=True: an encoder's attention is full")
            if self.add_cross_attention or self.is_encoder_decoder:
                # transformers' cache would cut the encoder's keys and values to the window as well.
                raise ValueError("sliding_window does not go with cross-attention: leave it None")
        if len(self.layer_types or []) != self.num_hidden_layers:
            raise ValueError(
                f"layer_types names {len(self.layer_types or [])} layers but num_hidden_layers={self.num_hidden_layers}"
            )

    def _check_choices(self) -> None:
        """Refuse an unknown activation, odd rotary heads, and half an encoder-decoder."""
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act={self.hidden_act!r} is unknown: try silu, gelu, gelu_new, relu2")
        if self.position_embedding == "rotary" and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even for position_embedding='rotary'")
        if self.is_encoder_decoder and not self.is_causal:
            raise ValueError("is_causal=False with is_encoder_decoder=True: its encoder looks both ways without it")
        if self.is_encoder_decoder and self.decoder_start_token_id is None:
            raise ValueError("is_encoder_decoder=True needs decoder_start_token_id: the token a text begins with")

    def validate_rope(self) -> None:
        """Refuse rotary settings that are unknown, incomplete or not positive; run by the base class, as above."""
        rope = self.rope_parameters or {"rope_type": "default"}
        known = {*RopeParameters.__annotations__, "type"} - {"mrope_section"}  # that of pictures, which none reads here
        if unknown := set(rope) - known:
            raise ValueError(f"rope_parameters has {sorted(map(str, unknown))}: choose from {', '.join(sorted(known))}")
        kind = rope["rope_type"]
        if not isinstance(kind, str) or kind not in ROPE_TYPES:
            raise ValueError(f"rope_parameters has rope_type={kind!r}: choose one of {', '.join(ROPE_TYPES)}")
        if missing := {name for name in ROPE_TYPES[kind] if rope.get(name) is None}:
            raise ValueError(f"rope_parameters with rope_type={kind!r} needs {' and '.join(sorted(missing))}")
        if rope.get("partial_rotary_factor", 1) != 1:
            raise ValueError(
                f"rope_parameters has partial_rotary_factor={rope['partial_rotary_factor']}: only whole heads turn, 1.0"
            )
        given = {name: value for name, value in rope.items() if value is not None or name == "rope_theta"}
        for name, value in given.items():
            if name in ("short_factor", "long_factor"):
                self._check_factors(name, value)
            elif name in ("rope_theta", "original_max_position_embeddings"):
                _check_number(name, value, least=2)  # some types divide by the logarithm
            elif name == "factor":
                _check_number(name, value, least=1)
            elif name not in ("rope_type", "type", "truncate"):
                _check_number(name, value, least=0)
        for low, high in (("low_freq_factor", "high_freq_factor"), ("beta_slow", "beta_fast")):
            least, most = given.get(low, 1), given.get(high, 32)
            if least >= most:
                raise ValueError(f"rope_parameters has {low}={least} and {high}={most}: the first must be the smaller")

    def _check_factors(self, name: str, value: Any) -> None:
        """Refuse factors of angles that are not one for each pair of a head's features."""
        pairs = (self.head_dim or 0) // 2
        if not isinstance(value, list | tuple) or len(value) != pairs:
            found = f"{len(value)} factors" if isinstance(value, list | tuple) else repr(value)
            raise ValueError(f"rope_parameters has {name} with {found}: give a list of head_dim / 2 = {pairs} numbers")
        for factor in value:
            _check_number(f"a {name}", factor, least=0)


def _check_number(name: str, value: Any, least: int) -> None:
    """Refuse a setting of the rotary angles that is no finite number from `least` on, or 0."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value < float("inf") or value == 0:
        bound = f"at least {least}" if least else "above 0"
        raise ValueError(f"rope_parameters has {name}={value!r}: it must be a number, {bound}")


__all__ = ["PRESETS", "GroundupConfig"]
