"""Which stages of a recipe are kept: only those whose inputs and outputs hold, byte for byte, what they held."""

import os
from types import SimpleNamespace

import pytest

from groundup.cli.recipe import Ledger, read_recipe
from groundup.common.files import content_of

RECIPE = """
name: small
stages:
  base: {verb: pretrain, data: [%s], max_steps: 2}
  scores: {verb: evaluate, model: ["{base}"], data: [%s]}
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Return a folder with data of several forms in it, which is also the home and the working folder."""
    home = tmp_path / "home"
    (home / "folder" / "deep").mkdir(parents=True)
    (home / "folder" / "work").mkdir()  # the user's own, by chance named like one of ours
    for name in ("a.txt", "b.txt", "folder/c.txt", "folder/deep/d.txt", "folder/work/e.txt", "odd [1]?.txt"):
        (home / name).write_text("once upon a time")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    return home


def kept(place, stages):
    ledger = Ledger(place / "out", smoke=False)
    return [stage.name for stage in stages if ledger.is_done(stage)]


def walk(place, data):
    """Return a recipe on `data`, all of whose stages are finished and made something."""
    path = place / "recipe.yaml"
    path.write_text(RECIPE % (f"'{data}'", f"'{data}'"))
    stages = read_recipe(path).stages
    ledger = Ledger(place / "out", smoke=False)
    for stage in stages:
        folder = place / "out" / stage.name
        (folder / "checkpoints" / "step-1").mkdir(parents=True)
        (folder / "checkpoints" / "step-1" / "model.safetensors").write_text("on the way")
        (folder / "model.safetensors").write_text(f"weights of {stage.name}")
        (folder / "metrics.json").write_text("{}")
        ledger.begin(stage)
        ledger.finish(stage, 1.0)
    return stages


def write_alike(path, content):
    """Return other content of the same size under the same time stamp: what `cp -p` and archives leave."""
    before = path.stat()
    path.write_text(content.ljust(before.st_size)[: before.st_size])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    ("data", "file"),
    [
        ("a.txt", "a.txt"),
        ("~/a.txt", "a.txt"),
        ("*.txt", "b.txt"),
        ("~/*.txt", "b.txt"),
        ("folder/**/*.txt", "folder/deep/d.txt"),
        ("folder", "folder/deep/d.txt"),
        ("folder", "folder/work/e.txt"),
        ("~/folder", "folder/c.txt"),
        ("odd [1]?.txt", "odd [1]?.txt"),
    ],
)
def test_a_stage_is_done_again_when_a_byte_of_its_data_changes_however_the_data_is_named(data, file, place):
    stages = walk(place, data)
    assert kept(place, stages) == ["base", "scores"]
    write_alike(place / file, "another text")
    assert kept(place, stages) == []


def test_a_new_file_that_a_pattern_or_a_folder_takes_in_counts(place):
    for data, new in (("*.txt", "c.txt"), ("folder", "folder/new.txt")):
        stages = walk(place, data)
        (place / new).write_text("one more")
        assert kept(place, stages) == []
        (place / new).unlink()
        assert kept(place, stages) == ["base", "scores"]
        (place / "out").rename(place / f"out of {new.replace('/', ' ')}")


@pytest.mark.parametrize("harm", ["a folder gone", "a file gone", "a file changed"])
def test_a_stage_is_done_again_when_what_it_made_is_gone_or_changed(harm, place):
    stages = walk(place, "a.txt")
    folder = place / "out" / "base"
    if harm == "a folder gone":
        folder.rename(place / "elsewhere")
    elif harm == "a file gone":
        (folder / "model.safetensors").unlink()
    else:
        write_alike(folder / "model.safetensors", "others")
    ledger = Ledger(place / "out", smoke=False)
    assert not ledger.is_done(stages[0])
    assert ledger.changed(stages[0]) in ("model.safetensors", "metrics.json")


def test_notes_beside_what_was_made_and_checkpoints_removed_to_save_room_change_nothing(place):
    stages = walk(place, "a.txt")
    (place / "out" / "base" / "notes.txt").write_text("looks good")
    (place / "out" / "base" / "checkpoints" / "step-1" / "model.safetensors").unlink()
    assert kept(place, stages) == ["base", "scores"]


def test_a_stage_hangs_on_what_the_one_before_made_this_time(place):
    stages = walk(place, "a.txt")
    ledger = Ledger(place / "out", smoke=False)
    ledger.begin(stages[0])
    (place / "out" / "base" / "model.safetensors").write_text("trained again, a little otherwise")
    ledger.finish(stages[0], 1.0)
    assert kept(place, stages) == ["base"]


def test_data_that_changes_while_a_stage_runs_is_not_what_it_learnt_from(place):
    stages = walk(place, "a.txt")
    ledger = Ledger(place / "out", smoke=False)
    ledger.begin(stages[0])
    (place / "a.txt").write_text("changed in the middle")
    ledger.finish(stages[0], 1.0)
    assert kept(place, stages) == []


def test_an_adapter_hangs_on_its_base_and_a_task_on_the_files_it_names(place):
    (place / "base").mkdir()
    (place / "base" / "model.safetensors").write_text("weights")
    (place / "adapter").mkdir()
    (place / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "base"}')
    (place / "rows.jsonl").write_text('{"text": "e"}')
    (place / "helper.py").write_text("pass  # here")
    task = "task: mine\ndataset_kwargs: {data_files: {test: rows.jsonl}}\nprocess_docs: !function helper.go\n"
    (place / "mine.yaml").write_text(task)
    path = place / "recipe.yaml"
    path.write_text("stages: {scores: {verb: evaluate, model: [adapter], tasks: [mine.yaml]}}")
    stages = read_recipe(path).stages
    (place / "out").mkdir()
    for file in ("base/model.safetensors", "adapter/adapter_config.json", "rows.jsonl", "helper.py", "mine.yaml"):
        ledger = Ledger(place / "out", smoke=False)
        ledger.begin(stages[0])
        key, known = ledger.key(stages[0]), (place / file).read_text()
        write_alike(place / file, known.replace("e", "E") + " ")
        if file == "adapter/adapter_config.json":
            (place / file).write_text('{"base_model_name_or_path": "base", "r": 8}')
        assert ledger.key(stages[0]) != key, file
        (place / file).write_text(known)
        assert ledger.key(stages[0]) == key


def test_a_name_on_the_hub_hangs_on_the_commit_that_it_stands_for(place, monkeypatch):
    commits = {"model": "1" * 40, "dataset": "2" * 40}
    found = lambda api, name, repo_type, timeout: SimpleNamespace(sha=commits[repo_type])  # noqa: E731
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", found)
    path = place / "recipe.yaml"
    path.write_text("stages: {pretrain: {data: [someone/texts], init_from: someone/model}}")
    (stage,) = read_recipe(path).stages
    for kind in commits:
        key = Ledger(place / "out", smoke=False).key(stage)
        commits[kind] = "3" * 40
        assert Ledger(place / "out", smoke=False).key(stage) != key


def test_a_path_that_begins_with_a_tilde_is_known_by_the_file_that_a_verb_would_read(tmp_path, monkeypatch):
    """In a folder that is called ~ it is the file there, as it is for every verb; else that in the home."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "rows.txt").write_text("at home")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    at_home = content_of("~/rows.txt", "dataset")
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "rows.txt").write_text("here")
    here = content_of("~/rows.txt", "dataset")
    (tmp_path / "~" / "rows.txt").write_text("changed")
    assert len({str(at_home), str(here), str(content_of("~/rows.txt", "dataset"))}) == 3
