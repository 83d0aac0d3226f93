"""Causal attention in blocks of queries, for training in bf16 on a processor.

torch's kernel for it is made for long texts; its way back is slow for short ones. Written out as products of matrices,
which a processor with bf16 does several times as fast as anything else, it takes half to four fifths of the time
up to LONGEST tokens (docs/performance.md). Keys after a block's last query are left out; those within it are masked.
Scores are rounded to bf16, which torch's kernel does not do, and what the softmax gives is kept for the way back.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from groundup.modeling.modeling_groundup import GroundupPreTrainedModel, repeat_kv

NAME = "groundup_blocks"  # under which transformers knows it
BLOCK = 128  # queries that look at the same keys together
LONGEST = 512  # tokens of a row; torch's kernel is as fast from 1,024 on
LARGEST_WEIGHTS = 2**23  # of a layer, B H T T: at most 17 MB are kept of so many; with more, memory counts for more


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """(B, H, T, D) three times -> (B, H, T, D): every query mixes the values up to its own (Vaswani et al. 2017)."""
    mixed = []
    for start in range(0, query.size(2), BLOCK):
        end = min(start + BLOCK, query.size(2))
        asking, asked, given = query[:, :, start:end], key[:, :, :end], value[:, :, :end]
        future = torch.full((end - start, end), -torch.inf, dtype=query.dtype, device=query.device).triu(start + 1)
        scores = torch.baddbmm(future, asking.flatten(0, 1), asked.flatten(0, 1).mT, alpha=scaling)  # (B H, t, S)
        mixed.append((scores.softmax(dim=-1) @ given.flatten(0, 1)).view_as(asking))
    return torch.cat(mixed, dim=2)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What a kernel of transformers does: (B, H, T, D) -> (B, T, H, D); in blocks where that is faster."""
    as_expected = module.training and torch.is_autocast_enabled("cpu") and attention_mask is None and not dropout
    rows, heads, length, _ = query.shape
    causal = module.is_causal and kwargs.get("is_causal", True) and length == key.size(2)
    small = length <= LONGEST and rows * heads * length**2 <= LARGEST_WEIGHTS
    if not (as_expected and causal and small):
        kwargs |= {"dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query = query.bfloat16()  # autocast leaves what a norm gives in fp32
    key, value = (repeat_kv(x.bfloat16(), heads // x.size(1)) for x in (key, value))
    return causal_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def attending_in_blocks(model: PreTrainedModel) -> Iterator[None]:
    """A context in which a model of ours whose attention is torch's attends in blocks; others stay as they are."""
    ours = isinstance(model, GroundupPreTrainedModel) and model.config._attn_implementation == "sdpa"
    if ours:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        if ours:
            model.set_attn_implementation("sdpa")
