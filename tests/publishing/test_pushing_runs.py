"""`--push-every` and `--push-to`: a run that sends its checkpoints to the Hub while it trains."""

import json

import pytest
import yaml

from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.common.verbs import PushOptions
from groundup.publishing import pushing
from groundup.publishing.pushing import Pusher, push_target
from groundup.training.checkpoint import RunFolder
from groundup.training.classification import classify
from groundup.training.pretraining import pretrain
from groundup.training.run import pusher_of
from groundup.training.settings import ClassifySettings, InstructSettings

LICENSED = {"push_license": "apache-2.0"}
TINY = ("--vocab-size", 300, "--hidden-size", 32, "--num-hidden-layers", 2, "--context-length", 32)
SHORT = (*TINY, "--batch-tokens", 256, "--max-steps", 11)


@pytest.fixture
def run(elsewhere, story):
    """Pretrain for eleven steps in a process with an empty home that knows the hub."""

    def run(out, *options, **more):
        return elsewhere("-m", "groundup", "pretrain", "--data", story, "--out", out, *SHORT, *options, **more)

    return run


WRONG = {
    "no place": (PushOptions(push_every=5), "add --push-to OWNER/NAME"),
    "no licence": (PushOptions(push_to="alice/x"), "add --push-license"),
    "no name of a licence": (PushOptions(push_to="alice/x", push_license="all mine"), "add --push-license"),
    "no name of a repository": (PushOptions(push_to="x", **LICENSED), "give OWNER/NAME"),
    "no name of a branch": (PushOptions(push_to="alice/x", push_branch="a b", **LICENSED), "no name that git takes"),
    "a licence for nothing": (PushOptions(**LICENSED), "--push-license has no repository to push to: add --push-to"),
    "private, but nowhere": (
        PushOptions(push_private=True),
        "--push-private has no repository to push to: add --push-to",
    ),
    "a branch of nothing": (PushOptions(push_branch="x"), "--push-branch has no repository to push to: add --push-to"),
    "a base that is a folder": (
        PushOptions(push_to="alice/x", push_base_model="runs/pretrain-x/y", **LICENSED),
        "--push-base-model runs/pretrain-x/y is no name on the Hub",
    ),
    "steps that are not saved": (PushOptions(push_to="alice/x", push_every=3, **LICENSED), "multiple of --save-every"),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_do_not_go_together_are_said(name, monkeypatch, hub):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    options, words = WRONG[name]
    with pytest.raises(InputError, match=words):
        push_target(options, save_every=2)


def test_what_cannot_be_pushed_is_said_before_anything_is_done(monkeypatch, tmp_path, story):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "none"))
    for train, options in ((pretrain, {}), (classify, {"seeds": 2})):
        with pytest.raises(InputError, match="no token" if train is pretrain else "publish the one that is kept"):
            train(data=[str(story)], out=str(tmp_path / "out"), push_to="alice/x", **LICENSED, **options)
        assert not (tmp_path / "out").exists()


def test_an_adapter_of_a_folder_needs_the_name_that_its_base_has_on_the_hub(monkeypatch, hub, tmp_path, story):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    options = {"push_to": "alice/x", "lora": True, "init_from": str(tmp_path), **LICENSED}
    with pytest.raises(InputError, match="add --push-base-model OWNER/NAME"):
        pretrain(data=[str(story)], out=str(tmp_path / "out"), **options)
    assert not (tmp_path / "out").exists()
    given = PushOptions(push_to="alice/x", push_base_model="alice/base", **LICENSED)
    assert push_target(given, adapted=str(tmp_path)).repo_id == "alice/x"
    assert Pusher(given).additions["base_model"] == "alice/base"


