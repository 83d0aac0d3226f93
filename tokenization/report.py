"""Measure a tokenizer: the bytes of its tokens, the text it loses, and its cost beside words and plain bytes.

The bytes of a text are known, so a vocabulary only has to say how they fall to its tokens: `TokenBytes` says it of
every kind of tokenizer, exactly of a byte-level one, nearly of the others. Languages are compared on the same
sentences: a language that needs three times English's tokens has a third of the context, at three times the price.
"""

import inspect
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from groundup.tokenization.folder import plain_backend, structure_ids
from groundup.tokenization.training import pieces_of, train_word_level

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
        """Read them from the pieces of a tokenizer's vocabulary, whatever its kind."""
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
    """Return how many bytes of a text are in no token, not even an unknown one; white space and marks do not count.

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
    """Return the number of bytes of a piece of a vocabulary."""
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


# Article 1 of the Universal Declaration of Human Rights: one meaning in each language (as Petrov et al. 2023 compare).
LANGUAGES: dict[str, str] = {
    "English": "All human beings are born free and equal in dignity and rights. They are endowed with reason and "
    "conscience and should act towards one another in a spirit of brotherhood.",
    "German": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen "
    "begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "French": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "Spanish": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Polish": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni "
    "rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "Russian": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью "
    "и должны поступать в отношении друг друга в духе братства.",
    "Greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι "
    "με λογική και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης.",
    "Arabic": "يولد جميع الناس أحرارًا متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميرًا "
    "وعليهم أن يعامل بعضهم بعضًا بروح الإخاء.",
    "Hindi": "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है। उन्हें बुद्धि और "
    "अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए।",
    "Chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。",
    "Japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。"
    "人間は、理性と良心とを授けられており、互いに同胞の精神をもって行動しなければならない。",
    "Korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. "
    "인간은 천부적으로 이성과 양심을 부여받았으며 서로 형제애의 정신으로 행동하여야 한다.",
}


def tokenizer_report(
    tokenizer: PreTrainedTokenizerFast, train_texts: Iterable[str], validation_texts: Iterable[str]
) -> list[dict[str, Any]]:
    """Return a row each for the tokenizer, for as many words learnt from `train_texts`, and for plain bytes.

    Each row, over `validation_texts`: `bytes_per_token` (more is better, if nothing is lost), `unknown_rate` (share of
    tokens that stand for a word it does not know), `tokens_per_document`, `vocabulary_used` (share of its tokens that
    occur). Words also lose the white space, which no number shows. A word-level tokenizer has no second row of words.
    """
    texts = list(validation_texts)
    if isinstance(tokenizer.backend_tokenizer.model, models.WordLevel):
        rows = [_measure("word-level", tokenizer, texts)]
    else:
        words = train_word_level(train_texts, len(tokenizer))
        rows = [_measure("byte-level BPE", tokenizer, texts), _measure("word-level", words, texts)]
    content = np.zeros(256, np.int64)
    for text in texts:
        content += np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256)
    return [*rows, _row("bytes", content, len(texts), int(content.sum()))]


def report_lines(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the rows as a person reads them: a header, and a line for each tokenizer."""
    lines = [
        [
            row["tokenizer"],
            f"{row['vocab_size']:,}",
            f"{row['bytes_per_token']:.3f}",
            f"{row['unknown_rate']:.2%}",
            f"{row['tokens_per_document']:,.1f}",
            f"{row['vocabulary_used']:.1%}",
        ]
        for row in rows
    ]
    return ["tokenizer", "vocabulary", "bytes/token", "unknown", "tokens/doc", "used"], lines


def report_table(rows: list[dict[str, Any]]) -> Table:
    """Return the rows as a table for the terminal."""
    header, lines = report_lines(rows)
    table = Table(title="tokenizer, on held-out text", title_justify="left")
    for column in header:
        table.add_column(column, justify="left" if column == "tokenizer" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*map(Text, line))
    return table


def token_pieces(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[str, str]]:
    """Return a text cut into its tokens, each with its ids in words; a letter of several tokens is one piece."""
    encoding = plain_backend(tokenizer).encode(text, add_special_tokens=False)
    pieces: list[tuple[str, str]] = []
    end = 0
    for index, (_, stop) in zip(encoding.ids, encoding.offsets):
        if stop <= end and pieces:  # of the same letter
            pieces[-1] = (pieces[-1][0], f"{pieces[-1][1]} {index}")
            continue
        pieces.append((text[end:stop], f"token {index}"))  # with what no token has, such as white space
        end = stop
    return [*pieces, (text[end:], "no token")] if end < len(text) else pieces


