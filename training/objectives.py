"""A batch to a loss: what each kind of training minimises, as a module that DDP and FSDP can wrap."""

from collections.abc import Callable, Sequence
from typing import cast

import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from groundup.data.windows import IGNORED
from groundup.inference.loading import plain_head
from groundup.modeling import GroundupForConditionalGeneration

LARGEST_LOGITS = 2**26  # floats, 256 MiB: above it the logits are made and used a piece at a time
# Positions whose logits torch makes at a time. It would take 16 where the vocabulary has 49,152 tokens and the model is
# 576 wide, reads the head once for each piece, and is five times slower (docs/performance.md).
PIECE_ROWS = 256


class TokenLoss(nn.Module):
    """Sum the loss [nats] of predicting tokens: each next one, or those that were masked.

    Radford et al. 2018, equation 1; Devlin et al. 2019, section 3.1. Where the head is plain, large logits never exist
    whole.
    """

    def __init__(self, model: PreTrainedModel, compiled: bool = False):
        super().__init__()
        self.model = model
        self._head_is_plain = plain_head(model) is not None
        self._pieces = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=PIECE_ROWS)
        self._compiled = compiled
        self._of_logits = torch.compile(loss_of_logits) if compiled else loss_of_logits

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Take ids (B, T) and what each position is to predict (B, T), -100 for nothing -> the sum over all, a scalar.

        `position_ids` (B, T) begin again at each document of a packed row.
        """
        inputs = {} if position_ids is None else {"position_ids": position_ids}  # not every model takes them
        counted = labels != IGNORED
        if not self._head_is_plain:
            logits = self.model(input_ids=input_ids, use_cache=False, **inputs).logits
            return functional.cross_entropy(logits[counted].float(), labels[counted], reduction="sum")
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False, **inputs).last_hidden_state  # (B, T, C)
        # Positions that predict nothing are left out; where all count, a copy of the vectors would be for nothing.
        everywhere = bool(counted.all())
        hidden = hidden.flatten(0, 1) if everywhere else hidden[counted]  # (N, C)
        targets = labels.flatten() if everywhere else labels[counted]
        head = cast(nn.Linear, self.model.get_output_embeddings())
        in_bf16 = torch.is_autocast_enabled(hidden.device.type)
        # In fp32 torch's chunks are as fast and smaller, unless all is compiled (docs/performance.md).
        if (in_bf16 or self._compiled) and hidden.size(0) * head.weight.size(0) <= LARGEST_LOGITS:
            return self._of_logits(hidden, head.weight, targets)
        if in_bf16:
            return loss_in_pieces(self._of_logits, hidden, head.weight, targets)
        return functional.linear_cross_entropy(hidden, head.weight, targets, reduction="sum", options=self._pieces)


def loss_of_logits(hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sum the loss with all logits at once: vectors (N, C), the head (V, C) and ids (N,) to predict -> a scalar."""
    return functional.cross_entropy(functional.linear(hidden, head).float(), targets, reduction="sum")


def loss_in_pieces(
    of_logits: Callable[..., torch.Tensor], hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """Sum the same loss with the logits of a piece at a time, made once more on the way back (Chen et al. 2016).

    torch's chunked loss multiplies in fp32 within autocast, and rounds the loss itself if it is given bf16. Making bf16
    logits twice rounds only them and is several times faster on a GPU (docs/performance.md); on a processor one more
    product, of which bf16 makes more than two in the time of one. The head is rounded once for all pieces.
    """
    rows = max(1, LARGEST_LOGITS // head.size(0))
    if torch.is_autocast_enabled(hidden.device.type):
        head = head.to(torch.get_autocast_dtype(hidden.device.type))
    losses = [
        cast(torch.Tensor, checkpoint(of_logits, piece, head, wanted, use_reentrant=False))
        for piece, wanted in zip(hidden.split(rows), targets.split(rows))
    ]
    return torch.stack(losses).sum()


class PairLoss(nn.Module):
    """Sum the loss of a decoder that writes one text from another (Vaswani et al. 2017, section 5)."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Take ids to read (B, S) and to write (B, T), -100 where none counts -> the sum over the latter, a scalar."""
        read = cast(GroundupForConditionalGeneration, self.model).prepare_decoder_input_ids_from_labels(labels)
        logits = self.model(
            input_ids=input_ids, attention_mask=attention_mask, decoder_input_ids=read, use_cache=False
        ).logits
        return functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="sum")


class LabelLoss(nn.Module):
    """Sum the cross-entropy [nats] of the labels of whole texts.

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
        """Take ids (B, T), their mask (B, T) and labels (B,), -100 where none counts -> the sum over rows, a scalar."""
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
        """Return the sum over rows of each row's mean loss on its next tokens, which are those without noise."""
        counted = mask[:, 1:].bool()  # (B, T - 1)
        logits = functional.linear(hidden[:, :-1][counted], cast(torch.Tensor, self.language_head))  # (N, V)
        losses = functional.cross_entropy(logits.float(), input_ids[:, 1:][counted], reduction="none")
        lengths = counted.sum(1).clamp(min=1).unsqueeze(1).expand_as(counted)[counted]
        return (losses / lengths).sum()

    def _with_noise(self, input_ids: torch.Tensor) -> torch.Tensor:
        hit = torch.rand(input_ids.shape, device=input_ids.device) < self.token_dropout
        drawn = torch.randint(len(self.choices), input_ids.shape, device=input_ids.device)
        return torch.where(hit & self.replaceable[input_ids], self.choices[drawn], input_ids)
