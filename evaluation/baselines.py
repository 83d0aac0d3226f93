"""Score a text without a network: by token frequencies, by a 5-gram model of the training text, and by xz.

The n-gram model is Kneser and Ney's (1995), in the interpolated form of Chen and Goodman (1999) with one discount an
order (Ney et al. 1994). It is built with numpy alone: every n-gram of the training text is a number, made of the number
of its first n - 1 tokens and its last token.
"""

import itertools
import lzma
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from groundup.data.tokens import READ_TOKENS, TokenStream
from groundup.evaluation.likelihood import LanguageScore, comparable_bytes
from groundup.tokenization.report import TokenBytes

ORDER = 5
MOST_TOKENS = 2**24  # of the training text; it takes about 50 bytes of memory for each token and order
PRIMING_BYTES = 2**25  # of the training text shown to xz: about 20 seconds

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def unigram_score(
    train: TokenStream,
    validation: TokenStream,
    vocab_size: int,
    special_ids: Collection[int],
    token_bytes: TokenBytes | None = None,
) -> LanguageScore:
    """Score a text by how often each token occurs in the training text, with add-one smoothing.

    The same text tokens count as in `score_stream`; the probability is shared among the text tokens alone.
    """
    is_text = np.ones(vocab_size, dtype=bool)
    is_text[list(special_ids)] = False

    def counts(stream: TokenStream) -> Ints:
        return np.pad(stream.counts, (0, max(0, vocab_size - len(stream.counts))))[:vocab_size] * is_text

    weights, seen = counts(train) + is_text, counts(validation)
    log_probabilities = np.log(weights[is_text] / weights.sum())
    bytes_, note = comparable_bytes(validation, special_ids, token_bytes)
    nats = -float((seen[is_text] * log_probabilities).sum())
    return LanguageScore(nats, int(seen.sum()), int(seen[weights.argmax()]), bytes_, None, note)


@dataclass(frozen=True)
class _Order:
    """The counts of the n-grams of one length; each array is over the n-grams or over their contexts."""

    keys: Ints  # sorted: context · V + last token
    counts: Ints  # of each n-gram: how often it stands there, or for lower orders after how many different tokens
    context_counts: Ints  # (contexts,) their sum
    context_kinds: Ints  # (contexts,) how many different tokens follow
    discount: float


class KneserNey:
    """Probabilities of the next token from the `order` - 1 before it.

    The probabilities of all `vocab_size` tokens after any context add up to 1.
    """

    def __init__(self, ids: npt.ArrayLike, vocab_size: int, order: int = ORDER) -> None:
        """Count the n-grams of a training text (N,), at least as long as `order`."""
        self.vocab_size = vocab_size
        ids = np.asarray(ids, np.int64)
        self._orders: list[_Order] = []
        contexts = np.zeros(len(ids), np.int64)  # number of the n - 1 tokens before each position
        levels: list[tuple[Ints, Ints, Ints]] = []
        for length in range(1, order + 1):
            keys, numbers, counts = np.unique(
                contexts[length - 1 :] * vocab_size + ids[length - 1 :], return_inverse=True, return_counts=True
            )
            levels.append((keys, numbers, counts))
            contexts = np.concatenate([np.zeros(length, np.int64), numbers[:-1]])
        for level, (keys, _, counts) in enumerate(levels):
            # Lower orders serve where a longer context fails: they count the different tokens before an n-gram, which
            # are the different n + 1-grams that end in it.
            if level + 1 < order:
                _, first = np.unique(levels[level + 1][1], return_index=True)
                counts = np.bincount(levels[level][1][first + 1], minlength=len(keys))
            once, twice = int((counts == 1).sum()), int((counts == 2).sum())
            discount = once / (once + 2 * twice) if once else 0.5
            context, size = keys // vocab_size, len(levels[level - 1][0]) if level else 1
            kinds = np.bincount(context[counts > 0], minlength=size)
            sums = np.bincount(context, counts, size).astype(np.int64)
            self._orders.append(_Order(keys, counts, sums, kinds, discount))

    def probabilities(self, ids: npt.ArrayLike) -> Floats:
        """Return the probability of each id of a text but the first, given those before it: shape (N - 1,)."""
        ids = np.asarray(ids, np.int64)
        result = np.full(len(ids), 1 / self.vocab_size)
        contexts = np.zeros(len(ids), np.int64)  # -1 where the training text has no such context
        for length, order in enumerate(self._orders, 1):
            wanted = contexts * self.vocab_size + ids
            found = np.minimum(np.searchsorted(order.keys, wanted), len(order.keys) - 1)
            known = contexts >= 0
            numbers = np.where((order.keys[found] == wanted) & known, found, -1)  # -1: not in the training text
            total = np.where(known, order.context_counts[contexts], 0)
            known = total > 0
            total = np.maximum(total, 1)
            seen = np.where(numbers >= 0, order.counts[numbers], 0)
            passed_on = order.discount * np.where(known, order.context_kinds[contexts], 0) / total
            mixed = np.maximum(seen - order.discount, 0) / total + passed_on * result
            result = np.where(known, mixed, result)
            contexts = np.concatenate([np.full(1, -1), numbers[:-1]])
            contexts[:length] = -1
        return result[1:]


