"""Verify and show the last model of a recipe, and write `report.html` for all stages."""

import base64
import itertools
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from groundup.cli.recipe import PAGE_FILE, Ledger, Recipe
from groundup.common.console import console, say
from groundup.common.files import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CONFUSION_FILE,
    LOG_FILE,
    METRICS_FILE,
    MISTAKES_FILE,
    MODEL_WEIGHTS,
    RECIPE_FILE,
    TOKENIZER_FILE,
    atomic_write,
)
from groundup.common.settings import read_yaml
from groundup.evaluation.curves import read_log, training_charts
from groundup.evaluation.metrics_json import read_metrics
from groundup.evaluation.report import (
    Sections,
    coloured,
    document,
    each,
    facts,
    folded,
    lead,
    results,
    samples,
    table,
    tokenizer_costs,
)
from groundup.evaluation.summary import summary
from groundup.inference.folder import WRITERS, auto_class_of, read_json
from groundup.inference.generation import Sampling, complete
from groundup.inference.loading import load_writer
from groundup.publishing.card import code_on_card
from groundup.publishing.proof import prove
from groundup.tokenization.folder import load_tokenizer
from groundup.tokenization.report import LANGUAGES, report_lines, token_pieces

SAMPLE_TOKENS = 80
MISTAKES = 10  # of a classifier
TEXT_SHOWN = 200  # characters of a mistaken text or an answer
COLOURED = 400  # characters of a text shown as tokens
PARTS = {
    "train": "to learn from",
    "selection": "for validation",
    "validation": "for validation",
    "test": "for the test",
}

Samples = list[tuple[str, str, int]]
"""Prompts, what the model made of each, and the seeds."""


def show(recipe: Recipe, out: Path, ledger: Ledger, seconds: float, done_now: Collection[str] = ()) -> None:
    """Verify that the last model loads elsewhere, print its samples, and write the report of all stages.

    Its scores are printed unless its stage is among those `done_now`, which printed them.
    """
    model = _last_model(recipe, out)
    total = sum(ledger.seconds(stage) or 0.0 for stage in recipe.stages)
    written = _show_model(model, recipe.prompts, total, has_scores=model.name not in done_now) if model else []
    path = write_report(recipe, out, ledger, written)
    say(f"\ndone in {seconds:.0f} s; report of all stages: {path}")
    if model:
        say(f"next: {_next(model)}")


def _last_model(recipe: Recipe, out: Path) -> Path | None:
    weights = (MODEL_WEIGHTS, ADAPTER_WEIGHTS)
    folders = [out / stage.name for stage in recipe.stages]
    return next((folder for folder in reversed(folders) if any((folder / name).is_file() for name in weights)), None)


def _next(model: Path | str, folder: Path | None = None) -> str:
    """Return the command that uses a model; `folder` is where it lies if it is called otherwise."""
    if auto_class_of(folder or Path(model)) in WRITERS:
        return f"groundup generate {model}"
    return f"groundup classify {model} --predict your_texts.csv"


def _show_model(folder: Path, prompts: tuple[str, ...], seconds: float, *, has_scores: bool) -> Samples:
    kind = auto_class_of(folder)
    is_adapter = (folder / ADAPTER_FILE).is_file()
    base = Path(read_json(folder / ADAPTER_FILE)["base_model_name_or_path"]) if is_adapter else None
    say(f"\n{folder}: {seconds:.0f} s for all stages of the recipe.")
    if base is None or base.is_dir():
        proof = prove(folder, prompts[0] if prompts else "", base=base)
        same = f"logits equal (largest difference {proof.largest_difference:.0e})"
        same += ", the same greedy text" if kind in WRITERS else ""
        say(f"A process without this package loaded it with {kind}: {same}.")
    if has_scores and (folder / METRICS_FILE).is_file():
        say()
        console.print(summary(read_metrics(folder)))
    if kind not in WRITERS:
        return []
    model, tokenizer = load_writer(folder)
    written = []
    for seed, prompt in enumerate(prompts):
        text = complete(model, tokenizer, prompt, Sampling(max_new_tokens=SAMPLE_TOKENS, seed=seed))
        written.append((prompt + "\n" if model.config.is_encoder_decoder else prompt, text, seed))
        say(f"\n--- {prompt!r}, seed {seed}")
        say(text if model.config.is_encoder_decoder else prompt + text)
    return written


# ---------------------------------------------------------------------------------------------------------------------
# The page


