"""Shared by all tests: a quiet, small, offline process."""

import os

# Before torch is imported: threads that wait without spinning, and no look at the Hub.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from groundup.common.console import console

torch.set_num_threads(min(2, torch.get_num_threads()))

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.fixture
def story(tmp_path):
    """A text of 30 kB with something to learn in it."""
    from random import Random

    random = Random(0)
    who, what, where = ["the cat", "a dog", "my friend", "the king"], ["saw", "met", "left"], ["here", "at sea", "home"]
    lines = [
        f"{random.choice(who)} {random.choice(what)} {random.choice(who)} {random.choice(where)}." for _ in range(1000)
    ]
    path = tmp_path / "story.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path
