"""A GPT from the embedding up, in the order it is taught: positions, norm, attention, MLP, block, model, head.

Written after Vaswani et al. 2017 (the Transformer), Radford et al. 2019 (GPT-2) and Touvron et al. 2023 (Llama); the
knobs of `GroundupConfig` choose between their answers. Masks, caches, `generate` and the fast attention kernels are
transformers' own. Shapes: B rows, T positions, S positions looked at, C width, H heads, G key and value heads, D width
of a head, V vocabulary.
"""

import copy
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import GradientCheckpointingLayer, PreTrainedModel, masking_utils
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.modeling_layers import GenericForQuestionAnswering, GenericForTokenClassification
from transformers.modeling_outputs import (
    BaseModelOutput,
    BaseModelOutputWithPastAndCrossAttentions,
    CausalLMOutputWithCrossAttentions,
    MaskedLMOutput,
    Seq2SeqLMOutput,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, dynamic_rope_update
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_groundup import GroundupConfig
from .generation_groundup import CACHE, CACHE_ARGUMENT, GroundupGenerationMixin, either_cache_name

logger = logging.get_logger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# Positions. GPT-2 adds a learned vector per position, an `nn.Embedding` in the model below. Rotary positions turn
# queries and keys by an angle that grows with the position, so that their product depends on the distance alone (Su et
# al. 2021, section 3.2).


class GroundupRotaryEmbedding(nn.Module):
    """Compute the cosine and sine by which each position turns every pair of features of a head."""

    def __init__(self, config: GroundupConfig):
        super().__init__()
        self.config = config
        self.rope_type = config.rope_parameters["rope_type"]
        self.max_seq_len_cached = self.original_max_seq_len = config.max_position_embeddings
        is_default = self.rope_type == "default"
        rope_init_fn = self.compute_default_rope_parameters if is_default else ROPE_INIT_FUNCTIONS[self.rope_type]
        inv_freq, self.attention_scaling = rope_init_fn(config)
        self.register_buffer("inv_freq", inv_freq, persistent=False)
        self.register_buffer("original_inv_freq", inv_freq.clone(), persistent=False)

    @staticmethod
    def compute_default_rope_parameters(config: GroundupConfig, **_: Any) -> tuple[Tensor, float]:
        """Return the angle per position of each pair, `theta ** (-2 i / D)`, shape (D / 2,), and a scale of 1."""
        pairs = torch.arange(0, config.head_dim, 2, dtype=torch.float)
        return 1.0 / (config.rope_parameters["rope_theta"] ** (pairs / config.head_dim)), 1.0

    @torch.no_grad()
    @dynamic_rope_update
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Turn position ids (B, T) into `cos` and `signed_sin` of `apply_rotary`, (B, T, D), in the dtype of `x`."""
        angles = position_ids[..., None].float() * self.inv_freq.to(device=x.device, dtype=torch.float)  # (B, T, D / 2)
        cos, sin = angles.cos() * self.attention_scaling, angles.sin() * self.attention_scaling
        return torch.cat((cos, cos), dim=-1).to(x.dtype), torch.cat((-sin, sin), dim=-1).to(x.dtype)


def apply_rotary(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn each pair of features (x1, x2), which lie D / 2 apart, to (x1 cos - x2 sin, x2 cos + x1 sin).

    `x` holds queries or keys, (B, H, T, D); `cos` and `signed_sin` are (B, 1, T, D). The first half of the sine is
    negated, which gives the numbers of transformers' `rotate_half` in fewer operations.
    """
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * signed_sin


# ---------------------------------------------------------------------------------------------------------------------
# Norm


class GroundupRMSNorm(nn.Module):
    """Divide by the root mean square and multiply by a learned gain (Zhang and Sennrich 2019); no mean, no bias."""

    def __init__(self, hidden_size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden_size))
        self.eps = eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Norm the last dimension of (..., C), in fp32; cast before the gain as Llama does, so that bf16 agrees too."""
        normed = nn.functional.rms_norm(hidden_states.float(), hidden_states.shape[-1:], eps=self.eps)
        return self.weight * normed.to(hidden_states.dtype)


def make_norm(config: GroundupConfig) -> nn.Module:
    """Make the norm that the config chooses: Llama's RMSNorm, or GPT-2's LayerNorm (Ba et al. 2016)."""
    norm_class = GroundupRMSNorm if config.norm == "rms_norm" else nn.LayerNorm
    return norm_class(config.hidden_size, eps=config.norm_eps)


# ---------------------------------------------------------------------------------------------------------------------
# Attention


def repeat_kv(hidden_states: Tensor, n_rep: int) -> Tensor:
    """Repeat each key or value head for the `n_rep` query heads that share it: (B, G, S, D) -> (B, G * n_rep, S, D)."""
    return hidden_states if n_rep == 1 else hidden_states.repeat_interleave(n_rep, dim=1)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Compute scaled dot-product attention step by step (Vaswani et al. 2017, equation 1).

    `query` is (B, H, T, D), `key` and `value` are (B, G, S, D) with G dividing H. Returns the mixed values (B, T, H, D)
    and the attention weights (B, H, T, S). `attention_mask` (B, 1, T, S) is added to the scores: 0 where the query may
    look, a huge negative number elsewhere.
    """
    key = repeat_kv(key, module.num_key_value_groups)
    value = repeat_kv(value, module.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, T, S)
    if attention_mask is not None and attention_mask.dtype == torch.bool:  # made for `sdpa`, then the kernel changed
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    attn_weights = nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    return (attn_weights @ value).transpose(1, 2).contiguous(), attn_weights


