"""Drawn commands, recipes and Python calls: each ends in words and a status, and changes no file that it did not make.

Training ends as by Ctrl-C before its first step, which leaves all that comes before it: reading, checking, preparing,
keeping. What would send, ask or wait does nothing. All else is as it is.
"""

import hashlib
import json
import shutil
import traceback
from collections import Counter
from pathlib import Path
from random import Random

import pytest
import yaml

import groundup
import groundup.cli.playground
import groundup.cli.serve
import groundup.evaluation.evaluating
import groundup.hub_upload
import groundup.training.forecast
import groundup.training.plan
import groundup.training.run
from groundup.cli.main import VERBS, main
from groundup.common.errors import InputError, Interrupted
from groundup.common.settings import hints_of, parts_of

CASES, SMOKE_CASES = 1200, 24
PYTHON = ("train_tokenizer", "pretrain", "classify", "instruct", "evaluate", "import_model", "export")
VERB_OF = {"train_tokenizer": "tokenizer", "import_model": "import"}
# What a person may give where something else is wanted; but "/", which is read as what it is: the whole machine.
ODD = [
    "", " ", "nan", "inf", "-1", "0", "1.5", "1e3", "-0.5", "2147483648", "9" * 40, "true", "null", "none", "~", "[]",
    "{}", "[1, 2]", "{a: b}", "{1: 2}", "a\nb", "für Größe", "😀", "x" * 300, "-", "--", "-x", ".", "*", "?",
    "[", "]", "{", "}", "{x}", "{base}", "%s", "$HOME", "~nobody-of-that-name/x", "a//b", "adam", "fp16", "gpt3", "\t",
]  # fmt: skip
ODD_VALUES = [None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1.5, 2.0, float("nan"), float("inf"), 10**30, [], {}, [None]]
ODD_VALUES += [["x", 3], {"a": 1}, {1: 2}, [[]], "a\0b", "\ud800", ("a",), Path("text.txt"), [1.5], [True], b"x"]


