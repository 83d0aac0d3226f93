"""Find held-out text that also occurs in the training text, verbatim or nearly: by hashes, in flat memory.

Only the letters and digits of a text count, without case. Every stretch of `WINDOW` of them has a hash, and a sample of
the hashes, the same for both texts because a hash itself decides (Broder 1997, section 4), says how much of a document
the other text has. That takes no words: it holds for scripts without blanks, and for code.
"""

import dataclasses
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from groundup.common.console import say
from groundup.data.documents import Content, Documents, Part, blocks, stretch
from groundup.data.sources import Corpus

WINDOW = 32  # letters and digits: five or six English words
MOST_HASHES = 2**23  # of a training text, about: 64 MiB
ALIKE = 0.5  # of a document's hashes, from which on it is a copy: one word in twenty may differ
FEW_HASHES = 4  # with fewer only a document that is wholly the same is a copy
LONG_BYTES = 2**13  # a longer document is judged in passages
PASSAGE_BYTES = 2**12
LEAST_FRESH = 0.1  # of the validation text that must not stand in the training text, to be scored alone
LEAST_KEPT = 0.5  # of the training text that must be left where it is to lose the copies
PASSAGE_SLACK = 2**8  # bytes that a passage may be longer, to end between words

_LETTERS = np.zeros(256, np.uint8)
_LETTERS[128:] = np.arange(128, 256)
for _letter in b"0123456789abcdefghijklmnopqrstuvwxyz":
    _LETTERS[_letter] = _letter
for _letter in b"ABCDEFGHIJKLMNOPQRSTUVWXYZ":
    _LETTERS[_letter] = _letter + 32
_SPREAD = np.random.default_rng(0).integers(0, 2**64, 256, np.uint64)
_FACTORS = np.random.default_rng(1).integers(0, 2**63, 6, np.uint64) * np.uint64(2) + np.uint64(1)


@dataclass(frozen=True)
class Apart:
    """What of some documents does not stand in a text: `fresh`, and what was left out, in documents or passages."""

    fresh: Documents
    count: int
    copies: int
    bytes: int
    fresh_bytes: int
    unit: str

    @property
    def said(self) -> str:
        """Return the copies in words: "3 of 40 documents"."""
        return f"{self.copies:,} of {self.count:,} {self.unit}"


class KnownText:
    """The hashes of a text, by which to tell what stands in it.

    Args:
        wholes: a hash of each document, sorted.
        windows: a sample of the hashes of all stretches, sorted.
        every: a hash is in the sample if this power of two divides it.
    """

    def __init__(self, wholes: npt.NDArray[np.uint64], windows: npt.NDArray[np.uint64], every: int) -> None:
        self.wholes, self.windows, self.every = wholes, windows, every

    @classmethod
    def of(cls, documents: Documents) -> "KnownText":
        """Read the documents once, a block at a time."""
        every = 1
        while sum(map(len, documents.contents())) > every * MOST_HASHES:
            every *= 2
        wholes, samples = [], [np.zeros(0, np.uint64)]
        for content in documents.contents():
            whole, hashes = _hashes(content, every)
            wholes.append(whole)
            samples.append(hashes)
            if len(samples) > 2**12:
                samples = [_sorted(np.concatenate(samples))]
        return cls(_sorted(np.array(wholes, np.uint64)), _sorted(np.concatenate(samples)), every)

    @classmethod
    def open(cls, path: Path) -> "KnownText":
        """Read what `save` wrote."""
        found = load_file(path)
        return cls(found["wholes"], found["windows"], int(found["every"][0]))

    def save(self, path: Path) -> None:
        """Keep the hashes in a file."""
        every = np.array([self.every], np.int64)
        save_file({"wholes": self.wholes, "windows": self.windows, "every": every}, path)

    def apart(self, documents: Documents) -> Apart:
        """Tell the documents (and the passages of long ones) that occur in this text from those that do not."""
        kept: list[tuple[int, int, int]] = []
        count = copies = all_bytes = fresh_bytes = 0
        unit = "documents"
        for number, content in enumerate(documents.contents()):
            units = [(0, len(content))] if len(content) <= LONG_BYTES else _passages(content)
            unit = "passages" if len(units) > 1 else unit
            digest = hashlib.blake2b(digest_size=8)
            for block in blocks(content):
                digest.update(_letters(block).tobytes())
            whole = int.from_bytes(digest.digest(), "little")
            whole_is_known = _is_in(self.wholes, np.array([whole], np.uint64))[0]
            for start, stop in units:
                count, all_bytes = count + 1, all_bytes + stop - start
                hashes = self.windows[:0] if whole_is_known else _hashes(stretch(content, start, stop), self.every)[1]
                is_alike = len(hashes) >= FEW_HASHES and float(_is_in(self.windows, hashes).mean()) >= ALIKE
                if whole_is_known or is_alike:
                    copies += 1
                    continue
                fresh_bytes += stop - start
                if kept and kept[-1][0] == number and kept[-1][2] == start:
                    kept[-1] = (number, kept[-1][1], stop)
                else:
                    kept.append((number, start, stop))
        fresh = Documents([Stretches(documents, kept)]) if copies else documents
        return Apart(fresh, count, copies, all_bytes, fresh_bytes, unit)