class GroundupAttention(nn.Module):
    """Let every token ask all tokens it may see, and take from each in proportion to how well its key answers.

    With fewer key and value heads than query heads it is grouped-query attention (Ainslie et al. 2023).
    """

    def __init__(self, config: GroundupConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.is_causal = config.is_causal
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.sliding_window = config.sliding_window if config.layer_types[layer_idx] == "sliding_attention" else None

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
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix (B, T, C) -> (B, T, C); the eager kernel also gives the attention weights (B, H, T, S)."""
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(hidden_shape)).transpose(1, 2)  # (B, H, T, D)
        key = self.k_norm(self.k_proj(hidden_states).view(hidden_shape)).transpose(1, 2)  # (B, G, T, D)
        value = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)  # (B, G, T, D)
        if position_embeddings is not None:
            query, key = apply_rotary(query, *position_embeddings), apply_rotary(key, *position_embeddings)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)  # (B, G, S, D): the tokens before these too
        return self._attend(query, key, value, attention_mask, **kwargs)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Run the kernel that the config names, "eager", "sdpa" or another, and project its heads to (B, T, C)."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        attn_output, attn_weights = attend(
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
        return self.o_proj(attn_output.flatten(2)), attn_weights


class GroundupCrossAttention(GroundupAttention):
    """Let every token ask the tokens of another text, as an encoder read it (Vaswani et al. 2017, section 3.2.3)."""

    def __init__(self, config: GroundupConfig, layer_idx: int):
        super().__init__(config, layer_idx)
        self.is_causal, self.sliding_window = False, None

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Mix the encoder's output (B, S, C) into (B, T, C); positions are not turned, the two texts have their own."""
        hidden_shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        query = self.q_norm(self.q_proj(hidden_states).view(hidden_shape)).transpose(1, 2)  # (B, H, T, D)
        if isinstance(cache, EncoderDecoderCache) and cache.is_updated.get(self.layer_idx):
            layer = cache.cross_attention_cache.layers[self.layer_idx]
            return self._attend(query, layer.keys, layer.values, attention_mask, **kwargs)  # they never change
        source_shape = (*encoder_hidden_states.shape[:-1], -1, self.head_dim)
        key = self.k_norm(self.k_proj(encoder_hidden_states).view(source_shape)).transpose(1, 2)  # (B, G, S, D)
        value = self.v_proj(encoder_hidden_states).view(source_shape).transpose(1, 2)  # (B, G, S, D)
        if isinstance(cache, EncoderDecoderCache):
            cache.is_updated[self.layer_idx] = True
            key, value = cache.cross_attention_cache.update(key, value, self.layer_idx)
        return self._attend(query, key, value, attention_mask, **kwargs)


# ---------------------------------------------------------------------------------------------------------------------
# MLP


class GroundupMLP(nn.Module):
    """Widen each token's vector, bend it and narrow it again; a gate may decide what passes (Shazeer 2020)."""

    def __init__(self, config: GroundupConfig):
        super().__init__()
        sizes = (config.hidden_size, config.intermediate_size)
        self.gate_proj = nn.Linear(*sizes, bias=config.mlp_bias) if config.gated_mlp else None
        self.up_proj = nn.Linear(*sizes, bias=config.mlp_bias)
        self.down_proj = nn.Linear(*reversed(sizes), bias=config.mlp_bias)
        self.down_proj._is_residual_projection = True
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) -> (B, T, C), each position alone."""
        if self.gate_proj is None:
            return self.down_proj(self.act_fn(self.up_proj(x)))
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


# ---------------------------------------------------------------------------------------------------------------------
# Block


class GroundupDecoderLayer(GradientCheckpointingLayer):
    """Apply attention and the MLP, each to a normed copy, and add what they give to the residual stream.

    The norm comes first, as in GPT-2 (Radford et al. 2019, section 2.3).
    """

    def __init__(self, config: GroundupConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = GroundupAttention(config, layer_idx)
        if config.add_cross_attention:
            self.cross_attention_layernorm = make_norm(config)
            self.cross_attn = GroundupCrossAttention(config, layer_idx)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = GroundupMLP(config)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        cache: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Pass the residual stream on, (B, T, C) -> (B, T, C)."""
        attn_output, _ = self.self_attn(
            self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            position_embeddings=position_embeddings,
            cache=cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache,
            **kwargs,
        )
        hidden_states = hidden_states + self.dropout(attn_output)
        if encoder_hidden_states is not None:
            attn_output, _ = self.cross_attn(
                self.cross_attention_layernorm(hidden_states),
                encoder_hidden_states,
                attention_mask=encoder_attention_mask,
                cache=cache,
                **{**kwargs, "is_causal": False},  # in the kernels this keyword, meant for above, beats the attribute
            )
            hidden_states = hidden_states + self.dropout(attn_output)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