@pytest.mark.parametrize("trusts", [True, False])
def test_the_gate_of_a_run_trusts_code_as_the_run_does(trusts, monkeypatch, hub, tmp_path):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    asked = []

    def gate(*_, trust_remote_code, **__):
        asked.append(trust_remote_code)
        raise InputError("enough")

    monkeypatch.setattr(pushing, "through_the_gate", gate)
    for settings in (InstructSettings, ClassifySettings):
        pusher = pusher_of(settings(push_to="alice/x", push_every=1, trust_remote_code=trusts, **LICENSED))
        pusher.after_save(tmp_path, 1)
        pusher.after_the_end(tmp_path)
    assert asked == [trusts] * 4


@pytest.mark.slow
def test_a_run_pushes_what_it_saves_and_its_end_and_trains_the_same_weights(run, hub, repo_id, tmp_path):
    options = ("--push-to", repo_id, "--push-every", 6, "--push-license", "mit", "--push-branch", "run")
    done = run(tmp_path / "pushed", *options)
    assert "step 6 is published" in done.stderr and hub.token not in done.stderr + done.stdout
    state = hub.state(repo_id)
    titles, sha = [], state["heads"]["run"]
    while sha:
        titles.append(state["commits"][sha]["title"])
        sha = state["commits"][sha]["parent"]
    assert titles == ["the finished run", "step 6", "initial commit"]
    files = hub.files(repo_id, "run")
    assert set(hub.files(repo_id)) == {".gitattributes"} and "license: mit" in files["README.md"].decode()
    assert json.loads(files["metrics.json"])["metrics"] and "state" not in str(set(files))
    run(tmp_path / "alone", "--save-every", 6)
    weights = [sha256_of(tmp_path / name / "model.safetensors") for name in ("pushed", "alone")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_hub_that_fails_does_not_end_a_run(run, publish, hub, repo_id, tmp_path):
    hub.fail({"path": "/api/", "do": "status", "status": 403, "times": 99})
    done = run(tmp_path / "out", "--push-to", repo_id, "--push-license", "mit")
    assert "the finished run was not published, and the run continues: your token may not write" in done.stderr
    assert (tmp_path / "out" / "metrics.json").is_file() and hub.state(repo_id) is None
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["settings"]["push_to"] == repo_id
    hub.fail()
    publish(tmp_path / "out", repo_id)
    assert "model.safetensors" in hub.files(repo_id)


@pytest.mark.parametrize("cut", ["step 6", "the finished run"])
def test_a_push_that_was_cut_off_is_made_when_the_run_goes_on(cut, monkeypatch, hub, story, tmp_path):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    tried, made = [], []

    def push(pusher, folder, name):
        assert (folder / "model.safetensors").is_file()
        tried.append(name)
        if tried == [*made, cut]:
            raise KeyboardInterrupt
        made.append(name)

    monkeypatch.setattr(Pusher, "_push", push)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "context_length": 32, "batch_tokens": 256}
    options = {"push_to": "alice/x", "push_every": 6, **LICENSED}
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(RunFolder, "promote", lambda _: None)  # a killed process comes to nothing more
        pretrain(data=[str(story)], out=str(tmp_path / "out"), max_steps=11, quiet=True, **sizes, **options)
    for _ in range(2):
        pretrain(out=str(tmp_path / "out"), resume=True, quiet=True)
    assert made == ["step 6", "the finished run"]
    assert (tmp_path / "out" / "metrics.json").is_file() and not (tmp_path / "out" / "work").exists()


def test_a_last_push_that_is_stopped_says_so_and_leaves_the_run_whole(monkeypatch, hub, story, tmp_path, capsys):
    monkeypatch.setenv("HF_TOKEN", hub.token)

    def gate(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(pushing, "through_the_gate", gate)
    options = {"push_to": "alice/x", **LICENSED}
    with pytest.raises(KeyboardInterrupt):
        pretrain(data=[str(story)], out=str(tmp_path / "out"), smoke=True, max_steps=1, **options)
    assert "the finished run was not published: stopped" in capsys.readouterr().err
    assert (tmp_path / "out" / "metrics.json").is_file() and not (tmp_path / "out" / "work").exists()
