import contextlib
import itertools
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from groundup.common.errors import Interrupted
from groundup.training.loop import Loop


@pytest.fixture(scope="session")
def before_each_step():
    """Return a context in which a function is called with the loop before each step of every run."""

    @contextlib.contextmanager
    def before_each_step(act):
        run = Loop.run

        def watched(loop):
            batches = loop.batches

            def micro_batches(step):
                act(loop)
                return batches.micro_batches(step)

            loop.batches = SimpleNamespace(micro_batches=micro_batches)
            return run(loop)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "run", watched)
            yield

    return before_each_step


@pytest.fixture(scope="session")
def cut_off(before_each_step):
    """Return a context in which the power goes before the step number `count`, from 1, of all that its runs train."""

    @contextlib.contextmanager
    def cut_off(count):
        steps = itertools.count(1)

        def act(loop):
            if next(steps) == count:
                raise Interrupted("the power is gone")

        with before_each_step(act), pytest.raises(Interrupted, match="the power is gone"):
            yield

    return cut_off


@pytest.fixture(scope="session")
def write_rows():
    """Write rows to a file of JSON lines and return its path as text."""

    def write(path, rows):
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="session")
def scores_of():
    """Return the rows of a folder's metrics.json, by name, split and baseline."""

    def scores(folder):
        rows = json.loads((folder / "metrics.json").read_text())["metrics"]
        return {(row["name"], row["split"], row["baseline"]): row for row in rows}

    return scores


@pytest.fixture
def two_processes(tmp_path):
    """Run the command as torchrun does, in an empty folder, on two processes that share one machine."""

    def run(verb, *arguments):
        launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "groundup", verb]
        return subprocess.run(
            [*launch, *map(str, arguments)], cwd=tmp_path,
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip

    return run