# ---------------------------------------------------------------------------------------------------------------------
# Model: token ids, or their embeddings, to a vector for each position


@auto_docstring
class GroundupPreTrainedModel(PreTrainedModel):
    """Tell transformers what every groundup model has: names, abilities, initial weights."""

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
        "cross_attentions": OutputRecorder(GroundupCrossAttention, index=1, layer_name="cross_attn"),
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


@auto_docstring
class GroundupModel(GroundupPreTrainedModel):
    """Embed token ids, send them through the blocks one after the other, and norm: a vector for each token."""

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
    @auto_docstring(custom_args=CACHE_ARGUMENT)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Turn token ids (B, T), or their embeddings (B, T, C), into a vector for each position, (B, T, C)."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (B, T, C)
        cache, use_cache = prepare_cache(self, cache, use_cache)
        masks = prepare_masks(self.config, inputs_embeds, attention_mask, position_ids, cache)
        encoder_mask = prepare_encoder_mask(self.config, inputs_embeds, encoder_attention_mask, encoder_hidden_states)
        position_ids = prepare_positions(self.config, inputs_embeds, attention_mask, position_ids, cache)

        hidden_states, position_embeddings = inputs_embeds, None
        if self.config.position_embedding == "learned":
            hidden_states = hidden_states + self.embed_positions(position_ids)  # (B, T, C)
        else:
            cos, signed_sin = self.rotary_emb(hidden_states, position_ids)
            position_embeddings = cos.unsqueeze(1), signed_sin.unsqueeze(1)  # (B, 1, T, D): the same for all heads
        hidden_states = self.dropout(hidden_states)

        for layer_type, layer in zip(self.config.layer_types, self.layers):
            hidden_states = layer(
                hidden_states,
                masks[layer_type],
                encoder_hidden_states,
                encoder_mask,
                position_embeddings=position_embeddings,
                cache=cache,
                position_ids=position_ids,
                **kwargs,
            )
        return BaseModelOutputWithPastAndCrossAttentions(self.norm(hidden_states), cache if use_cache else None)


