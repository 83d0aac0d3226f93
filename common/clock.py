"""When the running verb began: the process's start for a command, the call for a function used from Python."""

import time

import psutil

_of_the_command: float | None = None


def count_from_process_start() -> None:
    """Let budgets in minutes count from the start of this process, imports included; for the command line alone."""
    global _of_the_command
    _of_the_command = psutil.Process().create_time()


def began() -> float:
    """The wall-clock time [s] at which the verb that asks began."""
    return _of_the_command if _of_the_command is not None else time.time()
