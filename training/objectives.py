"""A batch to a loss: what each kind of training minimises, as a module that DDP and FSDP can wrap."""

from typing import cast

import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from groundup.data.windows import IGNORED
from groundup.evaluation.language import plain_head

LARGEST_LOGITS = 2**26  # floats, 256 MiB: above it the logits are made and used a piece at a time


class NextTokenLoss(nn.Module):
    """The summed loss [nats] of predicting each next token; where the head is plain, large logits never exist whole."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        self._head_is_plain = plain_head(model) is not None
        self._pieces = torch.nn.LinearCrossEntropyOptions()

    def forward(self, input_ids: torch.Tensor, shift_labels: torch.Tensor) -> torch.Tensor:
        """Ids (B, T) and the ids that follow them (B, T), -100 where none counts -> the sum over all, a scalar."""
        targets = shift_labels.flatten()
        if not self._head_is_plain:
            logits = self.model(input_ids=input_ids, use_cache=False).logits
            return functional.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum")
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state.flatten(0, 1)  # (B T, C)
        head = cast(nn.Linear, self.model.get_output_embeddings())
        in_bf16 = torch.is_autocast_enabled(hidden.device.type)
        if in_bf16 and hidden.size(0) * head.weight.size(0) <= LARGEST_LOGITS:
            return functional.cross_entropy(head(hidden).float(), targets, reduction="sum", ignore_index=IGNORED)
        return functional.linear_cross_entropy(
            hidden, head.weight, targets, reduction="sum", ignore_index=IGNORED, options=self._pieces
        )
