"""The row about runs that are killed: what they end with, resumed, beside the run that never was."""

import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import Row

from groundup.common.settings import write_yaml

RUNS = 20
CONFIG = "settings.yaml"
# Dropout, so that the random state counts too; a save every few steps, so that some kills fall into one.
SETTINGS = {
    "data": ["python-docs"],
    "max_steps": 60,
    "save_every": 5,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "vocab_size": 1024,
    "context_length": 64,
    "batch_tokens": 1024,
    "model_config": {"residual_dropout": 0.1},
}


def kills() -> Row:
    """Runs killed without warning at a moment drawn evenly from the whole of their time, then resumed."""
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        write_yaml(Path(folder) / CONFIG, SETTINGS)
        started = time.perf_counter()
        whole = _finish(Path(folder) / "whole")
        seconds = time.perf_counter() - started
        same = 0
        for number in range(RUNS):
            out, moment = Path(folder) / str(number), draw.uniform(0, seconds)
            process = subprocess.Popen(_command(out))
            time.sleep(moment)
            process.send_signal(signal.SIGKILL)
            process.wait()
            newest = max((int(path.name[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)
            same += _finish(out) == whole
            print(f"killed after {moment:.1f} of {seconds:.1f} s, at step {newest}: {same} of {number + 1}", flush=True)
    what = "runs killed at a random moment and resumed that end with the weights of the run never killed"
    return Row("kills", what, same / RUNS, same / RUNS, same / RUNS, f"{same} runs", f"{RUNS} runs")


def _command(out: Path) -> list[str]:
    verb = [sys.executable, "-m", "groundup", "pretrain", "--config", str(out.with_name(CONFIG))]
    return [*verb, "--out", str(out), "--resume", "--quiet"]


def _finish(out: Path) -> str:
    """Begin or go on, and end; the SHA-256 of the weights."""
    subprocess.run(_command(out), check=True)
    return hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest()
