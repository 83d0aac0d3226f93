"""Measure the text that a model generates, and how much of it is copied verbatim from training.

Repetition after Li et al. 2016 (distinct-n) and Welleck et al. 2020 (repeated n-grams); memorisation after Carlini et
al. 2023: a prefix of the training text is continued greedily and compared with the true continuation.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.evaluation.language import Text
from groundup.evaluation.standard_metrics import ngrams, units
from groundup.inference.generation import Sampling, encode_prompt, stream_tokens
from groundup.inference.loading import context_of

COPIED_BYTES = 50  # a run of this many bytes found in the training text counts as copied
PREFIX_TOKENS = 32
NEW_TOKENS = 64
PROMPT_CHARACTERS = 40
BLOCK = 2**22


@dataclass(frozen=True)
class Written:
    """A text that a model wrote after a prompt, at a seed; `reason` is "stop" or "length"."""

    prompt: str
    text: str
    reason: str
    seed: int
    tokens: int


def write_samples(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[str],
    seed: int,
    progress: Callable[[float, str], None] | None = None,
) -> list[Written]:
    """Generate a text of at most 64 tokens for each prompt, at the seeds `seed`, `seed` + 1, ...: always the same."""
    written, room = [], max(1, context_of(model) // 2)
    for number, prompt in enumerate(prompts):
        ids = encode_prompt(tokenizer, prompt)[:room]
        new, reason = _drawn(model, ids, Sampling(max_new_tokens=NEW_TOKENS, seed=seed + number))
        shown = str(tokenizer.decode(ids, skip_special_tokens=True))
        text = str(tokenizer.decode(ids + new, skip_special_tokens=True))[len(shown) :]
        written.append(Written(shown, text, reason, seed + number, len(new)))
        if progress:
            progress((number + 1) / len(prompts), "writing")
    return written


def _drawn(model: PreTrainedModel, ids: list[int], sampling: Sampling) -> tuple[list[int], str]:
    tokens, new = stream_tokens(model, ids, sampling), []
    while True:
        try:
            new.append(next(tokens))
        except StopIteration as end:
            return new, end.value


def quality(texts: Sequence[str], stopped: Sequence[bool]) -> dict[str, float]:
    """Return measures of several texts; words and marks count alike, and letters where there are no blanks.

    `stopped`: EOS rate; `repeated_4grams`: share of 4-grams that occur earlier in the same text (rep-4);
    `distinct_1`, `distinct_2`: share of distinct words and pairs over all texts together; `words`: mean length.
    """
    words = [units(text) for text in texts]
    fours = [ngrams(text, 4) for text in words]
    repeated, total = sum(len(some) - len(set(some)) for some in fours), sum(map(len, fours))
    measures = {"stopped": sum(stopped) / len(texts), "repeated_4grams": repeated / max(1, total)}
    for length in (1, 2):
        every = [gram for text in words for gram in ngrams(text, length)]
        measures[f"distinct_{length}"] = len(set(every)) / max(1, len(every))
    return measures | {"words": sum(map(len, words)) / len(words)}


def copied_shares(texts: Sequence[str], training: Iterable[str], run: int = COPIED_BYTES) -> list[float]:
    """Return the share of each text's bytes that lie in a run of `run` bytes found in one training document.

    Every run of the texts is hashed (64 bits), then the training text is read once; memory grows with the
    texts, not with the training text.
    """
    contents = [np.frombuffer(text.encode(), np.uint8) for text in texts]
    hashes = [_run_hashes(content, run) for content in contents]
    wanted = np.unique(np.concatenate([np.zeros(0, np.uint64), *hashes]))
    found = np.zeros(len(wanted), bool)
    for block in _blocks(training, run) if len(wanted) else ():
        seen = _run_hashes(block, run)
        indices = np.minimum(np.searchsorted(wanted, seen), len(wanted) - 1)
        found[indices[wanted[indices] == seen]] = True
    shares = []
    for content, runs in zip(contents, hashes):
        covered = np.zeros(len(content) + 1, np.int64)
        begins = np.flatnonzero(found[np.searchsorted(wanted, runs)]) if len(runs) else np.zeros(0, np.int64)
        np.add.at(covered, begins, 1)
        np.add.at(covered, begins + run, -1)
        shares.append(float((np.cumsum(covered)[:-1] > 0).mean()) if len(content) else 0.0)
    return shares


def _blocks(texts: Iterable[str], run: int) -> Iterable[npt.NDArray[np.uint8]]:
    """Yield the documents' bytes, long ones in pieces that overlap by a run, short ones alone."""
    for text in texts:
        content = np.frombuffer(text.encode(), np.uint8)
        for start in range(0, max(1, len(content) - run + 1), BLOCK):
            yield content[start : start + BLOCK + run - 1]