def ngram_score(
    train: TokenStream,
    validation: TokenStream,
    vocab_size: int,
    special_ids: Collection[int],
    token_bytes: TokenBytes | None = None,
) -> LanguageScore:
    """Score a text with a 5-gram model of the training text, of its last 16.8 M tokens where it has more.

    The same text tokens count as for a model. The likeliest token is not looked for: `correct` is 0 and means nothing.
    """
    model = KneserNey(train.read(max(0, len(train) - MOST_TOKENS), len(train)), vocab_size)
    nats, tokens = 0.0, 0
    for start in range(0, len(validation), READ_TOKENS):
        before = min(start, ORDER - 1) if start else 0
        ids = validation.read(start - before, start + READ_TOKENS)
        probabilities, targets = model.probabilities(ids)[max(0, before - 1) :], ids[max(1, before) :]
        is_text = ~np.isin(targets, list(special_ids))
        nats -= float(np.log(probabilities[is_text]).sum())
        tokens += int(is_text.sum())
    bytes_, note = comparable_bytes(validation, special_ids, token_bytes)
    return LanguageScore(nats, tokens, 0, bytes_, ORDER - 1, note)


def xz_bits_per_byte(texts: Iterable[str], primed_with: Iterable[str] | None = None) -> float | None:
    """Return the bits that `xz -9e` needs for one byte of the documents, None where they hold none.

    The documents are joined by one line feed each. Alone, xz's own frame is part of the compressed size. With
    `primed_with`, the training text, the size is what the documents add to the compressed training text, which shows
    how much of them it already contains. The divisor is the documents' bytes without the joining line feeds.
    """
    # The last of the training documents, as many as fit, and at least one.
    kept: deque[tuple[str, int]] = deque()
    size = 0
    for text in primed_with or ():
        kept.append((text, len(text.encode())))
        size += kept[-1][1]
        while size > PRIMING_BYTES and len(kept) > 1:
            size -= kept.popleft()[1]
    before = [text for text, _ in kept]
    alone, raw_alone = _xz(before) if before else (0, 0)
    together, raw = _xz(itertools.chain(before, texts))
    return 8 * (together - alone) / (raw - raw_alone) if raw > raw_alone else None


def _xz(texts: Iterable[str]) -> tuple[int, int]:
    """Return the size in bytes of documents compressed together, and their own."""
    compressor = lzma.LZMACompressor(format=lzma.FORMAT_XZ, preset=9 | lzma.PRESET_EXTREME)
    compressed, raw, joiner = 0, 0, b""
    for text in texts:
        document = text.encode()
        raw += len(document)
        compressed += len(compressor.compress(joiner + document))
        joiner = b"\n"
    return compressed + len(compressor.flush()), raw
