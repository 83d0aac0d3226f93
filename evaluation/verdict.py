"""Plain words for a difference between two models."""

from collections.abc import Mapping
from typing import Any

BETTER_WHEN_SMALLER = ("bits_per_byte", "loss", "perplexity", "word_perplexity", "byte_perplexity")


def verdict(row: Mapping[str, Any]) -> str:
    """What a row of a comparison allows to say, in plain words; it follows from the row's numbers alone."""
    if row["value"] is None:
        return "not comparable"
    if row["low"] <= 0 <= row["high"]:
        return "no difference shown"
    measure = row["name"].removesuffix("_difference")
    better = (row["value"] < 0) == (measure in BETTER_WHEN_SMALLER)
    return f"{'better' if better else 'worse'} than {row['against']}"
