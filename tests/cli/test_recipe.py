"""Recipes: which stages are done again, what a dry run says, and the page at the end."""

import contextlib
import json
import os

import pytest

from groundup.cli import run
from groundup.cli.chain_report import write_report
from groundup.cli.main import VERBS, main
from groundup.cli.recipe import Ledger, Stage, read_recipe
from groundup.common.errors import InputError, Interrupted
from groundup.common.options import what_is_read
from groundup.common.output import claim
from groundup.common.settings import hints_of
from groundup.common.verbs import RunSettings
from groundup.data.conversations import Conversation
from groundup.evaluation.instruction import Answer, sample_table

RECIPE = """
name: small
stages:
  tokenizer: {data: [%s]}
  base: {verb: pretrain, data: [%s], tokenizer: "{tokenizer}", minutes: 2}
  scores: {verb: evaluate, model: ["{base}"], data: [%s]}
"""


@pytest.fixture
def recipe(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("once upon a time")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE % (text, text, text))
    return path


def done(ledger, stages):
    return [stage.name for stage in stages if ledger.is_done(stage)]


def finish_all(ledger, stages):
    for stage in stages:
        ledger.begin(stage)
        ledger.finish(stage, 1.0)


def test_the_minutes_of_a_stage_count_from_its_own_beginning(recipe, tmp_path, monkeypatch):
    handed = []
    monkeypatch.setattr(run, "find", lambda _: lambda given, **more: handed.append(more))
    monkeypatch.setattr("groundup.cli.chain_report.show", lambda *_: None)
    run.run(RunSettings(recipe=str(recipe), out=str(tmp_path / "out"), quiet=True))
    assert handed == [{}] * 3  # no deadline of the whole: that of a stage begins with its call


def test_only_what_depends_on_a_change_is_done_again(recipe, tmp_path):
    stages = read_recipe(recipe).stages
    ledger = Ledger(tmp_path, smoke=False)
    assert done(ledger, stages) == []
    finish_all(ledger, stages)
    assert done(Ledger(tmp_path, smoke=False), stages) == ["tokenizer", "base", "scores"]
    assert done(Ledger(tmp_path, smoke=True), stages) == []

    recipe.write_text(recipe.read_text().replace("minutes: 2", "minutes: 3"))
    changed = read_recipe(recipe).stages
    again = Ledger(tmp_path, smoke=False)
    assert done(again, changed) == ["tokenizer", "scores"]  # scores hang on the base that is there, until it is redone
    again.begin(changed[1])
    assert done(again, changed) == ["tokenizer"]

    finish_all(again, changed)
    (tmp_path / "text.txt").write_text("another text altogether")
    assert done(again, changed) == []


def test_a_stage_that_was_begun_goes_on_only_with_the_same_settings(recipe, tmp_path):
    stages = read_recipe(recipe).stages
    ledger = Ledger(tmp_path, smoke=False)
    ledger.begin(stages[0])
    assert Ledger(tmp_path, smoke=False).has_begun(stages[0])
    recipe.write_text(recipe.read_text().replace("tokenizer: {", "tokenizer: {vocab_size: 300, "))
    assert not ledger.has_begun(read_recipe(recipe).stages[0])


def test_a_dry_run_says_what_would_be_done_and_does_nothing(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["run", str(recipe), "--dry-run", "--out", str(out)]) == 0
    lines = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert ["base", "pretrain", "to", "do", "2", "minutes"] in lines
    assert not out.exists()
    out.mkdir()
    stages = read_recipe(recipe).stages
    finish_all(Ledger(out, smoke=False), stages[:1])
    assert main(["run", str(recipe), "--dry-run", "--out", str(out)]) == 0
    assert "skipped: nothing has changed" in capsys.readouterr().err


def test_the_report_is_one_file_that_names_every_stage_and_loads_nothing(recipe, tmp_path):
    made = read_recipe(recipe)
    ledger = Ledger(tmp_path, smoke=False)
    finish_all(ledger, made.stages)
    page = write_report(made, tmp_path, ledger, [("<b>", "goes & on", 0)]).read_text()
    for words in ("groundup pretrain", "from tokenizer", "&lt;b&gt;", "goes &amp; on"):
        assert words in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_the_report_shows_mistakes_and_answers_as_they_are(recipe, tmp_path):
    made = read_recipe(recipe)
    (tmp_path / "base").mkdir()
    mistake = {"label": "a<b", "predicted": "c", "probability": 0.9, "text": "so <sure>"}
    (tmp_path / "base" / "mistakes.jsonl").write_text(json.dumps(mistake) + "\n")
    asked = Conversation([{"role": "user", "content": "a | b?"}, {"role": "assistant", "content": "yes"}])
    samples = sample_table([asked], [Answer("no", True)], [Answer("ye", False)])
    (tmp_path / "base" / "samples.md").write_text(samples)
    page = write_report(made, tmp_path, Ledger(tmp_path, smoke=False), []).read_text()
    assert "<td>a&lt;b</td><td>c</td><td>90%</td><td>so &lt;sure&gt;</td>" in page
    assert "<td>a | b?</td><td>yes</td><td>no</td><td>ye …</td>" in page


@pytest.mark.parametrize("verb", ["run", "generate", "chat", "playground", "serve", "doctor", "completion"])
def test_what_leaves_no_folder_is_no_stage(verb, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"stages: {{{verb}: {{}}}}")
    with pytest.raises(InputError, match=rf"recipe\.yaml, stage {verb}: {verb} leaves no folder and cannot be a stage"):
        read_recipe(path)


