"""Decode: one token in, the logits of the next one out, for one text at a time.

A small model spends most of a token's time on everything but arithmetic: modules, masks, padding, batches, outputs. So
a network of ours on a CPU is also written out flat here, for one token of one text: vectors, and keys and values put in
place into memory reserved once. The values are those of its `forward` but for rounding, as tests show. Every other
model, and every prompt, goes through `forward`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import Cache, DynamicCache, EncoderDecoderCache, PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from groundup.inference.loading import device_of
from groundup.modeling import GroundupForCausalLM, GroundupModel
from groundup.modeling.generation_groundup import CACHE, is_untouched
from groundup.modeling.modeling_groundup import (
    GroundupAttention,
    GroundupDecoderLayer,
    GroundupMLP,
    GroundupRMSNorm,
    GroundupRotaryEmbedding,
    apply_rotary,
    eager_attention_forward,
)

Function = Callable[[torch.Tensor], torch.Tensor]

# What is written out below, by its name in the network. Anything else in its place (an adapter, a quantised matrix, a
# network of someone's own) computes something of its own.
_WRITTEN_OUT: dict[str, tuple[type[nn.Module], ...]] = {
    "": (GroundupForCausalLM,),
    "model": (GroundupModel,),
    "layers": (nn.ModuleList,),
    "self_attn": (GroundupAttention,),
    "mlp": (GroundupMLP,),
    "rotary_emb": (GroundupRotaryEmbedding,),
    "act_fn": (NewGELUActivation,),
    "dropout": (nn.Dropout,),
    **dict.fromkeys(("embed_tokens", "embed_positions"), (nn.Embedding,)),
    **dict.fromkeys(("norm", "input_layernorm", "post_attention_layernorm"), (GroundupRMSNorm, nn.LayerNorm)),
    **dict.fromkeys(("q_norm", "k_norm"), (GroundupRMSNorm, nn.Identity)),
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (nn.Linear,)),
    **dict.fromkeys(("gate_proj", "up_proj", "down_proj", "lm_head"), (nn.Linear,)),
}
# How they compute it: somebody may give a whole class another `forward`.
_FORWARDS = {kind: kind.forward for kinds in _WRITTEN_OUT.values() for kind in kinds}
_FORWARDS[GroundupDecoderLayer] = GroundupDecoderLayer.forward


class ForwardDecoder:
    """A model's own forward pass with transformers' cache: any causal language model on any device."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.cache = model, DynamicCache(config=model.config)

    def start(self, ids: list[int]) -> torch.Tensor:
        """Read a prompt; return the logits (V,) after its last token."""
        return last_logits(self.model, ids, self.cache)

    def step(self, token: int) -> torch.Tensor:
        """Read one token more; return the logits (V,) after it."""
        return last_logits(self.model, [token], self.cache)


def last_logits(model: PreTrainedModel, ids: list[int], cache: Cache) -> torch.Tensor:
    """Return the logits (V,) after the last of `ids`, which follow what the cache holds and join it."""
    new = torch.tensor([ids], device=device_of(model))  # (1, T)
    return model(input_ids=new, use_cache=True, logits_to_keep=1, **{CACHE: cache}).logits[0, -1]


class PairDecoder:
    """An encoder that reads the prompt, and a decoder that writes from its own first token on."""

    def __init__(self, model: PreTrainedModel):
        self.model: Any = model
        first = model.generation_config.decoder_start_token_id
        first = model.config.decoder_start_token_id if first is None else first
        self.first = model.generation_config.bos_token_id if first is None else first
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())

    def start(self, ids: list[int]) -> torch.Tensor:
        """Read a prompt; return the logits (V,) of the first token to be written."""
        self.read = self.model.get_encoder()(input_ids=torch.tensor([ids], device=device_of(self.model)))
        return self.step(self.first)

    def step(self, token: int) -> torch.Tensor:
        """Write one token; return the logits (V,) of the one after it."""
        new = torch.tensor([[token]], device=device_of(self.model))
        inputs = {"encoder_outputs": self.read, "decoder_input_ids": new, CACHE: self.cache}
        return self.model(**inputs, use_cache=True).logits[0, -1]