def held_apart(corpus: Corpus) -> tuple[Corpus, KnownText, dict[str, Any]]:
    """Return a corpus whose validation text its training text has not, the training text's hashes, and how much it was.

    Where next to none would be left to score, it is the training text that loses its copies; where that would take too
    much of it, all stays. Which of these it was is said, and stands under `left_out_of`: "score", "training" or None.
    """
    known = KnownText.of(corpus.train)
    found = known.apart(corpus.validation)
    left_out, outcome = None, "almost none would be left without them, so the score includes text that was trained on"
    if found.copies and found.fresh_bytes >= LEAST_FRESH * found.bytes:
        corpus, left_out, outcome = dataclasses.replace(corpus, validation=found.fresh), "score", "not scored"
    elif found.copies:
        back = KnownText.of(corpus.validation).apart(corpus.train)
        if back.fresh_bytes >= LEAST_KEPT * back.bytes:
            corpus, left_out = dataclasses.replace(corpus, train=back.fresh), "training"
            outcome = f"{back.said} of that text are left out, so that it is not trained on"
            known = KnownText.of(corpus.train)
    if found.copies:
        say(f"validation: {found.said} are in the training text too, verbatim or nearly so: {outcome}")
    overlap = {"count": found.count, "unit": found.unit, "copies": found.copies, "left_out_of": left_out}
    return corpus, known, overlap


class Stretches(Part):
    """Documents that are stretches of others: (number of the document, first byte, end) of each, in their order."""

    def __init__(self, documents: Documents, chosen: list[tuple[int, int, int]]) -> None:
        self._documents, self._chosen = documents, np.array(chosen, np.int64).reshape(-1, 3)

    def __len__(self) -> int:
        return len(self._chosen)

    def contents(self, chosen: range) -> Iterator[Content]:
        """Yield the documents of the numbers `chosen`, found in one pass over the others."""
        wanted = self._chosen[chosen.start : chosen.stop : chosen.step].tolist()
        if not wanted:
            return
        first, last = wanted[0][0], wanted[-1][0]
        numbered = enumerate(self._documents.contents(range(first, last + 1)), first)
        at, content = next(numbered)
        for number, start, stop in wanted:
            while at < number:
                at, content = next(numbered)
            yield stretch(content, start, stop)


def _letters(block: bytes | memoryview) -> npt.NDArray[np.uint8]:
    """Return the letters and digits of a UTF-8 text, in lower case where they are ASCII."""
    mapped = _LETTERS[np.frombuffer(block, np.uint8)]
    return mapped[mapped > 0]


def _hashes(content: Content, every: int) -> tuple[int, npt.NDArray[np.uint64]]:
    """Return a hash of a whole document, and the sample of those of its stretches."""
    digest = hashlib.blake2b(digest_size=8)
    found, before = [np.zeros(0, np.uint64)], np.zeros(0, np.uint8)
    for block in blocks(content):
        letters = _letters(block)
        digest.update(letters.tobytes())
        letters = np.concatenate([before, letters])
        hashes = _hashes_of_windows(letters)
        found.append(hashes[hashes % np.uint64(every) == 0] if every > 1 else hashes)
        before = letters[max(0, len(letters) - WINDOW + 1) :]
    return int.from_bytes(digest.digest(), "little"), np.concatenate(found)


def _hashes_of_windows(letters: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint64]:
    """Return the hashes (N - WINDOW + 1,) of all stretches of `WINDOW` letters, put together from halves."""
    hashes = _SPREAD[letters]
    if len(letters) < WINDOW:
        return hashes[:0]
    size = 1
    for factor in _FACTORS[:-1]:
        hashes = hashes[:-size] * factor + hashes[size:]
        size *= 2
    hashes ^= hashes >> np.uint64(32)
    hashes *= _FACTORS[-1]
    return hashes ^ hashes >> np.uint64(29)


def _sorted(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return the hashes in order, each once; `np.unique` uses a hash table here, which takes ten times as long."""
    hashes = np.sort(hashes)
    return hashes[np.append(True, hashes[1:] != hashes[:-1])] if len(hashes) else hashes


def _is_in(known: npt.NDArray[np.uint64], hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return whether each hash is among the sorted ones."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    places = np.searchsorted(known, hashes).clip(max=len(known) - 1)
    return known[places] == hashes


def _passages(content: Content) -> list[tuple[int, int]]:
    """Cut a long document into passages that end after white space if there is some, else before a character."""
    borders = [0]
    while len(content) - borders[-1] > PASSAGE_BYTES + PASSAGE_SLACK:
        least = borders[-1] + PASSAGE_BYTES
        following = np.frombuffer(content[least : least + PASSAGE_SLACK], np.uint8)
        blank = np.flatnonzero(np.isin(following, np.frombuffer(b" \t\n\r", np.uint8)))
        begins = np.flatnonzero(following & 0xC0 != 0x80)
        borders.append(least + (int(blank[0]) + 1 if len(blank) else int(begins[0])))
    return list(zip(borders, [*borders[1:], len(content)]))
