"""What every verb does with a folder that is not its own, and what is left of a command that fails."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import groundup as package
from groundup.cli.main import main
from groundup.common.output import claim

RESUMED = {
    "pretrain": ["pretrain", "--data", "{data}", "--smoke"],
    "classify": ["classify", "--data", "{data}", "--smoke"],
    "several seeds": ["classify", "--data", "{data}", "--smoke", "--seeds", "2"],
    "averaged": ["classify", "--data", "{data}", "--smoke", "--average", "2"],
    "instruct": ["instruct", "--data", "{data}", "--smoke"],
    "prepare": ["prepare", "--data", "{data}", "--tokenizer", "{data}"],
    "evaluate": ["evaluate", "--model", "{data}", "--data", "{data}", "--smoke"],
}
VERBS = RESUMED | {
    "labels alone": ["classify", "--predict", "{data}", "--model", "{data}"],
    "tokenizer": ["tokenizer", "--data", "{data}"],
    "merge": ["merge", "{data}"],
    "import": ["import", "{data}"],
    "export": ["export", "{data}", "--to", "qwen3"],
    "gguf": ["export", "{data}", "--to", "gguf"],
    "run": ["run", "{recipe}"],
}
LABELLED = "text,label\n" + "".join(f"{number} cat,a\n{number} house,b\n" for number in range(40))


def contents(folder):
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [folder, *folder.rglob("*")]
    }


@pytest.fixture
def foreign(tmp_path):
    """Return somebody's folder, with the names that runs of ours use."""
    folder = tmp_path / "myproject"
    names = ["work/notes", "final/thesis.tex", "checkpoints/step-3/x", "checkpoints/mine", "seed-0/x", "tokenizer/x"]
    names += ["train/x", "validation/x", "pretrain/x", "README.md", "metrics.json", "log.jsonl", "model.safetensors"]
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("theirs")
    (folder / "recipe.yaml").write_text("verb: bake\nsettings: [flour, water]\n")
    (folder / "stages.json").write_text(json.dumps({"pretrain": "theirs"}))
    return folder


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Do a verb in an empty place, with data that are missing, broken or good; returns the exit status."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken").write_bytes(b"\x80\x81" * 20)
    (tmp_path / "good.csv").write_text(LABELLED)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def do(verb, data, out, *more):
        recipe = {"name": "r", "stages": {"pretrain": {"data": [data]}}}
        (tmp_path / "recipe_given.yaml").write_text(yaml.safe_dump(recipe))
        words = [word.format(data=data, recipe="recipe_given.yaml") for word in VERBS[verb]]
        return main([*words, "--out", str(out), *more, *([] if "--resume" in more else ["--quiet"])])

    return do


