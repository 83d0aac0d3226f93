"""Plain words for a difference between two models, and for whether a model was worth it beside its baselines."""

from collections.abc import Mapping, Sequence
from typing import Any

MAJORITY, SVM = "majority class", "TF-IDF + linear SVM"  # the baselines of a classifier

TRAINED = "training"  # the split of a text that a model was trained on, where it is no test

BETTER_WHEN_SMALLER = ("bits_per_byte", "loss", "perplexity", "word_perplexity", "byte_perplexity")


def verdict(row: Mapping[str, Any]) -> str:
    """What a row of a comparison allows to say, in plain words; it follows from the row's numbers alone."""
    if row["value"] is None:
        return "not comparable"
    if row.get("low") is None:  # too short a text to say how far it could have come out otherwise
        return "no difference shown"
    if row["low"] <= 0 <= row["high"]:
        return "no difference shown"
    measure = row["name"].removesuffix("_difference")
    better = (row["value"] < 0) == (measure in BETTER_WHEN_SMALLER)
    where = ", on training text" if row.get("split") == TRAINED else ""
    return f"{'better' if better else 'worse'} than {row['against']}{where}"


def worth(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """One sentence on whether a model was worth it: a score of it beside its best baseline's, on the same text or rows.

    Of a classifier the accuracy beside the SVM's; of a language model the bits per byte, where a baseline needs fewer.
    None where there is nothing to say, or several models were measured.
    """
    return _worth_of_a_classifier(rows) or _worth_of_a_language_model(rows)


def _worth_of_a_classifier(rows: Sequence[Mapping[str, Any]]) -> str | None:
    first, rivals = _beside("accuracy", rows)
    if first is None or SVM not in {row["baseline"] for row in rivals}:
        return None
    best = max(rivals, key=lambda row: row["value"])
    points = 100 * (first["value"] - best["value"])
    if points > 0:
        return f"accuracy {first['value']:.2%}: {points:.2f} points above {best['baseline']} ({best['value']:.2%})"
    what = "no better than" if points == 0 else f"{-points:.2f} points below"
    return (
        f"accuracy {first['value']:.2%}: {what} {best['baseline']} ({best['value']:.2%}). This model does not beat the "
        "baseline: use the baseline, or give it more --minutes, more rows or a pretrained --model"
    )


def _worth_of_a_language_model(rows: Sequence[Mapping[str, Any]]) -> str | None:
    first, rivals = _beside("bits_per_byte", rows)
    if first is None or first["value"] is None or not rivals:
        return None
    best = min(rivals, key=lambda row: row["value"])
    if first["value"] < best["value"]:
        return None
    return (
        f"bits per byte {first['value']:.3f}: no better than {best['baseline']} ({best['value']:.3f}). This model does "
        "not beat the baseline: give it more --minutes or more text"
    )


def _beside(name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    """The first score of that name, where only one model has it, and the baselines' on the same text or rows."""
    own = [row for row in rows if row["name"] == name and not row.get("baseline")]
    if not own or len({row.get("model") for row in own}) > 1:
        return None, []
    place = ("name", "dataset", "split")
    rivals = [row for row in rows if row.get("baseline") and all(row.get(key) == own[0].get(key) for key in place)]
    return own[0], [row for row in rivals if row["value"] is not None]
