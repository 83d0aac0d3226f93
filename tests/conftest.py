"""Shared by all tests: a quiet, small, offline process."""

import os

# Before torch is imported: threads that wait without spinning, and no look at the Hub.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, for what a test starts too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from groundup.common.console import console

torch.set_num_threads(min(2, torch.get_num_threads()))

ROOT = Path(__file__).resolve().parent.parent


def pytest_terminal_summary(terminalreporter):
    """A line for how long each part of the tests took."""
    seconds, tests = Counter(), Counter()
    for report in [report for reports in terminalreporter.stats.values() for report in reports]:
        if isinstance(report, pytest.TestReport):
            part = report.nodeid.removeprefix("tests/").split("/")[0].split("::")[0]
            seconds[part] += report.duration
            tests[part] += report.when == "call"
    terminalreporter.section("seconds by part, all processes together")
    for part, took in seconds.most_common():
        terminalreporter.line(f"{took:8.0f}  {part} ({tests[part]} tests)")


@pytest.fixture(autouse=True)
def heard():
    """A verb under `--quiet` silences its process; the next test wants to hear again."""
    yield
    console.quiet = False


@pytest.fixture
def groundup(tmp_path):
    """Run the command as a person would, in an empty folder; returns the finished process."""

    def run(*arguments, check=True, timeout=300, **options):
        done = subprocess.run(
            [sys.executable, "-m", "groundup", *map(str, arguments)],
            cwd=options.pop("cwd", tmp_path),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            **options,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


@pytest.fixture(scope="session")
def story_text():
    """30 kB with something to learn in them."""
    from random import Random

    random = Random(0)
    who, what, where = ["the cat", "a dog", "my friend", "the king"], ["saw", "met", "left"], ["here", "at sea", "home"]
    return "\n".join(
        f"{random.choice(who)} {random.choice(what)} {random.choice(who)} {random.choice(where)}." for _ in range(1000)
    )


@pytest.fixture
def story(tmp_path, story_text):
    """A file of that text."""
    path = tmp_path / "story.txt"
    path.write_text(story_text, encoding="utf-8")
    return path