@pytest.fixture
def sandbox(folders, story_text, tmp_path, monkeypatch):
    """Return somebody's folder: texts, tables, models, settings, and a folder that looks like a run but is none."""
    home = tmp_path / "sandbox"
    home.mkdir()
    (home / "text.txt").write_text(story_text[:6000], encoding="utf-8")
    (home / "[v2] text*.txt").write_text(story_text[:6000], encoding="utf-8")
    (home / "empty.txt").write_text("")
    (home / "bytes.txt").write_bytes(bytes(range(256)) * 4)
    rows = [(f"{'win a prize' if n % 2 else 'call me later'} {n}", "spam" if n % 2 else "ham") for n in range(80)]
    (home / "rows.csv").write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows))
    asked = [{"prompt": f"What is {n}?", "completion": f"It is {n + 1}."} for n in range(60)]
    (home / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for name in ("pretrained", "taught"):
        shutil.copytree(folders / name, home / name)
    mine = home / "mine"
    (mine / "work").mkdir(parents=True)
    (mine / "work" / "notes.txt").write_text("a year of work")
    (mine / "README.md").write_text("# Mine")
    (mine / "recipe.yaml").write_text("cake: 3 eggs")
    (home / "settings.yaml").write_text("max_steps: 2\nquiet: true\n")
    (home / "recipe.yaml").write_text("stages: {tokenizer: {data: text.txt, vocab_size: 300}}\n")
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.fixture
def stopped(monkeypatch):
    """End training and measuring at once; send nothing, ask nothing, wait for nothing."""

    def stop(*_, **__):
        raise Interrupted("stopped")

    def end(*_):
        raise EOFError

    monkeypatch.setattr(groundup.training.run.TrainingRun, "run", stop)
    monkeypatch.setattr(groundup.evaluation.evaluating.Evaluation, "measure", stop)
    monkeypatch.setattr(groundup.hub_upload, "through_the_gate", stop)
    monkeypatch.setattr(groundup.cli.playground, "load_player", stop)
    for name in ("Engine", "cached_file", "cached_twin"):
        monkeypatch.setattr(groundup.cli.serve, name, stop)
    for module in (groundup.training.plan, groundup.training.forecast):
        monkeypatch.setattr(module, "measure_flops", lambda *_: 1e11)
    monkeypatch.setattr("builtins.input", end)


def files_under(folder):
    """Return the hash of every file, and every folder and link, as it is."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def sensible(chance, name, hint):
    """Return a value that may well do."""
    kind, inner, _ = parts_of(hint)
    usual = {
        "data": ["text.txt", "rows.csv", "asked.jsonl", "pretrained", "empty.txt", "bytes.txt", "*.txt",
                 "[v2] text*.txt"],
        "out": ["new", "new/deep", "mine", ".", "text.txt", "pretrained", "text.txt/x", "~/x"],
        "checkpoint": ["pretrained", "mine", "nowhere"],
        "recipe": ["recipe.yaml", "python_docs", "settings.yaml", "mine"],
        "vocab_size": [300], "hidden_size": [32], "num_hidden_layers": [1], "context_length": [16, 32],
        "max_new_tokens": [3], "seeds": [2], "average": [2], "max_steps": [2], "prompt": ["The cat"],
        "port": [7999], "samples": [0, 1], "predict": ["text.txt", "rows.csv"], "push_to": ["me/it"],
    }  # fmt: skip
    models = ("model", "init_from", "tokenizer", "adapter", "source", "base", "compare_tokenizer")
    if name in usual:
        return chance.choice(usual[name])
    if name in models:
        return chance.choice(["pretrained", "taught", "mine", "nowhere/at-all", "text.txt"])
    if name.endswith("data"):
        return chance.choice(usual["data"])
    if inner and kind is not list and kind is not dict:
        return chance.choice(inner)
    return {int: 2, float: 0.5, bool: True, str: "text", dict: {"qk_norm": False}}.get(
        kind, chance.choice(usual["data"])
    )


def draw(chance, settings_class, odd):
    """Return some settings with values, most of them sensible."""
    hints = hints_of(settings_class)
    wanted = [name for name in ("data", "model", "out", "recipe", "checkpoint", "source", "adapter") if name in hints]
    names = {name for name in wanted if chance.random() < 0.8}
    names |= set(chance.sample(sorted(hints), min(len(hints), chance.randrange(4))))
    names -= {"space", "with_twin"} if chance.random() < 0.7 else set()
    strange = {name for name in sorted(names) if odd and chance.random() < 0.25}
    return {
        name: chance.choice(odd) if name in strange else sensible(chance, name, hints[name]) for name in sorted(names)
    }


def typed(chance, verb, options):
    words = [verb]
    for name, value in options.items():
        option = "--" + name.replace("_", chance.choice("-_"))
        text = json.dumps(value) if isinstance(value, dict) else str(value)
        words += [f"{option}={text}"] if chance.random() < 0.5 else [option, text]
    if chance.random() < 0.05:
        words.insert(chance.randrange(len(words) + 1), chance.choice([*ODD, "--config", "--help", "stray"]))
    return words


def by_command(chance, home):
    """Return a command line, perhaps with a file of settings."""
    verb = chance.choice(list(VERBS))
    words = typed(chance, verb, draw(chance, VERBS[verb].settings, ODD))
    if chance.random() < 0.2:
        options = draw(chance, VERBS[verb].settings, ODD + ODD_VALUES[:20])
        text = yaml.safe_dump(options, allow_unicode=True)
        (home / "drawn.yaml").write_text(text if chance.random() < 0.9 else mangled(chance, text), encoding="utf-8")
        words += ["--config", "drawn.yaml"]
    return words, lambda: main(words)


def by_recipe(chance, home):
    """Return a recipe of one to three stages."""
    stages = {}
    for _ in range(chance.randrange(1, 4)):
        verb = chance.choice(
            ["tokenizer", "prepare", "pretrain", "classify", "instruct", "evaluate", "export", "merge"]
        )
        name = chance.choice([verb, verb, "base", "../up", "", "a b"])
        options = draw(chance, VERBS[verb].settings, ODD + ODD_VALUES[:20])
        if chance.random() < 0.8:
            options = {key: value for key, value in options.items() if key not in ("out", "resume", "smoke", "quiet")}
        stages[name] = options | ({"verb": verb} if name != verb else {})
    text = yaml.safe_dump({"stages": stages}, allow_unicode=True)
    (home / "drawn.yaml").write_text(text if chance.random() < 0.9 else mangled(chance, text), encoding="utf-8")
    words = ["run", "drawn.yaml", "--out", chance.choice(["runs/x", "mine", "new", "."])]
    words += chance.choice([[], ["--smoke"], ["--dry-run"]])
    return (words, text), lambda: main(words)


def by_python(chance, home):
    """Return a call of a public function, with keywords or with settings."""
    name = chance.choice(PYTHON)
    settings_class = VERBS[VERB_OF.get(name, name)].settings
    options = draw(chance, settings_class, ODD + ODD_VALUES)

    def call():
        try:
            given = settings_class(**options) if chance.random() < 0.5 else None
            getattr(groundup, name)(*([] if given is None else [given]), **(options if given is None else {}))
        except InputError as error:
            assert "\n" not in str(error).strip(), f"more than one line: {error}"
            return 2
        except (Interrupted, KeyboardInterrupt):
            return 130
        return 0

    return (name, options), call


def mangled(chance, text):
    """Return a text with a few characters replaced, left out or doubled."""
    letters = list(text)
    for _ in range(chance.randrange(1, 4)):
        at = chance.randrange(len(letters)) if letters else 0
        letters[at : at + 1] = chance.choice([[], ["\t"], [":"], ["{"], ["&"], ["- "], ["\n"], ['"']])
    return "".join(letters)


def go(case, before, home, capsys):
    """Do a case and put the sandbox back. Returns what was wrong, or nothing, and the status."""
    what, call = case
    capsys.readouterr()
    fixed = files_under(home)
    try:
        status = call()
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        place = next((frame for frame in reversed(frames) if "/tests/" not in frame.filename), frames[-1])
        wrong, status = f"{type(error).__name__} in {Path(place.filename).name}:{place.lineno}: {error}", -1
    else:
        wrong = "" if status in (0, 2, 130) else f"status {status}: {capsys.readouterr().err[-300:]}"
    after = files_under(home)
    changed = [name for name, content in fixed.items() if after.get(name) != content]
    wrong = f"changed {changed[:3]} {wrong}" if changed else wrong
    for name in sorted(set(after) - set(before), reverse=True):
        path = home / name
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    assert not changed, f"{what}: changed {changed}"
    return wrong and f"{wrong}\n    {what!r}", status


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("part", range(4))
def test_drawn_calls_end_in_words_and_change_nothing_that_is_not_theirs(part, sandbox, stopped, capsys, monkeypatch):
    chance, before, faults, ends = Random(part), files_under(sandbox), [], Counter()
    for _ in range(CASES // 4):
        draw_case = chance.choice([by_command, by_command, by_recipe, by_python])
        wrong, status = go(draw_case(chance, sandbox), before, sandbox, capsys)
        ends[draw_case.__name__, status] += 1
        faults += [wrong] if wrong else []
    assert not faults, f"{len(faults)} of {CASES // 4}:\n" + "\n".join(faults)
    assert {status for _, status in ends} == {0, 2, 130}, ends  # or the draw has become too tame, or too wild


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_drawn_smoke_runs_train_or_say_why_not_and_change_nothing_that_is_not_theirs(sandbox, capsys):
    chance, before, faults, ends = Random(9), files_under(sandbox), [], Counter()
    for number in range(SMOKE_CASES):
        verb = ("tokenizer", "prepare", "pretrain", "classify", "instruct", "evaluate")[number % 6]
        options = draw(chance, VERBS[verb].settings, [])
        given_ = {"data": "rows.csv" if verb == "classify" else "asked.jsonl" if verb == "instruct" else "text.txt"}
        given_ |= {"model": "pretrained"} if verb == "evaluate" else {}
        given_ |= {"tokenizer": "pretrained"} if verb == "prepare" else {}
        extra = [name for name in sorted(options) if not name.startswith("push") and name not in ("out", "tasks")]
        chosen = {name: options[name] for name in chance.sample(extra, min(2, len(extra)))}
        options = chosen | given_ | {"out": chance.choice(["new", "mine", "a b/c"]), "smoke": True, "quiet": True}
        words = typed(chance, verb, options)
        wrong, status = go((words, lambda words=words: main(words)), before, sandbox, capsys)
        ends[status] += 1
        faults += [wrong] if wrong else []
    assert not faults, f"{len(faults)} of {SMOKE_CASES}:\n" + "\n".join(faults)
    assert ends[0] >= SMOKE_CASES // 4, ends
