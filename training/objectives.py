"""A batch to a loss: what each kind of training minimises, as a module that DDP and FSDP can wrap.

The linear part of a classifier, which is fitted to all rows at once, is at the end.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.optimize import minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.preprocessing import normalize
from sklearn.svm import LinearSVC
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from groundup.data.encoding import ExampleRows
from groundup.data.windows import IGNORED, by_size
from groundup.inference.loading import plain_head
from groundup.modeling import GroundupForConditionalGeneration
from groundup.modeling.modeling_groundup import GroundupBagOfTokens

LARGEST_LOGITS = 2**26  # floats, 256 MiB: above it the logits are made and used a piece at a time
# Positions whose logits torch makes at a time. It would take 16 where the vocabulary has 49,152 tokens and the model is
# 576 wide, reads the head once for each piece, and is five times slower (docs/performance.md).
PIECE_ROWS = 256
SVM_C = 3.0  # on the sets of docs/classification.md 0.001 better on average than scikit-learn's 1, at most 0.004 worse
COUNTED_TOKENS = 2**16  # at once
USUAL_SCALE = 4.0  # of a linear SVM's distances, to make logits of them: 3 to 5 on the sets of docs/classification.md


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


def count_features(bag: GroundupBagOfTokens, rows: ExampleRows) -> sparse.csr_array:
    """Return 1 + log of how often each feature of a classifier's linear part is in each row, (N, features)."""
    width = len(bag.weight)
    found, values = [], []
    for part in by_size(np.argsort(rows.lengths, kind="stable"), rows.lengths, COUNTED_TOKENS):
        batch = rows.batch(part, 0)
        features = bag.features(batch["input_ids"], batch["attention_mask"]).numpy()
        keys, counts = np.unique((part[:, None] * width + features)[features >= 0], return_counts=True)
        found.append(keys)
        values.append(1 + np.log(counts))
    keys = np.concatenate(found)
    places = (keys // width).astype(np.int32), (keys % width).astype(np.int32)  # scikit-learn takes 32 bits alone
    return sparse.csr_array((np.concatenate(values), places), shape=(len(rows), width))


def fit_bag(
    bag: GroundupBagOfTokens,
    counts: sparse.csr_array,
    labels: npt.NDArray[np.int64],
    factor: float = 1.0,
    *,
    class_weights: bool = False,
) -> None:
    """Fit the linear part of a classifier to rows by a linear SVM, one label against the others.

    With `class_weights` every label weighs as much as any other, however rare it is.

    The SVM's distances become logits by a factor, which `scales_of` finds. A label in none of the rows is as
    unlikely as one that the SVM puts on its margin.
    """
    rarity = 1 + np.log((1 + len(labels)) / (1 + counts.count_nonzero(axis=0)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # close to the end is enough: the scores are scaled anyway
        svm = LinearSVC(C=SVM_C, class_weight="balanced" if class_weights else None, random_state=0)
        svm.fit(normalize(counts @ sparse.diags_array(rarity)), labels)
    weight, bias = svm.coef_, svm.intercept_
    if len(svm.classes_) == 2:  # scikit-learn keeps one plane for the two
        weight, bias = np.concatenate((-weight, weight)), np.concatenate((-bias, bias))
    with torch.no_grad():
        bag.rarity.copy_(torch.from_numpy(rarity))
        bag.weight.zero_()
        bag.bias.fill_(-factor)
        bag.weight[:, svm.classes_] = torch.from_numpy(factor * weight.T).to(bag.weight)
        bag.bias[svm.classes_] = torch.from_numpy(factor * bias).to(bag.bias)


def bag_scores(bag: GroundupBagOfTokens, counts: sparse.csr_array) -> npt.NDArray[np.float64]:
    """Return what the linear part gives each label of each row, (N, labels)."""
    features = normalize(counts @ sparse.diags_array(bag.rarity.double().cpu().numpy()))
    return features @ bag.weight.detach().double().cpu().numpy() + bag.bias.detach().double().cpu().numpy()


def usual_scale(bag: GroundupBagOfTokens, counts: sparse.csr_array, labels: npt.NDArray[np.int64]) -> float:
    """Return the factor that makes logits of the linear part's scores, found on a fifth of the rows left out."""
    order = np.random.default_rng(0).permutation(len(labels))
    tried, kept = order[: len(order) // 5], order[len(order) // 5 :]
    if len(set(labels[kept].tolist())) < 2:
        return USUAL_SCALE
    fit_bag(bag, counts[kept], labels[kept])
    return float(scales_of([bag_scores(bag, counts[tried])], labels[tried], [USUAL_SCALE])[0])


def scales_of(
    scores: Sequence[npt.NDArray[np.float64]], truth: npt.NDArray[np.int64], usual: Sequence[float]
) -> npt.NDArray[np.float64]:
    """Return the factor for each array of scores, (N, labels), with which their sum gives the labels the least loss.

    A factor far from its `usual` one costs as much as rows that speak against it: half the square of the log of their
    ratio, in nats over all rows. So a few rows change little.
    """

    def loss(logs: npt.NDArray[np.float64]) -> float:
        summed = sum(np.exp(log) * part for log, part in zip(logs, scores))
        nats = functional.cross_entropy(torch.from_numpy(summed), torch.from_numpy(truth), reduction="sum")
        return float(nats) + float(np.square(logs - start).sum()) / 2

    start = np.log(usual)
    return np.exp(minimize(loss, start, method="Nelder-Mead").x)