# ---------------------------------------------------------------------------------------------------------------------
# Language model: the vector of each position to scores of the next token


@auto_docstring
class GroundupForCausalLM(GroundupPreTrainedModel, GroundupGenerationMixin):
    """Score, at each position, every token of the vocabulary as the one that comes next (Radford et al. 2018)."""

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
    @auto_docstring(custom_args=CACHE_ARGUMENT)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithCrossAttentions:
        """Turn token ids (B, T) into logits (B, T, V); with `labels` (B, T), the ids again, add the loss [nats]."""
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
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return CausalLMOutputWithCrossAttentions(
            loss, logits, getattr(outputs, CACHE), outputs.hidden_states, outputs.attentions, outputs.cross_attentions
        )


# ---------------------------------------------------------------------------------------------------------------------
# What the model prepares before its first block: a cache, a position for each token, and who may look at whom


def prepare_cache(model: GroundupModel, cache: Cache | None, use_cache: bool | None) -> tuple[Cache | None, bool]:
    """Return the cache to use, made where there is none, and whether it is given back.

    Where there is cross-attention it holds a second one, for the encoder's keys and values.
    """
    if model.gradient_checkpointing and model.training:  # a block that is computed twice would fill it twice
        return None, False
    config = model.config
    if not use_cache or not config.is_causal:
        return cache, False
    if cache is None:
        cache = DynamicCache(config=config)
    if config.add_cross_attention and not isinstance(cache, EncoderDecoderCache):
        cache = EncoderDecoderCache(cache, DynamicCache(config=config))
    return cache, True


def prepare_positions(
    config: GroundupConfig,
    inputs_embeds: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    cache: Cache | None,
) -> Tensor:
    """Return position ids (B or 1, T): those given, or counted over the tokens that are not padding.

    Learned positions end: raises `ValueError` for a position past the last one. Rotary positions go on, past what the
    model was trained on: said once.
    """
    length, limit = inputs_embeds.shape[1], config.max_position_embeddings
    past = cache.get_seq_length() if cache is not None else 0
    is_learned, given = config.position_embedding == "learned", position_ids is not None
    if not given:
        if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
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


def prepare_masks(
    config: GroundupConfig,
    inputs_embeds: Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    cache: Cache | None,
) -> dict[str, Any]:
    """Return the mask of each type of layer; `generate` may have made them already.

    `position_ids` are those that were given, None where they are counted here: only the former can start again.
    """
    if isinstance(attention_mask, dict):
        return attention_mask
    if cache is not None and not cache.is_compileable and cache.get_seq_length() == 0:
        cache = None  # one that grows is as good as none while it is empty
    documents = None
    if position_ids is not None:
        documents = find_documents(config, inputs_embeds, attention_mask, position_ids, cache)
    apart = None if documents is None else masking_utils.packed_sequence_mask_function(documents)
    return masking_utils.create_masks_for_generate(
        config, inputs_embeds, attention_mask, cache, and_mask_function=apart
    )


def prepare_encoder_mask(
    config: GroundupConfig,
    inputs_embeds: Tensor,
    encoder_attention_mask: Tensor | None,
    encoder_hidden_states: Tensor | None,
) -> Tensor | None:
    """Return the mask of the encoder's tokens for the kernel; None without an encoder."""
    if encoder_hidden_states is None:
        return None
    if not config.add_cross_attention:
        raise ValueError("encoder_hidden_states given to a model without cross-attention: add_cross_attention=True")
    return masking_utils.create_bidirectional_mask(config, inputs_embeds, encoder_attention_mask, encoder_hidden_states)


