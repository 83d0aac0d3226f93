"""What a tokenizer is worth: measured on text it was not trained on, beside a word-level tokenizer and plain bytes."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from groundup.tokenization.folder import plain_backend
from groundup.tokenization.pieces import pieces_of
from groundup.tokenization.word_level import train_word_level

_BATCH_PIECES = 256


def tokenizer_report(
    tokenizer: PreTrainedTokenizerFast, train_texts: Iterable[str], validation_texts: Iterable[str]
) -> list[dict[str, Any]]:
    """One row for the tokenizer, for words learnt from `train_texts` (as many as it has tokens), and for plain bytes.

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


def report_table(rows: list[dict[str, Any]]) -> Table:
    """The rows as a table for the terminal."""
    table = Table(title="tokenizer, on held-out text", title_justify="left")
    for column in ("tokenizer", "vocabulary", "bytes/token", "unknown", "tokens/doc", "used"):
        table.add_column(column, justify="left" if column == "tokenizer" else "right", no_wrap=True)
    for row in rows:
        table.add_row(
            Text(row["tokenizer"]),
            f"{row['vocab_size']:,}",
            f"{row['bytes_per_token']:.3f}",
            f"{row['unknown_rate']:.2%}",
            f"{row['tokens_per_document']:,.1f}",
            f"{row['vocabulary_used']:.1%}",
        )
    return table


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