def _run_hashes(content: npt.NDArray[np.uint8], run: int) -> npt.NDArray[np.uint64]:
    """Return a hash of every `run` bytes in a row, (N - run + 1,): sums of byte times a random odd number, mod 2^64."""
    count = len(content) - run + 1
    if count < 1:
        return np.zeros(0, np.uint64)
    factors = np.random.default_rng(0).integers(0, 2**63, run, np.uint64) * np.uint64(2) + np.uint64(1)
    wide, total = content.astype(np.uint64), np.zeros(count, np.uint64)
    for index, factor in enumerate(factors):
        total += wide[index : index + count] * factor
    return total


def continued_share(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, documents: Iterable[str], count: int
) -> tuple[float, int] | None:
    """Return how much of a text a model continues verbatim, and over how many documents, `count` at most.

    Of each document it is the share of the tokens after the first 32 that the model's greedy continuation has, up to
    the first difference; the mean is returned. None where no document is long enough.
    """
    prefix = min(PREFIX_TOKENS, context_of(model) // 2)
    shares = []
    for text in documents:
        ids = tokenizer.encode(text, verbose=False)[: prefix + PREFIX_TOKENS]
        expected = ids[prefix : context_of(model) + 1]
        if len(expected) < PREFIX_TOKENS // 2:
            continue
        greedy = Sampling(max_new_tokens=len(expected), temperature=0)
        new, _ = _drawn(model, ids[:prefix], greedy)
        same = next((index for index, pair in enumerate(zip(new, expected)) if pair[0] != pair[1]), len(new))
        shares.append(same / len(expected))
        if len(shares) == count:
            break
    return (sum(shares) / len(shares), len(shares)) if shares else None


def prompt_from(document: str) -> str:
    """Return the beginning of a document: up to 40 characters, cut at a space."""
    return document[:PROMPT_CHARACTERS].rsplit(" ", 1)[0]


def writing_part(
    name: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: Text,
    count: int,
    progress: Callable[[float, str], None] | None = None,
) -> dict[str, Any]:
    """Return the rows and samples of what a model generates after the beginnings of `count` documents.

    The baseline is the text itself: the true continuations, cut to the same length. With the training text
    there is also what was copied from it, and how far its beginnings are continued verbatim; the baseline of that is
    the same on held-out text.
    """
    step = max(1, len(text.documents) // count)
    documents = list(text.documents[::step][:count].texts())
    written = write_samples(model, tokenizer, [prompt_from(document) for document in documents], text.seed, progress)
    own = [sample.text for sample in written]
    real = [document[PROMPT_CHARACTERS:][: max(1, len(sample.text))] for document, sample in zip(documents, written)]
    values: dict[str | None, dict[str, float]] = {None: quality(own, [sample.reason == "stop" for sample in written])}
    values["the text itself"] = quality(real, [True] * len(real))
    counts = dict.fromkeys([*values[None], "copied"], len(written))
    if text.training is not None:
        texts = [*own, *real]
        shares, sizes = copied_shares(texts, text.training.texts()), [len(content.encode()) for content in texts]
        for baseline, part in ((None, slice(0, len(own))), ("the text itself", slice(len(own), None))):
            copied = sum(share * size for share, size in zip(shares[part], sizes[part]))
            values[baseline]["copied"] = copied / max(1, sum(sizes[part]))
        for baseline, kind in ((None, text.training), ("the text itself", text.documents)):
            if (continued := continued_share(model, tokenizer, kind.texts(), count)) is not None:
                values[baseline]["continued_word_for_word"], counts["continued_word_for_word"] = continued
    rows = [
        {"name": measure, "value": value, "dataset": text.dataset, "split": "test", "count": counts[measure]}
        | {"seed": text.seed, "baseline": baseline}
        for baseline, measures in values.items()
        for measure, value in measures.items()
    ]
    samples = [{"model": name, **asdict(sample)} for sample in written]
    return {"rows": rows, "samples": samples}
