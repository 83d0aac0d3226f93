"""Score how well a model predicts text it has not seen: loss, perplexity, bits per byte.

The headline is taken over disjoint windows of the model's own context, so that every token is predicted once. Windows
that overlap, and each document alone, give other perplexities, so each is named beside its numbers. Bits per byte
divides by the UTF-8 bytes of the text itself, so that models with different tokenizers can be compared.
"""

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional
from transformers import PreTrainedModel

from groundup.data.tokens import READ_TOKENS, TokenStream
from groundup.data.windows import IGNORED, Masking, SlidingWindow
from groundup.inference.loading import device_of, evaluating, plain_head, require_known
from groundup.tokenization.report import TokenBytes


@dataclass(frozen=True)
class Windows:
    """Windows over a stream: window i feeds the tokens `starts[i]` to `stops[i] - 1` and predicts one token further.

    Of its targets those from position `firsts[i]` up to `stops[i]` count; over all windows each counts once. `context`
    and `stride` are in tokens, `stride` None where windows begin at documents; `label` is for people, None for the
    headline.
    """

    starts: npt.NDArray[np.int64]
    stops: npt.NDArray[np.int64]
    firsts: npt.NDArray[np.int64]
    context: int
    stride: int | None
    label: str | None

    def __len__(self) -> int:
        return len(self.starts)

    def by_length(self) -> npt.NDArray[np.int64]:
        """Return the windows' numbers, longest first, so that a batch has little padding."""
        return np.argsort(self.starts - self.stops, kind="stable")

    def batch(self, stream: TokenStream, chosen: Sequence[int] | npt.NDArray[Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return input ids and labels (B, T), int64; label t follows input t and is -100 where it does not count."""
        starts, stops, firsts = self.starts[chosen], self.stops[chosen], self.firsts[chosen]
        length = int((stops - starts).max())
        inputs = np.zeros((len(starts), length), np.int64)  # no counted position sees the padding
        labels = np.full((len(starts), length), IGNORED, np.int64)
        for row, (start, stop, first) in enumerate(zip(starts, stops, firsts)):
            ids = stream.read(int(start), int(stop) + 1)
            inputs[row, : len(ids) - 1] = ids[:-1]
            labels[row, first - start - 1 : len(ids) - 1] = ids[first - start :]
        return torch.from_numpy(inputs), torch.from_numpy(labels)


def disjoint(tokens: int, context: int) -> Windows:
    """Return adjacent windows of `context` targets over a stream of `tokens` tokens: those of the headline."""
    starts = np.arange(0, max(0, tokens - 1), max(1, context))
    return Windows(starts, np.minimum(starts + context, tokens - 1), starts + 1, context, context, None)


def strided(tokens: int, context: int, stride: int) -> Windows:
    """Return a window every `stride` tokens: later targets have at least `context` - `stride` tokens before them.

    Only the targets that no earlier window had count. With a context of `max_length` - 1 these are the windows of the
    procedure in transformers' page "Perplexity of fixed-length models". Raises `ValueError` for a stride out of range.
    """
    if not 1 <= stride <= context:
        raise ValueError(f"stride must lie between 1 and the context length {context}, not {stride}")
    targets = max(0, tokens - 1)
    count = 1 + max(0, -(-(targets - context) // stride)) if targets else 0
    starts = np.arange(count) * stride
    stops = np.minimum(starts + context, targets)
    return Windows(starts, stops, np.append(1, stops[:-1] + 1)[:count], context, stride, f"one window every {stride}")


def each_document_alone(ends: npt.NDArray[np.int64], context: int) -> Windows:
    """Return windows that never see another document: `ends` are the positions of the end-of-text tokens around each.

    A document's first token is predicted from the end of text before it. In a document longer than `context` a last
    window that is short of targets reaches back for context: lm-eval's rolling windows, so the same numbers.
    """
    starts, stops, firsts = [], [], []
    for before, after in itertools.pairwise(ends.tolist()):
        for first in range(before + 1, after, context):
            stop = min(first + context - 1, after - 1)
            starts.append(max(before, stop - context))
            stops.append(stop)
            firsts.append(first)
    bounds = np.array([starts, stops, firsts], np.int64)
    return Windows(bounds[0], bounds[1], bounds[2], context, None, "each document alone")


def document_ends(stream: TokenStream, end_of_text: int) -> npt.NDArray[np.int64]:
    """Return the positions of the end-of-text tokens of a stream: one before the first document, one after each."""
    found = [
        start + np.flatnonzero(stream.read(start, start + READ_TOKENS) == end_of_text)
        for start in range(0, len(stream), READ_TOKENS)
    ]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


BATCH_TOKENS = 2**15  # at most this many positions go through the blocks at once
CHUNK_LOGITS = 2**24  # at most this many logits, 64 MiB in fp32, exist at once
NOWHERE = np.zeros(0, np.int64)
MASKED_NOTE = (
    "a masked token is seen from both sides: the sum is no likelihood of the text, so there are no bits per byte"
)


@dataclass(frozen=True)
class LanguageScore:
    """The score of a model, or of a baseline, on a text: sums, from which every measure follows.

    `nats` is the summed negative log likelihood of `tokens` text tokens, of which `correct` were also the likeliest;
    `bytes` are the UTF-8 bytes of these tokens, or None where `note` says why they cannot be compared.
    `context` is the window in tokens, None for a baseline that looks at none.
    """

    nats: float
    tokens: int
    correct: int
    bytes: int | None
    context: int | None
    note: str | None = None

    @property
    def loss(self) -> float:
        """Return the nats per token; NaN where no token was scored."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """Return the exponential of the loss: among how many equally likely tokens the model seems to choose."""
        return math.exp(self.loss) if self.loss < 700 else math.inf  # e^710 overflows a float

    @property
    def bits_per_byte(self) -> float | None:
        """Return the bits that the model needs for one byte of the text, None where the tokenizer lost some of it."""
        return self.nats / math.log(2) / self.bytes if self.bytes else None

    @property
    def token_accuracy(self) -> float:
        """Return the share of tokens that were the model's likeliest next token."""
        return self.correct / self.tokens if self.tokens else math.nan


@torch.inference_mode()
def score_stream(
    model: PreTrainedModel,
    stream: TokenStream,
    context_length: int,
    *,
    special_ids: Collection[int],
    token_bytes: TokenBytes | None = None,
    batch_rows: int = 16,
    limit_tokens: int | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> LanguageScore:
    """Sum a causal model's negative log likelihood over disjoint windows of `context_length` tokens.

    Every token of the stream but the first is a target once. Targets among `special_ids` do not count, neither in loss
    nor in tokens nor in bytes. The result does not depend on `batch_rows`, except for rounding.

    Args:
        model: stays on its device, and is left in the mode (training or not) it came in.
        special_ids: what `structure_ids` gives.
        token_bytes: of the tokenizer; without it there are no bits per byte.
        limit_tokens: score only about this many tokens, in whole windows spread evenly over the stream.
        progress: called with the share done (0 to 1) and the loss so far as a text.
    """
    windows = disjoint(len(stream), context_length)
    chosen = _spread(len(windows), context_length, limit_tokens)
    seen = None if len(chosen) == len(windows) else np.zeros(len(stream.counts), np.int64)
    batches = score_windows(model, stream, windows, chosen, special_ids=special_ids, batch_rows=batch_rows)
    nats, tokens, correct = summed(batches, len(chosen), progress, seen)
    bytes_, note = comparable_bytes(stream, special_ids, token_bytes, seen)
    return LanguageScore(nats, tokens, correct, bytes_, context_length, note)


@dataclass(frozen=True)
class ScoredBatch:
    """A number of windows, and of each target that counts in them, in arrays of shape (N,), its position in the stream,
    its id, its nats, and whether it was the likeliest.
    """

    windows: int
    positions: np.ndarray
    targets: np.ndarray
    nats: np.ndarray
    correct: np.ndarray


def summed(
    batches: Iterable[ScoredBatch],
    windows: int,
    progress: Callable[[float, str], None] | None = None,
    seen: np.ndarray | None = None,
) -> tuple[float, int, int]:
    """Return the nats, the tokens and the right guesses of `batches`, which hold `windows` windows in all.

    Add to `seen` (V,), if it is given, how often each id was a target. `progress` is called with the share done (0 to
    1) and the loss so far as a text.
    """
    nats, tokens, correct, done = 0.0, 0, 0, 0
    for batch in batches:
        nats, tokens = nats + float(batch.nats.sum(dtype=np.float64)), tokens + len(batch.nats)
        correct, done = correct + int(batch.correct.sum()), done + batch.windows
        if seen is not None:
            seen += np.bincount(batch.targets, minlength=len(seen))
        if progress:
            progress(done / windows, f"{nats / max(tokens, 1):.3f} nats/token")
    return nats, tokens, correct


@torch.inference_mode()
def score_windows(
    model: PreTrainedModel,
    stream: TokenStream,
    windows: Windows,
    chosen: np.ndarray,
    *,
    special_ids: Collection[int],
    batch_rows: int = 16,
) -> Iterator[ScoredBatch]:
    """Score the `chosen` windows a batch at a time, in their order; targets among `special_ids` are left out."""
    rows = max(1, min(batch_rows, BATCH_TOKENS // max(1, min(windows.context, len(stream)))))
    special = torch.tensor(sorted(special_ids), dtype=torch.long)
    require_known(model, len(stream.counts) - 1)
    with evaluating(model):
        head = plain_head(model)
        for first in range(0, len(chosen), rows):
            numbers = chosen[first : first + rows]
            input_ids, labels = windows.batch(stream, numbers)
            labels = labels.masked_fill(torch.isin(labels, special), IGNORED)  # (B, T)
            nats, correct = score_batch(model, {"input_ids": input_ids}, labels, head, use_cache=False)
            row, column = (labels != IGNORED).nonzero(as_tuple=True)
            positions = windows.starts[numbers[row.numpy()]] + 1 + column.numpy()
            yield ScoredBatch(len(numbers), positions, labels[row, column].numpy(), nats, correct)


@torch.inference_mode()
def score_batch(
    model: PreTrainedModel,
    inputs: Mapping[str, torch.Tensor],
    labels: torch.Tensor,
    head: nn.Module | None = None,
    **options: Any,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return the nats of each label (B, T) but -100, in a row (N,), and whether it was the model's likeliest.

    This alone turns logits into the nats of a text. `options` go to the model. With `head`, which `plain_head` gives,
    the logits of a piece of the positions exist at once; a model that does more to its logits (a soft cap, a scale, an
    adapter of the head) gives them itself, for as many rows as fit.
    """
    nats, correct = [np.zeros(0, np.float32)], [np.zeros(0, bool)]

    def count(logits: torch.Tensor, targets: torch.Tensor) -> None:  # (N, V), (N,)
        nats.append(functional.cross_entropy(logits.float(), targets, reduction="none").cpu().numpy())
        correct.append((logits.argmax(-1) == targets).cpu().numpy())

    piece = max(1, CHUNK_LOGITS // model.config.get_text_config().vocab_size)
    inputs = {name: value.to(device_of(model)) for name, value in inputs.items()}
    if head is None:
        rows = max(1, piece // labels.shape[1])
        for start in range(0, len(labels), rows):
            logits = model(**{name: value[start : start + rows] for name, value in inputs.items()}, **options).logits
            targets = labels[start : start + rows].to(logits.device)
            count(logits[targets != IGNORED], targets[targets != IGNORED])
    else:
        hidden = model.base_model(**inputs, **options).last_hidden_state
        targets = labels.to(hidden.device)
        hidden, targets = hidden[targets != IGNORED], targets[targets != IGNORED]  # (N, C), (N,)
        for start in range(0, len(targets), piece):
            count(head(hidden[start : start + piece]), targets[start : start + piece])
    return np.concatenate(nats), np.concatenate(correct)


def _spread(windows: int, context_length: int, limit_tokens: int | None) -> np.ndarray:
    """Return the numbers of the windows to score: all, or evenly spread ones that hold `limit_tokens` tokens."""
    if limit_tokens is None or windows * context_length <= limit_tokens:
        return np.arange(windows)
    wanted = max(1, math.ceil(limit_tokens / context_length))
    return np.arange(wanted) * windows // wanted


def comparable_bytes(
    stream: TokenStream, special_ids: Collection[int], token_bytes: TokenBytes | None, seen: np.ndarray | None = None
) -> tuple[int | None, str | None]:
    """Return the denominator of bits per byte, or None and why there is none.

    All tokens of a text stand for all its bytes, whatever the tokenizer, unless it lost some of it: then the model was
    not asked for all of the text. A part of the text, `seen` (how often each id was scored), has its share of them.
    """
    if token_bytes is None:
        return None, None
    if lost := stream.meta.get("lost_bytes"):
        note = f"{lost:,} of the text's {stream.meta['bytes']:,} bytes are in no token"
        return None, f"{note}: bits per byte cannot be compared"
    unknown = sum(int(stream.counts[index]) for index in token_bytes.unknown if index < len(stream.counts))
    if stream.meta.get("end_of_text") in token_bytes.unknown:
        unknown -= stream.meta.get("documents", unknown - 1) + 1
    if unknown:
        note = f"{unknown:,} of {len(stream):,} tokens stand for words the tokenizer does not know"
        return None, f"{note}: bits per byte cannot be compared"
    if stream.meta["bytes"] is None and not token_bytes.exact:
        return None, "the shards do not say how many bytes of text they hold: there are no bits per byte"
    if seen is None and stream.meta["bytes"] is not None:
        return stream.meta["bytes"], None
    share = bytes_by_id(stream, special_ids, token_bytes)
    counts = stream.counts if seen is None else seen
    return round(float(counts @ share[: len(counts)])), None


def bytes_by_id(stream: TokenStream, special_ids: Collection[int], token_bytes: TokenBytes) -> npt.NDArray[np.float64]:
    """Return how many bytes of a stream's text each id stands for: its text tokens together have all of them."""
    counts = stream.counts
    lengths = np.zeros(max(len(counts), len(token_bytes.lengths)))
    lengths[: len(token_bytes.lengths)] = token_bytes.lengths
    lengths[[index for index in special_ids if index < len(lengths)]] = 0
    total = float(counts @ lengths[: len(counts)])
    known = stream.meta["bytes"]  # None if the shards do not say it
    return lengths if known is None or not total else lengths * (known / total)


@torch.inference_mode()
def score_masked(
    model: PreTrainedModel,
    stream: TokenStream,
    context_length: int,
    masking: Masking,
    *,
    batch_rows: int = 16,
    limit_tokens: int | None = None,
    progress: Callable[[float, str], None] | None = None,
) -> LanguageScore:
    """Sum an encoder's negative log likelihood of the tokens that `masking` hides in disjoint windows.

    The same tokens are hidden each time. `limit_tokens` and `progress` are as in `score_stream`.
    """
    windows = SlidingWindow(stream, max(1, min(context_length, len(stream) - 1)))
    chosen = _spread(len(windows), context_length, limit_tokens)

    def batches() -> Iterator[ScoredBatch]:
        for first in range(0, len(chosen), batch_rows):
            numbers = chosen[first : first + batch_rows]
            batch = masking.apply(windows.batch(numbers)["input_ids"], numbers)
            nats, correct = score_batch(model, {"input_ids": batch["input_ids"]}, batch["labels"])
            yield ScoredBatch(len(numbers), NOWHERE, NOWHERE, nats, correct)

    with evaluating(model):
        nats, tokens, correct = summed(batches(), len(chosen), progress)
    return LanguageScore(nats, tokens, correct, None, context_length, MASKED_NOTE)


def language_rows(
    score: LanguageScore,
    *,
    dataset: str,
    split: str,
    seed: int,
    unigram: LanguageScore | None = None,
    ngram: LanguageScore | None = None,
    xz: float | None = None,
    xz_primed: float | None = None,
) -> list[dict[str, Any]]:
    """Return the rows of metrics.json for a model's score and for the baselines on the same text.

    `baseline` is None for the model, else "unigram", "5-gram", "xz -9e" or "xz -9e after the training text". Bits per
    byte that cannot be compared have the value None and a `note`. `count` is in tokens (for xz, which has none, in
    bytes), `context` and `stride` in tokens.
    """

    def rows(of: LanguageScore, names: Iterable[str], baseline: str | None) -> list[dict[str, Any]]:
        shared = {"dataset": dataset, "split": split, "count": of.tokens, "seed": seed, "context": of.context}
        shared |= {"stride": of.context, "bytes": of.bytes, "baseline": baseline}
        made = [{"name": name, "value": getattr(of, name), **shared} for name in names]
        return [row | {"note": of.note} if row["value"] is None and of.note else row for row in made]

    names = ("bits_per_byte", "perplexity", "loss", "token_accuracy")
    result = rows(score, names, None)
    if unigram is not None:
        result += rows(unigram, names, "unigram")
    if ngram is not None:
        result += [row | {"stride": None} for row in rows(ngram, names[:3], "5-gram")]
    for value, baseline in ((xz, "xz -9e"), (xz_primed, "xz -9e after the training text")):
        if value is not None and score.bytes is not None:
            text_bytes = (unigram or score).bytes  # a score of a part has the bytes of that part
            result += rows(score, ["bits_per_byte"], baseline)
            result[-1] |= {"value": value, "count": text_bytes, "bytes": text_bytes, "context": None, "stride": None}
    return result
