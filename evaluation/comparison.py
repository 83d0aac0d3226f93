"""Models side by side on the same text and the same rows: differences with an interval, and what they allow to say.

Both models are drawn again together, unit by unit (paired bootstrap, Koehn 2004), so that what is hard for both does
not count.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from groundup.evaluation.intervals import draws, interval, language_draws, mean_interval
from groundup.evaluation.token_scores import UnitSums


def compare_language(units: Mapping[str, UnitSums], reference: str, *, dataset: str, seed: int) -> list[dict[str, Any]]:
    """Rows `bits_per_byte_difference`: each other model's bits per byte minus the reference's, with its interval.

    A model whose tokenizer lost some of the text, or that was measured on another text, gets a row without a value and
    a note that says so. A text too short to be drawn again gives a value without an interval.
    """
    rows, of_reference = [], units[reference]
    weights = draws(len(of_reference.tokens), seed)
    for name, sums in units.items():
        if name == reference:
            continue
        row = {"model": name, "against": reference, "dataset": dataset, "split": "test", "seed": seed, "baseline": None}
        row |= {"name": "bits_per_byte_difference", "count": len(sums.tokens), "interval": sums.kind}
        if sums.bytes is None or of_reference.bytes is None:
            rows.append(row | {"value": None, "note": "a tokenizer that loses text has no bits per byte to compare"})
        elif sums.kind != of_reference.kind or not np.array_equal(sums.bytes, of_reference.bytes):
            rows.append(row | {"value": None, "note": "the models were not measured on the same bytes"})
        else:
            rows.append(row | _difference(sums, of_reference, weights))
    return rows


def _difference(sums: UnitSums, reference: UnitSums, weights: np.ndarray) -> dict[str, Any]:
    once = np.ones((1, len(sums.tokens)))
    value = [float(language_draws(units, once)["bits_per_byte"][0]) for units in (sums, reference)]
    both = [language_draws(units, weights)["bits_per_byte"] for units in (sums, reference)]
    limits = interval(both[0] - both[1]) if len(sums.tokens) > 1 else None
    if limits is None:
        return {"value": value[0] - value[1], "note": "the text is too short for an interval"}
    return {"value": value[0] - value[1], "low": limits[0], "high": limits[1]}


def compare_tasks(
    scores: Mapping[str, Mapping[tuple[str, str, int], list[float]]], reference: str, *, seed: int
) -> list[dict[str, Any]]:
    """Rows `MEASURE_difference` for every (task, measure, examples in the prompt) that both models have row by row."""
    rows = []
    for name, values in scores.items():
        if name == reference:
            continue
        for (task, measure, num_fewshot), theirs in values.items():
            others = scores[reference].get((task, measure, num_fewshot))
            if others is None or len(others) != len(theirs):
                continue
            differences = np.subtract(theirs, others)
            limits = mean_interval(differences, seed)
            if limits is None:
                continue
            row = {"name": f"{measure}_difference", "value": float(differences.mean())}
            row |= {"low": limits[0], "high": limits[1]}
            row |= {"model": name, "against": reference, "dataset": task, "split": "test", "num_fewshot": num_fewshot}
            rows.append(row | {"count": len(differences), "interval": "rows", "seed": seed, "baseline": None})
    return rows