def kinds_of_text(own: Mapping[str, str]) -> dict[str, str]:
    """Return the texts to measure on: `own` (the data, by name), Python code, numbers, and the languages."""
    numbers = "\n".join(f"{number * 7919 % 100_003}, {number * 0.37:.2f}" for number in range(500))
    return {**own, "Python code": inspect.getsource(json), "numbers": numbers, **LANGUAGES}


def tokenizer_rows(
    tokenizers: Mapping[str | None, PreTrainedTokenizerFast], kinds: Mapping[str, str], seed: int
) -> list[dict[str, Any]]:
    """Return rows for metrics.json: of each kind of text and tokenizer `bytes_per_token` and, where it is known, the
    `unknown_rate` of its tokens; of each language also `tokens_against_english`, for the same meaning.

    `tokenizers` has the model's own under None, the others under the name of a baseline.
    """
    rows = []
    for baseline, tokenizer in tokenizers.items():
        backend, unknown = plain_backend(tokenizer), TokenBytes.of(tokenizer).unknown
        ids = {kind: backend.encode(text, add_special_tokens=False).ids for kind, text in kinds.items()}
        for kind, text in kinds.items():
            count = len(ids[kind])
            values = {"bytes_per_token": len(text.encode()) / max(1, count)}
            if unknown:
                values["unknown_rate"] = sum(map(ids[kind].count, unknown)) / max(1, count)
            elif not bytes_lost(tokenizer, [text]):
                values["unknown_rate"] = 0.0
            if kind in LANGUAGES:
                values["tokens_against_english"] = count / max(1, len(ids["English"]))
            shared = {"dataset": kind, "split": "tokenizer", "count": count, "seed": seed, "baseline": baseline}
            shared["bytes"] = len(text.encode())
            rows += [{"name": name, "value": value, **shared} for name, value in values.items()]
    return rows


def _measure(name: str, tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> dict[str, Any]:
    backend, unknown = plain_backend(tokenizer), tokenizer.unk_token_id
    counts = np.zeros(len(tokenizer), np.int64)
    pieces = list(pieces_of(texts))
    for at in range(0, len(pieces), _BATCH_PIECES):
        for encoding in backend.encode_batch_fast(pieces[at : at + _BATCH_PIECES], add_special_tokens=False):
            counts += np.bincount(np.asarray(encoding.ids, np.int64), minlength=len(counts))
    total = sum(len(text.encode()) for text in texts)
    return _row(name, counts, len(texts), total, int(counts[unknown]) if isinstance(unknown, int) else 0)


def _row(name: str, counts: np.ndarray, documents: int, text_bytes: int, unknown: int = 0) -> dict[str, Any]:
    tokens = int(counts.sum())
    return {
        "tokenizer": name,
        "vocab_size": len(counts),
        "bytes_per_token": text_bytes / max(1, tokens),
        "unknown_rate": unknown / max(1, tokens),
        "tokens_per_document": tokens / max(1, documents),
        "vocabulary_used": np.count_nonzero(counts) / len(counts),
    }


def joins(tokenizer: PreTrainedTokenizerFast) -> npt.NDArray[np.bool_]:
    """Return for each token id whether it begins, and whether it ends, like the middle of a word, (V, 2).

    Letters and digits do, and every byte of a character beyond ASCII. Tokens of another kind than byte-level BPE, and
    those that mark structure, never do.
    """
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    found = np.zeros((len(tokens), 2), bool)
    if not is_byte_level(tokenizer):
        return found
    of_structure = structure_ids(tokenizer)
    for number, token in enumerate(tokens):
        if token and number not in of_structure:
            found[number] = [_in_a_word(letter) for letter in (token[0], token[-1])]
    return found


def _in_a_word(letter: str) -> bool:
    """Return whether a byte, as byte-level BPE writes it, is a letter, a digit or part of a character beyond ASCII."""
    byte = BYTE_OF_LETTER.get(letter, 0)
    return byte >= 128 or chr(byte).isalnum()
