"""Read a run's log and draw its losses and learning rate."""

import contextlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def log_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a `log.jsonl` as they were written, without a torn last line."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the steps of a `log.jsonl` in order, without those that a resumed run did again."""
    rows: dict[int, dict[str, Any]] = {}
    for row in log_rows(path):
        if row.get("event") == "resume":
            rows = {step: known for step, known in rows.items() if step <= row["step"]}
        elif "loss" in row or "validation_loss" in row:
            rows[row["step"]] = rows.get(row["step"], {}) | row
    return [rows[step] for step in sorted(rows)]


def plot_curve(log_path: Path, png_path: Path) -> None:
    """Draw training loss (as it was, and smoothed), validation loss and learning rate over the steps of a log; of a
    classifier the accuracy too.

    Bits per byte are the validation loss in another unit, so they have an axis of their own and no curve.
    """
    log = read_log(log_path)
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    losses, rates = figure.subplots(2, 1, sharex=True, height_ratios=[5, 1])
    _draw_losses(losses, log)
    rates.plot(*_series(log, "learning_rate"), color="#636363", linewidth=1.2)
    rates.set_ylim(bottom=0)
    rates.set_ylabel("learning\nrate")
    rates.set_xlabel("step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates.yaxis.set_major_locator(MaxNLocator(2))
    for axes in (losses, rates):
        axes.grid(color="#eeeeee")
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    figure.align_ylabels()
    figure.savefig(png_path)


def _draw_losses(axes: Axes, log: Sequence[dict[str, Any]]) -> None:
    steps, train = _series(log, "loss")
    of_labels, accuracy = _series(log, "validation_accuracy")
    # A classifier's training loss has noise and next tokens in it, its validation loss has not.
    what = "training, with its noise" if of_labels else "training"
    axes.plot(steps, train, color="#a6cbe3", linewidth=0.8)
    axes.plot(steps, _smoothed(train), color="#2171b5", linewidth=1.8, label=f"{what} (smoothed)")
    steps, validation = _series(log, "validation_loss")
    if steps:
        axes.plot(steps, validation, color="#d94801", linewidth=1.6, marker="o", markersize=4, label="validation")
    axes.set_ylabel(f"loss (nats per {'text' if of_labels else 'token'})")
    if of_labels:
        right = axes.twinx()
        right.plot(of_labels, accuracy, color="#238b45", linewidth=1.2, linestyle="--")
        axes.plot([], [], color="#238b45", linewidth=1.2, linestyle="--", label="accuracy (validation)")
        right.set_ylim(0, 1)
        right.set_ylabel("accuracy (validation)")
        right.spines["top"].set_visible(False)
    axes.legend(frameon=False, loc="upper right")  # "best" is slow, and says so, with many points
    both = [row for row in log if row.get("validation_loss") and row.get("validation_bits_per_byte")]
    if both:
        scale = both[-1]["validation_bits_per_byte"] / both[-1]["validation_loss"]
        right = axes.secondary_yaxis("right", functions=(lambda nats: nats * scale, lambda bits: bits / scale))
        right.set_ylabel("bits per byte (validation)")
        right.spines["right"].set_visible(False)


def _series(log: Sequence[dict[str, Any]], name: str) -> tuple[list[int], list[float]]:
    """Return the steps at which a quantity was logged and its values there, leaving out what is not finite."""
    rows = [row for row in log if isinstance(row.get(name), int | float) and math.isfinite(row[name])]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Return each value's mean with its neighbours: a twenty-fifth of the curve in all, fewer at the ends."""
    sums = [0.0, *itertools.accumulate(values)]
    smooth = []
    for index in range(len(values)):
        reach = min(index, len(values) - 1 - index, len(values) // 50)
        smooth.append((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))
    return smooth