def test_a_stage_without_settings_of_its_own_must_not_be_a_word(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("stages: {tokenizer: five}")
    with pytest.raises(InputError, match="must hold settings"):
        read_recipe(path)


@pytest.mark.parametrize("name", ["report.html", "STAGES.json", "Base", "b\u00e4r"])
def test_a_stage_shares_its_name_with_no_file_of_the_run_and_no_other_stage_whatever_the_disk(name, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(f"stages: {{base: {{verb: plan}}, ba\u0308r: {{verb: plan}}, {name}: {{verb: plan}}}}")
    with pytest.raises(InputError, match=r"almost the same name|cannot name a folder"):
        read_recipe(path)


READ = {
    "data": "dataset", "eval_data": "dataset", "train_data": "dataset", "predict": "dataset", "tasks": "file",
    "prompts": "file",
    **dict.fromkeys(["model", "init_from", "tokenizer", "compare_tokenizer"], "model"),
    **dict.fromkeys(["checkpoint", "adapter", "base", "source"], "model"),
}  # fmt: skip


def test_of_a_stage_only_what_it_reads_is_looked_up(recipe, tmp_path, monkeypatch):
    for name, verb in VERBS.items():
        hints = hints_of(verb.settings)
        assert {option: what_is_read(hint) for option, hint in hints.items()} == {o: READ.get(o) for o in hints}, name
    seen = []
    monkeypatch.setattr("groundup.cli.recipe.content_of", lambda name, kind="file": seen.append((name, kind)))
    options = {
        "data": ["x.txt"],
        "text_column": "/",
        "label_column": "..",
        "push_to": "/",
        "model": "m",
        "predict": "p",
    }
    key = Ledger(tmp_path, smoke=False).key(Stage("labels", "classify", options))
    assert seen == [("x.txt", "dataset"), ("m", "model"), ("p", "dataset")]
    assert key != Ledger(tmp_path, smoke=False).key(Stage("labels", "classify", options | {"text_column": "."}))


def test_a_damaged_record_of_the_stages_is_said_and_nothing_is_touched(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "stages.json").write_text('{"tokenizer": {"key')
    for more in ([], ["--dry-run"]):
        assert main(["run", str(recipe), "--out", str(out), *more]) == 2
        said = capsys.readouterr().err
        assert f"{out / 'stages.json'} is damaged (" in said and said.count("\n") == 1
    assert [path.name for path in out.iterdir()] == ["stages.json"]


def test_what_a_stage_made_before_is_moved_aside_and_it_is_said(recipe, tmp_path, monkeypatch, capsys):
    stage, out = read_recipe(recipe).stages[0], tmp_path / "out"
    (out / "tokenizer").mkdir(parents=True)
    (out / "tokenizer" / "tokenizer.json").write_text("of before")
    Ledger(out, smoke=False).begin(stage)
    (tmp_path / "text.txt").write_text("another text altogether")
    monkeypatch.setattr(run, "find", lambda _: lambda given: None)
    run._do(stage, out, Ledger(out, smoke=False), RunSettings(recipe="x"))
    aside = out / "tokenizer.old-1"
    assert (aside / "tokenizer.json").read_text() == "of before"
    assert f"what it made before is in {aside} now" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("when", ["before", "meanwhile", "meanwhile, and it has ended"])
def test_a_stage_that_somebody_runs_by_hand_stops_the_chain_and_is_left_alone(
    when, recipe, tmp_path, monkeypatch, capsys
):
    out, find, done = tmp_path / "out", run.find, []
    with contextlib.ExitStack() as held:

        def by_hand():
            folder = held.enter_context(claim(out / "base", "pretrain", "x")).path
            (folder / "notes").write_text("theirs")
            if when.endswith("ended"):
                held.close()

        def do(settings):
            done.append(settings.out)
            by_hand()

        if when == "before":
            by_hand()
        monkeypatch.setattr(run, "find", lambda path: find(path) if "ettings" in path else do)
        for _ in range(2):
            assert main(["run", str(recipe), "--out", str(out)]) == 2
            said = capsys.readouterr().err
            reasons = ("is in use by another command", "base exists, but no stage made it", "did not write")
            assert any(reason in said for reason in reasons) and said.count("\n") == 1 + 2 * ("[1/3]" in said)
    assert len(done) == (when != "before")
    assert [path.name for path in (out / "base").iterdir()] == ["notes"]
    assert "base" not in json.loads((out / "stages.json").read_text()) if done else not (out / "stages.json").exists()


@pytest.mark.parametrize("what", ["stopped", "a full disk in a stage", "a full disk in the chain"])
def test_how_to_go_on_is_said_in_the_words_of_the_command_that_was_given(what, recipe, tmp_path, monkeypatch, capsys):
    def stage(settings):
        if what == "stopped":
            raise Interrupted("stopped, and the state is saved: resume with --resume")
        with claim(settings.out, "pretrain", "x", resume=False):
            raise OSError(28, os.strerror(28))

    def no_room(*_):
        raise OSError(28, os.strerror(28))

    find = run.find
    monkeypatch.setattr(run, "find", lambda path: find(path) if "ettings" in path else stage)
    if what.endswith("chain"):
        monkeypatch.setattr(Ledger, "begin", no_room)
    assert main(["run", str(recipe), "--out", str(tmp_path / "out"), "--quiet"]) == (130 if what == "stopped" else 2)
    said = capsys.readouterr().err
    assert "give the command again" in said and "--resume" not in said and said.count("\n") == 1
