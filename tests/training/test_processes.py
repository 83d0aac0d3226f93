"""Fine-tuning under torchrun, two processes without an accelerator: the losses of one, and one folder whole."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors.torch import load_file

import groundup as package

pytestmark = pytest.mark.slow

TINY = {"vocab_size": 280, "hidden_size": 32, "num_hidden_layers": 1, "context_length": 64}
FIXED = {"max_steps": 10, "precision": "fp32"}


def options(values):
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", value)]


@pytest.fixture
def labelled(tmp_path, write_rows):
    chance = np.random.default_rng(0)
    kinds = {"animal": ["cat", "dog", "bird", "fish"], "place": ["house", "river", "street", "town"]}
    rows = [
        {"text": f"{number} {' '.join(chance.choice(kinds[label], 4))}", "label": label}
        for number in range(100)
        for label in kinds
    ]
    return write_rows(tmp_path / "labelled.jsonl", rows)


@pytest.fixture
def asked(tmp_path, write_rows):
    chance = np.random.default_rng(0)
    rows = []
    for number in range(120):
        colours = chance.choice(["red", "green", "blue", "black"], 2)
        rows.append({"instruction": f"{number}:", "input": " ".join(colours), "output": str(colours[-1])})
    return write_rows(tmp_path / "asked.jsonl", rows)


def losses(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row.get("loss")]


def training(folder):
    return json.loads((folder / "metrics.json").read_text())["training"]


def test_two_processes_adapt_train_every_seed_and_label_in_one_folder(labelled, tmp_path, two_processes):
    (tmp_path / "new.txt").write_text("7 dog fish\n8 town river\n")
    given = options(TINY | FIXED | {"seeds": 2, "adapt_epochs": 1, "predict": "new.txt"})
    done = two_processes("classify", "--data", labelled, *given)
    assert done.returncode == 0, done.stderr
    (out,) = (tmp_path / "runs").iterdir()
    assert [training(out / f"seed-{number}")["processes"] for number in range(2)] == [2, 2]
    assert training(out)["seeds"] == 2
    assert len((out / "predictions.csv").read_text().splitlines()) == 3


@pytest.mark.parametrize("average", [1, 2])
def test_a_classifier_of_two_processes_is_that_of_one(labelled, tmp_path, two_processes, average):
    package.pretrain(data=[str(labelled)], out=str(tmp_path / "base"), quiet=True, **TINY | FIXED)
    still = {"model": str(tmp_path / "base"), "dropout": 0.0, "token_dropout": 0.0, "batch_rows": 15} | FIXED
    given = still | {"average": average}
    one = package.classify(data=[str(labelled)], out=str(tmp_path / "one"), quiet=True, **given)
    done = two_processes("classify", "--data", labelled, "--out", "two", *options(given))
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-3)
    assert training(tmp_path / "two").get("averaged_runs", 1) == average
    weights = [load_file(folder / "model.safetensors") for folder in (one, tmp_path / "two")]
    assert weights[0].keys() == weights[1].keys()
    for name, tensor in weights[0].items():
        assert weights[1][name].numpy() == pytest.approx(tensor.numpy(), abs=2e-3), name


def test_a_new_model_that_two_processes_teach_has_the_losses_of_one(asked, tmp_path, two_processes):
    given = TINY | FIXED | {"pretrain_share": 0.3}
    one = package.instruct(data=[str(asked)], out=str(tmp_path / "one"), quiet=True, **given)
    done = two_processes("instruct", "--data", asked, "--out", "two", *options(given))
    assert done.returncode == 0, done.stderr
    assert training(tmp_path / "two")["processes"] == 2
    assert losses(tmp_path / "two") == pytest.approx(losses(one), rel=1e-3)


def test_an_adapter_of_two_processes_is_that_of_one(story, asked, tmp_path, two_processes):
    base = package.pretrain(data=[str(story)], out=str(tmp_path / "base"), quiet=True, **TINY | FIXED)
    for verb, data, model in (("pretrain", story, "init_from"), ("instruct", asked, "model")):
        given = {model: str(base), "lora": "true", "lora_rank": 2, "context_length": 64} | FIXED
        one = getattr(package, verb)(
            data=[str(data)], out=f"{tmp_path}/{verb}-one", quiet=True, **given | {"lora": True}
        )
        done = two_processes(verb, "--data", data, "--out", f"{verb}-two", *options(given))
        assert done.returncode == 0, done.stderr
        assert losses(tmp_path / f"{verb}-two") == pytest.approx(losses(one), rel=1e-3)
        adapters = [load_file(tmp_path / f"{verb}-{count}" / "adapter_model.safetensors") for count in ("one", "two")]
        assert adapters[0].keys() == adapters[1].keys()
        for name, tensor in adapters[0].items():
            assert adapters[1][name].numpy() == pytest.approx(tensor.numpy(), abs=2e-3), name


def test_two_verbs_in_one_program_of_two_processes(story, labelled, tmp_path):
    """They meet once: a second meeting could find the addresses of the first in the launcher's store."""
    program = tmp_path / "program.py"
    program.write_text(
        "import groundup\n"
        f"tiny = {TINY | FIXED}\n"
        f"base = groundup.pretrain(data=[{str(story)!r}], out='base', quiet=True, **tiny)\n"
        f"groundup.classify(data=[{str(labelled)!r}], model=str(base), out='classifier', quiet=True, max_steps=3)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(program)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert training(tmp_path / "base")["processes"] == training(tmp_path / "classifier")["processes"] == 2
