"""What a classifier minimises: the cross entropy of the labels, as a module that DDP can wrap."""

from collections.abc import Sequence
from typing import cast

import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from groundup.data.windows import IGNORED


class LabelLoss(nn.Module):
    """The summed cross entropy [nats] of the labels of whole texts.

    Args:
        model: a sequence classifier.
        label_weights: a factor on the loss of each label's rows, None for 1.
        smoothing: share of the wanted probability that is spread over all labels (Szegedy et al. 2016, section 7).
        token_dropout: probability that a token is replaced by a random one in training, so that no single word of a
            text decides (the noise of Xie et al. 2017, drawn evenly).
        kept_ids: tokens that are never replaced and never put in: those that mark structure.
    """

    label_weights: torch.Tensor | None
    replaceable: torch.Tensor
    choices: torch.Tensor

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        label_weights: npt.ArrayLike | None = None,
        smoothing: float = 0.0,
        token_dropout: float = 0.0,
        kept_ids: Sequence[int] = (),
    ):
        super().__init__()
        self.model = model
        self.smoothing, self.token_dropout = smoothing, token_dropout
        vocab_size = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
        replaceable = torch.ones(vocab_size, dtype=torch.bool)
        replaceable[[number for number in kept_ids if number < vocab_size]] = False
        weights = None if label_weights is None else torch.as_tensor(label_weights, dtype=torch.float32)
        self.register_buffer("label_weights", weights, persistent=False)
        self.register_buffer("replaceable", replaceable, persistent=False)
        self.register_buffer("choices", torch.nonzero(replaceable).flatten(), persistent=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Ids (B, T), their mask (B, T) and labels (B,), -100 where none counts -> the sum over rows, a scalar."""
        if self.training and self.token_dropout:
            input_ids = self._with_noise(input_ids)
        logits = self.model(input_ids=input_ids, attention_mask=attention_mask).logits
        return functional.cross_entropy(
            logits.float(),
            labels,
            weight=self.label_weights,
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=self.smoothing,
        )

    def _with_noise(self, input_ids: torch.Tensor) -> torch.Tensor:
        hit = torch.rand(input_ids.shape, device=input_ids.device) < self.token_dropout
        drawn = torch.randint(len(self.choices), input_ids.shape, device=input_ids.device)
        return torch.where(hit & self.replaceable[input_ids], self.choices[drawn], input_ids)
