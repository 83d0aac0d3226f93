"""Runs that are stopped or killed at drawn steps, again and again, and end as the run that never was."""

import json
import os
import random
import signal
import sys

import pytest

import groundup as package
from groundup.common.errors import Interrupted
from groundup.common.files import sha256_of
from groundup.evaluation.curves import log_rows
from groundup.evaluation.metrics_json import read_metrics
from groundup.training.loop import Loop

pytestmark = pytest.mark.slow

RUNS, MOST_STOPS = 20, 4
MOMENTS = ("_step", "_update", "_log", "_validate", "_save")  # where in the loop a signal comes
CLOCKS = ("seconds", "tokens_per_second", "rows_per_second")
TINY = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 1, "context_length": 32}
DROPOUT = {"model_config": {"residual_dropout": 0.1}}  # so that the random state counts too


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Return verbs with settings under which nothing depends on the clock; how many steps each takes."""
    folder = tmp_path_factory.mktemp("stops")
    draw = random.Random(0)
    words = [[draw.choice(["red", "green", "blue", "black"]) for _ in range(6)] for _ in range(400)]
    (folder / "text.txt").write_text("\n".join(map(" ".join, words)))
    rows = [{"text": f"{n}: {' '.join(row)}", "label": row[-1]} for n, row in enumerate(words)]
    asked = [{"prompt": row["text"], "completion": row["label"]} for row in rows]
    for name, found in (("rows", rows), ("asked", asked)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    data = [str(folder / "text.txt")]
    base = str(package.pretrain(data=data, max_steps=2, out=str(folder / "base"), quiet=True, **TINY))
    pretrain = {"data": data, "batch_tokens": 128, **TINY, **DROPOUT}
    classify = {"data": [str(folder / "rows.jsonl")], "model": base, "batch_rows": 16}
    instruct = {"data": [str(folder / "asked.jsonl")], "model": base, "batch_tokens": 512}
    return {
        "rows of the log of several steps": ("pretrain", pretrain | {"max_steps": 230, "save_every": 40}, 230),
        "a row a step": ("pretrain", pretrain | {"max_steps": 45, "save_every": 7}, 45),
        "epochs": ("pretrain", pretrain | {"epochs": 1.3}, 50),
        "labels": ("classify", classify | {"max_steps": 40}, 40),
        "labels, the mean of two runs": ("classify", classify | {"max_steps": 20, "average": 2}, 20),
        "labels, two seeds": ("classify", classify | {"max_steps": 20, "seeds": 2}, 20),
        "answers": ("instruct", instruct | {"max_steps": 30, "patience": 3, "save_every": 4}, 30),
    }


def train(verb, settings, moment=None, step=0, number=0):
    """Do a verb in this process, which sends itself a signal when that moment of that step, or the next, has come."""
    sent = []
    if moment is not None:
        real = getattr(Loop, moment)

        def noting(loop, *arguments):
            if loop.position.step >= step and not sent:
                sent.append(number)
                os.kill(os.getpid(), number)
            return real(loop, *arguments)

        setattr(Loop, moment, noting)
    try:
        getattr(package, verb)(**settings, quiet=True, resume=True)
    except Interrupted:
        sys.exit(130)


def result(out):
    """Return weights, best step and log of every run under a folder."""
    found = {}
    ended = [path for path in sorted(out.rglob("metrics.json")) if "checkpoints" not in path.parts]
    for path in ended:
        log = [row for row in log_rows(path.with_name("log.jsonl")) if row.get("event") != "resume"]
        rows = [{name: value for name, value in row.items() if name not in CLOCKS} for row in log]
        best = read_metrics(path.parent)["training"]["best_step"]
        found[str(path.parent.relative_to(out))] = (sha256_of(path.with_name("model.safetensors")), best, rows)
    return found


@pytest.fixture(scope="module")
def whole(kinds, in_a_fork, tmp_path_factory):
    """Return what uninterrupted runs end with, each made when it is first asked for."""
    made = {}

    def of(name):
        if name not in made:
            verb, settings, _ = kinds[name]
            out = tmp_path_factory.mktemp("whole") / "out"
            assert in_a_fork(train, verb, settings | {"out": str(out)}) == 0
            made[name] = result(out)
        return made[name]

    return of


@pytest.mark.parametrize("number", range(RUNS))
def test_stopped_at_drawn_steps_a_run_ends_as_one_never_stopped(number, kinds, whole, in_a_fork, tmp_path):
    draw = random.Random(number)
    name = list(kinds)[number % len(kinds)]
    verb, settings, steps = kinds[name]
    settings = settings | {"out": str(tmp_path / "out")}
    stops = sorted(draw.sample(range(steps), draw.randint(1, MOST_STOPS)))
    for place, step in enumerate(stops):
        what = signal.SIGKILL if (number + place) % 2 else signal.SIGINT
        moment = draw.choice(MOMENTS)
        status = in_a_fork(train, verb, settings, moment, step, what)
        print(f"{name}: {what.name} in {moment} of step {step}: {status}")
        # A step whose moment has passed in every run of several is not reached any more.
        assert status in (0, -signal.SIGKILL if what == signal.SIGKILL else 130)
    assert in_a_fork(train, verb, settings) == 0
    assert result(tmp_path / "out") == whole(name)
