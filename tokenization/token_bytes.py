"""Count the bytes of text that each token of a vocabulary stands for, and what a tokenizer loses of a text.

The bytes of a text are known, so a vocabulary only has to say how they fall to its tokens: `TokenBytes` says it of
every kind of tokenizer, exactly of a byte-level one, nearly of the others.
"""

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from groundup.tokenization.folder import plain_backend

BYTE_OF_LETTER = {letter: byte for byte, letter in bytes_to_unicode().items()}  # GPT-2's printable stand-in for a byte

_FALLBACK = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_BATCH_PIECES = 256


@dataclass(frozen=True)
class TokenBytes:
    """The number of bytes that each token id stands for, `lengths` (vocabulary,), and the ids for what was lost.

    Unless they are `exact`, `lengths` are to be multiplied so that the tokens of a text have the bytes of the text.
    """

    lengths: npt.NDArray[np.int64]
    unknown: frozenset[int] = frozenset()
    exact: bool = True

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> "TokenBytes":
        """Read them from a tokenizer's vocabulary: what its pieces stand for, whatever its kind."""
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        vocabulary = tokenizer.get_vocab()
        added = {token["content"] for token in state["added_tokens"]}
        letters = is_byte_level(tokenizer)
        lengths = np.zeros(max(vocabulary.values(), default=-1) + 1, np.int64)
        model = state["model"]
        for piece, index in vocabulary.items():
            lengths[index] = len(piece.encode()) if piece in added else _length(piece, model, letters)
        # The id that a model of `tokenizers` writes for what it does not know, if it has one.
        unknown = model.get("unk_id") if model["type"] == "Unigram" else vocabulary.get(model.get("unk_token") or "")
        return cls(lengths, frozenset() if unknown is None else frozenset([unknown]), letters)


def is_byte_level(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether the pieces of a vocabulary are written in GPT-2's letters, one for each byte."""
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"] or {}
    return any(part["type"] == "ByteLevel" for part in decoder.get("decoders", [decoder]) if part)


def bytes_lost(tokenizer: PreTrainedTokenizerFast, pieces: Iterable[str]) -> int:
    """Return how many bytes of a text no token stands for, not even an unknown one; white space and marks aside.

    Only a BPE that has no unknown token and lacks some letters or bytes passes over what it does not know; of every
    other kind the answer is 0 and nothing is read.
    """
    if not _passes_over(tokenizer):
        return 0
    backend, vocabulary = plain_backend(tokenizer), tokenizer.get_vocab()
    if is_byte_level(tokenizer):
        missing = [byte for letter, byte in BYTE_OF_LETTER.items() if letter not in vocabulary]
        as_read = (backend.normalizer.normalize_str(piece) if backend.normalizer else piece for piece in pieces)
        counts = (np.bincount(np.frombuffer(piece.encode(), np.uint8), minlength=256) for piece in as_read)
        return sum(int(count[missing].sum()) for count in counts)
    lost, batch = 0, []
    for piece in pieces:
        batch.append(piece)
        if len(batch) == _BATCH_PIECES:
            lost, batch = lost + _uncovered(backend, batch), []
    return lost + _uncovered(backend, batch)


def _length(piece: str, model: dict[str, Any], letters: bool) -> int:
    """Return the number of bytes that a piece of a vocabulary stands for."""
    if model.get("byte_fallback") and _FALLBACK.fullmatch(piece):
        return 1
    if letters and all(letter in BYTE_OF_LETTER for letter in piece):
        return len(piece)
    if prefix := model.get("continuing_subword_prefix"):
        piece = piece.removeprefix(prefix)
    if suffix := model.get("end_of_word_suffix"):
        piece = piece.removesuffix(suffix)
    return len(piece.replace("▁", " ").encode())


def _passes_over(tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a tokenizer may drop a part of a text in silence."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    vocabulary = model.get("vocab") or {}
    if model["type"] != "BPE" or (model.get("unk_token") or "") in vocabulary:
        return False
    if is_byte_level(tokenizer):
        return not all(letter in vocabulary for letter in BYTE_OF_LETTER)
    return not (model.get("byte_fallback") and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)))


def _uncovered(backend: Tokenizer, texts: list[str]) -> int:
    """Return the bytes of the characters that no token's span covers, but for white space, marks and invisible ones."""
    lost = 0
    for text, encoding in zip(texts, backend.encode_batch(texts, add_special_tokens=False)):
        covered = np.zeros(len(text) + 1, np.int64)
        for start, stop in encoding.offsets:
            covered[start] += 1
            covered[stop] -= 1
        missing = [text[place] for place in np.flatnonzero(np.cumsum(covered)[:-1] == 0)]
        kept_aside = (letter.isspace() or unicodedata.category(letter)[0] in "ZMC" for letter in missing)
        lost += sum(len(letter.encode()) for letter, aside in zip(missing, kept_aside) if not aside)
    return lost
