"""The model card (`README.md`), made from `metrics.json` and `recipe.yaml` alone: it can be made again at any time."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from groundup.common.files import atomic_write
from groundup.common.settings import read_yaml
from groundup.evaluation.report import RECIPE_FILE, notes, read_metrics, result_lines, section

CARD_FILE = "README.md"

_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

path = "."  # this folder, or the name of its repository on the Hub
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True)

prompt = tokenizer("Once upon a time", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=50, do_sample=True, top_p=0.95)[0]))
```

`trust_remote_code=True` runs the two modeling files that lie beside the weights: read them first. With the package
`groundup` installed and `import groundup.modeling`, leave it out: the package's own code is used.
"""

_LIMITS = """\
It continues text in the manner of what it was trained on. It was not taught to answer questions, to follow
instructions or to be truthful: what it says may be wrong, unfit for use or offensive, and may repeat its training text
word for word. The numbers above hold for text like the one they were taken on: measure it again for any other.
"""


def write_card(folder: Path) -> Path:
    """Write the model card `README.md` from `metrics.json` and `recipe.yaml` alone, and return its path.

    Of the recipe it names `name`, `license` and `sources` (a list of name, bytes, sha256) are used where they are
    given; every other setting is listed as it is.
    """
    folder = Path(folder)
    metrics, recipe = read_metrics(folder), read_yaml(folder / RECIPE_FILE)
    name = recipe.get("name") or "groundup"
    sections = {
        "Use": _USE,
        "Results": _results(metrics),
        "Training data": _training_data(recipe),
        "Training": _training(metrics, recipe),
        "Limits": _LIMITS,
    }
    body = "\n".join(f"## {title}\n\n{text.strip()}\n" for title, text in sections.items())
    data = _card_data(name, recipe, metrics["metrics"])
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {name}\n\n{_summary(metrics)}\n\n{body}")
    atomic_write(folder / CARD_FILE, str(card).encode())
    return folder / CARD_FILE


def _card_data(name: str, recipe: dict[str, Any], rows: Sequence[dict[str, Any]]) -> ModelCardData:
    """What the Hub reads: how to load the model, what it is for, and the model's own results (no baselines)."""
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type=row["dataset"],
            dataset_name=row["dataset"],
            dataset_split=row["split"],
            metric_type=row["name"],
            metric_value=row["value"],
        )
        for row in rows
        if not row.get("baseline") and row["value"] is not None
    ]
    return ModelCardData(
        license=recipe.get("license"),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["groundup", "custom_code"],
        model_name=name,
        eval_results=results or None,
    )


def _summary(metrics: dict[str, Any]) -> str:
    parameters = metrics["training"].get("parameters")
    size = f" of {parameters:,} parameters" if parameters else ""
    return f"A causal language model{size}, made with the package `groundup`."


def _results(metrics: dict[str, Any]) -> str:
    """The table of results, and how they were taken."""
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
    return text + "".join(f"\n{note}\n" for note in notes(rows))


def _training_data(recipe: dict[str, Any]) -> str:
    sources = recipe.get("sources") or []
    if not sources:
        return "Not recorded."
    header = list(dict.fromkeys(key for source in sources for key in source))
    return _markdown_table(header, [[_plain(source.get(key)) for key in header] for source in sources])


def _training(metrics: dict[str, Any], recipe: dict[str, Any]) -> str:
    """Everything that was recorded about how the model came to be, as one table a kind."""
    settings = {key: value for key, value in recipe.items() if key not in ("name", "license", "sources")}
    tables = [
        _markdown_table([title, ""], [[f"`{key}`", _plain(value)] for key, value in _flat(values)])
        for title, values in (
            ("measured", metrics["training"]),
            ("setting", settings),
            ("version", metrics["versions"]),
        )
        if values
    ]
    return "\n".join(tables) or "Not recorded."


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings, `a: {b: 1}` as `a.b`, without those that are None or empty."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in (None, []):
            yield prefix + str(key), value


def _plain(value: Any) -> str:
    """A value in a cell of a table."""
    if isinstance(value, bool | None):
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _markdown_table(header: Sequence[str], lines: Iterable[Sequence[str]], right_from: int = 99) -> str:
    marks = ["---:" if column >= right_from else "---" for column in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, marks, *lines))