class FlatDecoder:
    """The same for a network of ours that `is_plain`, written out flat; a text of at most `positions` tokens.

    In inference mode, which saves a small model time, and which sparse and quantised weights do not know.
    """

    def __init__(self, model: PreTrainedModel, positions: int):
        self.model = model
        inner: Any = model.model
        self.embedding, self.head = inner.embed_tokens.weight, _linear(model.lm_head)  # (V, C); (C,) -> (V,)
        self.places = self.rotation = None
        if model.config.position_embedding == "learned":
            self.places = inner.embed_positions.weight  # (positions, C)
        else:
            position_ids = torch.arange(positions)[None]
            self.rotation = inner.rotary_emb(self.embedding, position_ids)  # twice (1, positions, D)
        self.layers = [_FlatLayer(layer, positions) for layer in inner.layers]
        self.norm = _norm(inner.norm)
        self.length = 0

    @torch.inference_mode()
    def start(self, ids: list[int]) -> torch.Tensor:
        """Read a prompt; return the logits (V,) after its last token."""
        cache, self.length = DynamicCache(), len(ids)
        logits = last_logits(self.model, ids, cache)
        read: list[Any] = cache.layers
        for layer, filled in zip(self.layers, read):
            layer.keys[:, :, : self.length], layer.values[:, :, : self.length] = filled.keys, filled.values
            filled.keys = filled.values = None  # a long prompt's are large: never all of them twice
        return logits

    @torch.inference_mode()
    def step(self, token: int) -> torch.Tensor:
        """Read one token more; return the logits (V,) after it."""
        x, turn, at = self.embedding[token], None, self.length  # (C,)
        if self.places is not None:
            x = x + self.places[at]
        if self.rotation is not None:
            turn = self.rotation[0][0, at], self.rotation[1][0, at]  # (D,) each
        for layer in self.layers:
            x = layer(x, at, turn)
        self.length += 1
        return self.head(self.norm(x))


