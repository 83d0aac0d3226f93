"""The pages to read: what they show is run, what they link to is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from groundup.cli.main import VERBS, main, parse

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", *DOCS.rglob("*.md")])


def blocks(path, language):
    """Return the fenced blocks of a page in one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def commands(path):
    """Return every `groundup VERB ...` in the shell blocks of a page, joined lines joined, comments left out."""
    for block in blocks(path, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["groundup"]:
                yield words[1:]


@pytest.mark.parametrize("number", range(len(blocks(DOCS / "book.md", "python"))))
def test_each_snippet_of_the_book_runs_alone(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    snippet = blocks(DOCS / "book.md", "python")[number]
    assert len(snippet.strip().splitlines()) <= 14
    exec(compile(snippet, f"book.md, snippet {number + 1}", "exec"), {"__name__": "snippet"})


def test_each_figure_of_the_book_leads_to_a_name_in_a_file_that_is_there():
    page = (DOCS / "book.md").read_text(encoding="utf-8")
    places = re.findall(r"^\| [\d.,to ]+ \| .* \| `(.*?)` \| `(.*?)` \|$", page, re.MULTILINE)
    assert len(places) > 30
    for file, name in places:
        assert re.search(rf"^ *(def |class )?{name}\b", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_one_that_the_command_line_takes(page):
    for verb, *options in commands(page):
        assert verb in VERBS, verb
        if not {"--help", "-h"} & set(options):
            parse(verb, options)


@pytest.mark.slow
def test_the_quick_start_does_what_it_says(tmp_path):
    page = DOCS / "quickstart.md"
    for words in commands(page):
        done = subprocess.run([sys.executable, "-m", "groundup", *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, (words, done.stderr)
    (snippet,) = blocks(page, "python")
    done = subprocess.run([sys.executable, "-c", snippet], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("Return the"), done.stderr
    assert (tmp_path / "my_scores" / "metrics.json").is_file()
    assert (tmp_path / "my_twin" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_pages_build_with_every_link_whole_and_load_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) >= 14
    for page in pages:
        loaded = re.findall(r"<(?:script|img|iframe|link)[^>]*?(?:src|href)=\"?(https?://[^\s\">]+)", page.read_text())
        assert loaded == [], page.name
    reference = (tmp_path / "site" / "reference" / "python" / "index.html").read_text()
    for name in ("pretrain", "PretrainSettings", "max_steps", "evaluate"):
        assert name in reference


def test_the_readme_links_to_files_that_are_there():
    links = re.findall(r"\]\((?!https?://|#)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert all((ROOT / link).exists() for link in links), links


def test_the_reference_names_every_verb(capsys):
    page = (DOCS / "reference" / "command_line.md").read_text(encoding="utf-8")
    assert all(f"`groundup {verb}" in page for verb in VERBS)
    assert main(["--help"]) == 0
