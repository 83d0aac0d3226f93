"""The model card (`README.md`), made from `metrics.json` and `recipe.yaml` alone: it can be made again at any time."""

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from groundup.common.files import (
    ADAPTER_WEIGHTS,
    CARD_FILE,
    CURVE_FILE,
    GGUF_WEIGHTS,
    MODEL_WEIGHTS,
    RECIPE_FILE,
    atomic_write,
    sha256_of,
)
from groundup.common.settings import read_yaml, write_yaml
from groundup.evaluation.metrics_file import own_metrics, read_metrics, write_metrics
from groundup.evaluation.table import family_lines, notes, result_lines, section, shown, title
from groundup.publishing.usage import ModelKind, how_to_use, kind_of

# What a kind of model cannot do.
_LIMITS = {
    "writes": """\
It continues text in the manner of what it was trained on. It was not taught to answer questions, to follow
instructions or to be truthful: what it says may be wrong, unfit for use or offensive, and may repeat its training text
word for word.""",
    "instructed": """\
It was taught to answer on the rows named above and on nothing else. What it says may be wrong, unfit for use or
offensive, and may repeat its training text word for word.""",
    "judges": """\
It knows the labels above and no "none of these": a text of another kind gets one of them as well. Do not let it decide
about people.""",
}
_HOLDS = "The numbers above hold for text like the one they were taken on: measure it again for any other."

_NAMES = {
    "text-generation": "causal language model",
    "fill-mask": "masked language model",
    "text-classification": "text classifier",
    "token-classification": "token classifier",
    "question-answering": "model that finds answers in a text",
    "feature-extraction": "text encoder",
}
_MEMORISED = ("copied", "continued_word_for_word")
_SHOWN_SAMPLES = 3
_SHOWN_ELSEWHERE = ("name", "license", "language", "base_model", "sources")
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def write_card(folder: Path, path: str = ".", base: Path | None = None) -> Path:
    """Write the model card `README.md` from `metrics.json` and `recipe.yaml` alone, and return its path.

    Of the recipe it names `name`, `license`, `language`, `base_model` and `sources` (a list of name, bytes, sha256) are
    used where they are given; every other setting is listed as it is. How to load the model follows from its config;
    `path` is where from: the folder itself, or its repository on the Hub; `base` is where an adapter's base lies.
    """
    folder = Path(folder)
    metrics, recipe = read_metrics(folder), read_yaml(folder / RECIPE_FILE)
    name, kind = recipe.get("name") or "groundup", kind_of(folder, base)
    sections = {
        "Use": how_to_use(kind, path),
        "Results": _results(metrics),
        "Samples": _samples(metrics),
        "Training data": _training_data(recipe),
        "Training": _training(metrics, recipe, (folder / CURVE_FILE).is_file()),
        "Limits": _limits(kind, metrics, recipe),
    }
    body = "\n".join(f"## {title}\n\n{text.strip()}\n" for title, text in sections.items() if text)
    data = _card_data(name, kind, recipe, section(metrics["metrics"], "results"))
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{_summary(kind, metrics, recipe)}\n\n{body}")
    atomic_write(folder / CARD_FILE, str(card).encode())
    return folder / CARD_FILE


def describe_twin(folder: Path, original: Path, parameters: int, difference: float | None) -> None:
    """Write `metrics.json` and the card of a twin, and complete its recipe, from those of the original.

    The original's numbers hold for it because its logits are the same: by how much they differ is kept beside them.

    Args:
        folder: the twin, with its weights and a recipe.
        original: the folder it was made of; one that is none (a Hub name) gives no numbers.
        parameters: of the twin.
        difference: the largest between the logits of the two; None where nothing here can read the twin.
    """
    weights = next(name for name in (MODEL_WEIGHTS, GGUF_WEIGHTS) if (folder / name).is_file())
    measured = (original / name for name in (MODEL_WEIGHTS, ADAPTER_WEIGHTS))
    metrics = own_metrics(original, next((path for path in measured if path.is_file()), None))
    recipe = read_yaml(folder / RECIPE_FILE)
    if (original / RECIPE_FILE).is_file():
        known = read_yaml(original / RECIPE_FILE)
        recipe |= {name: known[name] for name in ("license", "language", "sources") if known.get(name)}
        write_yaml(folder / RECIPE_FILE, recipe)
    about = {
        "parameters": parameters,
        "measured_weights_sha256": metrics["weights_sha256"],
        "largest_difference_of_logits": difference,
    }
    write_metrics(folder, metrics["metrics"], about, sha256_of(folder / weights), metrics.get("samples", ()))
    write_card(folder)


def _card_data(name: str, kind: ModelKind, recipe: dict[str, Any], rows: Sequence[dict[str, Any]]) -> ModelCardData:
    """Return what the Hub reads: how to load the model, what it is for, and the model's own results (no baselines).

    Results go into `model-index`, which holds numbers on any data set; `.eval_results/` takes only those that the Hub
    has registered as benchmarks (hub docs, eval-results).
    """
    results = [
        EvalResult(
            task_type=kind.pipeline,
            dataset_type=row["dataset"],
            dataset_name=row["dataset"],
            dataset_split=row["split"],
            metric_type=row["name"],
            metric_name=title(row) if "label" in row else None,
            metric_value=row["value"],
        )
        for row in rows
        if not row.get("baseline") and row["value"] is not None
    ]
    base, relation = _base_model(kind, recipe)
    return ModelCardData(
        license=recipe.get("license"),
        language=recipe.get("language") or None,
        library_name="peft" if kind.base is not None else None if kind.is_gguf else "transformers",
        pipeline_tag=kind.pipeline,
        base_model=base,
        base_model_relation=relation if base else None,
        datasets=[source["name"] for source in recipe.get("sources") or [] if "revision" in source] or None,
        tags=["groundup", *["custom_code"] * (kind.has_code and kind.base is None), *["gguf"] * kind.is_gguf],
        model_name=name,
        eval_results=results or None,
    )