def find_documents(
    config: GroundupConfig,
    inputs_embeds: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    cache: Cache | None,
) -> Tensor | None:
    """Return the document of its row that each token belongs to, (B, T); None where no row is packed with several.

    transformers looks for that itself, but only without a mask of padding, and not in an encoder. Raises `ValueError`
    where the documents could not be kept apart.
    """
    is_padding_mask = isinstance(attention_mask, Tensor) and attention_mask.ndim == 2
    is_compiling, has_flash = torch.compiler.is_compiling(), "flash" in str(config._attn_implementation)
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


def documents_of(position_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
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


# ---------------------------------------------------------------------------------------------------------------------
# Other heads


@auto_docstring
class GroundupForMaskedLM(GroundupPreTrainedModel):
    """Score every token of the vocabulary at each position, from both sides of it (Devlin et al. 2019, BERT)."""

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
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Turn token ids (B, T) into logits (B, T, V); `labels` (B, T) are the ids that were masked, -100 elsewhere."""
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return MaskedLMOutput(loss, logits, outputs.hidden_states, outputs.attentions)


class GroundupBagOfTokens(nn.Module):
    """Score a text by which tokens, pairs of neighbouring tokens and words are in it, wherever they stand: linearly.

    The features are TF-IDF with the logarithm of counts, of length 1 for each text (Salton and Buckley 1988), which is
    what a linear classifier of texts reads (Wang and Manning 2012). Pairs and words share buckets by a hash (Joulin et
    al. 2017). A word is a run of tokens that `joins` (V, 2) allows: a token that begins like the middle of a word after
    one that ends so.
    """

    FACTOR = 1_000_003  # of the hash: a prime
    rarity: Tensor
    joins: Tensor

    def __init__(self, config: GroundupConfig):
        super().__init__()
        self.vocab_size, self.buckets = config.vocab_size, config.classifier_bag_buckets
        self.weight = nn.Parameter(torch.zeros(self.vocab_size + self.buckets, config.num_labels))
        self.bias = nn.Parameter(torch.zeros(config.num_labels))
        self.register_buffer("rarity", torch.ones(self.vocab_size + self.buckets))
        self.register_buffer("joins", torch.zeros(self.vocab_size, 2, dtype=torch.bool))

    def features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Turn token ids (B, T) into the features of their texts (B, 3 T - 1), -1 for none."""
        rows, length = input_ids.shape
        counted = torch.ones_like(input_ids, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        both = counted[:, :-1] & counted[:, 1:]
        pairs = (input_ids[:, :-1] * self.FACTOR + input_ids[:, 1:]) % self.buckets + self.vocab_size

        joined = both & self.joins[input_ids[:, 1:], 0] & self.joins[input_ids[:, :-1], 1]
        starts = torch.cat((torch.ones_like(counted[:, :1]), ~joined), dim=1)
        index = torch.arange(length, device=input_ids.device).expand(rows, length)
        place = index - torch.where(starts, index, 0).cummax(dim=1).values  # of a token in its word
        powers = torch.full_like(index[0], self.FACTOR).cumprod(0)  # whole numbers that overflow alike everywhere
        words = torch.zeros_like(input_ids).scatter_add(1, starts.cumsum(1) - 1, (input_ids + 1) * powers[place])
        last = torch.zeros_like(counted).scatter(1, starts.cumsum(1) - 1, counted)
        words = words % self.buckets + self.vocab_size
        return torch.cat((input_ids, pairs, words), dim=1).masked_fill(~torch.cat((counted, both, last), dim=1), -1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Turn token ids (B, T) into logits (B, labels); what the mask (B, T) leaves out counts for nothing."""
        features = self.features(input_ids, attention_mask)
        ordered = features.sort(dim=1).values
        counts = torch.searchsorted(ordered, features, right=True) - torch.searchsorted(ordered, features)
        values = (1 + counts.float().log()) * self.rarity.float()[features.clamp(min=0)] * (features >= 0)
        norm = (values.square() / counts).sum(1, keepdim=True).sqrt()  # each feature is there `counts` times
        shares = (values / counts / norm.clamp(min=1e-12)).to(self.weight.dtype)
        scores = nn.functional.embedding_bag(features.clamp(min=0), self.weight, per_sample_weights=shares, mode="sum")
        return scores + self.bias


@auto_docstring
class GroundupForSequenceClassification(GroundupPreTrainedModel):
    """Label a whole text: pool the vectors of its tokens, padding left out, and apply a linear layer.

    Radford et al. 2018 (GPT-1), section 3.2, read the last one. With `classifier_bag_buckets` a linear part on the bag
    of tokens adds its scores.
    """

    # The loss is a mean over rows, which knows nothing of the other micro-batches: Trainer must divide it itself.
    accepts_loss_kwargs = False

    def __init__(self, config: GroundupConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GroundupModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.score = nn.Linear(config.hidden_size, config.num_labels, bias=False)
        self.bag = GroundupBagOfTokens(config) if config.classifier_bag_buckets else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GroundupBagOfTokens):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
            init.ones_(module.rarity)
            init.zeros_(module.joins)

    @either_cache_name
    @can_return_tuple
    @auto_docstring(custom_args=CACHE_ARGUMENT)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """Turn token ids (B, T) into logits (B, labels); without `attention_mask`, find the padding by its token id.

        Raises `ValueError` for a batch of several rows when neither a mask nor a padding token is known, and for
        `inputs_embeds` alone where a linear part reads the ids.
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
        if self.bag is not None:
            if input_ids is None:
                raise ValueError("this classifier also reads which tokens are in a text: give input_ids")
            logits = logits + self.bag(input_ids, attention_mask)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(
            loss, logits, getattr(outputs, CACHE), outputs.hidden_states, outputs.attentions
        )

    def _mask_of_padding(
        self, input_ids: Tensor | None, attention_mask: Tensor | None, inputs_embeds: Tensor | None
    ) -> Tensor | None:
        """Return (B, T), 1 where a token counts: as given, or found by the padding id; None where nothing is padded."""
        if attention_mask is not None or input_ids is None:
            return attention_mask
        if self.config.pad_token_id is None:
            if input_ids.shape[0] > 1:
                raise ValueError("a batch of several rows needs attention_mask, or pad_token_id in the config")
            return None
        return (input_ids != self.config.pad_token_id).long()

    def _pool(self, hidden_states: Tensor, attention_mask: Tensor | None) -> Tensor:
        """Pool (B, T, C) to (B, C), over the positions where the mask is 1."""
        pooling = self.config.classifier_pooling
        if attention_mask is None:
            attention_mask = hidden_states.new_ones(hidden_states.shape[:2])
        counts = attention_mask.bool().unsqueeze(-1)  # (B, T, 1)
        if pooling == "mean":
            return (hidden_states * counts).sum(1) / counts.sum(1).clamp(min=1)
        if pooling == "max":
            return hidden_states.masked_fill(~counts, torch.finfo(hidden_states.dtype).min).amax(1)
        index = torch.arange(hidden_states.shape[1], device=hidden_states.device).expand(counts.shape[:2])
        if pooling == "last":
            chosen = index.masked_fill(~counts.squeeze(-1), -1).amax(1).clamp(min=0)
        else:
            chosen = index.masked_fill(~counts.squeeze(-1), index.shape[1] - 1).amin(1)
        return hidden_states[torch.arange(len(chosen), device=chosen.device), chosen]


# The library's own heads, but for the way they make their model: through an Auto class, which does not know this one
# where the code came with a checkpoint. They leave `num_items_in_batch` alone, as the head above does.


@auto_docstring
class GroundupForTokenClassification(GenericForTokenClassification, GroundupPreTrainedModel):
    """Label each token: apply a linear layer to its vector."""

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
    """Find the answer in a text: score each token as the first of it, and as the last (Devlin et al. 2019, 4.2)."""

    accepts_loss_kwargs = False

    def __init__(self, config: GroundupConfig):
        GroundupPreTrainedModel.__init__(self, config)
        self.model = GroundupModel(config)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()


# ---------------------------------------------------------------------------------------------------------------------
# Encoder and decoder: the whole original Transformer. Both are the model above; the decoder's blocks also attend to the
# encoder's output (Vaswani et al. 2017, figure 1). They share their token embeddings (section 3.4), and the head does
# too where `tie_word_embeddings` is set.


def half_of(config: GroundupConfig, **fields: Any) -> GroundupConfig:
    """Return the config of one of the two models: a copy of the whole one with these fields changed."""
    half = copy.deepcopy(config)
    for name, value in {"is_encoder_decoder": False, **fields}.items():
        setattr(half, name, value)
    return half


@auto_docstring
class GroundupForConditionalGeneration(GroundupPreTrainedModel, GroundupGenerationMixin):
    """Read one text and write another: score, at each position of it, every token as the one that comes next."""

    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "encoder.embed_tokens.weight"}

    def __init__(self, config: GroundupConfig):
        super().__init__(config)
        if not config.is_encoder_decoder:
            raise ValueError("GroundupForConditionalGeneration needs is_encoder_decoder=True")
        self.encoder = GroundupModel(half_of(config, is_causal=False, add_cross_attention=False))
        self.decoder = GroundupModel(half_of(config, add_cross_attention=True))
        self.decoder.embed_tokens = None  # it is given embeddings, from the encoder's table
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.lm_head._is_zero_head = True
        self.loss_type = "ForMaskedLM"  # cross-entropy as it is: here the decoder's inputs are shifted, not the labels
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the token embeddings, which encoder and decoder share."""
        return self.encoder.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Put other token embeddings in their place."""
        self.encoder.embed_tokens = value

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Return what the decoder reads to predict labels (B, T): the start token, then all labels but the last.

        Positions without a label (-100) end a row; what is read there reaches no loss, so any token will do.
        """
        start = torch.full_like(labels[:, :1], self.config.decoder_start_token_id)
        shifted = torch.cat((start, labels[:, :-1]), dim=1)
        return shifted.masked_fill(shifted == -100, self.config.decoder_start_token_id)

    @either_cache_name
    @can_return_tuple
    @auto_docstring(custom_args=CACHE_ARGUMENT)
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        encoder_outputs: ModelOutput | tuple | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> Seq2SeqLMOutput:
        """Turn token ids (B, S) and the decoder's (B, T) into logits (B, T, V).

        With `labels` (B, T), the text to write, the decoder's inputs are made from them and the mean loss [nats] is
        computed; -100 where a label does not count.
        """
        if encoder_outputs is None:
            encoder_outputs = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, inputs_embeds=inputs_embeds, **kwargs
            )
        elif not isinstance(encoder_outputs, ModelOutput):
            encoder_outputs = BaseModelOutput(*encoder_outputs)
        if decoder_inputs_embeds is None:
            if decoder_input_ids is None and labels is not None:
                decoder_input_ids = self.prepare_decoder_input_ids_from_labels(labels)
            if decoder_input_ids is None:
                raise ValueError("the decoder has nothing to read: give decoder_input_ids or labels")
            decoder_inputs_embeds = self.encoder.embed_tokens(decoder_input_ids)
        outputs = self.decoder(
            inputs_embeds=decoder_inputs_embeds,
            attention_mask=decoder_attention_mask,
            cache=cache,
            encoder_hidden_states=encoder_outputs.last_hidden_state,
            encoder_attention_mask=attention_mask,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = None if labels is None else self.loss_function(logits, labels, self.config.vocab_size, **kwargs)
        return Seq2SeqLMOutput(
            loss=loss,
            logits=logits,
            **{CACHE: getattr(outputs, CACHE)},
            decoder_hidden_states=outputs.hidden_states,
            decoder_attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
            encoder_last_hidden_state=encoder_outputs.last_hidden_state,
            encoder_hidden_states=encoder_outputs.hidden_states,
            encoder_attentions=encoder_outputs.attentions,
        )


# By this table of class names Trainer knows whether labels stand one token on, for which it smooths them.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["groundup"] = "GroundupForCausalLM"

__all__ = [
    "GroundupForCausalLM",
    "GroundupForConditionalGeneration",
    "GroundupForMaskedLM",
    "GroundupForQuestionAnswering",
    "GroundupForSequenceClassification",
    "GroundupForTokenClassification",
    "GroundupModel",
    "GroundupPreTrainedModel",
]
