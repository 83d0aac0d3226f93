"""Models side by side on the same text and the same rows: differences with an interval, and what they allow to say.

Both models are drawn again together, unit by unit (paired bootstrap, Koehn 2004), so that what is hard for both does
not count.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from groundup.evaluation.intervals import draws, interval, language_draws
from groundup.evaluation.token_scores import UnitSums


def compare_language(units: Mapping[str, UnitSums], reference: str, *, dataset: str, seed: int) -> list[dict[str, Any]]:
    """Rows `bits_per_byte_difference`: each other model's bits per byte minus the reference's, with its interval.

    Losses per token are only compared where all models cut the text into the same number of tokens. A model whose
    bytes are not known, or that was measured on other units, gets a row without a value and a note that says so.
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
        elif not np.array_equal(sums.bytes, of_reference.bytes) and sums.kind == "documents":
            rows.append(row | {"value": None, "note": "the models were not measured on the same bytes"})
        else:
            rows.append(row | _difference(sums, of_reference, weights))
    return rows


def _difference(sums: UnitSums, reference: UnitSums, weights: np.ndarray) -> dict[str, Any]:
    once = np.ones((1, len(sums.tokens)))
    both = [language_draws(units, weights)["bits_per_byte"] for units in (sums, reference)]
    value = [language_draws(units, once)["bits_per_byte"][0] for units in (sums, reference)]
    low, high = interval(both[0] - both[1])
    return {"value": float(value[0] - value[1]), "low": low, "high": high}


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
            if others is None or len(others) != len(theirs) or len(theirs) < 2:
                continue
            differences = np.subtract(theirs, others)
            low, high = interval(draws(len(differences), seed) @ differences / len(differences))
            row = {"name": f"{measure}_difference", "value": float(differences.mean()), "low": low, "high": high}
            row |= {"model": name, "against": reference, "dataset": task, "split": "test", "num_fewshot": num_fewshot}
            rows.append(row | {"count": len(differences), "interval": "rows", "seed": seed, "baseline": None})
    return rows
