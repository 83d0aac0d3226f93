"""The verb from outside: the same seed, a killed run, and what it says of data that will not do."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from safetensors.torch import load_file

import groundup as package
from groundup.common.errors import InputError, Interrupted
from groundup.common.files import sha256_of
from groundup.evaluation.metrics_json import read_metrics
from groundup.training import checkpoint, pretraining, run
from groundup.training.checkpoint import RunFolder

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 32, "batch_tokens": 256}


def options(settings):
    return [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def weights(folder):
    return sha256_of(folder / "model.safetensors")


@pytest.fixture(scope="module")
def finished(story_text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    (folder / "story.txt").write_text(story_text, encoding="utf-8")
    return package.pretrain(
        data=[str(folder / "story.txt")], out=str(folder / "first"), max_steps=30, quiet=True, **TINY
    )


def test_the_same_seed_gives_the_same_weights_bit_for_bit_and_another_seed_others(finished, story, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        package.pretrain(data=[str(story)], out=str(tmp_path / name), max_steps=30, seed=seed, quiet=True, **TINY)
    assert weights(tmp_path / "again") == weights(finished)
    assert weights(tmp_path / "other") != weights(finished)


def test_a_checkpoint_is_a_complete_hub_repository_and_names_no_path_of_this_machine(finished):
    names = {path.name for path in finished.iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "checkpoints", "config.json", "configuration_groundup.py", "curve.png",
        "generation_config.json", "generation_groundup.py", "log.jsonl", "metrics.json", "model.safetensors",
        "modeling_groundup.py", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    steps = sorted((finished / "checkpoints").iterdir())
    assert all(names - {"checkpoints"} | {"state"} == {path.name for path in step.iterdir()} for step in steps)
    for path in finished.rglob("*"):
        if path.is_file():
            assert str(finished.parent).encode() not in path.read_bytes(), path


def test_it_learns_and_metrics_json_has_the_baselines_and_the_hash_of_the_weights(finished):
    metrics = json.loads((finished / "metrics.json").read_text())
    bits = {row["baseline"]: row["value"] for row in metrics["metrics"] if row["name"] == "bits_per_byte"}
    assert bits[None] < bits["unigram"]
    assert set(bits) == {None, "unigram", "xz -9e"}
    assert metrics["weights_sha256"] == weights(finished)
    rows = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < losses[0] - 1


def test_the_saved_model_is_the_one_that_was_scored(finished, story_text, tmp_path):
    """Scored again by the verb `evaluate` on the held-out text, it gets what metrics.json says."""
    (tmp_path / "held_out.txt").write_text(story_text[int(len(story_text) * 0.9) :])
    out = tmp_path / "scores"
    package.evaluate(model=str(finished), data=[str(tmp_path / "held_out.txt")], out=str(out), quiet=True)

    def bits(folder):
        rows = json.loads((folder / "metrics.json").read_text())["metrics"]
        return next(row["value"] for row in rows if row["name"] == "bits_per_byte" and row["baseline"] is None)

    assert bits(out) == pytest.approx(bits(finished), rel=1e-6)


def test_resuming_a_finished_run_changes_nothing(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*")}
    package.pretrain(out=str(finished), resume=True, quiet=True)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*")} == before


def test_a_run_killed_at_any_moment_and_resumed_ends_with_the_same_weights(finished, story, tmp_path, start_command):
    out = tmp_path / "killed"
    begin = ["--data", story, "--max-steps", "30", "--save-every", "4", *options(TINY)]
    for step in (4, 16):
        process = start_command("pretrain", "--out", out, "--resume", *begin)
        while process.is_alive() and not any(
            int(path.name[5:]) >= step for path in (out / "checkpoints").glob("step-*")
        ):
            time.sleep(0.01)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "it ended before it could be killed"
    package.pretrain(out=str(out), resume=True, quiet=True)
    assert weights(out) == weights(finished)
    assert any(json.loads(line).get("event") == "resume" for line in (out / "log.jsonl").read_text().splitlines())


def test_a_damaged_state_is_named_and_the_one_before_it_used(finished, story, tmp_path, monkeypatch, capsys):
    out = tmp_path / "damaged"

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "finish", killed)
        package.pretrain(data=[str(story)], out=str(out), max_steps=30, **TINY)
    newest = max((out / "checkpoints").iterdir(), key=lambda path: int(path.name[5:]))
    content = bytearray((newest / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (newest / "model.safetensors").write_bytes(content)
    package.pretrain(out=str(out), resume=True)
    assert f"{newest.name}: model.safetensors is damaged" in capsys.readouterr().err.replace("\n", "")
    assert weights(out) == weights(finished)


def test_ctrl_c_saves_the_state_and_says_how_to_go_on(story, tmp_path, start_command):
    out = tmp_path / "stopped"
    process = start_command("pretrain", "--data", story, "--out", out, "--max-steps", "100000", *options(TINY))
    while process.is_alive() and not (out / "log.jsonl").exists():
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130
    assert "--resume" in (tmp_path / "said").read_text()
    assert list((out / "checkpoints").glob("step-*"))


def test_a_run_in_minutes_keeps_its_plan_and_ends_whole(story, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "FEW_UPDATES", 10**6)
    package.pretrain(data=[str(story)], out=str(tmp_path / "timed"), minutes=0.2, **TINY)
    metrics = json.loads((tmp_path / "timed" / "metrics.json").read_text())
    assert metrics["training"]["steps"] > 0
    assert metrics["weights_sha256"] == weights(tmp_path / "timed")
    assert "minutes: 0.2" in (tmp_path / "timed" / "recipe.yaml").read_text()
    assert f"only {metrics['training']['steps']} steps fitted into the time" in capsys.readouterr().err


def test_epochs_count_every_token_once_each(story, tmp_path):
    package.pretrain(data=[str(story)], out=str(tmp_path / "two"), epochs=2, quiet=True, **TINY)
    training = json.loads((tmp_path / "two" / "metrics.json").read_text())["training"]
    assert training["epochs"] == 2


def test_going_on_from_a_model_starts_at_its_loss(finished, story, tmp_path):
    package.pretrain(data=[str(story)], init_from=str(finished), out=str(tmp_path / "more"), max_steps=5, quiet=True,
                     context_length=32, batch_tokens=256)  # fmt: skip
    rows = [json.loads(line) for line in (tmp_path / "more" / "log.jsonl").read_text().splitlines()]
    before = [json.loads(line) for line in (finished / "log.jsonl").read_text().splitlines()]
    assert rows[0]["loss"] < before[0]["loss"] - 1


def test_word_level_tokenizers_can_be_pretrained_on(story, tmp_path):
    package.train_tokenizer(data=[str(story)], kind="word", vocab_size=15, out=str(tmp_path / "words"), quiet=True)
    sizes = {name: value for name, value in TINY.items() if name != "vocab_size"}
    package.pretrain(data=[str(story)], tokenizer=str(tmp_path / "words"), out=str(tmp_path / "word_model"),
                     max_steps=20, quiet=True, **sizes)  # fmt: skip
    rows = json.loads((tmp_path / "word_model" / "metrics.json").read_text())["metrics"]
    bits = [row for row in rows if row["name"] == "bits_per_byte" and row["baseline"] is None]
    assert bits[0]["value"] is None
    assert "byte" in bits[0]["note"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data": ["missing.txt"]}, "missing.txt"),
        ({"data": ["empty.txt"]}, "empty"),
        ({"data": ["binary.txt"]}, "binary.txt"),
        ({"data": ["rows.csv"], "text_column": "body"}, "body"),
        ({"data": ["short.txt"]}, "fewer than one row"),
        ({"data": ["story.txt"], "vocab_size": 20000}, "20000"),
        ({"data": ["story.txt"], "out": "full"}, "full"),
        ({"data": ["story.txt"], "max_steps": 5, "minutes": 1}, "one budget"),
        ({"data": ["story.txt"], "max_steps": 0}, "max_steps 0: a whole number of at least 1"),
        ({"data": ["story.txt"], "preset": "gtp2"}, "gpt2"),
        ({"data": ["story.txt"], "max_steps": 1, "hidden_size": 30, "model_config": {"num_attention_heads": 4}}, "num"),
        ({"data": ["story.txt"], "tokenizer": "nowhere"}, "nowhere"),
        ({"data": []}, "--data"),
        ({"datta": ["story.txt"]}, "data"),
    ],
)
def test_what_the_user_gets_wrong_is_said_in_one_line(settings, words, story, tmp_path):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)) * 40)
    (tmp_path / "rows.csv").write_text("text,label\nsome words,1\nmore words,0\n")
    (tmp_path / "short.txt").write_text("Too short for one window of text.")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("kept")
    with pytest.raises(InputError) as error:
        package.pretrain(**{"max_steps": None, "quiet": True} | settings)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert (tmp_path / "full" / "something").read_text() == "kept"
    assert not list((tmp_path / "runs").glob("*")), "the same command, mended, must find its folder free"


def test_a_full_disk_is_said_and_the_state_before_it_is_whole(story, tmp_path, monkeypatch):
    out, original, calls = tmp_path / "full", checkpoint.save_model, []

    def save_model(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        original(*arguments)

    monkeypatch.setattr(checkpoint, "save_model", save_model)
    with pytest.raises(InputError, match="no space left"):
        package.pretrain(data=[str(story)], out=str(out), max_steps=30, quiet=True, **TINY)
    monkeypatch.undo()
    assert not [path for path in (out / "checkpoints").iterdir() if not path.name.startswith("step-")]
    package.pretrain(out=str(out), resume=True, quiet=True)
    assert load_file(out / "model.safetensors")


def test_being_interrupted_is_told_apart_from_an_error():
    assert not issubclass(Interrupted, InputError)


@pytest.fixture(params=[False, True], ids=["copies", "sharded"])
def sharded(request, monkeypatch):
    """Run processes that each hold the model, then processes that each hold a share of it."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", str(request.param).lower())
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("optimizer, within", [("adamw", 1e-5), ("muon", 1e-3)])
def test_two_processes_give_the_loss_of_one(story, tmp_path, two_processes, optimizer, within, sharded):
    # The sum over ranks rounds otherwise than the sum over rows, and Muon lifts what is left of that in the
    # smallest singular values to the size of the largest.
    fixed = {"max_steps": 20, "precision": "fp32", "optimizer": optimizer} | TINY
    package.pretrain(data=[str(story)], out=str(tmp_path / "one"), quiet=True, **fixed)
    done = two_processes("pretrain", "--data", story, "--out", tmp_path / "two", *options(fixed))
    assert done.returncode == 0, done.stderr
    one, two = (
        [
            json.loads(line)["loss"]
            for line in (tmp_path / name / "log.jsonl").read_text().splitlines()
            if "learn" in line
        ]
        for name in ("one", "two")
    )
    assert two == pytest.approx(one, rel=within)
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["training"].get("sharded", False) is sharded


