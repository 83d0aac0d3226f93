"""Plain words for a difference between two models, and for whether a classifier was worth it."""

from collections.abc import Mapping, Sequence
from typing import Any

MAJORITY, SVM = "majority class", "TF-IDF + linear SVM"  # the baselines of a classifier

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


def worth(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """One sentence on whether a classifier was worth it: its accuracy beside its best baseline's, on the same rows.

    None where no classifier was measured beside the SVM.
    """
    first = next((row for row in rows if row["name"] == "accuracy" and not row.get("baseline")), None)
    place = ("name", "dataset", "split")
    rivals = [row for row in rows if first and row.get("baseline") and all(row[key] == first[key] for key in place)]
    if first is None or SVM not in {row["baseline"] for row in rivals}:
        return None
    best = max(rivals, key=lambda row: row["value"])
    points = 100 * (first["value"] - best["value"])
    if points > 0:
        return f"accuracy {first['value']:.2%}: {points:.2f} points above {best['baseline']} ({best['value']:.2%})"
    what = "no better than" if points == 0 else f"{-points:.2f} points below"
    return (
        f"accuracy {first['value']:.2%}: {what} {best['baseline']} ({best['value']:.2%}). This model does not beat the "
        "baseline: use the baseline, or give it more rows, more --adapt-minutes or a pretrained --model"
    )
