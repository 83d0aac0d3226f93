"""What the command line says of itself, to people and to shells."""

import subprocess
import sys
from dataclasses import dataclass, field, fields
from typing import Literal

import pytest

from groundup.cli import doctor
from groundup.cli.help import field_documents, verb_help
from groundup.cli.main import VERBS, completion, main


@dataclass(kw_only=True)
class Base:
    """A base."""

    seed: int = 3
    """Where chance begins."""


@dataclass(kw_only=True)
class Settings(Base):
    """Do a thing."""

    data: list[str] = field(default_factory=list)
    """What to read."""
    how: Literal["fast", "well"] = "well"
    """Which way."""
    resume: bool = False
    """Go on."""
    minutes: float | None = None
    """The budget [minutes]."""


def test_help_shows_each_option_with_its_kind_its_text_and_its_default():
    text = verb_help("thing", ("data",), "groundup thing a\ngroundup thing b", Settings)
    for line in (
        "usage: groundup thing DATA [OPTIONS]",
        "Do a thing.",
        "Examples:",
        "  groundup thing b",
        "  --data TEXT...          What to read.",
        "  --how fast|well         Which way. [well]",
        "  --resume                Go on.",
        "  --minutes X             The budget [minutes].",
        "  --seed N                Where chance begins. [3]",
    ):
        assert line in text.splitlines()


def test_lines_stay_within_a_narrow_terminal(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "72")
    for verb in VERBS:
        assert main([verb, "--help"]) == 0
        options = capsys.readouterr().out.split("Options:")[1]
        assert max(map(len, options.splitlines())) <= 72


@pytest.mark.parametrize("verb", VERBS)
def test_every_setting_of_every_verb_is_explained_and_every_example_is_its_own(verb):
    settings = VERBS[verb].settings
    assert {field.name for field in fields(settings)} == set(field_documents(settings))
    assert all(f"groundup {verb}" in example for example in VERBS[verb].example.splitlines())


def test_the_overview_names_every_verb_and_first_steps(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"  {verb}" in text for verb in VERBS) and "First steps:" in text


def test_a_reader_that_stops_early_sees_no_traceback():
    command = f"{sys.executable} -m groundup pretrain --help | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.stdout.startswith("usage: groundup pretrain") and done.stderr == ""


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("groundup pretr", {"pretrain"}),
        ("groundup pretrain --max-s", {"--max-steps"}),
        ("groundup pretrain --optimizer ''", {"muon", "adamw"}),
        ("groundup export --to q", {"qwen2", "qwen3"}),
        ("groundup pretrain my", set()),
    ],
)
def test_bash_completes_verbs_options_and_choices(words, expected, tmp_path, capsys):
    script = tmp_path / "completion.sh"
    script.write_text(completion(shell="bash"))
    last = len(words.split()) - 1
    code = f'source {script}; COMP_WORDS=({words}); COMP_CWORD={last}; _groundup; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == expected and done.stderr == ""


def test_completion_knows_three_shells_and_names_them(capsys):
    assert main(["completion", "zsh"]) == 0
    assert "bashcompinit" in capsys.readouterr().out
    assert main(["completion", "fish"]) == 0
    assert "-l max-steps" in capsys.readouterr().out
    assert main(["completion", "zhs"]) == 2
    assert "'zsh'" in capsys.readouterr().err


def test_the_doctor_looks_and_says_what_to_mend_and_never_shows_the_token(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setattr(doctor, "LITTLE_DISK", 2**60)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "a token is set" in text and "xxx" not in text
    assert "To fix:" in text and "make room" in text
    for name in ("python", "torch", "transformers", "processor", "memory", "compiler"):
        assert name in text


def test_an_extra_that_is_missing_is_named_with_its_brackets(capsys, monkeypatch):
    installed = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "gradio" else installed(name))
    assert main(["doctor"]) == 0
    assert "pip install 'groundup[playground]'" in capsys.readouterr().out


def test_a_library_that_is_too_old_is_to_be_mended(monkeypatch):
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda _: ["torch>=99", "nothing-at-all>=1"])
    mends = {finding.name: finding.mend for finding in doctor.versions() if finding.mend}
    assert mends == {"torch": "pip install 'torch>=99'", "nothing-at-all": "pip install 'nothing-at-all>=1'"}
