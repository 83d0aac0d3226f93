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
        language_head: the base's own head (V, C), which is not trained; with it the model goes on predicting each next
            token, so that it does not forget the language for the labels (Radford et al. 2018, equation 5).
        language_weight: the factor on that loss, a mean over the tokens of each row (their lambda, 0.5).
    """

    label_weights: torch.Tensor | None
    language_head: torch.Tensor | None
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
        language_head: torch.Tensor | None = None,
        language_weight: float = 0.5,
    ):
        super().__init__()
        self.model = model
        self.smoothing, self.token_dropout = smoothing, token_dropout
        vocab_size = len(cast(nn.Embedding, model.get_input_embeddings()).weight)
        replaceable = torch.ones(vocab_size, dtype=torch.bool)
        replaceable[[number for number in kept_ids if number < vocab_size]] = False
        weights = None if label_weights is None else torch.as_tensor(label_weights, dtype=torch.float32)
        self.register_buffer("label_weights", weights, persistent=False)
        self.register_buffer("replaceable", replaceable, persistent=False)
        self.language_weight = language_weight
        self.register_buffer("language_head", language_head, persistent=False)
        self.register_buffer("choices", torch.nonzero(replaceable).flatten(), persistent=False)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Ids (B, T), their mask (B, T) and labels (B,), -100 where none counts -> the sum over rows, a scalar."""
        noisy = self._with_noise(input_ids) if self.training and self.token_dropout else input_ids
        with_language = self.language_head is not None
        output = self.model(input_ids=noisy, attention_mask=attention_mask, output_hidden_states=with_language)
        loss = functional.cross_entropy(
            output.logits.float(),
            labels,
            weight=self.label_weights,
            reduction="sum",
            ignore_index=IGNORED,
            label_smoothing=self.smoothing,
        )
        if not with_language:
            return loss
        counted = attention_mask * (labels != IGNORED).unsqueeze(1)  # (B, T)
        return loss + self.language_weight * self._language_loss(output.hidden_states[-1], input_ids, counted)

    def _language_loss(self, hidden: torch.Tensor, input_ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """The sum over rows of each row's mean loss on its next tokens, which are those without noise."""
        counted = mask[:, 1:].bool()  # (B, T - 1)
        logits = functional.linear(hidden[:, :-1][counted], cast(torch.Tensor, self.language_head))  # (N, V)
        losses = functional.cross_entropy(logits.float(), input_ids[:, 1:][counted], reduction="none")
        lengths = counted.sum(1).clamp(min=1).unsqueeze(1).expand_as(counted)[counted]
        return (losses / lengths).sum()

    def _with_noise(self, input_ids: torch.Tensor) -> torch.Tensor:
        hit = torch.rand(input_ids.shape, device=input_ids.device) < self.token_dropout
        drawn = torch.randint(len(self.choices), input_ids.shape, device=input_ids.device)
        return torch.where(hit & self.replaceable[input_ids], self.choices[drawn], input_ids)
