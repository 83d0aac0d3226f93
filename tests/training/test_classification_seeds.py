"""`classify --seeds`: the whole run again with splits of their own, its mean and spread, and the run that is kept."""

import json
import time

import numpy as np
import pytest

import groundup as package
from groundup.common.errors import InputError, Interrupted
from groundup.common.settings import read_yaml
from groundup.training.classification import repeat
from groundup.training.settings import ClassifySettings

SEEDS = {
    "seeds": 2,
    "seed": 5,
    "max_steps": 6,
    "adapt_epochs": 0.5,
    "vocab_size": 270,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "quiet": True,
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    path = tmp_path_factory.mktemp("seeds") / "rows.jsonl"
    rows = [{"text": f"{n} is {'odd' if n % 2 else 'even'} like {n * 7 % 50}", "label": str(n % 2)} for n in range(400)]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def repeated(rows):
    return package.classify(data=[str(rows)], out=str(rows.parent / "repeated"), **SEEDS)


def test_seeds_give_a_mean_with_its_spread_and_keep_the_best_by_selection(repeated):
    out = repeated
    metrics = json.loads((out / "metrics.json").read_text())
    row = metrics["metrics"][0]
    assert (row["name"], row["split"], row["seeds"]) == ("accuracy", "test", [5, 6])
    each = [json.loads((out / f"seed-{n}" / "metrics.json").read_text()) for n in range(2)]
    values = [one["metrics"][0]["value"] for one in each]
    assert row["value"] == pytest.approx(np.mean(values))
    assert row["std"] == pytest.approx(np.std(values, ddof=1))
    best = max(range(2), key=lambda n: each[n]["training"]["selection"])
    assert metrics["training"]["kept"] == f"seed-{best}"
    assert (out / "model.safetensors").read_bytes() == (out / f"seed-{best}" / "model.safetensors").read_bytes()
    kept = read_yaml(out / "recipe.yaml")
    assert (kept["settings"]["seeds"], kept["settings"]["seed"], kept["rows"]["test"]) == (2, 5, 80)
    assert not (out / "work").exists()


def test_seeds_that_were_cut_off_resume_to_the_same_scores_from_the_folder_alone(
    rows, tmp_path, repeated, before_each_step
):
    out = tmp_path / "cut"

    def failing(loop):
        if (out / "seed-1" / "checkpoints" / "step-2").is_dir():
            raise Interrupted("the power is gone")

    with before_each_step(failing), pytest.raises(Interrupted, match="the power is gone"):
        package.classify(data=[str(rows)], out=str(out), **SEEDS)
    assert (out / "seed-0" / "metrics.json").is_file()
    assert read_yaml(out / "recipe.yaml")["settings"]["seeds"] == 2
    assert str(rows.parent) not in (out / "recipe.yaml").read_text()
    package.classify(out=str(out), resume=True, quiet=True)
    assert (out / "model.safetensors").read_bytes() == (repeated / "model.safetensors").read_bytes()
    scores = [json.loads((path / "metrics.json").read_text())["metrics"] for path in (out, repeated)]
    assert scores[0] == scores[1]
    before = (out / "metrics.json").read_bytes()
    package.classify(out=str(out), resume=True, quiet=True)
    assert (out / "metrics.json").read_bytes() == before


def test_seeds_share_the_minutes_equally_and_a_run_that_cannot_start_leaves_nothing(tmp_path):
    parts = []

    def training(one, deadline):
        parts.append((one.seed, one.minutes))
        assert deadline.minutes is None and 0 <= time.time() - deadline.began < 60  # it begins with the seed
        if one.seed == 2:
            raise InputError("no such rows")
        return tmp_path

    settings = ClassifySettings(data=["rows.csv"], out=str(tmp_path / "out"), minutes=6.0, seeds=3, quiet=True)
    with pytest.raises(InputError, match="no such rows"):
        repeat(settings, training)
    assert parts == [(0, 2.0), (1, 2.0), (2, 2.0)]
    assert not (tmp_path / "out").exists()
