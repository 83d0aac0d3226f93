"""Numbers to a person: metrics.json, the one source of every number shown, and the curve and table made of it."""

import contextlib
import importlib.metadata
import itertools
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from rich.table import Table
from rich.text import Text

from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.files import atomic_write, sha256_of
from groundup.evaluation.verdict import verdict, worth

METRICS_FILE, RECIPE_FILE = "metrics.json", "recipe.yaml"
PACKAGES = ("groundup", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")

_TITLES = {
    "f1_macro": "macro F1",
    "mcc": "MCC",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "bits_per_byte": "bits per byte",
    "loss": "loss (nats per token)",
    "token_accuracy": "next token right",
    "repeated_4grams": "repeated 4-grams",
    "distinct_1": "different words",
    "distinct_2": "different pairs of words",
    "copied": "copied from the training text",
    "continued_word_for_word": "training text continued word for word",
    "stopped": "texts that end",
    "tokens_against_english": "tokens against English",
    "unknown_rate": "unknown words",
}
MOST_COLUMNS = 3  # baselines with a column of their own
FEW = 8  # texts written, below which a share of them says little; `evaluate` takes as many unless told
BESIDE = "\u00a0\u00a0"  # what a line that belongs to the number above it begins with; HTML keeps these spaces
_SHARES = ("accuracy", "repeated", "distinct", "copied", "continued", "stopped", "unknown_rate")  # shown per cent


# ---------------------------------------------------------------------------------------------------------------------
# metrics.json


def write_metrics(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    training: dict[str, Any],
    weights_sha256: str | None,
    samples: Sequence[dict[str, Any]] = (),
    failures: Mapping[str, str] | None = None,
) -> Path:
    """Write `metrics.json` into `folder` and return its path.

    Args:
        rows: what was measured, one a number, as `language_rows` makes them; may be empty.
        training: seconds, tokens, parameters, device and whatever else says how the model came to be.
        weights_sha256: of the `model.safetensors` that was measured, so that a card cannot outlive its weights.
        samples: texts that the model wrote, with `prompt`, `text` and `seed`.
        failures: what could not be measured, and why.
    """
    metrics = {
        "metrics": [row if _is_finite(row["value"]) else row | {"note": "not a finite number"} for row in rows],
        "training": training,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "weights_sha256": weights_sha256,
    }
    metrics |= {"samples": list(samples)} if samples else {}
    metrics |= {"failures": dict(failures)} if failures else {}
    path = Path(folder) / METRICS_FILE
    atomic_write(path, (json.dumps(_finite(metrics), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read `metrics.json`; where there is none, the same with nothing in it. Raises `InputError` if it is broken."""
    path = Path(folder) / METRICS_FILE
    if not path.exists():
        return {"metrics": [], "training": {}, "versions": {}, "weights_sha256": None}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): evaluate the model again") from error
    if not isinstance(metrics, dict) or not isinstance(metrics.get("metrics"), list):
        raise InputError(f"{path} has no list of metrics: evaluate the model again")
    return metrics


def own_metrics(folder: Path, weights: Path | None) -> dict[str, Any]:
    """What `read_metrics` reads, without the scores where they were not made from these weights, which is said."""
    metrics = read_metrics(folder)
    if metrics["metrics"] and weights is not None and metrics.get("weights_sha256") != sha256_of(weights):
        say(f"{METRICS_FILE} of {folder} was not made from its weights: its scores are left out")
        return metrics | {"metrics": [], "samples": [], "weights_sha256": sha256_of(weights)}
    return metrics


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON has no way to write (a run that diverged has some)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if _is_finite(value) else None


# ---------------------------------------------------------------------------------------------------------------------
# The table, in the terminal and in the card (`evaluation/card.py`)


def summary_table(metrics: dict[str, Any]) -> Table:
    """What was measured as a table for the terminal, baselines and differences beside the model.

    Curves and the tokenizer's costs are left to `report.html`; why a number is missing stands below.
    """
    rows = [*section(metrics["metrics"], "results"), *section(metrics["metrics"], "comparison")]
    header, lines = result_lines(rows)
    below = [*notes(rows), *family_notes(section(metrics["metrics"], "families"))]
    below += [*(f"{part} failed: {reason}" for part, reason in metrics.get("failures", {}).items())]
    caption = Text("\n".join(below), "table.caption") if below else None
    table = Table(box=None, pad_edge=False, header_style="bold", caption=caption)
    table.caption_justify = "left"
    for column, name in enumerate(header):
        table.add_column(name, justify="right" if column > 1 else "left", overflow="fold")
    for line in lines:
        cells = [Text(cell, "bold" if column == 2 else "") for column, cell in enumerate(line)]
        table.add_row(*cells, style="dim" if line[0].startswith(BESIDE) else "")
    return table


def section(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The rows of one section: "results", "comparison", "families", "positions" (the loss by place) or "tokenizer"."""
    return [row for row in rows if _section_of(row) == name]


def _section_of(row: dict[str, Any]) -> str:
    if row.get("against"):
        return "comparison"
    if row.get("family"):
        return "families"
    if row.get("positions"):
        return "positions"
    return "tokenizer" if row["split"] == "tokenizer" else "results"


def result_lines(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A header, and for each number a line with what it is, what it was measured on, and its value.

    A model's baselines have columns of their own. Where there are many of them, or several models, the models have the
    columns, and baselines and differences a line each below the number; such a line begins with `BESIDE`.
    """
    baselines = list(dict.fromkeys(row["baseline"] for row in rows if row.get("baseline")))
    models = list(dict.fromkeys(row["model"] for row in rows if row.get("model")))
    if models or len(baselines) > MOST_COLUMNS:
        return ["", "on", *(models or ["this model"])], _lines_below(rows, models or [None], baselines)
    values = {(*_place(row), row.get("baseline")): row for row in rows}
    lines = [
        [title(row), _on(row), *(shown(values.get((*_place(row), name))) for name in (None, *baselines))]
        for row in rows
        if not row.get("baseline")
    ]
    return ["", "on", "this model", *baselines], lines


def _lines_below(rows: Sequence[dict[str, Any]], models: Sequence[str | None], baselines: list[str]) -> list[list[str]]:
    """The lines of `result_lines` with a column a model; what was measured on is said where it changes."""
    values = {(*_place(row), row.get("baseline"), row.get("model")): row for row in rows}
    places = {_place(row): row for row in reversed(rows) if not row.get("baseline") and not row.get("against")}
    lines, before = [], ""
    for place in dict.fromkeys(_place(row) for row in rows):
        if (row := places.get(place)) is None:
            continue
        on = _on(row)
        lines.append([title(row), on if on != before else "", *_cells(values, place, None, models)])
        before = on
        compared = (f"{place[0]}_difference", *place[1:])
        if any((*compared, None, name) in values for name in models):
            cells = _cells(values, compared, None, models)
            lines.append([BESIDE + "difference", "", *cells])
        for baseline in baselines:
            if any((*place, baseline, name) in values for name in models):
                lines.append([BESIDE + baseline, "", *_cells(values, place, baseline, models)])
    return lines


def _cells(values: dict[Any, Any], place: Any, baseline: str | None, models: Sequence[str | None]) -> list[str]:
    rows = [values.get((*place, baseline, name)) for name in models]
    return [f"{shown(row)}: {verdict(row)}" if row and row.get("against") else shown(row) for row in rows]


_PLACE = ("name", "label", "dataset", "split", "windows", "num_fewshot", "filter", "positions")


def _place(row: dict[str, Any]) -> tuple[Any, ...]:
    """What a number has in common with the same number of a baseline or of another model."""
    return tuple(row.get(key) for key in _PLACE)


def _on(row: dict[str, Any]) -> str:
    """What a number was measured on, and how where that is not as usual."""
    parts = [row["dataset"] if row["split"] == "tokenizer" else f"{row['dataset']}, {row['split']}"]
    parts += [f"({row['windows']})"] if row.get("windows") else []
    parts += [f"({row['filter']})"] if row.get("filter") else []
    if row.get("num_fewshot") is not None:
        parts.append(f"({row['num_fewshot']} examples)")
    return " ".join(parts)


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Why a number of the table is missing, each reason once; on how few texts; whether a classifier was worth it."""
    said = dict.fromkeys(f"{title(row)}: {row['note']}" for row in rows if row.get("note"))
    written = min((row["count"] for row in rows if row["name"] == "stopped" and row.get("count")), default=FEW)
    few = f"what the model writes was measured on {written} text{'s' * (written > 1)} only" if written < FEW else None
    return [*said, *filter(None, [few, worth(rows)])]


def family_lines(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """A header, and for each family of tasks a line with all that was measured on it."""
    names = {row["name"]: title(row) for row in rows}
    places = dict.fromkeys((row["family"], row["split"]) for row in rows)
    values = {(row["family"], row["split"], row["name"]): row for row in rows}
    lines = [[*place, *(shown(values.get((*place, name))) for name in names)] for place in places]
    return ["", "on", *names.values()], lines


def family_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Exact match by family, a line for each split."""
    splits: dict[str, list[str]] = {}
    for row in rows:
        if row["name"] == "exact_match":
            splits.setdefault(row["split"], []).append(f"{row['family']} {shown(row)}")
    return [f"exact match by family, {split}: {', '.join(said)}" for split, said in splits.items()]


def title(row: dict[str, Any]) -> str:
    """What a number is called for a person."""
    name: str = row["name"]
    return f"F1 of {row['label']}" if "label" in row else _TITLES.get(name, name.replace("_", " "))


def shown(row: dict[str, Any] | None) -> str:
    """A number as a person reads it: with its interval or its standard deviation where it has one, a dash for none."""
    if row is None or row["value"] is None:
        return "–"

    def text(value: float) -> str:
        if any(word in row["name"] for word in _SHARES):
            return f"{value:.1%}"
        if row["name"] == "words":
            return f"{value:.1f}"
        if abs(value) >= 1e7:
            return f"{value:.3g}"
        return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"

    if row.get("std") is not None:
        return f"{text(row['value'])} ± {text(row['std'])}"
    if row.get("low") is None:
        return text(row["value"])
    return f"{text(row['value'])} ({text(row['low'])} to {text(row['high'])})"


# ---------------------------------------------------------------------------------------------------------------------
# The curve


def log_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a `log.jsonl` as they were written, without a torn last line."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def read_log(path: Path) -> list[dict[str, Any]]:
    """The steps of a `log.jsonl` in order, without those that a resumed run did again."""
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
    # What a classifier minimises has noise and next tokens in it, what it is measured by has not.
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
    """The steps at which a quantity was logged, and its values there; numbers that are not finite are left out."""
    rows = [row for row in log if isinstance(row.get(name), int | float) and math.isfinite(row[name])]
    return [row["step"] for row in rows], [row[name] for row in rows]


def _smoothed(values: Sequence[float]) -> list[float]:
    """Each value's mean with its neighbours, a twenty-fifth of the curve on both sides together; fewer at the ends."""
    sums = [0.0, *itertools.accumulate(values)]
    smooth = []
    for index in range(len(values)):
        reach = min(index, len(values) - 1 - index, len(values) // 50)
        smooth.append((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))
    return smooth