@pytest.mark.parametrize("data", ["missing", "good.csv"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_folder_of_somebody_else_is_refused_and_stays_as_it_was(verb, data, foreign, given, capsys):
    before = contents(foreign)
    for more in [[], ["--resume"]] if verb in RESUMED else [[]]:
        assert given(verb, data, foreign, *more) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert contents(foreign) == before


@pytest.mark.parametrize("verb", VERBS)
def test_beside_a_command_at_work_no_other_verb_touches_its_folder(verb, given, tmp_path, capsys):
    with claim(tmp_path / "out", "pretrain", "x") as output:
        (output.path / "work").mkdir()
        (output.path / "work" / "notes").write_text("half done")
        before = contents(output.path)
        for more in [[], ["--resume"]] if verb in RESUMED else [[]]:
            assert given(verb, "good.csv", output.path, *more) == 2
            assert len(capsys.readouterr().err.splitlines()) == 1
            assert contents(output.path) == before


@pytest.mark.parametrize("verb", VERBS)
def test_a_command_that_fails_leaves_no_folder_and_takes_none(verb, foreign, given, tmp_path):
    (tmp_path / "empty").mkdir()
    given(verb, "missing", tmp_path / "x")  # writes the recipe
    before = contents(tmp_path)
    for data in ("missing", "broken"):
        for out in (foreign / "new" / "er", tmp_path / "empty", tmp_path / "a" / "b"):
            for more in [[], ["--resume"]] if verb in RESUMED else [[]]:
                assert given(verb, data, out, *more) == 2, (data, out, more)
    after = contents(tmp_path)
    assert {name for name in after if "recipe_given" not in name} == {n for n in before if "recipe_given" not in n}
    assert all(after[name][1] == before[name][1] for name in after if "recipe_given" not in name)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("pretrain", ["--context-length", "100000"]),  # found out when the text has become tokens
        ("pretrain", ["--track", "no-such-tracker"]),
        ("classify", ["--text-column", "none"]),
        ("several seeds", ["--text-column", "none"]),
        ("instruct", ["--split", "[0.9,0.0,0.1]"]),
    ],
)
def test_a_command_that_fails_late_leaves_nothing_either(verb, options, given, tmp_path):
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b"):
        for more in ([], ["--resume"]):
            assert given(verb, "good.csv", out, *options, *more) == 2
    assert not (tmp_path / "a").exists() and not list((tmp_path / "empty").iterdir())


@pytest.mark.parametrize(
    "words", [["pretrain"], ["classify"], ["classify", "--seeds", "2"], ["instruct"], ["evaluate"]]
)
def test_resuming_where_there_is_nothing_says_so_and_names_the_folder(words, tmp_path, capsys):
    assert main([*words, "--out", str(tmp_path / "none"), "--resume"]) == 2
    assert f"groundup {words[0]}: {tmp_path / 'none'} holds nothing to resume" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_labelling_goes_on_where_nothing_has_begun_and_no_run_is_sought_beside_labels(tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("a\n")
    words = ["classify", "--predict", str(tmp_path / "texts.txt"), "--out", str(tmp_path / "out"), "--resume"]
    assert main([*words, "--model", str(tmp_path)]) == 2
    assert "--data" not in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "recipe.yaml").write_text("verb: classify\nsettings: {}\n")
    assert main([*words, "--model", str(tmp_path)]) == 2
    assert "holds no run to resume: its work/ is missing" in capsys.readouterr().err


def test_a_chain_moves_no_folder_that_no_stage_of_it_made(given, tmp_path, capsys):
    chain = tmp_path / "chain"
    (chain / "pretrain").mkdir(parents=True)
    (chain / "pretrain" / "mine").write_text("theirs")
    (chain / "stages.json").write_text(json.dumps({"tokenizer": {"begun": "x"}}))
    before = contents(chain / "pretrain")
    assert given("run", "good.csv", chain) == 2
    assert "no stage made it" in capsys.readouterr().err
    assert contents(chain / "pretrain") == before
    assert {path.name for path in chain.iterdir()} == {"pretrain", "stages.json"}


@pytest.mark.parametrize("verb", ["tokenizer", "prepare"])
def test_what_succeeds_beside_things_of_somebody_else_touches_only_its_own(verb, foreign, story, given, tmp_path):
    package.train_tokenizer(data=[str(story)], vocab_size=300, out=str(tmp_path / "tokens"), quiet=True)
    before = contents(foreign)
    out = foreign / "ours"
    options = {"tokenizer": str(tmp_path / "tokens")} if verb == "prepare" else {}
    function = package.train_tokenizer if verb == "tokenizer" else package.prepare
    function(data=[str(story)], out=str(out), quiet=True, **options)
    after = {name: value for name, value in contents(foreign).items() if not name.startswith("ours") and name != "."}
    assert after == {name: value for name, value in before.items() if name != "."}
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("way", [".", "link", "link to a link"])
@pytest.mark.parametrize("verb", ["tokenizer", "prepare", "export"])
def test_a_verb_fills_an_empty_folder_however_it_is_named(verb, way, pretrained, story, tmp_path, monkeypatch):
    place = tmp_path / "place"
    place.mkdir()
    (tmp_path / "link").symlink_to(place)
    (tmp_path / "link to a link").symlink_to("link")
    beside = {path.name for path in tmp_path.iterdir()}
    words = [word.format(data=pretrained if verb == "export" else story) for word in VERBS[verb]]
    if verb == "prepare":
        words[-1] = str(pretrained)  # whose tokenizer it takes
    out = tmp_path / way
    if way == ".":
        monkeypatch.chdir(place)
        out = "."
    assert main([*words, "--out", str(out), "--quiet"]) == 0
    assert list(place.iterdir()) and {path.name for path in tmp_path.iterdir()} == beside