def write_report(recipe: Recipe, out: Path, ledger: Ledger, written: Samples) -> Path:
    """Write `report.html`, a single file that needs no network: what the stages made, by topic."""
    folders = [out / stage.name for stage in recipe.stages if (out / stage.name).is_dir()]
    model = _last_model(recipe, out)
    metrics = read_metrics(model or out)  # nothing where there is no model
    parts: Sections = [
        ("Data", _data(folders)),
        ("Tokenizer", _tokenizer(folders, model, written)),
        ("Training", _training(folders)),
        ("Results", _results(folders, model)),
        ("Samples", _samples(folders, written)),
        ("How to use it", _use(model) if model else Markup()),
        ("How it was made", _made(recipe, folders, ledger)),
    ]
    about = Markup('<p class="about">{}</p>\n').format(_about(metrics["training"], recipe))
    path = out / PAGE_FILE
    atomic_write(path, document(recipe.name, about + lead(metrics), parts).encode())
    return path


def _about(training: dict[str, Any], recipe: Recipe) -> str:
    """Return size, time and stages in one line."""
    said = [f"{training['parameters']:,} parameters"] if training.get("parameters") else []
    on = f" on {training['device']}" if training.get("device") else ""
    said += [f"trained for {_duration(training['seconds'])}{on}"] if training.get("seconds") else []
    return ", ".join([*said, f"{len(recipe.stages)} stage{'s' * (len(recipe.stages) > 1)}"])


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _each_recipe(folders: Sequence[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    for folder in folders:
        if (folder / RECIPE_FILE).is_file():
            yield folder, read_yaml(folder / RECIPE_FILE)


def _data(folders: Sequence[Path]) -> Markup:
    """Return the files that were read, what for, and how their rows fell to parts and labels."""
    lines: dict[tuple[Any, ...], list[str]] = {}
    rows: list[str] = []
    labels = Markup()
    for folder, recipe in _each_recipe(folders):
        for part, use in (("sources", ""), ("eval_sources", "test")):
            for source in recipe.get(part) or []:
                use = "test" if recipe.get("verb") == "evaluate" else use
                key = (source.get("name"), source.get("bytes"), use)
                lines.setdefault(key, []).append(folder.name)
        counts = recipe.get("rows")
        if isinstance(counts, dict):
            said = [f"{counts[name]:,} {use}" for name, use in PARTS.items() if counts.get(name)]
            rows += [f"{folder.name}: {', '.join(said)}"] if said else []
        plan = recipe.get("plan") or {}
        if plan.get("label_counts"):
            counted = sorted(zip(plan["label_counts"], plan["labels"]), reverse=True)
            shown = [[name, f"{count:,}", f"{count / sum(plan['label_counts']):.1%}"] for count, name in counted]
            labels += table(["label", "training rows", "share"], shown, caption=f"Labels of {folder.name}")
    files = [
        [str(name), f"{size:,}" if isinstance(size, int) else "", use or "training", ", ".join(stages)]
        for (name, size, use), stages in lines.items()
    ]
    said = each("<p>{}</p>\n", [f"Rows of {line}." for line in rows])
    return table(["file", "bytes", "read for", "by the stages"], files, kind="words") + said + labels


def _tokenizer(folders: Sequence[Path], model: Path | None, written: Samples) -> Markup:
    """Return what a tokenizer costs beside others, and a text as its tokens."""
    content, last = Markup(), None
    for folder in folders:
        if (path := folder / "tokenizer_report.json").is_file():
            rows = json.loads(path.read_text(encoding="utf-8"))
            content += table(*report_lines(rows), caption="On held-out text")
        if (folder / METRICS_FILE).is_file():
            rows = [row for row in read_metrics(folder)["metrics"] if row["split"] == "tokenizer"]
            content += folded("Other kinds of text and languages", tokenizer_costs(rows)) if rows else Markup()
        last = folder if (folder / TOKENIZER_FILE).is_file() else last
    place = model if model and (model / TOKENIZER_FILE).is_file() else last
    if place is None:
        return content
    tokenizer = load_tokenizer(place)
    content += Markup('<p class="note">Each colour is one token; its number appears under the pointer.</p>\n')
    own = next((prompt + text for prompt, text, _ in written if text.strip()), "")
    for text in filter(None, (own[:COLOURED], LANGUAGES["English"])):
        pieces = token_pieces(tokenizer, text)
        content += Markup("<h3>{:,} tokens for {:,} characters</h3>\n").format(len(pieces), len(text)) + coloured(
            pieces
        )
    return content


def _training(folders: Sequence[Path]) -> Markup:
    """Return the curves of every stage that trained, and what it took."""
    content = Markup()
    for folder in folders:
        if not (folder / LOG_FILE).is_file():
            continue
        training = read_metrics(folder)["training"]
        said = [f"{training['steps']:,} steps"] if training.get("steps") else []
        said += [f"{training[unit]:,} {unit}" for unit in ("tokens", "rows") if training.get(unit)]
        said += [f"{training['epochs']:.3g} epochs"] if training.get("epochs") else []
        said += [_duration(training["seconds"])] if training.get("seconds") else []
        said += [f"best at step {training['best_step']:,}"] if training.get("best_step") else []
        heading = Markup('<h3>{}</h3>\n<p class="note">{}</p>\n').format(folder.name, ", ".join(said))
        content += heading + training_charts(read_log(folder / LOG_FILE))
    return content


def _results(folders: Sequence[Path], model: Path | None) -> Markup:
    """Return the scores of every stage, the last first, with what a classifier confuses."""
    content = Markup()
    for folder in reversed(folders):
        found = results(read_metrics(folder), is_led=folder == model)  # nothing where nothing was measured
        if (path := folder / CONFUSION_FILE).is_file():
            data = base64.b64encode(path.read_bytes()).decode()
            picture = Markup(
                '<figure><figcaption>What is taken for what</figcaption><img alt="Confusion matrix: true labels are '
                'rows, predicted ones columns" src="data:image/png;base64,{}"></figure>\n'
            )
            found += picture.format(data)
        if lines := _mistakes(folder):
            mistakes = table(["label", "predicted", "probability", "text"], lines, kind="words long")
            found += folded("Mistakes with the highest probability", mistakes)
        content += Markup("<h3>{}</h3>\n").format(folder.name) + found if found else Markup()
    return content


def _mistakes(folder: Path) -> list[list[str]]:
    path = folder / MISTAKES_FILE
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, MISTAKES)]
    return [[row["label"], row["predicted"], f"{row['probability']:.0%}", row["text"][:TEXT_SHOWN]] for row in rows]


