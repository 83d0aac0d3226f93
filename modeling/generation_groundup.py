"""Write with transformers' `generate`: the cache by either of its names, where a text ends, every thread at work.

`modeling_groundup` takes its generation mixin from here; the two files travel together.
"""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from transformers.generation import GenerationMixin, StoppingCriteria
from transformers.masking_utils import create_causal_mask
from transformers.utils import logging
from transformers.utils.deprecation import deprecate_kwarg

logger = logging.get_logger(__name__)

# ---------------------------------------------------------------------------------------------------------------------
# The cache of keys and values: transformers names it `cache` from 5.24 on, `past_key_values` before. A forward pass
# that takes a `cache` takes it by the other name too, raises `ValueError` where both are given, and warns of the old
# name where transformers does: from 5.24 until 5.40, in which it goes.

CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"
either_cache_name = deprecate_kwarg(
    "past_key_values", new_name="cache", version="5.40.0" if CACHE == "cache" else "5.23.0", raise_if_both_names=True
)
CACHE_ARGUMENT = """
    cache (`Cache`, *optional*):
        Keys and values of the tokens before these, which are added; `past_key_values` is another name for it.
"""

# ---------------------------------------------------------------------------------------------------------------------
# Where a text ends


class EndOfPositions(StoppingCriteria):
    """End all texts once the longest has a token for the last of the learned positions and one after it."""

    def __init__(self, positions: int, longest: int):
        self.positions, self.longest = positions, longest

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """Tell of each text of (B, T) ids whether it ends, (B,)."""
        is_full = input_ids.shape[1] >= self.longest
        if is_full:
            logger.warning_once(
                f"a text ends where this model's positions do, max_position_embeddings={self.positions}: "
                "give a shorter prompt or ask for fewer tokens"
            )
        return torch.full((len(input_ids),), is_full, device=input_ids.device)


class GroundupGenerationMixin(GenerationMixin):
    """Write as transformers does, faster for one text on a CPU, and end where learned positions do."""

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
        """Return what drafts tokens in assisted generation, cut to those that have a learned position."""
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
        """Tell where a text ends: padding takes no position, embeddings without ids are not among the ids counted."""
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
# Writing fast. A text grows by one vector at a time, and on a CPU torch multiplies a matrix with one on one thread.
# While a text is written, and only then, every thread reads its part of each large matrix.

LARGE_MATRIX = 2**19  # weights: fewer are read before a second thread has woken
LINEAR_FORWARD = nn.Linear.forward


def multiply(layer: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    """Return what a linear layer gives, (..., C) -> (..., out); for one vector on a CPU, with every thread at work."""
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
    """Tell whether a weight is numbers in memory: not quantised, sparse, elsewhere or computed from others."""
    is_here = type(weight) is nn.Parameter and weight.device.type == "cpu"
    return is_here and weight.dtype == torch.float32 and weight.layout == torch.strided


def is_untouched(module: nn.Module, forward: Callable) -> bool:
    """Tell whether calling a module calls `forward` on plain weights: no hook, nothing compiled or put in its place."""
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
    """Let each large linear layer that is nothing but one compute by `multiply`; afterwards all is as before.

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
