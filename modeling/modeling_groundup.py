"""A GPT from the embedding up, in the order it is taught: positions, norm, attention, MLP, block, model, heads.

Written after Vaswani et al. 2017 (the Transformer), Radford et al. 2019 (GPT-2) and Touvron et al. 2023 (Llama); the
knobs of `GroundupConfig` choose between their answers. Masks, caches, `generate` and the fast attention kernels are
transformers' own. Shapes: B rows, T positions, C width, H heads, D width of a head, V vocabulary.
"""

import contextlib
import functools
import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.generation import GenerationMixin, StoppingCriteria
from transformers.masking_utils import (
    create_bidirectional_mask,
    create_causal_mask,
    create_sliding_window_causal_mask,
    packed_sequence_mask_function,
)
from transformers.modeling_layers import (
    GenericForQuestionAnswering,
    GenericForTokenClassification,
    GradientCheckpointingLayer,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel, slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_groundup import GroundupConfig

logger = logging.get_logger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# The cache of keys and values: transformers names it `cache` from 5.24 on, `past_key_values` before.

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


def either_cache_name(forward: Callable) -> Callable:
    """Let a forward pass that takes a `cache` take it as `past_key_values` too, with transformers' warning since 5.24.

    Raises `ValueError` where both are given.
    """

    @functools.wraps(forward)
    def renamed(*args: Any, **kwargs: Any) -> Any:
        earlier = kwargs.pop("past_key_values", None)
        if earlier is not None:
            if kwargs.get("cache") is not None:
                raise ValueError("cache and past_key_values are one thing: give one of them")
            if CACHE == "cache" and not torch.compiler.is_compiling():
                warnings.warn("`past_key_values` is deprecated: call it `cache`", FutureWarning, stacklevel=2)
            kwargs["cache"] = earlier
        return forward(*args, **kwargs)

    return renamed


# ---------------------------------------------------------------------------------------------------------------------
# Positions. A learned table is an `nn.Embedding` in the model; rotary positions turn queries and keys by an angle that
# grows with the position, so that their product depends on the distance alone (Su et al. 2021, section 3.2).


class GroundupRotaryEmbedding(nn.Module):
    """Position ids -> the cosine and sine by which every pair of features of a head is turned."""

    def __init__(self, config: GroundupConfig):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        compute = self.compute_default_rope_parameters
        if self.rope_type != "default":
            compute = ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = compute(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: GroundupConfig, **_: Any) -> tuple[torch.Tensor, float]:
        """The angle per position of each pair, `theta ** (-2 i / D)`, shape (D / 2,), and a scale of 1."""
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float)
        return 1.0 / (config.rope_parameters["rope_theta"] ** (pairs / config.head_dim)), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, T) position ids -> what `apply_rotary` multiplies by, twice (B, T, D), in the dtype of `x`."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling  # (B, T, D / 2)
        return torch.cat((cos, cos), dim=-1).to(x.dtype), torch.cat((-sin, sin), dim=-1).to(x.dtype)


def apply_rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn every pair (x1, x2) of features, which lie D / 2 apart, to (x1 cos - x2 sin, x2 cos + x1 sin).

    `x` holds queries or keys, (B, H, T, D); `cos` and `sin` are (B, 1, T, D), the first half of `sin` negated.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


# ---------------------------------------------------------------------------------------------------------------------
# Norm


class GroundupRMSNorm(nn.Module):
    """Divide by the root mean square, times a learned gain (Zhang and Sennrich 2019); no mean, no bias."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(..., C) -> (..., C). Computed in fp32 and cast before the gain, as Llama does, so that bf16 agrees too."""
        return self.weight * nn.functional.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)