def _base_model(kind: ModelKind, recipe: dict[str, Any]) -> tuple[str | None, str | None]:
    """Return the model that this one was made from, where it has a name on the Hub, and how they are related."""
    settings = recipe.get("settings") or {}
    candidates = (recipe.get("base_model"), kind.base, settings.get("model"), settings.get("init_from"))
    base = next((name for name in candidates if isinstance(name, str) and _HUB_NAME.fullmatch(name)), None)
    if kind.base is not None:
        return base, "adapter"
    # Of a twin the Hub has no word that fits: its weights are the same, only the class is another.
    is_twin = recipe.get("verb") == "export"
    return base, "quantized" if kind.is_gguf else None if is_twin else "finetune"


def _summary(kind: ModelKind, metrics: dict[str, Any], recipe: dict[str, Any]) -> str:
    parameters = metrics["training"].get("parameters")
    size = f" of {parameters:,} parameters" if parameters else ""
    what = f"A {_NAMES[kind.pipeline]}{size}, made with the package `groundup`."
    if kind.base is not None:
        what += f" It is a LoRA adapter and needs its base, `{kind.base}`."
    if merged := recipe.get("merged"):
        what += f" It is the LoRA adapter `{merged['adapter']}` folded into its base, `{merged['base']}`."
    if recipe.get("verb") == "export":
        original = recipe.get("base_model") or recipe.get("settings", {}).get("checkpoint")
        what += f" It has the weights of `{original}` in a form that needs no code of ours; its logits are the same."
    return what


def _limits(kind: ModelKind, metrics: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Say what the model cannot do and, where it was measured, how much of its training text it gives back."""
    if kind.pipeline == "text-generation":
        text = _LIMITS["instructed" if recipe.get("verb") == "instruct" else "writes"]
    else:
        text = _LIMITS["judges"] if "classification" in kind.pipeline else ""
    for row in metrics["metrics"]:
        if row["name"] in _MEMORISED and not row.get("baseline") and row["value"] is not None:
            text += f" Measured: {title(row)} {shown(row)}."
    return f"{text} {_HOLDS}"


def _samples(metrics: dict[str, Any]) -> str:
    """Show the first texts that the model wrote when it was measured."""
    blocks = []
    for sample in (metrics.get("samples") or [])[:_SHOWN_SAMPLES]:
        text = (str(sample["prompt"]) + str(sample["text"])).replace("```", "` ` `")
        blocks.append(f"Seed {sample['seed']}, the prompt is {sample['prompt']!r}:\n\n```text\n{text}\n```\n")
    return "\n".join(blocks)


def _results(metrics: dict[str, Any]) -> str:
    """Return the table of results, and say how they were taken."""
    rows = section(metrics["metrics"], "results")
    header, lines = result_lines(rows)
    if not lines:
        return "Not yet measured."
    text = _markdown_table(header, lines, right_from=2)
    for row in {(row["dataset"], row["split"]): row for row in reversed(rows)}.values():
        if row.get("context"):
            text += f"\n{row['dataset']}, {row['split']}: {row['count']:,} tokens"
            text += f" ({row['bytes']:,} bytes of text)" if row.get("bytes") else ""
            text += f", in windows of {row['context']:,} tokens, one every {row['stride']:,}.\n"
    text += "".join(f"\n{note}\n" for note in notes(rows))
    if families := section(metrics["metrics"], "families"):
        text += "\n" + _markdown_table(*family_lines(families), right_from=2)
    return text


def _training_data(recipe: dict[str, Any]) -> str:
    sources = recipe.get("sources") or []
    if not sources:
        return "Not recorded."
    header = list(dict.fromkeys(key for source in sources for key in source if key != "columns_not_read"))
    return _markdown_table(header, [[_plain(source.get(key)) for key in header] for source in sources])


def _training(metrics: dict[str, Any], recipe: dict[str, Any], has_curve: bool) -> str:
    """Return everything that was recorded about how the model was made, in a table for each kind."""
    settings = {key: value for key, value in recipe.items() if key not in _SHOWN_ELSEWHERE}
    tables = [
        _markdown_table([title, ""], [[f"`{key}`", _plain(value)] for key, value in _flat(values)])
        for title, values in (
            ("measured", metrics["training"]),
            ("setting", settings),
            ("version", metrics["versions"]),
        )
        if values
    ]
    curve = f"![The loss over the steps of training]({CURVE_FILE})\n\n" if has_curve else ""
    return curve + "\n".join(tables) or "Not recorded."


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the values of nested mappings, `a: {b: 1}` as `a.b`, without those that are None or empty."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in (None, []):
            yield prefix + str(key), value


def _plain(value: Any) -> str:
    """Return a value as it stands in a cell of a table."""
    if isinstance(value, bool | None):
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        value = [f"{name}: {inner}" for name, inner in value.items()]
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]], right_from: int = 99) -> str:
    marks = ["---:" if column >= right_from else "---" for column in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, marks, *lines))
