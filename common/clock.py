"""When the running verb began: the process's start for a command, the call for a function used from Python."""

import contextlib
import time
from collections.abc import Iterator

import psutil

_of_the_command: float | None = None


@contextlib.contextmanager
def counting_from_process_start() -> Iterator[None]:
    """Inside, budgets in minutes count from the start of this process, imports included: for the command line."""
    global _of_the_command
    _of_the_command = psutil.Process().create_time()
    try:
        yield
    finally:
        _of_the_command = None


@contextlib.contextmanager
def counting_from_now() -> Iterator[None]:
    """Inside, budgets in minutes count from now: for one of several runs that a verb does after each other."""
    global _of_the_command
    before, _of_the_command = _of_the_command, time.time()
    try:
        yield
    finally:
        _of_the_command = before


def began() -> float:
    """The wall-clock time [s] at which the verb that asks began."""
    return _of_the_command if _of_the_command is not None else time.time()