@pytest.mark.slow
def test_two_processes_say_what_is_wrong_once(tmp_path, two_processes):
    done = two_processes("pretrain", "--data", "nowhere.txt", "--out", tmp_path / "two")
    assert done.returncode != 0
    assert done.stderr.count("nowhere.txt") == 1
    assert "groundup pretrain: no file or folder nowhere.txt" in done.stderr


def killed_after(step, out, *arguments):
    """Start two processes, and kill both without warning once `step` is saved."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "groundup", "pretrain"]
    process = subprocess.Popen(
        [*launch, "--out", str(out), *map(str, arguments)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while process.poll() is None and not (out / "checkpoints" / f"step-{step}").is_dir():
        time.sleep(0.01)
    agent = psutil.Process(process.pid)
    family = [agent, *agent.children(recursive=True)]  # each worker has a session of its own
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    assert not psutil.wait_procs(family, timeout=60)[1]


@pytest.mark.slow
def test_two_killed_processes_resume_with_their_own_dropout_and_one_can_finish_alone(
    story, tmp_path, two_processes, sharded
):
    dropping = [
        "--model-config",
        '{"residual_dropout": 0.2}',
        "--max-steps",
        20,
        "--save-every",
        4,
        "--precision",
        "fp32",
    ]
    begin = ["--data", story, *dropping, *options(TINY)]
    whole = two_processes("pretrain", *begin, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    killed_after(8, tmp_path / "killed", *begin)
    shutil.copytree(tmp_path / "killed", tmp_path / "alone")
    resumed = two_processes("pretrain", "--out", tmp_path / "killed", "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
    package.pretrain(out=str(tmp_path / "alone"), resume=True, quiet=True)
    last = json.loads((tmp_path / "alone" / "metrics.json").read_text())["training"]
    assert (last["steps"], last["processes"]) == (20, 1)


def test_a_smoke_run_scores_a_part_of_the_held_out_text(tmp_path, monkeypatch, story):
    monkeypatch.setattr(pretraining, "SMOKE_TOKENS", 64)
    monkeypatch.setattr(pretraining, "VALIDATION_TOKENS", 128)
    data = {"data": [str(story)], "eval_data": [str(story)], "quiet": True}
    package.pretrain(**data, vocab_size=300, smoke=True, out=str(tmp_path / "short"))
    package.pretrain(**data, **TINY, max_steps=1, out=str(tmp_path / "whole"))
    counts = []
    for name in ("short", "whole"):
        rows = read_metrics(tmp_path / name)["metrics"]
        counts.append({row["split"]: row["count"] for row in rows if row["name"] == "loss" and not row["baseline"]})
    assert counts[0].keys() == {"validation", "test"}
    assert all(counts[0][split] <= 128 < counts[1][split] for split in counts[0])
