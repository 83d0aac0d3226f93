import os
import subprocess
import sys

import pytest


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
