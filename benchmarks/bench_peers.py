"""Rows beside the tools that people fine-tune with: PEFT with transformers' Trainer, and TRL's SFTTrainer.

Every run is a process of its own and has the same minutes from its start to its last score. Both sides have the same
rows to train on and the same row length, and one function scores them on the same held-out rows. Of the peer's three
rates the one that is best on the test itself counts, which nobody could choose beforehand: that favours the peer.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from measuring import Row
from peers import Classification, Domain, EndsOnTime, Instructions, Scores, Task
from rich.console import Console
from rich.table import Table

from groundup.common.console import console
from groundup.common.files import RECIPE_FILE
from groundup.common.settings import read_yaml
from groundup.evaluation.metrics_json import read_metrics
from groundup.inference.loading import load_model

RATES = (2e-4, 5e-4, 1e-3)  # the first is what TRL's documentation gives for LoRA


@dataclass(frozen=True)
class Run:
    """Hold what a run came to: its scores, the seconds from its start to the last of them, and its steps."""

    name: str
    scores: Scores
    seconds: float
    steps: int = 0


def classify(model: str, data: str | None, minutes: float) -> Row:
    """Compare `classify --lora` with PEFT and Trainer."""
    return beside("peer-classify", Classification, "PEFT + Trainer", (model, data, minutes))


def instruct(model: str, data: str | None, minutes: float) -> Row:
    """Compare `instruct --lora` with TRL's SFTTrainer."""
    return beside("peer-instruct", Instructions, "TRL's SFTTrainer", (model, data, minutes))


def domain(model: str, data: str | None, minutes: float) -> Row:
    """Compare `pretrain --init-from --lora` with TRL's SFTTrainer."""
    return beside("peer-domain", Domain, "TRL's SFTTrainer", (model, data, minutes))


def beside(name: str, kind: type[Task], peer: str, given: tuple[str, str | None, float]) -> Row:
    """Run ours and the peer at each of its rates, print all of them, and return ours against the best of the peer's."""
    console.quiet = True
    with tempfile.TemporaryDirectory() as folder:
        task = kind(*given, Path(folder))
        task.prepare()
        seconds = run_ours(task)
        task.context = read_yaml(task.ours / RECIPE_FILE)["plan"]["context_length"]
        ours = replace(in_a_process(score_ours, task), seconds=seconds)
        before = in_a_process(score_base, task)
        peers = [in_a_process(run_peer, task, rate, before.seconds, time.time()) for rate in RATES]
        about = task.about()
    runs = [before, ours, *peers]
    _print_runs(name, [*runs, Run("TF-IDF + SVM", about, 0.0)] if about else runs)
    values, sign = [run.scores[task.measure] for run in peers], 1 if task.higher_is_better else -1
    ratios = [(ours.scores[task.measure] / value) ** sign for value in values]
    best = min(range(len(peers)), key=lambda place: ratios[place])
    what = f"{task.measure}, ours ÷ {peer} (its best of three rates is {RATES[best]:g}), {task.minutes:g} minutes each"
    shown = [f"{value:.4f}" for value in (ours.scores[task.measure], values[best])]
    return Row(name, what, ratios[best], min(ratios), max(ratios), *shown)


def run_ours(task: Task) -> float:
    """Run our command with its defaults, and return its seconds."""
    options = ["--lora", "--minutes", str(task.minutes), "--out", str(task.ours), "--quiet"]
    started = time.time()
    subprocess.run([sys.executable, "-m", "groundup", *task.command(), *options], check=True)
    return time.time() - started


def score_ours(task: Task) -> Run:
    """Score our model with the function that scores the peer's."""
    scores = task.score(*load_model(task.ours, kind=task.kind))
    return Run("ours", scores, 0.0, read_metrics(task.ours)["training"]["steps"])


def score_base(task: Task) -> Run:
    """Score the model before training; its seconds are those that a score takes, which the peer must leave for it."""
    model, tokenizer = task.base()
    started = time.time()
    return Run("before", task.score(model, tokenizer), time.time() - started)


def run_peer(task: Task, rate: float, seconds_to_score: float, started: float) -> Run:
    """Train the peer at a rate, and score it, in the minutes from `started`."""
    model, tokenizer = task.base()
    trainer = task.trainer(model, tokenizer, rate)
    trainer.add_callback(EndsOnTime(started + 60 * task.minutes - seconds_to_score))
    trainer.train()
    merged = trainer.model.merge_and_unload().eval()  # type: ignore[union-attr]
    found = task.score(merged, tokenizer)
    return Run(f"peer at {rate:g}", found, time.time() - started, trainer.state.global_step)


def in_a_process(work: Callable[..., Run], task: Task, *arguments: float) -> Run:
    """Return what one of the functions above gives in a new process, which imports nothing of the other rows."""
    fields = {**asdict(task), "folder": str(task.folder)}
    call = json.dumps([work.__name__, type(task).__name__, fields, arguments])
    done = subprocess.run([sys.executable, __file__, call], check=True, stdout=subprocess.PIPE, text=True)
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def answer(call: str) -> str:
    """Do what `in_a_process` asks for."""
    console.quiet = True
    work, kind, fields, arguments = json.loads(call)
    works = {work.__name__: work for work in (score_ours, score_base, run_peer)}
    task = {task.__name__: task for task in (Classification, Instructions, Domain)}[kind](**fields)
    task.folder = Path(task.folder)
    return json.dumps(asdict(works[work](task, *arguments)))


def _print_runs(title: str, runs: list[Run]) -> None:
    table = Table(title=title, box=None, header_style="bold")
    names = list(runs[0].scores)
    for column in ("run", *names, "steps", "seconds"):
        table.add_column(column)
    for run in runs:
        steps, seconds = (f"{value:,.0f}" if value else "" for value in (run.steps, run.seconds))
        table.add_row(run.name, *(f"{run.scores[name]:.4f}" for name in names), steps, seconds)
    Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == "__main__":
    print(answer(sys.argv[1]))
