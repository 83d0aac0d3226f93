"""The settings of the verbs of this room; importing them costs nothing."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from groundup.common.options import (
    Name,
    OutOption,
    QuietOption,
    ResumeOption,
    SeedOption,
    SmokeOption,
    TextOptions,
    TokenizerOption,
    VocabularyOption,
)

_SEED = "Written into the recipe; nothing here is left to chance."
_SMOKE = "Walk the same path with the first megabyte of text."


@dataclass(kw_only=True)
class TokenizerSettings(QuietOption, SmokeOption, SeedOption, OutOption, VocabularyOption, TextOptions):
    """Train a tokenizer on nine tenths of a text, and report on the last tenth what it is worth."""

    meaning: ClassVar[dict[str, str]] = {
        "vocab_size": "Tokens in the vocabulary, special ones included (default: the power of two at the square root "
        "of the bytes).",
        "seed": _SEED,
        "smoke": _SMOKE,
    }

    kind: Literal["bpe", "word"] = "bpe"
    """bpe: byte-level BPE, any text comes back exactly; word: whole words, for teaching and comparison."""


@dataclass(kw_only=True)
class PrepareSettings(QuietOption, SmokeOption, ResumeOption, SeedOption, OutOption, TextOptions, TokenizerOption):
    """Turn text into shards of token ids, nine tenths for training and the last tenth for validation."""

    meaning: ClassVar[dict[str, str]] = {
        "data": "Text to tokenise: files, folders, globs, Hub datasets, or python-docs; give it several times for "
        "more.",
        "seed": _SEED,
        "resume": "Go on where the same command was stopped, keeping the shards that are whole; start if there are "
        "none.",
        "smoke": _SMOKE,
    }

    part: Name | None = None
    """I/N: do only the I-th of N parts, in a folder of its own under --out, where all of them join. Files are divided
    if there are at least N, documents otherwise; each part keeps back its own last tenth."""