def _samples(folders: Sequence[Path], written: Samples) -> Markup:
    """Return texts of the last model, and answers before and after training."""
    content = samples([{"prompt": prompt, "text": text, "seed": seed} for prompt, text, seed in written])
    for folder in folders:
        if (path := folder / "samples.md").is_file():  # a Markdown table of answers before and after training
            lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in path.read_text(encoding="utf-8").splitlines()]
            cells = [[cell.strip().replace("\\|", "|")[:TEXT_SHOWN] for cell in line] for line in lines]
            content += table(cells[0], cells[2:], kind="words long", caption=f"Answers of {folder.name}")
        if (folder / METRICS_FILE).is_file() and (texts := read_metrics(folder).get("samples")):
            content += Markup("<h3>{}</h3>\n").format(folder.name) + samples(texts)
    return content


def _use(model: Path) -> Markup:
    """Return commands and code that use the last model, from the folder of the page."""
    commands = [_next(f"./{model.name}", model), f"groundup publish ./{model.name} OWNER/NAME --license mit --dry-run"]
    if auto_class_of(model) in WRITERS:
        commands.insert(1, f"groundup chat ./{model.name}")
    code = Markup('<pre class="code">{}</pre>\n')
    said = Markup("<p>In a terminal, from the folder of this page:</p>\n") + code.format("\n".join(commands))
    return said + Markup("<p>In Python:</p>\n") + code.format(code_on_card(model, f"./{model.name}"))


def _made(recipe: Recipe, folders: Sequence[Path], ledger: Ledger) -> Markup:
    """Return the tree of stages and, folded, all settings and versions of each."""
    lines = []  # of the tree: each stage indented below those that it uses
    depths: dict[str, int] = {}
    for stage in recipe.stages:
        parents = sorted(set(stage.references()))
        depths[stage.name] = 1 + max((depths[name] for name in parents), default=-1)
        seconds = ledger.seconds(stage)
        told = [f"groundup {stage.verb}", _duration(seconds) if seconds is not None else "not done"]
        told += [f"from {' and '.join(parents)}"] if parents else []
        lines.append("    " * depths[stage.name] + f"{stage.name}  ({', '.join(told)})")
    content = Markup('<pre class="code">{}</pre>\n').format("\n".join(lines))
    for folder in folders:
        path, known = folder / RECIPE_FILE, Markup()
        if path.is_file():
            known += Markup('<pre class="code">{}</pre>\n').format(path.read_text(encoding="utf-8"))
        if (folder / METRICS_FILE).is_file():
            known += facts(read_metrics(folder))
        content += folded(f"{folder.name}: every setting", known) if known else Markup()
    return content