def make_norm(config: GroundupConfig) -> nn.Module:
    """The norm of the residual stream that the config asks for."""
    kind = GroundupRMSNorm if config.norm == "rms_norm" else nn.LayerNorm
    return kind(config.hidden_size, eps=config.norm_eps)


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def repeat_heads(x: torch.Tensor, times: int) -> torch.Tensor:
    """(B, G, T, D) -> (B, G * times, T, D): each key or value head serves `times` query heads in a row."""
    return x if times == 1 else x.repeat_interleave(times, dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention, written out (Vaswani et al. 2017, equation 1).

    Args:
        query: (B, H, T, D); `key` and `value` are (B, G, S, D) with G dividing H.
        attention_mask: (B, 1, T, S), added to the scores: 0 where the query may look, a huge negative number elsewhere;
            or True and False, as `sdpa` has it, where an `EncoderDecoderModel` changed its kernel after it was built.

    Returns:
        The mixed values (B, T, H, D) and the attention weights (B, H, T, S).
    """
    key = repeat_heads(key, module.num_key_value_groups)
    value = repeat_heads(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, T, S)
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class GroundupAttention(nn.Module):
    """Every token asks all tokens it may see, and takes from each in proportion to how well its key answers.

    With `is_cross_attention` the keys and values come from an encoder's output, and are computed once per sequence.
    """

    def __init__(self, config: GroundupConfig, layer_idx: int, is_cross_attention: bool = False):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_cross_attention = is_cross_attention
        self.is_causal = config.is_causal and not is_cross_attention
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        slides = config.layer_types[layer_idx] == "sliding_attention" and not is_cross_attention
        self.sliding_window = config.sliding_window if slides else None

        query_width = config.num_attention_heads * config.head_dim
        key_value_width = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, query_width, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, key_value_width, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, key_value_width, bias=config.qkv_bias)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=config.attention_bias)
        self.o_proj._is_residual_projection = True
        self.q_norm = GroundupRMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = GroundupRMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Cache | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, T, C) -> (B, T, C) and, from the eager kernel, the attention weights (B, H, T, S)."""
        rows_and_positions = hidden_states.shape[:-1]
        query = self.q_proj(hidden_states).view(*rows_and_positions, -1, self.head_dim)  # (B, T, H, D)
        query = self.q_norm(query).transpose(1, 2)  # (B, H, T, D)
        if self.is_cross_attention:
            key, value = self._encoder_keys_and_values(encoder_hidden_states, cache)
        else:
            key, value = self._keys_and_values(hidden_states)  # (B, G, T, D) each
            if position_embeddings is not None:
                query, key = apply_rotary(query, *position_embeddings), apply_rotary(key, *position_embeddings)
            if isinstance(cache, EncoderDecoderCache):
                cache = cache.self_attention_cache
            if cache is not None:
                key, value = cache.update(key, value, self.layer_idx)  # (B, G, S, D)

        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        mixed, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.config.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **kwargs,
        )
        return self.o_proj(mixed.reshape(*rows_and_positions, -1)), weights

    def _keys_and_values(self, source: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Project what is looked at, (B, S, C), to keys and values, (B, G, S, D) each."""
        shape = (*source.shape[:-1], -1, self.head_dim)
        key = self.k_norm(self.k_proj(source).view(shape)).transpose(1, 2)
        return key, self.v_proj(source).view(shape).transpose(1, 2)

    def _encoder_keys_and_values(
        self, encoder_hidden_states: torch.Tensor, cache: Cache | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the encoder's output: from the cache once they are there, since they never change."""
        if not isinstance(cache, EncoderDecoderCache):
            return self._keys_and_values(encoder_hidden_states)
        kept = cache.cross_attention_cache
        if cache.is_updated.get(self.layer_idx):
            return kept.layers[self.layer_idx].keys, kept.layers[self.layer_idx].values
        cache.is_updated[self.layer_idx] = True
        return kept.update(*self._keys_and_values(encoder_hidden_states), self.layer_idx)


# ---------------------------------------------------------------------------------------------------------------------
# MLP


class GroundupMLP(nn.Module):
    """Two matrices with an activation between them, or three where a gate decides what passes (Shazeer 2020)."""

    def __init__(self, config: GroundupConfig):
        super().__init__()
        sizes = (config.hidden_size, config.intermediate_size)
        self.gate_proj = nn.Linear(*sizes, bias=config.mlp_bias) if config.gated_mlp else None
        self.up_proj = nn.Linear(*sizes, bias=config.mlp_bias)
        self.down_proj = nn.Linear(*reversed(sizes), bias=config.mlp_bias)
        self.down_proj._is_residual_projection = True
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(x)))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


# ---------------------------------------------------------------------------------------------------------------------
# Block


