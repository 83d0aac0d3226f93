"""Draw curves: as SVG inside a page, in the colours of its reader, and as the picture `curve.png` of a run's log."""

import contextlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

SHOWN_STEPS = 400  # of a curve on a page


@dataclass(frozen=True)
class Curve:
    """Values over steps; a faint one is the noise behind another and has no place in the legend."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    is_faint: bool = False
    has_dots: bool = False


WIDE, HIGH, LEFT, BELOW, ABOVE = 480, 260, 52, 40, 10  # of a plot, in its own units


def chart(
    name: str, curves: Sequence[Curve], x_label: str, places: Sequence[str] = (), *, is_share: bool = False
) -> Markup:
    """Return curves as an SVG inside the page; `places` name the steps 0, 1, 2, ... where they are no numbers."""
    points = [(x, y) for curve in curves for x, y in zip(curve.steps, curve.values)]
    if not points:
        return Markup()
    xs, ys = [x for x, _ in points], [y for _, y in points]
    x_ticks = range(len(places)) if places else _ticks(min(xs), max(xs), whole=True)
    y_ticks = _ticks(max(0.0, min(ys) - 0.02), min(1.0, max(ys) + 0.02)) if is_share else _ticks(min(ys), max(ys))
    unit = ".0%" if is_share else ",.6g"
    x_range = (min(xs), max(xs)) if max(xs) > min(xs) else (min(xs) - 1, max(xs) + 1)
    y_range = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_range[0]) / (x_range[1] - x_range[0])
        up = (y - y_range[0]) / ((y_range[1] - y_range[0]) or 1)
        return round(LEFT + across * (WIDE - LEFT - 12), 1), round(ABOVE + (1 - up) * (HIGH - BELOW - ABOVE), 1)

    drawn, grid = [], Markup('<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text x="{}" y="{}" {}>{}</text>\n')
    for tick in y_ticks:
        _, y = place(x_range[0], tick)
        drawn.append(grid.format(LEFT, WIDE - 12, y, y, LEFT - 8, y + 4, Markup('text-anchor="end"'), f"{tick:{unit}}"))
    text = Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>\n')
    shown_places = max(1, math.ceil(len(places) / 8))
    for tick in list(x_ticks)[::shown_places]:
        if x_range[0] <= tick <= x_range[1]:
            said = places[int(tick)] if places else f"{tick:,.6g}"
            drawn.append(text.format(place(tick, y_range[0])[0], HIGH - BELOW + 18, said))
    drawn.append(text.format((WIDE + LEFT) / 2, HIGH - 4, x_label))
    named = [curve for curve in curves if not curve.is_faint]
    colours = {curve.name: f"c{1 + number % 5}" for number, curve in enumerate(named)}
    for curve in curves:
        drawn.append(_drawn(curve, colours.get(curve.name, "c1"), place))
    entry = Markup('<li class="{}"><span>{}</span></li>')
    entries = [entry.format(colours[curve.name], curve.name) for curve in named]
    legend = Markup('<ul class="legend">{}</ul>').format(Markup().join(entries)) if len(named) > 1 else Markup()
    whole = Markup(
        '<figure><figcaption>{0}</figcaption>\n<svg viewBox="0 0 {1} {2}" role="img" aria-label="{0}">\n{3}</svg>\n'
        "{4}</figure>\n"
    )
    return whole.format(name, WIDE, HIGH, Markup().join(drawn), legend)


def _drawn(curve: Curve, colour: str, place: Any) -> Markup:
    every = max(1, math.ceil(len(curve.steps) / SHOWN_STEPS))
    points = [*zip(curve.steps, curve.values)]
    kept = points[::every] + (points[-1:] if (len(points) - 1) % every else [])
    at = " ".join("{},{}".format(*place(x, y)) for x, y in kept)
    kind = f"{colour} faint" if curve.is_faint else colour
    line = Markup('<polyline class="{}" points="{}"/>\n').format(kind, at)
    dot = Markup('<circle class="{}" cx="{}" cy="{}" r="3"><title>{}</title></circle>\n')
    dots = [dot.format(colour, *place(x, y), f"{curve.name}: {y:,.4g}") for x, y in kept if curve.has_dots]
    return line + Markup().join(dots)


def _ticks(low: float, high: float, whole: bool = False) -> list[float]:
    """Return round numbers from below the least value to above the greatest."""
    found = MaxNLocator(nbins=5, integer=whole, min_n_ticks=2).tick_values(low, high)
    return [float(tick) for tick in found]


def training_charts(log: Sequence[dict[str, Any]]) -> Markup:
    """Return the curves of a run's log: its losses, and what else it measured as it learned.

    The losses of a classifier share no axis, as in `plot_curve`.
    """
    steps, train = _series(log, "loss")
    noisy = Curve("as it was", steps, train, is_faint=True)
    validation = Curve("validation", *_series(log, "validation_loss"), has_dots=True)
    accuracy = Curve("accuracy on validation rows", *_series(log, "validation_accuracy"), has_dots=True)
    smooth = Curve("training", steps, _smoothed(train))
    if accuracy.steps:
        charts = [
            chart("Training loss (nats per text, with its noise and next tokens)", [noisy, smooth], "step"),
            chart("Validation loss (nats per text)", [validation], "step"),
            chart("Accuracy on validation rows", [accuracy], "step", is_share=True),
        ]
    else:
        bits = Curve("validation", *_series(log, "validation_bits_per_byte"), has_dots=True)
        rate = Curve("learning rate", *_series(log, "learning_rate"))
        charts = [
            chart("Loss (nats per token)", [noisy, smooth, *[validation] * bool(validation.steps)], "step"),
            chart("Bits per byte", [bits], "step") or chart("Learning rate", [rate], "step"),
        ]
    return Markup('<div class="charts">\n{}</div>\n').format(Markup().join(charts)) if steps else Markup()


# ---------------------------------------------------------------------------------------------------------------------
# The log of a run, and its curve as a picture


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
    """Draw training loss (as it was, and smoothed), validation loss and learning rate over the steps of a log.

    A classifier's validation loss has a plot of its own, with the accuracy: its training loss has noise and next tokens
    in it. Bits per byte are the validation loss in another unit, so they have an axis of their own and no curve.
    """
    log = read_log(log_path)
    figure = Figure(figsize=(8, 4.8), dpi=150, layout="constrained")
    is_judge = any("validation_accuracy" in row for row in log)
    *plots, rates = figure.subplots(2 + is_judge, 1, sharex=True, height_ratios=[3, 3, 1] if is_judge else [5, 1])
    _draw_losses(plots[0], plots[-1], log)
    rates.plot(*_series(log, "learning_rate"), color="#636363", linewidth=1.2)
    rates.set_ylim(bottom=0)
    rates.set_ylabel("learning\nrate")
    rates.set_xlabel("step")
    rates.xaxis.set_major_locator(MaxNLocator(integer=True))
    rates.yaxis.set_major_locator(MaxNLocator(2))
    for axes in (*plots, rates):
        _set_style(axes)
    figure.align_ylabels()
    figure.savefig(png_path)


def _set_style(axes: Axes) -> None:
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_losses(axes: Axes, below: Axes, log: Sequence[dict[str, Any]]) -> None:
    """Draw the training loss, and the validation loss on the same axes or those below."""
    steps, train = _series(log, "loss")
    of_labels, accuracy = _series(log, "validation_accuracy")
    what = "training, with its noise" if of_labels else "training"
    axes.plot(steps, train, color="#a6cbe3", linewidth=0.8)
    axes.plot(steps, _smoothed(train), color="#2171b5", linewidth=1.8, label=f"{what} (smoothed)")
    steps, validation = _series(log, "validation_loss")
    if steps:
        below.plot(steps, validation, color="#d94801", linewidth=1.6, marker="o", markersize=4, label="validation")
    for plot in {axes, below}:
        plot.set_ylabel(f"loss (nats per {'text' if of_labels else 'token'})")
    if of_labels:
        right = below.twinx()
        right.plot(of_labels, accuracy, color="#238b45", linewidth=1.2, linestyle="--")
        below.plot([], [], color="#238b45", linewidth=1.2, linestyle="--", label="accuracy (validation)")
        right.set_ylim(0, 1)
        right.set_ylabel("accuracy (validation)")
        right.spines["top"].set_visible(False)
    for plot in {axes, below}:
        plot.legend(frameon=False, loc="upper right")  # "best" is slow, and says so, with many points
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