def start(*words, cwd):
    return subprocess.Popen(
        [sys.executable, "-m", "groundup", *map(str, words)], cwd=cwd, stderr=subprocess.PIPE, text=True
    )


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)


@pytest.mark.slow
def test_beside_a_live_run_no_command_begins_and_a_killed_one_goes_on(story, tmp_path):
    base = ["pretrain", "--data", story, "--out", "out", "--preset", "nano", "--save-every", "5", "--quiet"]
    live = start(*base, "--max-steps", "4000", cwd=tmp_path)
    wait_for(tmp_path / "out" / "checkpoints", live)
    for words in (["pretrain", "--out", "out", "--resume"], base, ["classify", "--out", "out", "--resume"]):
        second = start(*words, cwd=tmp_path)
        _, said = second.communicate(timeout=120)
        assert second.returncode == 2 and f"`groundup pretrain`, process {live.pid}" in said
    live.send_signal(signal.SIGKILL)
    live.wait()
    third = start("pretrain", "--out", "out", "--resume", cwd=tmp_path)
    log = tmp_path / "out" / "log.jsonl"
    while '"resume"' not in log.read_text():
        assert third.poll() is None, third.stderr.read()
        time.sleep(0.1)
    third.send_signal(signal.SIGINT)
    third.communicate(timeout=120)
    assert third.returncode == 130
    assert not (tmp_path / "out" / ".groundup").exists()
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    since = next(number for number, row in enumerate(rows) if row.get("event") == "resume")
    steps = [row["step"] for row in rows[since:] if "loss" in row or "event" in row]
    assert steps == sorted(steps)  # one process alone wrote it


@pytest.mark.slow
def test_two_tokenizers_two_parts_and_two_chains_at_once(story, tmp_path):
    both = [start("tokenizer", "--data", story, "--quiet", cwd=tmp_path) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    found = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert found == ["tokenizer-story", "tokenizer-story-1"]
    assert all((tmp_path / "runs" / name / "recipe.yaml").is_file() for name in found)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": line}) + "\n" for line in Path(story).read_text().splitlines()))
    words = ["prepare", "--data", rows, "--tokenizer", "runs/tokenizer-story", "--out", "parts", "--quiet", "--part"]
    both = [start(*words, f"{number}/2", cwd=tmp_path) for number in (1, 2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert len(list((tmp_path / "parts").iterdir())) == 2
    recipe = {"name": "r", "stages": {"pretrain": {"data": [str(story)], "preset": "nano", "max_steps": 4000}}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    live = start("run", "recipe.yaml", "--out", "chain", "--quiet", cwd=tmp_path)
    wait_for(tmp_path / "chain" / "pretrain" / "log.jsonl", live)
    for out in ("chain", tmp_path / "chain" / ".." / "chain"):
        second = start("run", "recipe.yaml", "--out", out, cwd=tmp_path)
        _, said = second.communicate(timeout=120)
        assert second.returncode == 2 and f"`groundup run`, process {live.pid}" in said
    assert sorted(path.name for path in (tmp_path / "chain").iterdir()) == [".groundup", "pretrain", "stages.json"]
    live.send_signal(signal.SIGKILL)
    live.wait()