class _FlatLayer:
    """One block and its keys and values. H query heads, G key and value heads, D the width of a head."""

    def __init__(self, layer: Any, positions: int):
        attention, mlp, width = layer.self_attn, layer.mlp, layer.self_attn.head_dim
        queries, groups = attention.q_proj.out_features // width, attention.k_proj.out_features // width
        self.window = attention.sliding_window or positions
        self.slots = torch.empty(2, 1, groups, positions, width)
        self.keys, self.values = self.slots  # (1, G, positions, D) each
        # One token's queries, keys and values lie one after the other, (H + 2 G, D), so that each step takes as few
        # calls as it can: queries and keys are normed and turned together, keys and values stored together.
        heads = torch.empty(queries + 2 * groups, width)
        self.turned, self.fresh = heads[: queries + groups], heads[queries:].view(2, 1, groups, width)
        # The query heads that share keys and values stand where a longer text's positions would.
        self.query = heads[:queries].view(1, groups, queries // groups, width)
        parts = heads[:queries], heads[queries:-groups], heads[-groups:]
        names = attention.q_proj, attention.k_proj, attention.v_proj
        self.project = [_linear(module, out=part.view(-1)) for module, part in zip(names, parts)]
        self.gains, self.scaling = None, attention.scaling
        if not isinstance(attention.q_norm, nn.Identity):
            self.eps = attention.q_norm.eps
            gains = attention.q_norm.weight.expand(queries, -1), attention.k_norm.weight.expand(groups, -1)
            self.gains = torch.cat(gains)  # (H + G, D)
        self.mix = _linear(attention.o_proj)
        self.norm_before, self.norm_between = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.gate = _linear(mlp.gate_proj) if mlp.gate_proj is not None else None
        self.up, self.down, self.activation = _linear(mlp.up_proj), _linear(mlp.down_proj), _activation(mlp.act_fn)

    def __call__(self, x: torch.Tensor, at: int, turn: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """Pass on (C,) -> (C,) the token at position `at`, whose queries and keys `turn` rotates."""
        x = x + self.attend(self.norm_before(x), at, turn)
        inside = self.norm_between(x)
        if self.gate is None:
            return x + self.down(self.activation(self.up(inside)))
        return x + self.down(self.activation(self.gate(inside)) * self.up(inside))

    def attend(self, x: torch.Tensor, at: int, turn: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """Attend (C,) -> (C,) from the token at position `at` to those before it and to itself."""
        for project in self.project:
            project(x)
        turned = self.turned
        if self.gains is not None:
            turned = torch.rms_norm(turned, turned.shape[1:], None, self.eps) * self.gains
        if turn is not None:
            turned = apply_rotary(turned, *turn)
        if turned is not self.turned:
            self.turned.copy_(turned)
        self.slots.select(3, at).copy_(self.fresh)
        first = max(0, at + 1 - self.window)
        seen = at + 1 - first
        keys, values = self.keys.narrow(2, first, seen), self.values.narrow(2, first, seen)  # (1, G, S, D)
        mixed = functional.scaled_dot_product_attention(self.query, keys, values, scale=self.scaling)
        return self.mix(mixed.reshape(-1))


def _linear(module: nn.Linear, out: torch.Tensor | None = None) -> Function:
    """Return a linear layer for one vector; with `out`, the result is put there."""
    if module.bias is None:
        return partial(torch.mv, module.weight, out=out)
    return partial(torch.addmv, module.bias, module.weight, out=out)


def _norm(module: Any) -> Function:
    """Return LayerNorm or RMSNorm for one vector."""
    if isinstance(module, nn.LayerNorm):
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    weight, eps = module.weight, module.eps
    return lambda x: x * (float(x.dot(x)) / len(x) + eps) ** -0.5 * weight


def _activation(module: nn.Module) -> Function:
    """Return the MLP's activation; GPT-2's takes eight calls in transformers and one in torch."""
    return partial(functional.gelu, approximate="tanh") if type(module) is NewGELUActivation else module


def is_plain(model: PreTrainedModel) -> bool:
    """Return whether `FlatDecoder` computes what a model does: a decoder of ours, fp32 on a CPU, with nothing added."""
    if type(model) is not GroundupForCausalLM or model.config.add_cross_attention:
        return False
    kernel: Any = model.config._attn_implementation
    attention = ALL_ATTENTION_FUNCTIONS.get_interface(kernel, eager_attention_forward)
    if attention not in (sdpa_attention_forward, eager_attention_forward):
        return False  # a kernel of someone's own
    if model.config.position_embedding == "rotary" and model.model.rotary_emb.rope_type == "longrope":
        return False  # its angles depend on how long the text is by now
    if torch.is_autocast_enabled("cpu"):
        return False
    named = list(model.named_modules(remove_duplicate=False))
    if not all(_is_written_out(name.rpartition(".")[2], module) for name, module in named if ".act_fn." not in name):
        return False
    layers: Any = model.model.layers  # one may have been taken out, or stand twice
    return [layer.self_attn.layer_idx for layer in layers] == list(range(model.config.num_hidden_layers))


def _is_written_out(name: str, module: nn.Module) -> bool:
    """Return whether the module, of which `name` is the last part, computes what is written out here."""
    if name == "act_fn" and type(module) is not NewGELUActivation:
        return True  # it is called itself
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return False
    if isinstance(module, GroundupAttention):
        norms = module.q_norm, module.k_norm
        if type(norms[0]) is not type(norms[1]) or len({getattr(norm, "eps", None) for norm in norms}) > 1:
            return False
    kinds = (GroundupDecoderLayer,) if name.isdigit() else _WRITTEN_OUT.get(name, ())
    return type(module) in kinds and is_untouched(module, _FORWARDS[type(module)])


def decoder_for(model: PreTrainedModel, positions: int) -> FlatDecoder | ForwardDecoder | PairDecoder:
    """Return the decoder for one text of at most `positions` tokens, from its beginning, without gradients."""
    if model.config.is_encoder_decoder:
        return PairDecoder(model)
    return FlatDecoder(model, positions) if is_plain(model) else ForwardDecoder(model)