class GroundupDecoderLayer(GradientCheckpointingLayer):
    """One block: attention and MLP, each on a normed copy and added back to the residual stream."""

    def __init__(self, config: GroundupConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = GroundupAttention(config, layer_idx)
        if config.add_cross_attention:
            self.cross_attention_layernorm = make_norm(config)
            self.cross_attn = GroundupAttention(config, layer_idx, is_cross_attention=True)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = GroundupMLP(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """(B, T, C) -> (B, T, C)."""
        attended, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            cache=cache,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attended)
        if encoder_hidden_states is not None:
            # In the kernels a keyword beats the module's attribute: this one is meant for the attention above.
            attended, _ = self.cross_attn(
                self.cross_attention_layernorm(hidden_states),
                attention_mask=encoder_attention_mask,
                cache=cache,
                encoder_hidden_states=encoder_hidden_states,
                **{**kwargs, "is_causal": False},
            )
            hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


# ---------------------------------------------------------------------------------------------------------------------
# Model


@auto_docstring
class GroundupPreTrainedModel(PreTrainedModel):
    """What transformers needs to know about every groundup model: names, abilities, initial weights."""

    config: GroundupConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["GroundupDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["cache", "past_key_values"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar[dict[str, Any]] = {
        "hidden_states": GroundupDecoderLayer,
        "attentions": OutputRecorder(GroundupAttention, index=1, layer_name="self_attn"),
        "cross_attentions": OutputRecorder(GroundupAttention, index=1, layer_name="cross_attn"),
    }

    def __init__(self, config: GroundupConfig, *args: Any, **kwargs: Any):
        config.validate()  # a field set after the config was made has not been looked at
        super().__init__(config, *args, **kwargs)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # Marked on the projection itself: transformers asks custom code only about modules that own weights.
        if getattr(module, "_is_residual_projection", False):
            if self.config.zero_init:
                init.zeros_(module.weight)
            else:
                # Keeps the variance of the residual stream from growing with depth (Radford et al. 2019, section 2.3).
                std = self.config.initializer_range / (2 * self.config.num_hidden_layers) ** 0.5
                init.normal_(module.weight, mean=0.0, std=std)
        if getattr(module, "_is_zero_head", False) and self.config.zero_init and not self.config.tie_word_embeddings:
            init.zeros_(module.weight)


def documents_of(position_ids: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Number the documents that a row is packed with: a position that does not follow the one before begins another.

    Position ids (B, T) and a mask (B, T) of 0 where there is padding, which is passed over -> numbers from 0, (B, T).
    """
    index = torch.arange(position_ids.shape[1], device=position_ids.device).expand_as(position_ids)
    is_text = torch.ones_like(position_ids) if attention_mask is None else attention_mask[:, -index.shape[1] :]
    is_text = is_text.to(position_ids.device).bool()
    latest = index.where(is_text, -1).cummax(-1).values
    before = nn.functional.pad(latest[:, :-1], (1, 0), value=-1)  # the token before, -1 where there is none
    follows = (before < 0) | (position_ids == position_ids.gather(1, before.clamp(min=0)) + 1)
    return (is_text & ~follows).cumsum(-1)


@auto_docstring
class GroundupModel(GroundupPreTrainedModel):
    """Embeddings, the blocks one after the other, and a last norm: token ids in, a vector for each token out."""

    def __init__(self, config: GroundupConfig):
        super().__init__(config)
        if config.is_encoder_decoder:
            raise ValueError("is_encoder_decoder=True makes two models: GroundupForConditionalGeneration holds them")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        if config.position_embedding == "learned":
            self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        else:
            self.rotary_emb = GroundupRotaryEmbedding(config)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList([GroundupDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = make_norm(config)
        self.gradient_checkpointing = False
        self.post_init()

    @either_cache_name
    @merge_with_config_defaults
    @capture_outputs
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Token ids (B, T), or their embeddings (B, T, C) -> a vector for each position, (B, T, C).

        Args:
            cache (`Cache`, *optional*):
                Keys and values of the tokens before these, which are added; `past_key_values` is another name for it.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if encoder_hidden_states is not None and not self.config.add_cross_attention:
            raise ValueError("encoder_hidden_states given to a model without cross-attention: add_cross_attention=True")

        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (B, T, C)
        if self.gradient_checkpointing and self.training:  # a block that is computed twice would fill it twice
            cache, use_cache = None, False
        use_cache = use_cache and self.config.is_causal
        if use_cache:
            cache = self._prepare_cache(cache)
        masks = self._prepare_masks(inputs_embeds, attention_mask, position_ids, cache)
        position_ids = self._prepare_positions(inputs_embeds, attention_mask, position_ids, cache)
        if encoder_hidden_states is not None:
            encoder_attention_mask = create_bidirectional_mask(
                config=self.config,
                inputs_embeds=inputs_embeds,
                attention_mask=encoder_attention_mask,
                encoder_hidden_states=encoder_hidden_states,
            )

        hidden_states, position_embeddings = inputs_embeds, None
        if self.config.position_embedding == "learned":
            hidden_states = hidden_states + self.embed_positions(position_ids)
        else:
            cos, sin = self.rotary_emb(hidden_states, position_ids)
            position_embeddings = cos.unsqueeze(1), sin.unsqueeze(1)  # the same for all heads
        hidden_states = self.dropout(hidden_states)

        for kind, layer in zip(self.config.layer_types, self.layers):
            hidden_states = layer(
                hidden_states,
                masks[kind],
                encoder_hidden_states,
                encoder_attention_mask,
                position_embeddings=position_embeddings,
                cache=cache,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(
            last_hidden_state=self.norm(hidden_states),
            **{CACHE: cache if use_cache else None},
        )

    def _prepare_cache(self, cache: Cache | None) -> Cache:
        """A cache for keys and values, with a second one for the encoder's where there is cross-attention."""
        if cache is None:
            cache = DynamicCache(config=self.config)
        if self.config.add_cross_attention and not isinstance(cache, EncoderDecoderCache):
            cache = EncoderDecoderCache(cache, DynamicCache(config=self.config))
        return cache

    def _prepare_positions(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> torch.Tensor:
        """Position ids (B or 1, T): given, or counted over the tokens that are not padding.

        A table of learned positions ends: raises `ValueError` for a position past the last one. Angles go on, past what
        the model was trained on: said once.
        """
        length, limit = inputs_embeds.shape[1], self.config.max_position_embeddings
        past = cache.get_seq_length() if cache is not None else 0
        is_learned, given = self.config.position_embedding == "learned", position_ids is not None
        if not given:
            if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
            else:
                position_ids = (torch.arange(length, device=inputs_embeds.device) + past).unsqueeze(0)
        if torch.compiler.is_compiling():
            return position_ids
        may_be_past = past + length > limit or (is_learned and given and past == 0)
        if may_be_past and (longest := int(position_ids.max()) + 1) > limit:
            if is_learned:
                raise ValueError(
                    f"a sequence of {longest} tokens is longer than this model's "
                    f"max_position_embeddings={limit}: shorten it"
                )
            if past == 0:  # `generate` says it itself when a text grows past the end
                logger.warning_once(
                    f"a sequence is longer than this model's max_position_embeddings={limit}: it goes on, but it was "
                    "not trained on positions past that, so expect worse"
                )
        return position_ids

    def _prepare_masks(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: Any,
        position_ids: torch.Tensor | None,
        cache: Cache | None,
    ) -> dict[str, Any]:
        """The mask of each kind of layer: who may look at whom. `generate` may have made them already.

        `position_ids` are those that were given, None where they were counted here: only the former can start again.
        """
        if isinstance(attention_mask, dict):
            return attention_mask
        if cache is not None and not cache.is_compileable and cache.get_seq_length() == 0:
            cache = None  # one that grows is as good as none while it is empty
        arguments = {
            "config": self.config,
            "inputs_embeds": inputs_embeds,
            "attention_mask": attention_mask,
            CACHE: cache,
        }
        documents = None
        if position_ids is not None:
            documents = self._documents(inputs_embeds, attention_mask, position_ids, cache)
        if documents is not None:
            arguments["and_mask_function"] = packed_sequence_mask_function(documents)
        make = {"full_attention": create_causal_mask, "sliding_attention": create_sliding_window_causal_mask}
        return {kind: make[kind](**arguments) for kind in dict.fromkeys(self.config.layer_types)}

    def _documents(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        cache: Cache | None,
    ) -> torch.Tensor | None:
        """Which document of its row each token belongs to, (B, T), where rows are packed with several, else None.

        transformers looks for that itself, but only without a mask of padding, and not in an encoder. Raises
        `ValueError` where the documents could not be kept apart.
        """
        is_padding_mask = isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2
        is_compiling, has_flash = torch.compiler.is_compiling(), "flash" in str(self.config._attn_implementation)
        if not (attention_mask is None or is_padding_mask) or (cache is not None and is_compiling):
            return None
        if cache is not None and cache.get_seq_length() > 0:
            return None
        documents = documents_of(position_ids.expand(inputs_embeds.shape[0], -1), attention_mask)
        if is_compiling:
            return None if has_flash else documents
        if not documents[:, -1].any():
            return None
        if cache is not None:
            raise ValueError("position_ids start again in a row, which a static cache cannot keep apart: leave it out")
        if has_flash and (len(documents) > 1 or (attention_mask is not None and not attention_mask.all())):
            raise ValueError(
                "position_ids start again in a row, which flash attention keeps apart only in one row without padding: "
                'flatten the rows (DataCollatorWithFlattening) or choose attn_implementation="sdpa"'
            )
        return None if has_flash else documents


# ---------------------------------------------------------------------------------------------------------------------
# Writing: transformers' `generate`, and where a text ends


class EndOfPositions(StoppingCriteria):
    """Ends all texts once the longest has a token for the last of the learned positions and one after it."""

    def __init__(self, positions: int, longest: int):
        self.positions, self.longest = positions, longest

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Whether each text of (B, T) ids ends."""
        is_full = input_ids.shape[1] >= self.longest
        if is_full:
            logger.warning_once(
                f"a text ends where this model's positions do, max_position_embeddings={self.positions}: "
                "give a shorter prompt or ask for fewer tokens"
            )
        return torch.full((len(input_ids),), is_full, device=input_ids.device)


class GroundupGenerationMixin(GenerationMixin):
    """transformers' `generate`, fast for one text on a CPU, and with an end where learned positions have theirs."""

    @functools.wraps(GenerationMixin.generate)
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Write as `GenerationMixin.generate` does."""
        if self.config.position_embedding == "learned":
            stopping_criteria = [*(stopping_criteria or []), self._end_of_positions(inputs, **kwargs)]
        with every_thread_reads(self):
            return super().generate(inputs, generation_config, logits_processor, stopping_criteria, *args, **kwargs)

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """What drafts tokens in assisted generation; of a draft only what has a learned position is looked at."""
        drafter: Any = super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]
        draft, positions = drafter.get_candidates, self.config.max_position_embeddings

        def draft_within(input_ids: torch.Tensor, *more: Any, **named: Any) -> tuple[torch.Tensor, Any]:
            ids, logits = draft(input_ids, *more, **named)
            room = positions - input_ids.shape[1]
            if room <= 0:
                return input_ids, None
            return ids[:, :positions], logits if logits is None else logits[:, :room]

        if self.config.position_embedding == "learned":
            drafter.get_candidates = draft_within
        return drafter

    def _end_of_positions(
        self,
        inputs: torch.Tensor | None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **_: Any,
    ) -> EndOfPositions:
        """Padding takes no position; embeddings given without their ids are not among the ids that are counted."""
        positions = self.config.max_position_embeddings
        longest = positions + 1
        if self.config.is_encoder_decoder:  # what was given is the encoder's
            return EndOfPositions(positions, longest)
        if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
            longest += int((attention_mask == 0).sum(-1).min())
        if inputs_embeds is not None and inputs is None and input_ids is None:
            longest -= inputs_embeds.shape[1]
        return EndOfPositions(positions, longest)


# ---------------------------------------------------------------------------------------------------------------------
# Heads


@auto_docstring
class GroundupForCausalLM(GroundupPreTrainedModel, GroundupGenerationMixin):
    """The language model: at each position, a score for every token that could come next."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}
    _pp_plan: ClassVar[dict[str, Any]] = {"lm_head": (["hidden_states"], ["logits"])}

    def __init__(self, config: GroundupConfig):
        super().__init__(config)
        if not config.is_causal:
            raise ValueError("GroundupForCausalLM needs is_causal=True: an encoder cannot write one token at a time")
        self.model = GroundupModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head._is_zero_head = True
        self.post_init()

    @either_cache_name
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        """Token ids (B, T) -> logits (B, T, V); with `labels` (B, T), the ids themselves, also the mean loss [nats].

        Args:
            cache (`Cache`, *optional*):
                Keys and values of the tokens before these, which are added; `past_key_values` is another name for it.
        """
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            encoder_hidden_states=encoder_hidden_states,
            encoder_attention_mask=encoder_attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )


@auto_docstring
class GroundupForMaskedLM(GroundupPreTrainedModel):
    """The encoder's language model: a score for every token that could stand at each position (Devlin et al. 2019)."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan: ClassVar[dict[str, str]] = {"lm_head": "colwise_gather_output"}

    def __init__(self, config: GroundupConfig):
        super().__init__(config)
        if config.is_causal:
            raise ValueError("GroundupForMaskedLM needs is_causal=False: it looks at both sides of a masked token")
        self.model = GroundupModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head._is_zero_head = True
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Token ids (B, T) -> logits (B, T, V); `labels` (B, T) hold the ids that were masked and -100 elsewhere."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring
class GroundupForSequenceClassification(GroundupPreTrainedModel):
    """A label for a whole text: one vector pooled from the tokens that are not padding, then a linear layer."""

    # The loss is a mean over rows, which knows nothing of the other micro-batches: Trainer must divide it itself.
    accepts_loss_kwargs = False

    def __init__(self, config: GroundupConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GroundupModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.post_init()

    @either_cache_name
    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """Token ids (B, T) -> logits (B, labels); without `attention_mask`, pad tokens are found by their id.

        Raises `ValueError` for a batch of several rows when neither a mask nor a padding token is known.

        Args:
            cache (`Cache`, *optional*):
                Keys and values of the tokens before these, which are added; `past_key_values` is another name for it.
        """
        attention_mask = self._mask_of_padding(input_ids, attention_mask, inputs_embeds)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            cache=cache,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.score(self.dropout(self._pool(outputs.last_hidden_state, attention_mask)))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def _mask_of_padding(
        self, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None, inputs_embeds: torch.Tensor | None
    ) -> torch.Tensor | None:
        """(B, T), 1 where a token counts: given, or found by the padding id; None where nothing is padded."""
        if attention_mask is not None or input_ids is None:
            return attention_mask
        if self.config.pad_token_id is None:
            if input_ids.shape[0] > 1:
                raise ValueError("a batch of several rows needs attention_mask, or pad_token_id in the config")
            return None
        return (input_ids != self.config.pad_token_id).long()

    def _pool(self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, T, C) -> (B, C), over the positions where the mask is 1."""
        how = self.config.classifier_pooling
        if attention_mask is None:
            attention_mask = hidden_states.new_ones(hidden_states.shape[:2])
        counts = attention_mask.bool().unsqueeze(-1)  # (B, T, 1)
        if how == "mean":
            return (hidden_states * counts).sum(1) / counts.sum(1).clamp(min=1)
        if how == "max":
            return hidden_states.masked_fill(~counts, torch.finfo(hidden_states.dtype).min).amax(1)
        places = torch.arange(hidden_states.shape[1], device=hidden_states.device).expand(counts.shape[:2])
        if how == "last":
            chosen = places.masked_fill(~counts.squeeze(-1), -1).amax(1).clamp(min=0)
        else:
            chosen = places.masked_fill(~counts.squeeze(-1), places.shape[1] - 1).amin(1)
        return hidden_states[torch.arange(len(chosen), device=chosen.device), chosen]


# The library's own heads, but for the way they make their model: through an Auto class, which does not know this one
# where the code came with a checkpoint. They leave `num_items_in_batch` alone, as the head above does.


@auto_docstring
class GroundupForTokenClassification(GenericForTokenClassification, GroundupPreTrainedModel):
    """A label for each token: a linear layer on its vector."""

    accepts_loss_kwargs = False

    def __init__(self, config: GroundupConfig):
        GroundupPreTrainedModel.__init__(self, config)
        self.num_labels = config.num_labels
        self.model = GroundupModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()


@auto_docstring
class GroundupForQuestionAnswering(GenericForQuestionAnswering, GroundupPreTrainedModel):
    """Where in a text its answer lies: a score for each token to be the first of it, and one to be the last."""

    accepts_loss_kwargs = False

    def __init__(self, config: GroundupConfig):
        GroundupPreTrainedModel.__init__(self, config)
        self.model = GroundupModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


# ---------------------------------------------------------------------------------------------------------------------
# Writing fast. A text grows by one vector at a time, and on a CPU torch multiplies a matrix with one on one thread.
# While a text is written, and only then, every thread reads its part of each large matrix.

LARGE_MATRIX = 2**19  # weights: fewer are read before a second thread has woken
LINEAR_FORWARD = nn.Linear.forward


def multiply(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """What a linear layer gives; for a single vector on a CPU, with every thread at work."""
    weight = layer.weight
    is_one_vector = type(x) is torch.Tensor and x.numel() == layer.in_features and x.dtype == torch.float32
    is_for_training = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling()
    if not is_one_vector or is_for_training or not is_plain_weight(weight):
        return LINEAR_FORWARD(layer, x)
    threads = min(torch.get_num_threads(), layer.out_features)
    rows = layer.out_features // threads
    whole, rest = weight.split([threads * rows, layer.out_features - threads * rows])
    parts = torch.bmm(x.view(1, 1, -1).expand(threads, 1, -1), whole.view(threads, rows, -1).mT).flatten()
    product = torch.cat([parts, torch.mv(rest, x.flatten())]) if len(rest) else parts
    if layer.bias is not None:
        product += layer.bias
    return product.view(*x.shape[:-1], -1)


def is_plain_weight(weight: Any) -> bool:
    """Whether a weight is numbers in memory: not quantised, not sparse, not elsewhere, not computed from others."""
    is_here = type(weight) is nn.Parameter and weight.device.type == "cpu"
    return is_here and weight.dtype == torch.float32 and weight.layout == torch.strided


def is_untouched(module: nn.Module, forward: Callable) -> bool:
    """Whether to call a module is to call `forward` on plain weights: no hook, nothing compiled or put in its place."""
    everywhere = nn.modules.module
    hooks = module._forward_hooks, module._forward_pre_hooks
    hooks_on_all = everywhere._global_forward_hooks, everywhere._global_forward_pre_hooks
    own = module.__dict__.get("forward")  # where accelerate, kernels and others put theirs
    is_replaced = own is not None and getattr(own, "__func__", None) is not multiply
    if is_replaced or module._compiled_call_impl is not None or any(hooks) or any(hooks_on_all):
        return False
    return type(module).forward is forward and all(map(is_plain_weight, module.parameters(recurse=False)))


@contextlib.contextmanager
def every_thread_reads(model: nn.Module) -> Iterator[None]:
    """Multiply by `multiply` inside, in each large linear layer that is nothing but one; afterwards all is as before.

    As an attribute of the layer: of another class it would no longer be what quantisers and adapters look for.
    """
    layers = [
        layer
        for layer in model.modules()
        if type(layer) is nn.Linear and "forward" not in layer.__dict__ and is_untouched(layer, LINEAR_FORWARD)
    ]
    layers = [layer for layer in layers if layer.weight.numel() >= LARGE_MATRIX]
    for layer in layers:
        layer.forward = types.MethodType(multiply, layer)
    try:
        yield
    finally:
        for layer in layers:
            if getattr(layer.__dict__.get("forward"), "__func__", None) is multiply:
                layer.__dict__.pop("forward", None)


# By this table of class names Trainer knows whether labels stand one token on, for which it smooths them.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["groundup"] = "GroundupForCausalLM"

__all__ = [
    "GroundupForCausalLM",
    "GroundupForMaskedLM",
    "GroundupForQuestionAnswering",
    "GroundupForSequenceClassification",
    "GroundupForTokenClassification",
    "GroundupModel",
    "GroundupPreTrainedModel",
]
