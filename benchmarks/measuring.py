"""What every row of the table is made of: two ways of doing one thing, in turn, several times."""

import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from groundup.common.console import console
from groundup.evaluation.metrics_json import read_metrics

RUNS = 5
Item, Result = TypeVar("Item"), TypeVar("Result")


@dataclass
class Row:
    """A ratio of ours to the peer's, above 1 where ours is better, over paired runs."""

    name: str
    what: str
    median: float
    lowest: float
    highest: float
    ours: str
    peer: str


def compare(
    name: str,
    what: str,
    unit: str,
    work: float,
    ours: Callable[[], object],
    peer: Callable[[], object],
    runs: int = RUNS,
) -> Row:
    """Run ours and the peer in turn, once unmeasured and `runs` times measured; rates are `work` per second."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(runs + 1):
        for side, run in (("ours", ours), ("peer", peer)):
            started = time.perf_counter()
            run()
            if number:
                seconds[side].append(time.perf_counter() - started)
    ratios = [theirs / own for own, theirs in zip(seconds["ours"], seconds["peer"])]
    rates = {side: f"{work / statistics.median(times):,.0f} {unit}" for side, times in seconds.items()}
    return Row(name, what, statistics.median(ratios), min(ratios), max(ratios), rates["ours"], rates["peer"])


def bits_per_byte(checkpoint: Path) -> float:
    """Return what `pretrain` measured on its held-out text."""
    rows = read_metrics(checkpoint)["metrics"]
    return next(row["value"] for row in rows if row["name"] == "bits_per_byte" and row["baseline"] is None)


def peak_memory(code: str, *arguments: str) -> float:
    """Return the peak memory [MB] of a Python process with this code; it can import the modules of this folder."""
    # Not getrusage's: a new process begins there with its parent's peak.
    told = (
        code
        + """
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(int(status["VmHWM"].split()[0]) / 1024)
"""
    )
    path = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    command = [sys.executable, "-c", path + told, *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def compare_memory(
    name: str, what: str, ours: Callable[[], float], peer: Callable[[], float], base: float = 0.0, runs: int = RUNS
) -> Row:
    """Divide the peer's peak [MB] by ours, both less `base`, over paired runs."""
    found = [(ours() - base, peer() - base) for _ in range(runs)]
    ratios = [theirs / own for own, theirs in found]
    peaks = [f"{statistics.median(values):,.0f} MB" for values in zip(*found)]
    return Row(name, what, statistics.median(ratios), min(ratios), max(ratios), *peaks)


def one_thread_each(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """Return `work` of each item, as many at once as there are cores: for what does not depend on speed."""
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(os.cpu_count(), spawned, _begin_alone) as pool:
        return list(pool.map(work, items))


def as_a_library(row: Callable[[], Row]) -> Row:
    """Measure a row in a process of its own whose threads wait as torch's do where `groundup` is not the command.

    The command line tells them to sleep (see "Threads that wait" in docs/performance.md); `from_pretrained` does not.
    """
    chosen = os.environ.pop("OMP_WAIT_POLICY", None)
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(row).result()
    finally:
        if chosen is not None:
            os.environ["OMP_WAIT_POLICY"] = chosen


def _begin_alone() -> None:
    torch.set_num_threads(1)
    console.quiet = True
