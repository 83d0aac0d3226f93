"""How far a number could have come out otherwise: the bootstrap over units (Efron 1979; paired, Koehn 2004).

The units of a text, or the rows of a task, are drawn again with replacement, and the measure is taken of each draw.
"""

import math

import numpy as np
import numpy.typing as npt

from groundup.evaluation.token_scores import UnitSums

RESAMPLES = 1000
COVERAGE = 0.95

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]


def draws(units: int, seed: int) -> Array:
    """How often each unit is in each of `RESAMPLES` draws, shape (RESAMPLES, units): the same for the same arguments.

    Two models measured by the same draws are compared in pairs: what a hard document adds to both does not count.
    """
    return np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), RESAMPLES).astype(np.float64)


def language_draws(units: UnitSums, weights: Array) -> dict[str, Array]:
    """Each language measure, in every draw: `bits_per_byte` (if bytes are known), `loss`, `perplexity` and accuracy.

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


def interval(values: Array) -> Interval | None:
    """The middle 95 % of the values that the draws gave; None where hardly any draw gave one."""
    known = values[np.isfinite(values)]
    if len(known) < len(values) / 2:
        return None
    low, high = np.quantile(known, [(1 - COVERAGE) / 2, (1 + COVERAGE) / 2])
    return float(low), float(high)


def mean_interval(values: npt.ArrayLike, seed: int) -> Interval | None:
    """The interval of a mean over rows; None where there are fewer than two."""
    array = np.asarray(values, np.float64)
    return interval(draws(len(array), seed) @ array / len(array)) if len(array) > 1 else None
