"""Write and read metrics.json, and turn its rows into the table that a person reads in terminal, page and card."""

import importlib.metadata
import json
import math
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.files import METRICS_FILE, atomic_write, sha256_of

PACKAGES = ("groundup", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


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
    """Read `metrics.json`; drop the scores, with a message, if they were not made from these weights."""
    metrics = read_metrics(folder)
    if metrics["metrics"] and weights is not None and metrics.get("weights_sha256") != sha256_of(weights):
        say(f"{METRICS_FILE} of {folder} does not belong to its weights: its scores are left out")
        return metrics | {"metrics": [], "samples": [], "weights_sha256": sha256_of(weights)}
    return metrics


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _finite(value: Any) -> Any:
    """Return a value with None for numbers that JSON cannot write (a run that diverged has some)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if _is_finite(value) else None


_TITLES = {
    "f1_macro": "macro F1",
    "mcc": "MCC",
    "calibration_error": "ECE",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "bits_per_byte": "bits per byte",
    "loss": "loss (nats per token)",
    "token_accuracy": "next-token accuracy",
    "answer_loss": "loss on answer tokens (nats per token)",
    "repetition": "repeated 4-grams (rep-4)",
    "repeated_4grams": "repeated 4-grams (rep-4)",
    "distinct_1": "distinct-1",
    "distinct_2": "distinct-2",
    "words": "mean length (words)",
    "copied": "copied verbatim from training",
    "continued_word_for_word": "training text continued verbatim",
    "stopped": "EOS rate",
    "tokens_against_english": "tokens relative to English",
    "unknown_rate": "unknown-token rate",
}
MAJORITY, SVM = "majority class", "TF-IDF + linear SVM"  # the baselines of a classifier
TRAINED = "training"  # the split of a text that the model was trained on
BETTER_WHEN_SMALLER = ("bits_per_byte", "calibration_error", "loss", "perplexity", "word_perplexity", "byte_perplexity")
MOST_COLUMNS = 3  # baselines with a column of their own
FEW = 8  # generated texts, below which a share says little; the default of `evaluate`
USELESS_CHRF = 20.0  # of answers below it nothing is right but by chance
BESIDE = "\u00a0\u00a0"  # begins a line that belongs to the number above; HTML keeps these spaces
_SHARES = (
    "accuracy",
    "exact_match",
    "repetition",
    "repeated",
    "distinct",
    "copied",
    "continued",
    "stopped",
    "unknown_rate",
)  # shown as percentages


def section(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Return the rows of a section: "results", "comparison", "families", "positions", "quantizations", "tokenizer"."""
    marks = {"against": "comparison", "family": "families", "positions": "positions", "quantization": "quantizations"}

    def section_of(row: dict[str, Any]) -> str:
        usual = "tokenizer" if row["split"] == "tokenizer" else "results"
        return next((found for mark, found in marks.items() if row.get(mark)), usual)

    return [row for row in rows if section_of(row) == name]


def result_lines(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return a header, and for each number a line with its name, what it was measured on, and its value.

    A model's baselines have columns of their own. Where there are many of them, or several models, each model has a
    column, and each baseline and difference has a line below the number, which begins with `BESIDE`.
    """
    baselines = list(dict.fromkeys(row["baseline"] for row in rows if row.get("baseline")))
    models = list(dict.fromkeys(row["model"] for row in rows if row.get("model")))
    if models or len(baselines) > MOST_COLUMNS:
        return ["", "on", *(models or ["this model"])], _lines_below(rows, models or [None], baselines)
    values = {(*row_key(row), row.get("baseline")): row for row in rows}
    lines = [
        [title(row), _on(row), *(shown(values.get((*row_key(row), name))) for name in (None, *baselines))]
        for row in rows
        if not row.get("baseline")
    ]
    return ["", "on", "this model", *baselines], lines


def _lines_below(rows: Sequence[dict[str, Any]], models: Sequence[str | None], baselines: list[str]) -> list[list[str]]:
    """Return the lines of `result_lines` with a column a model; what was measured on is said where it changes."""
    values = {(*row_key(row), row.get("baseline"), row.get("model")): row for row in rows}
    model_rows = {row_key(row): row for row in reversed(rows) if not row.get("baseline") and not row.get("against")}
    lines, before = [], ""
    for key in dict.fromkeys(row_key(row) for row in rows):
        if (row := model_rows.get(key)) is None:
            continue
        on = _on(row)
        lines.append([title(row), on if on != before else "", *_cells(values, key, None, models)])
        before = on
        compared = (f"{key[0]}_difference", *key[1:])
        if any((*compared, None, name) in values for name in models):
            cells = _cells(values, compared, None, models)
            lines.append([BESIDE + "difference", "", *cells])
        for baseline in baselines:
            if any((*key, baseline, name) in values for name in models):
                lines.append([BESIDE + baseline, "", *_cells(values, key, baseline, models)])
    return lines


def _cells(values: dict[Any, Any], key: Any, baseline: str | None, models: Sequence[str | None]) -> list[str]:
    rows = [values.get((*key, baseline, name)) for name in models]
    return [f"{shown(row)}: {verdict(row)}" if row and row.get("against") else shown(row) for row in rows]


_KEY = ("name", "label", "dataset", "split", "windows", "num_fewshot", "filter", "positions")


def row_key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return the key by which a number is matched with those of the baselines and of other models."""
    return tuple(row.get(name) for name in _KEY)


def _on(row: dict[str, Any]) -> str:
    """Return what a number was measured on, and how if that is unusual."""
    parts = [row["dataset"] if row["split"] == "tokenizer" else f"{row['dataset']}, {split_title(row['split'])}"]
    parts += [f"({row['windows']})"] if row.get("windows") else []
    parts += [f"({row['filter']})"] if row.get("filter") else []
    if row.get("num_fewshot") is not None:
        parts.append(f"({row['num_fewshot']} examples)")
    return " ".join(parts)


def notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return why numbers are missing, each reason once; on how few texts; whether a model beats its baselines."""
    said = dict.fromkeys(f"{title(row)}: {row['note']}" for row in rows if row.get("note"))
    written = min((row["count"] for row in rows if row["name"] == "stopped" and row.get("count")), default=FEW)
    few = f"generated text was measured on {written} text{'s' * (written > 1)} only" if written < FEW else None
    return [*said, *filter(None, [few, worth(rows)])]


def family_lines(rows: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return a header, and for each family of tasks a line with all that was measured on it."""
    names = {row["name"]: title(row) for row in rows}
    groups = dict.fromkeys((row["family"], row["split"]) for row in rows)
    values = {(row["family"], row["split"], row["name"]): row for row in rows}
    lines = [
        [group[0], split_title(group[1]), *(shown(values.get((*group, name))) for name in names)] for group in groups
    ]
    return ["", "on", *names.values()], lines


def family_notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return exact match by family, a line for each split."""
    splits: dict[str, list[str]] = {}
    for row in rows:
        if row["name"] == "exact_match":
            splits.setdefault(row["split"], []).append(f"{row['family']} {shown(row)}")
    return [f"exact match by family, {split_title(split)}: {', '.join(said)}" for split, said in splits.items()]


def markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]], right_from: int = 99) -> str:
    """Return a table in Markdown; columns from number `right_from` on are aligned to the right."""
    marks = ["---:" if column >= right_from else "---" for column in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, marks, *lines))


def split_title(split: str) -> str:
    """Return the name that people read for a `split`."""
    return re.sub(r"(\w+) without (?:overlap|them)", r"deduplicated \1 set", split)


def title(row: Mapping[str, Any]) -> str:
    """Return the name that people read for a measure."""
    name: str = row["name"]
    return f"F1 of {row['label']}" if "label" in row else _TITLES.get(name, name.replace("_", " "))


def shown(row: Mapping[str, Any] | None) -> str:
    """Return a number as a person reads it: with its interval or standard deviation if it has one, a dash for none."""
    beside = spread(row)
    return number(row) + (f" {beside}" if beside.startswith("±") else f" ({beside})" if beside else "")


def number(row: Mapping[str, Any] | None) -> str:
    """Return a number alone, as a person reads it; a dash for none."""
    return "–" if row is None or row["value"] is None else _text(row["name"], row["value"])


def spread(row: Mapping[str, Any] | None) -> str:
    """Return how far a number may be off: its standard deviation or its interval, an empty text for none."""
    if row is None or row["value"] is None:
        return ""
    if row.get("std") is not None:
        return f"± {_text(row['name'], row['std'])}"
    low, high = row.get("low"), row.get("high")
    return "" if low is None or high is None else f"{_text(row['name'], low)} to {_text(row['name'], high)}"


def _text(name: str, value: float) -> str:
    if any(word in name for word in _SHARES):
        return f"{value:.1%}"
    if name in ("words", "chrf", "rouge_l"):  # the field writes ROUGE and chrF out of a hundred
        return f"{100 * value if name == 'rouge_l' else value:.1f}"
    if abs(value) >= 1e7:
        return f"{value:.3g}"
    return f"{value:,.3f}" if abs(value) < 100 else f"{value:,.1f}"


# ---------------------------------------------------------------------------------------------------------------------
# In plain words: differences between models, and whether a model was worth it


def verdict(row: Mapping[str, Any]) -> str:
    """Return in plain words what a row of a comparison shows; it follows from the row's numbers alone."""
    if row["value"] is None:
        return "not comparable"
    if row.get("low") is None:  # the text is too short for an interval
        return "no difference shown"
    if row["low"] <= 0 <= row["high"]:
        return "no difference shown"
    measure = row["name"].removesuffix("_difference")
    better = (row["value"] < 0) == (measure in BETTER_WHEN_SMALLER)
    where = ", on training text" if row.get("split") == TRAINED else ""
    return f"{'better' if better else 'worse'} than {row['against']}{where}"


def headline(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return the number that counts in one sentence, beside its best baseline; None where nothing was measured."""
    own = [row for row in rows if not row.get("baseline") and not row.get("against") and row["value"] is not None]
    if said := worth(rows):
        return said
    compared = [row for row in rows if row.get("against") and row["value"] is not None]
    if compared:
        return difference(compared[0])
    for say_it in (_said_of_text, _said_of_answers):
        if said := say_it(own, rows):
            return said
    return f"{title(own[0])} {shown(own[0])} on {own[0]['dataset']}" if own else None


def difference(row: Mapping[str, Any]) -> str:
    """Return what a row of a comparison shows as a sentence."""
    what = f"{title({'name': row['name'].removesuffix('_difference')})} on {row['dataset']}"
    between = f", 95 % interval {spread(row)}" if spread(row) else ""
    said = verdict(row)
    if said.startswith("no"):
        return f"{what}: {said} between {row['model']} and {row['against']} ({number(row)}{between})"
    return f"{row['model']} is {said}: {what} differs by {number(row)}{between}"


def _said_of_text(own: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str | None:
    first, rivals = _rivals("bits_per_byte", rows)
    if first is None or first["value"] is None:
        return None
    best = min(rivals, key=lambda row: row["value"], default=None)
    below = (
        "" if best is None else f", {1 - first['value'] / best['value']:.0%} below {best['baseline']} ({number(best)})"
    )
    return f"{number(first)} bits per byte on {first['dataset']}{below}"


def _said_of_answers(own: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]) -> str | None:
    exact = next((row for row in own if row["name"] == "exact_match" and row.get("count")), None)
    likeness = next((row for row in own if row["name"] == "chrf"), None)
    if exact is None:
        return None
    right = round(exact["value"] * exact["count"])
    said = f"{right:,} of {exact['count']:,} answers are exactly right ({number(exact)})"
    said += f", chrF {number(likeness)}" if likeness else ""
    if likeness and exact["value"] < 0.02 and likeness["value"] < USELESS_CHRF:
        said += ": these answers are of no use yet; give a pretrained --model, more rows or more --minutes"
    return said


def worth(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """Return a sentence that compares a model's score with the best baseline's on the same text or rows.

    For a classifier that is its accuracy beside the SVM's; for a language model its bits per byte, if a baseline needs
    fewer. None where there is nothing to say, or several models were measured.
    """
    return _worth_of_a_classifier(rows) or _worth_of_a_language_model(rows)


def _worth_of_a_classifier(rows: Sequence[Mapping[str, Any]]) -> str | None:
    first, rivals = _rivals("accuracy", rows)
    if first is None or SVM not in {row["baseline"] for row in rivals}:
        return None
    best = max(rivals, key=lambda row: row["value"])
    points = 100 * (first["value"] - best["value"])
    other = f"{best['baseline']} ({best['value']:.2%})"
    if points > 0:
        return f"accuracy {first['value']:.2%}: {points:.2f} points above {other}"
    if first["value"] == 1:
        return f"accuracy 100%, as {other}: on these rows a simple method is right too, so only harder rows can tell"
    what = "no better than" if points == 0 else f"{-points:.2f} points below"
    return (
        f"accuracy {first['value']:.2%}: {what} {other}. This model does not beat the "
        "baseline: use the baseline, or give it more --minutes, more rows or a pretrained --model"
    )


def _worth_of_a_language_model(rows: Sequence[Mapping[str, Any]]) -> str | None:
    first, rivals = _rivals("bits_per_byte", rows)
    if first is None or first["value"] is None or not rivals:
        return None
    best = min(rivals, key=lambda row: row["value"])
    if first["value"] < best["value"]:
        return None
    return (
        f"bits per byte {first['value']:.3f}: no better than {best['baseline']} ({best['value']:.3f}). This model does "
        "not beat the baseline: give it more --minutes or more text"
    )


def _rivals(name: str, rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, list[Mapping[str, Any]]]:
    """Return the first score of that name, where only one model has it, and the baselines' on the same text or rows."""
    own = [row for row in rows if row["name"] == name and not row.get("baseline")]
    if not own or len({row.get("model") for row in own}) > 1:
        return None, []
    same = ("name", "dataset", "split")
    rivals = [row for row in rows if row.get("baseline") and all(row.get(key) == own[0].get(key) for key in same)]
    return own[0], [row for row in rivals if row["value"] is not None]
