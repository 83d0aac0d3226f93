"""Make `report.html` of `metrics.json` alone, one file that opens without a network, and `curve.png` of a log."""

import contextlib
import io
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from groundup.common.files import PAGE_FILE, atomic_write
from groundup.evaluation.metrics_json import (
    BESIDE,
    family_lines,
    notes,
    read_metrics,
    result_lines,
    section,
    shown,
    title,
)

_STYLE = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
_COLOURS = ("#2171b5", "#d94801", "#238b45", "#6a51a3", "#636363")


def write_page(folder: Path) -> Path:
    """Write `report.html` beside `metrics.json`, and return its path. Nothing but `metrics.json` is read."""
    path = Path(folder) / PAGE_FILE
    atomic_write(path, page(read_metrics(folder)).encode())
    return path


def page(metrics: dict[str, Any]) -> str:
    """Return the page of what `metrics.json` holds."""
    return document("Evaluation", sections(metrics))


_PAGE = Markup("""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
{body}</body>
</html>
""")


def document(title: str, body: Markup) -> str:
    """Return a whole page in HTML, with its style inside, around `body`."""
    return str(_PAGE.format(title=title, style=Markup("\n" + _STYLE), body=body))


def sections(metrics: dict[str, Any], level: int = 2) -> Markup:
    """Return what `metrics.json` holds in HTML, each part under a heading of this level."""
    rows = metrics["metrics"]
    results = [*section(rows, "results"), *section(rows, "comparison")]
    said = each('<p class="note">{}</p>\n', [*notes(results), *_how(results)])
    sample = '<p class="note">{model}, seed {seed}</p>\n<pre><b>{prompt}</b>{text}</pre>\n'
    failures = [f"{part}: {reason}" for part, reason in metrics.get("failures", {}).items()]
    parts = [
        ("Results", table(*result_lines(results), kind="text") + said),
        ("Results by family", table(*family_lines(section(rows, "families")), kind="text")),
        ("Loss by position", _positions_plot(section(rows, "positions"))),
        ("Few-shot accuracy", _fewshot_plot(results)),
        ("Samples", Markup().join(Markup(sample).format(**values) for values in metrics.get("samples", []))),
        ("Tokenizer", _tokenizer_tables(section(rows, "tokenizer"))),
        ("Not measured", bullets(failures)),
        ("Training and versions", _facts(metrics)),
    ]
    shown = [(level, title, content) for title, content in parts if content]
    return Markup().join(Markup("<h{0}>{1}</h{0}>\n{2}\n").format(*part) for part in shown)


def each(html: str, texts: Iterable[str]) -> Markup:
    """Return the HTML once for each text, which is escaped and put in the place of `{}`."""
    return Markup().join(Markup(html).format(text) for text in texts)


def bullets(texts: Sequence[str]) -> Markup:
    """Return a list in HTML, nothing for no texts."""
    return Markup("<ul>") + each("<li>{}</li>\n", texts) + Markup("</ul>") if texts else Markup()


def table(header: Sequence[str], lines: Sequence[Sequence[str]], kind: str = "numbers") -> Markup:
    """Return a table in HTML; of the `kind` "text" its second column is text too, of "words" all are."""
    body = Markup()
    for line in lines:
        note = Markup(' class="note"' if line[0].startswith(BESIDE) else "")
        body += Markup("<tr{}>{}</tr>\n").format(note, each("<td>{}</td>", line))
    whole = Markup('<table class="{}">\n<thead><tr>{}</tr></thead>\n<tbody>\n{}</tbody>\n</table>')
    return whole.format(kind, each("<th>{}</th>", header), body) if lines else Markup()


