"""The row about the plan: what it chooses by itself beside choices made by hand, on texts unlike each other."""

import itertools
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from bench_training import ENDS, training_run
from measuring import Row, bits_per_byte, one_thread_each

import groundup
from groundup.common.console import console
from groundup.common.settings import read_yaml
from groundup.data import python_docs
from groundup.evaluation.metrics_json import read_metrics
from groundup.modeling import GroundupConfig
from groundup.training.plan import Given, Plan, make_plan

MINUTES = 3.0
TEXT_BYTES = 5_000_000  # of source code, and of a text that is given
SIZES = ((96, 2), (128, 2), (128, 4), (160, 3), (96, 3))  # width and layers around what minutes on two cores can train
UPDATES, TIMES = 6, 5  # of a timed run, and how often each of a pair is timed


def plan(text: str | None) -> Row:
    """Compare bits per byte after the same minutes: the best choice of the grid ÷ the plan's own, on each text.

    The plan's own run has the clock. A choice by hand gets the updates that fit into the same time by its speed,
    measured in turn with the plan's: a shared machine moves by more from one run to the next than choices differ.
    """
    console.quiet = True
    found = {name: _own_and_best(name, written) for name, written in _texts(text).items()}
    ratios = [best / own for own, best, _ in found.values()]
    what = f"bits per byte after {MINUTES:g} minutes, the best choice by hand ÷ the plan's own: "
    what += "; ".join(f"{name} {choice}" for name, (_, _, choice) in found.items())
    own, best = (", ".join(f"{values[side]:.3f}" for values in found.values()) for side in (0, 1))
    return Row("plan", what, statistics.median(ratios), min(ratios), max(ratios), own, best)


def _texts(given: str | None) -> dict[str, str]:
    """Return prose about code, code, and a text of the caller's."""
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    code = "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in library)[:TEXT_BYTES]
    texts = {"documentation": "\n\n".join(python_docs.load()["train"]["text"]), "source code": code}
    return texts | ({given: Path(given).read_text(encoding="utf-8")[:TEXT_BYTES]} if given else {})


def _grid(own: Plan) -> list[dict[str, Any]]:
    """Return eight changes by hand: other sizes, and what the plan derives from them."""
    mine = (own.model["hidden_size"], own.model["num_hidden_layers"])
    sizes = itertools.islice((size for size in SIZES if size != mine), 4)
    return [
        *({"hidden_size": width, "num_hidden_layers": layers} for width, layers in sizes),
        {"vocab_size": 2 * own.vocab_size},
        {"batch_tokens": 2 * own.batch_tokens},
        {"context_length": 2 * own.context_length},
        {"learning_rate_scale": 1.5},
    ]


def _own_and_best(name: str, text: str) -> tuple[float, float, str]:
    """Return the plan's own bits per byte, the grid's least, and what the latter changed."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "text.txt", Path(folder) / "own"
        file.write_text(text, encoding="utf-8")
        groundup.pretrain(data=[str(file)], minutes=MINUTES, out=str(out), quiet=True)
        own, updates = Plan(**read_yaml(out / "recipe.yaml")["plan"]), read_metrics(out)["training"]["steps"]
        print(f"{name}: the plan, {own.model}: {bits_per_byte(out):.4f}, {updates} updates", flush=True)
        runs = []
        for number, choice in enumerate(_grid(own)):
            sizes = _sizes(own, len(text.encode()) * 0.9, choice)
            fitting = round(updates * _relative_speed(own, sizes))
            runs.append((str(file), str(Path(folder) / str(number)), sizes, choice, fitting))
        scores = one_thread_each(_score, runs)
        for (_, _, _, choice, fitting), score in zip(runs, scores):
            print(f"{name}: {choice}: {score:.4f}, {fitting} updates", flush=True)
        best = min(range(len(runs)), key=lambda number: scores[number])
        change = ", ".join(f"{key} {value}" for key, value in runs[best][3].items())
        return bits_per_byte(out), scores[best], change


def _sizes(own: Plan, text_bytes: float, choice: dict[str, Any]) -> Plan:
    """Return the plan with a choice by hand; only what follows from it (decay, rates, rows) changes too."""
    kept = {"vocab_size": own.vocab_size, "batch_tokens": own.batch_tokens, "context_length": own.context_length}
    kept |= {name: own.model[name] for name in ("hidden_size", "num_hidden_layers")}
    compiled = "yes" if own.compiled else "no"
    return make_plan(Given(**kept | choice, compile=compiled), text_bytes, None)


def _relative_speed(own: Plan, other: Plan) -> float:
    """Return the steps of `other` in the time of one of `own`, each timed in turn."""
    sizes = ("vocab_size", "model", "context_length", "batch_tokens")
    if all(getattr(own, name) == getattr(other, name) for name in sizes):
        return 1.0  # other rates
    torch._dynamo.reset()  # one function is compiled for so many sizes and no more
    runs, seconds = [_training(own), _training(other)], [[], []]
    for number in range(TIMES + 1):
        for side, run in enumerate(runs):
            started = time.perf_counter()
            run()
            if number:
                seconds[side].append(time.perf_counter() - started)
    return statistics.median(mine / its for mine, its in zip(*seconds))


def _training(plan: Plan) -> Callable[[], object]:
    sizes = {"vocab_size": plan.vocab_size, "max_position_embeddings": plan.context_length}
    config = GroundupConfig(**sizes, **plan.model, **ENDS)
    parts = plan.batch_tokens // plan.context_length // plan.micro_batch_rows
    return training_run(config, plan, rows=plan.micro_batch_rows, parts=parts, steps=UPDATES)


def _score(run: tuple[str, str, Plan, dict[str, Any], int]) -> float:
    """Return the bits per byte of a choice after so many steps."""
    file, out, sizes, choice, updates = run
    names = ("vocab_size", "batch_tokens", "context_length", "weight_decay")
    options = {name: getattr(sizes, name) for name in names} | choice
    options |= {name: sizes.model[name] for name in ("hidden_size", "num_hidden_layers")}
    options["compile"] = "yes" if sizes.compiled else "no"
    groundup.pretrain(data=[file], max_steps=updates, out=out, quiet=True, **options)
    return bits_per_byte(Path(out))
