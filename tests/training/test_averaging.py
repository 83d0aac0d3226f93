"""`classify --average`: the mean of the weights of runs that differ in the order of their rows alone."""

import json
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import groundup as package
from groundup.common.errors import InputError
from groundup.common.settings import Deadline
from groundup.training import classification, classifier, loop, run
from groundup.training.checkpoint import take_mean
from groundup.training.loop import Budget, Loop
from groundup.training.settings import ClassifySettings

RUNS = 3


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaging")
    rows = [{"text": f"{n} is {'odd' if n % 2 else 'even'} like {n * 7 % 50}", "label": str(n % 2)} for n in range(200)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    data = [str(folder / "rows.jsonl")]
    sizes = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 1, "context_length": 32}
    base = package.pretrain(data=data, max_steps=2, out=str(folder / "base"), quiet=True, **sizes)
    return {"data": data, "model": str(base), "max_steps": 6, "save_every": 2, "quiet": True}


@pytest.fixture
def averaged(monkeypatch):
    """Return the weights that went into each mean: first the kept run's own, then the others'."""
    seen = []

    def noting(model, folders):
        own = {name: weight.clone() for name, weight in model.state_dict().items()}
        seen.append([own, *(load_file(folder / "model.safetensors") for folder in folders)])
        take_mean(model, folders)

    monkeypatch.setattr(classifier, "take_mean", noting)
    return seen


@pytest.fixture
def starts(monkeypatch):
    """Return the weights and the random state with which each loop starts."""
    seen, real = [], Loop.run

    def noting(loop):
        weights = [weight.detach().numpy().tobytes() for weight in loop.objective.state_dict().values()]
        seen.append((weights, torch.get_rng_state().numpy().tobytes()))
        return real(loop)

    monkeypatch.setattr(Loop, "run", noting)
    return seen


def test_averaging_keeps_the_mean_of_runs_that_differ_only_in_the_order_of_rows(options, averaged, starts, tmp_path):
    options = options | {"best_by": "accuracy", "bag": False}
    alone = load_file(package.classify(out=str(tmp_path / "alone"), **options) / "model.safetensors")
    assert not averaged
    out = package.classify(out=str(tmp_path / "mean"), average=RUNS, **options)
    [runs] = averaged
    assert len(runs) == RUNS
    kept = load_file(out / "model.safetensors")
    assert kept.keys() == alone.keys()
    for name, weight in kept.items():
        torch.testing.assert_close(runs[0][name], alone[name], rtol=0, atol=0)
        torch.testing.assert_close(weight, sum(one[name].double() for one in runs).div(RUNS).float())
    assert len(starts) == 1 + RUNS
    assert all(start == starts[0] for start in starts)
    assert len({runs[n]["score.weight"].numpy().tobytes() for n in range(RUNS)}) == RUNS
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["training"]["averaged_runs"] == RUNS
    rows = {(row["name"], row["split"], row["baseline"]): row["value"] for row in metrics["metrics"]}
    assert metrics["training"]["selection"] == pytest.approx(rows["accuracy", "validation", None], abs=1e-4)
    assert not (out / "work").exists()


def test_averaging_that_was_cut_off_in_any_run_resumes_to_the_same_weights(options, tmp_path, cut_off):
    whole = package.classify(out=str(tmp_path / "whole"), average=RUNS, **options)
    for count in (4, 9, 15):  # in the first of the three, the second and the last
        out = tmp_path / f"cut-{count}"
        with cut_off(count):
            package.classify(out=str(out), average=RUNS, **options)
        package.classify(out=str(out), resume=True)
        assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


@pytest.mark.parametrize(("used", "seconds"), [(0, [25, 25, 25, 25]), (40, [15, 20, 25, 25])])
def test_a_budget_in_minutes_is_shared_by_the_runs(used, seconds, options, tmp_path, monkeypatch):
    """Of 100 s the four have a quarter each, however much a process that begins anew believes to have; of 60 less."""
    monkeypatch.setattr(run, "LARGEST_SCORING_SHARE", 0.0)
    monkeypatch.setattr(classifier, "LINEAR_SHARE", 0.0)
    monkeypatch.setattr(classifier.ClassificationRun, "finish_share", 0.0)
    monkeypatch.setattr(classifier.ClassificationRun, "finish_seconds", 0.0)
    now, shares, real = time.time(), [], Loop.run

    def one_step(loop):
        shares.append(loop.budget.seconds)
        loop.budget = Budget(steps=1)
        return real(loop)

    monkeypatch.setattr(Loop, "run", one_step)
    monkeypatch.setattr("groundup.common.settings.time", SimpleNamespace(time=lambda: now))
    settings = ClassifySettings(out=str(tmp_path / "out"), average=4, minutes=100 / 60, **options | {"max_steps": None})
    classification.classify(settings, deadline=Deadline(now - used))
    assert shares == pytest.approx(seconds)


def test_a_smoke_run_averages_two_runs_for_each_seed(options, averaged, tmp_path):
    out = package.classify(out=str(tmp_path / "out"), average=RUNS, seeds=2, smoke=True, **options)
    assert [len(runs) for runs in averaged] == [2, 2]
    training = json.loads((out / "seed-1" / "metrics.json").read_text())["training"]
    assert training["averaged_runs"] == 2
    assert training["seconds_of_all_runs"] > training["seconds"]


def test_a_tracker_that_is_missing_is_named_before_anything_is_trained(options, tmp_path, monkeypatch):
    monkeypatch.setattr(Loop, "run", lambda loop: pytest.fail("trained"))
    monkeypatch.setattr(loop.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="--track trackio: trackio is not installed"):
        package.classify(out=str(tmp_path / "out"), average=2, track="trackio", **options)


@pytest.mark.parametrize(
    ("more", "message"), [({"lora": True}, "--lora trains an adapter"), ({"average": 0}, "at least 1")]
)
def test_what_cannot_be_averaged_is_refused(options, tmp_path, more, message):
    with pytest.raises(InputError, match=message):
        package.classify(out=str(tmp_path / "out"), **options | {"average": 2} | more)
    assert not (tmp_path / "out").exists()
