"""The settings of the verbs of this room; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass(kw_only=True)
class TokenizerSettings:
    """Train a tokenizer on nine tenths of a text, and report on the last tenth what it is worth."""

    data: list[str] = field(default_factory=list)
    """Text to learn from: files, folders, globs, Hub datasets, or python-docs; give it several times for more."""
    kind: Literal["bpe", "word"] = "bpe"
    """bpe: byte-level BPE, any text comes back exactly; word: whole words, for teaching and comparison."""
    vocab_size: int | None = None
    """Tokens in the vocabulary, special ones included (default: the power of two at the square root of the bytes)."""
    text_column: str | None = None
    """The column with the text, for rows with several (default: found by its name)."""
    out: str | None = None
    """A new or empty folder for the tokenizer (default: a new one under runs/)."""
    seed: int = 0
    """Written into the recipe; nothing here is left to chance."""
    smoke: bool = False
    """Walk the same path with the first megabyte of text."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(kw_only=True)
class PrepareSettings:
    """Turn text into shards of token ids, nine tenths for training and the last tenth for validation."""

    data: list[str] = field(default_factory=list)
    """Text to tokenise: files, folders, globs, Hub datasets, or python-docs; give it several times for more."""
    tokenizer: str | None = None
    """The tokenizer to use: a folder (made by `groundup tokenizer`, or a model's) or a name on the Hub."""
    text_column: str | None = None
    """The column with the text, for rows with several (default: found by its name)."""
    part: str | None = None
    """I/N: do only the I-th of N parts, in a folder of its own under --out, where all of them join. Files are divided
    if there are at least N, documents otherwise; each part keeps back its own last tenth."""
    out: str | None = None
    """A new or empty folder for the shards (default: a new one under runs/)."""
    seed: int = 0
    """Written into the recipe; nothing here is left to chance."""
    resume: bool = False
    """Go on where the same command was stopped, keeping the shards that are whole; start if there are none."""
    smoke: bool = False
    """Walk the same path with the first megabyte of text."""
    quiet: bool = False
    """Print nothing but errors."""
