"""Token in, scores of the next one out: how `generation.py` asks a model, one text at a time.

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

from groundup.modeling import GroundupForCausalLM
from groundup.modeling.modeling_groundup import CACHE, apply_rotary

Function = Callable[[torch.Tensor], torch.Tensor]

# Where the modules of a network of ours come from. One from elsewhere (an adapter, a quantised matrix) computes
# something of its own.
_HOMES = ("torch.nn.modules.", "transformers.activations", GroundupForCausalLM.__module__)


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
    """The logits (V,) after the last of `ids`, which follow what the cache holds and join it."""
    new = torch.tensor([ids], device=model.device)  # (1, T)
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
        self.read = self.model.get_encoder()(input_ids=torch.tensor([ids], device=self.model.device))
        return self.step(self.first)

    def step(self, token: int) -> torch.Tensor:
        """Write one token; return the logits (V,) of the one after it."""
        new = torch.tensor([[token]], device=self.model.device)
        inputs = {"encoder_outputs": self.read, "decoder_input_ids": new, CACHE: self.cache}
        return self.model(**inputs, use_cache=True).logits[0, -1]


class FlatDecoder:
    """The same for a network of ours that `is_plain`, written out flat; a text of at most `positions` tokens."""

    def __init__(self, model: PreTrainedModel, positions: int):
        self.model = model
        inner: Any = model.model
        self.embedding, self.head = inner.embed_tokens.weight, model.lm_head.weight  # (V, C) each
        self.places = self.rotation = None
        if model.config.position_embedding == "learned":
            self.places = inner.embed_positions.weight  # (positions, C)
        else:
            self.rotation = inner.rotary_emb(self.embedding, torch.arange(positions)[None])  # twice (1, positions, D)
        self.layers = [_FlatLayer(layer, positions) for layer in inner.layers]
        self.norm = _norm(inner.norm)
        self.length = 0

    def start(self, ids: list[int]) -> torch.Tensor:
        """Read a prompt; return the logits (V,) after its last token."""
        cache, self.length = DynamicCache(), len(ids)
        logits = last_logits(self.model, ids, cache)
        read: list[Any] = cache.layers
        for layer, filled in zip(self.layers, read):
            layer.keys[:, :, : self.length], layer.values[:, :, : self.length] = filled.keys, filled.values
            filled.keys = filled.values = None  # a long prompt's are large: never all of them twice
        return logits

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
        return torch.mv(self.head, self.norm(x))


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
        self.gains, self.eps = None, attention.config.norm_eps
        if attention.config.qk_norm:
            gains = attention.q_norm.weight.expand(queries, -1), attention.k_norm.weight.expand(groups, -1)
            self.gains = torch.cat(gains)  # (H + G, D)
        self.mix = _linear(attention.o_proj)
        self.norm_before, self.norm_between = _norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)
        self.gate = _linear(mlp.gate_proj) if mlp.gate_proj is not None else None
        self.up, self.down, self.activation = _linear(mlp.up_proj), _linear(mlp.down_proj), _activation(mlp.act_fn)

    def __call__(self, x: torch.Tensor, at: int, turn: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """(C,) -> (C,) for the token at position `at`, whose queries and keys `turn` rotates."""
        x = x + self.attend(self.norm_before(x), at, turn)
        inside = self.norm_between(x)
        if self.gate is None:
            return x + self.down(self.activation(self.up(inside)))
        return x + self.down(self.activation(self.gate(inside)) * self.up(inside))

    def attend(self, x: torch.Tensor, at: int, turn: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """(C,) -> (C,): what the token at position `at` takes from those before it, and from itself."""
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
        return self.mix(functional.scaled_dot_product_attention(self.query, keys, values).reshape(-1))


def _linear(module: nn.Linear, out: torch.Tensor | None = None) -> Function:
    """A linear layer for one vector; with `out`, the result is put there."""
    if module.bias is None:
        return partial(torch.mv, module.weight, out=out)
    return partial(torch.addmv, module.bias, module.weight, out=out)


def _norm(module: Any) -> Function:
    """LayerNorm or RMSNorm for one vector."""
    if isinstance(module, nn.LayerNorm):
        shape, weight, bias, eps = module.normalized_shape, module.weight, module.bias, module.eps
        return lambda x: torch.layer_norm(x, shape, weight, bias, eps)
    weight, eps = module.weight, module.eps
    return lambda x: x * (float(x.dot(x)) / len(x) + eps) ** -0.5 * weight


def _activation(module: nn.Module) -> Function:
    """The MLP's activation; GPT-2's, eight calls in transformers, is one in torch."""
    return partial(functional.gelu, approximate="tanh") if type(module) is NewGELUActivation else module.forward


def is_plain(model: PreTrainedModel) -> bool:
    """Whether `FlatDecoder` computes what a model computes: a decoder of ours, fp32 on a CPU, nothing put into it."""
    if type(model) is not GroundupForCausalLM or model.config.add_cross_attention:
        return False
    if model.config._attn_implementation not in ("eager", "sdpa"):
        return False  # a kernel of someone's own
    if model.config.position_embedding == "rotary" and model.model.rotary_emb.rope_type == "longrope":
        return False  # its angles depend on how long the text is by now
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in model.parameters()):
        return False
    return all(
        type(module).__module__.startswith(_HOMES) and not module._forward_hooks and not module._forward_pre_hooks
        for module in model.modules()
    )


def decoder_for(model: PreTrainedModel, positions: int) -> FlatDecoder | ForwardDecoder | PairDecoder:
    """What reads one text of at most `positions` tokens, from its beginning, in inference mode."""
    if model.config.is_encoder_decoder:
        return PairDecoder(model)
    return FlatDecoder(model, positions) if is_plain(model) else ForwardDecoder(model)
