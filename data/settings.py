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

_SEED = "Written into the recipe; nothing here is random."
_SMOKE = "Run the same steps with the first megabyte of text."


@dataclass(kw_only=True)
class TokenizerSettings(QuietOption, SmokeOption, SeedOption, OutOption, VocabularyOption, TextOptions):
    """Train a tokenizer on nine tenths of a text, and measure it on the last tenth."""

    meaning: ClassVar[dict[str, str]] = {
        "vocab_size": "Tokens in the vocabulary, special ones included (default: the power of two at the square root "
        "of the bytes).",
        "seed": _SEED,
        "smoke": _SMOKE,
    }

    kind: Literal["bpe", "word"] = "bpe"
    """bpe: byte-level BPE, which decodes any text exactly; word: whole words, for teaching and comparison."""


@dataclass(kw_only=True)
class PrepareSettings(QuietOption, SmokeOption, ResumeOption, SeedOption, OutOption, TextOptions, TokenizerOption):
    """Tokenize text into shards, nine tenths for training and the last tenth for validation."""

    meaning: ClassVar[dict[str, str]] = {
        "data": "Text to tokenize: files, folders, globs, Hub datasets, or python-docs; may be given several times.",
        "seed": _SEED,
        "resume": "Resume the same command, keeping its complete shards; start if there are none.",
        "smoke": _SMOKE,
    }

    part: Name | None = None
    """I/N: prepare only part I of N, in its own folder under --out, where all parts meet. Files are divided if there
    are at least N, otherwise documents; each part holds out its own last tenth."""
