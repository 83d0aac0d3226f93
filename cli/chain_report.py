"""Verify and show the last model of a recipe, and write `report.html` for all stages."""

import base64
import itertools
import json
import re
from collections.abc import Collection
from pathlib import Path

from markupsafe import Markup

from groundup.cli.recipe import PAGE_FILE, Ledger, Recipe
from groundup.common.console import console, say
from groundup.common.files import ADAPTER_FILE, ADAPTER_WEIGHTS, METRICS_FILE, MODEL_WEIGHTS, atomic_write
from groundup.evaluation.metrics_json import read_metrics
from groundup.evaluation.report import bullets, document, sections, table
from groundup.evaluation.summary import summary
from groundup.inference.folder import WRITERS, auto_class_of, read_json
from groundup.inference.generation import Sampling, complete
from groundup.inference.loading import load_writer
from groundup.publishing.proof import prove

SAMPLE_TOKENS = 80
MISTAKES = 10  # of a classifier
TEXT_SHOWN = 200  # characters of a mistaken text or an answer


def show(recipe: Recipe, out: Path, ledger: Ledger, seconds: float, done_now: Collection[str] = ()) -> None:
    """Verify that the last model loads elsewhere, print its samples, and write the report of all stages.

    Its scores are printed unless its stage is among those `done_now`, which printed them.
    """
    weights = (MODEL_WEIGHTS, ADAPTER_WEIGHTS)
    folders = [out / stage.name for stage in recipe.stages]
    models = [folder for folder in folders if any((folder / name).is_file() for name in weights)]
    total = sum(ledger.seconds(stage) or 0.0 for stage in recipe.stages)
    samples = []
    if models:
        samples = _show_model(models[-1], recipe.prompts, total, has_scores=models[-1].name not in done_now)
    path = write_report(recipe, out, ledger, samples)
    say(f"\ndone in {seconds:.0f} s; report of all stages: {path}")
    if models:
        say(f"next: {_next(models[-1])}")


def _next(model: Path) -> str:
    """Return the command that uses a model."""
    if auto_class_of(model) in WRITERS:
        return f"groundup generate {model}"
    return f"groundup classify {model} --predict your_texts.csv"


def _show_model(folder: Path, prompts: tuple[str, ...], seconds: float, *, has_scores: bool) -> list[tuple[str, str]]:
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
    samples = []
    for seed, prompt in enumerate(prompts):
        text = complete(model, tokenizer, prompt, Sampling(max_new_tokens=SAMPLE_TOKENS, seed=seed))
        samples.append((prompt + "\n" if model.config.is_encoder_decoder else prompt, text))
        say(f"\n--- {prompt!r}, seed {seed}")
        say(text if model.config.is_encoder_decoder else prompt + text)
    return samples


def write_report(recipe: Recipe, out: Path, ledger: Ledger, samples: list[tuple[str, str]]) -> Path:
    """Write `report.html`, a single file that needs no network: the tree of stages and the results of each."""
    lines = []  # of the tree: each stage indented below those that it uses
    depths: dict[str, int] = {}
    for stage in recipe.stages:
        parents = sorted(set(stage.references()))
        depths[stage.name] = 1 + max((depths[name] for name in parents), default=-1)
        seconds = ledger.seconds(stage)
        facts = [f"groundup {stage.verb}", f"{seconds:.0f} s" if seconds is not None else "not done"]
        facts += [f"from {' and '.join(parents)}"] if parents else []
        lines.append("    " * depths[stage.name] + f"{stage.name}  ({', '.join(facts)})")
    body = Markup("<h2>Stages</h2>\n<pre>{}</pre>\n").format("\n".join(lines))
    for stage in recipe.stages:
        if parts := _results(out / stage.name):
            body += Markup("<h2>{}</h2>\n{}\n").format(stage.name, Markup("\n").join(parts))
    if samples:
        written = (Markup("<pre><b>{}</b>{}</pre>").format(prompt, text) for prompt, text in samples)
        body += Markup("<h2>Samples of the last model</h2>\n") + Markup("\n").join(written)
    path = out / PAGE_FILE
    atomic_write(path, document(recipe.name, body).encode())
    return path


def _results(folder: Path) -> list[Markup]:
    """Return the results of a stage as HTML: pictures, scores, mistakes, answers, or a tokenizer's report."""
    parts = []
    for picture in sorted(folder.glob("*.png")):
        data = base64.b64encode(picture.read_bytes()).decode()
        image = Markup('<img alt="{}" style="max-width: 100%" src="data:image/png;base64,{}">')
        parts.append(image.format(picture.stem, data))
    if (folder / METRICS_FILE).is_file():
        parts.append(sections(read_metrics(folder), level=3))
    if (path := folder / "mistakes.jsonl").is_file():
        with path.open(encoding="utf-8") as file:
            rows = [json.loads(line) for line in itertools.islice(file, MISTAKES)]
        lines = [
            [row["label"], row["predicted"], f"{row['probability']:.2f}", row["text"][:TEXT_SHOWN]] for row in rows
        ]
        content = table(["label", "predicted", "probability", "text"], lines, kind="words")
        parts.append(Markup("<h3>Mistakes with the highest probability</h3>\n") + content if lines else Markup())
    if (path := folder / "samples.md").is_file():  # a Markdown table of answers before and after training
        lines = [re.split(r"(?<!\\)\|", line)[1:-1] for line in path.read_text(encoding="utf-8").splitlines()]
        cells = [[cell.strip().replace("\\|", "|")[:TEXT_SHOWN] for cell in line] for line in lines]
        parts.append(Markup("<h3>Answers</h3>\n") + table(cells[0], cells[2:], kind="words"))
    if (path := folder / "tokenizer_report.json").is_file():
        rows = json.loads(path.read_text(encoding="utf-8"))
        parts.append(bullets([", ".join(f"{name}: {value}" for name, value in row.items()) for row in rows]))
    return parts