def _how(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return how the numbers were taken, each way once."""
    said = []
    for row in rows:
        if row.get("baseline"):
            continue
        if row.get("context"):
            stride = f", one every {row['stride']:,}" if row.get("stride") else ", each document alone"
            windows = f"windows of {row['context']:,} tokens{stride}; {row['count']:,} tokens counted"
            said.append(f"{row['dataset']}: {windows}.")
        if row.get("interval"):
            said.append(f"Brackets: 95 % bootstrap interval over {row['interval']}.")
    return list(dict.fromkeys(said))


def _tokenizer_tables(rows: Sequence[dict[str, Any]]) -> Markup:
    """Return a table for each measure: a line for each kind of text, a column for each tokenizer."""
    tables = []
    for name in dict.fromkeys(row["name"] for row in rows):
        some = [row for row in rows if row["name"] == name]
        values = {(row["dataset"], row.get("model"), row["baseline"]): row for row in some}
        columns = {(row.get("model"), row["baseline"]): _column(row) for row in some}
        lines = [
            [kind, *(shown(values.get((kind, *column))) for column in columns)]
            for kind in dict.fromkeys(row["dataset"] for row in some)
        ]
        tables.append(table([title(some[0]), *columns.values()], lines))
    return Markup("\n").join(tables)


def _column(row: dict[str, Any]) -> str:
    """Return the name of the tokenizer that a row is about: the model's own, or a baseline's beside it."""
    if row["baseline"] is None:
        return row.get("model") or "this model"
    return f"{row['baseline']} ({row['model']})" if row.get("model") else row["baseline"]


def _facts(metrics: dict[str, Any]) -> Markup:
    """Return what the file says of the models and of the packages, as one table."""
    training, models = dict(metrics["training"]), metrics["training"].get("models", {})
    training.pop("models", None)
    facts = {f"{model}: {name}": value for model, values in models.items() for name, value in values.items()}
    lines = [[name, _fact(value)] for name, value in {**facts, **training, **metrics["versions"]}.items()]
    if metrics["weights_sha256"]:
        lines.append(["sha256 of the weights", metrics["weights_sha256"]])
    return table(["", ""], lines, kind="text")


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{name}: {_fact(item)}" for name, item in value.items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


# ---------------------------------------------------------------------------------------------------------------------
# Plots


def _positions_plot(rows: Sequence[dict[str, Any]]) -> Markup:
    """Plot the loss by the tokens of context that a prediction had."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        lines.setdefault(row.get("model", "this model"), []).append(row)
    if not lines:
        return Markup()
    by_position = {(row["positions"], name): row for name, line in lines.items() for row in line}
    positions = dict.fromkeys(position for position, _ in by_position)
    header = ["tokens of context", *lines]
    values = [[position, *(shown(by_position.get((position, name))) for name in lines)] for position in positions]
    return _plot(
        {name: ([row["positions"] for row in line], [row["value"] for row in line]) for name, line in lines.items()},
        "tokens of context",
        "loss (nats per token)",
    ) + table(header, values)


def _fewshot_plot(rows: Sequence[dict[str, Any]]) -> Markup:
    """Plot accuracy by the number of examples, for each task and model that has several."""
    lines: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row.get("num_fewshot") is not None and not row.get("baseline") and row["name"] == "accuracy":
            name = f"{row['dataset']}{', ' + row['model'] if row.get('model') else ''}"
            lines.setdefault(name, []).append(row)
    curves = {
        name: ([str(row["num_fewshot"]) for row in line], [row["value"] for row in line])
        for name, line in lines.items()
        if len(line) > 1
    }
    return _plot(curves, "examples in the prompt", "accuracy") if curves else Markup()


def _plot(curves: dict[str, tuple[list[str], list[float]]], x_label: str, y_label: str) -> Markup:
    """Return a plot of curves over named steps, as an SVG inside the page."""
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, (name, (steps, values)) in enumerate(curves.items()):
        axes.plot(steps, values, marker="o", color=_COLOURS[number % len(_COLOURS)], label=name)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    _set_style(axes)
    axes.legend(frameon=False, loc="upper right")
    file = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "groundup", "svg.fonttype": "none"}):  # the same numbers give the same page
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    drawing = file.getvalue()
    return Markup(re.sub(r"<metadata>.*?</metadata>", "", drawing[drawing.index("<svg") :], flags=re.DOTALL))


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
        _set_style(axes)
    figure.align_ylabels()
    figure.savefig(png_path)


def _set_style(axes: Axes) -> None:
    axes.grid(color="#eeeeee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


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
