"""Put intervals around scores, and compare models on the same text and the same rows, by the bootstrap (Efron 1979).

The units of a text, or the rows of a task, are drawn again with replacement, and each draw is measured. Two models are
drawn together, unit by unit (paired bootstrap, Koehn 2004), so that what is hard for both does not count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from groundup.evaluation.metrics_json import markdown_table

RESAMPLES = 1000
COVERAGE = 0.95
NORMAL = 1.959964  # standard deviations on either side that cover so much of a normal distribution

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


class UnitSums:
    """The sums of a model over each unit of a text: arrays of one length, of nats, tokens, right guesses and bytes."""

    def __init__(self, kind: str, nats: Any, tokens: Any, correct: Any, bytes: Any) -> None:
        self.kind = kind
        self.nats, self.tokens, self.correct = np.asarray(nats), np.asarray(tokens), np.asarray(correct)
        self.bytes = None if bytes is None else np.asarray(bytes)

    def as_dict(self) -> dict[str, object]:
        """Return the sums in types that JSON has; `UnitSums(**...)` takes them back."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}


def draws(units: int, seed: int) -> Array:
    """Return how often each unit is in each draw, (RESAMPLES, units): the same for the same arguments.

    Two models measured by the same draws are compared in pairs: what a hard document adds to both does not count.
    """
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), RESAMPLES).astype(np.float64)


def language_draws(units: UnitSums, weights: Array) -> dict[str, Array]:
    """Return each language measure in every draw: `bits_per_byte` (if bytes are known), `loss`, `perplexity`, accuracy.

    NaN in a draw that holds no token, as one of empty documents may.
    """
    loss = _ratio(weights @ units.nats, weights @ units.tokens)
    measures = {"loss": loss, "perplexity": np.exp(np.minimum(loss, 700))}
    measures["token_accuracy"] = _ratio(weights @ units.correct, weights @ units.tokens)
    if units.bytes is not None:
        measures["bits_per_byte"] = _ratio(weights @ units.nats / math.log(2), weights @ units.bytes)
    return measures


def _ratio(above: Array, below: Array) -> Array:
    return np.divide(above, below, out=np.full(len(above), np.nan), where=below > 0)


def share_interval(share: float, count: int) -> dict[str, Any]:
    """Return `low` and `high` of a share of so many rows for metrics.json: 95 % by Wilson's score (1927)."""
    middle = (share + NORMAL**2 / (2 * count)) / (1 + NORMAL**2 / count)
    half = math.sqrt(share * (1 - share) / count + NORMAL**2 / (4 * count**2)) * NORMAL / (1 + NORMAL**2 / count)
    return {"low": round(max(0.0, middle - half), 6), "high": round(min(1.0, middle + half), 6), "interval": "rows"}


def interval(values: Array) -> Interval | None:
    """Return the middle 95 % of the values that the draws gave; None where fewer than half gave one."""
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return None
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def mean_interval(values: npt.ArrayLike, seed: int) -> Interval | None:
    """Return the interval of a mean over rows; None where there are fewer than two."""
    array = np.asarray(values, np.float64)
    return interval(draws(len(array), seed) @ array / len(array)) if len(array) > 1 else None


def compare_language(units: Mapping[str, UnitSums], reference: str, *, dataset: str, seed: int) -> list[dict[str, Any]]:
    """Return rows `bits_per_byte_difference`: each model's bits per byte minus the reference's, with an interval.

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
            once, drawn = (
                np.subtract(*(language_draws(units, chosen)["bits_per_byte"] for units in (sums, of_reference)))
                for chosen in (np.ones((1, len(sums.tokens))), weights)
            )
            limits = interval(drawn) if len(sums.tokens) > 1 else None
            note = {"note": "the text is too short for an interval"}
            rows.append(row | {"value": float(once[0])} | ({"low": limits[0], "high": limits[1]} if limits else note))
    return rows


def compare_tasks(
    scores: Mapping[str, Mapping[tuple[str, str, int], list[float]]], reference: str, *, seed: int
) -> list[dict[str, Any]]:
    """Return rows `MEASURE_difference` for each (task, measure, examples) that both models have row by row."""
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


EXACT = "fp32"  # the weights of a GGUF file that is not rounded


def quantisation(rows: Sequence[dict[str, Any]]) -> str:
    """Return in Markdown what it costs to store the weights in fewer bits, and on which text that was measured.

    Nothing where it was not.
    """
    if not rows:
        return ""
    exact = next(row["value"] for row in rows if row["quantization"] == EXACT)
    lines = [
        [
            row["quantization"],
            f"{row['size'] / 1e6:,.2f}",
            f"{row['value']:.4f}",
            "–" if row["quantization"] == EXACT else f"{row['value'] - exact:+.4f}",
        ]
        for row in rows
    ]
    table = markdown_table(["weights in", "file (MB)", "bits per byte", f"more than in {EXACT}"], lines, right_from=1)
    on = "{dataset}: {count:,} tokens ({bytes:,} bytes of text), in windows of {context:,} tokens.".format(**rows[0])
    return f"{table}\nMeasured in llama.cpp on {on}"
