"""The terminal: one rich console for messages, one progress bar with time left, plain lines where nobody watches."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)

PLAIN_SECONDS = 15.0  # between two lines of progress when the output is a file or a pipe


def say(message: str = "") -> None:
    """Print a line for the user to standard error, unless `--quiet` silenced it; brackets and colons are not markup."""
    console.print(message, markup=False)


class ProgressBar:
    """A bar from 0 to `total` with a text that changes, or a plain line now and then without a terminal.

    >>> with ProgressBar("tokenising", total=10) as bar:
    ...     bar.update(3, "1.1 M tokens/s")
    """

    def __init__(self, description: str, total: float, *, unit: str = "") -> None:
        self.description, self.total, self.unit = description, total, unit
        self._started = self._last_line = time.monotonic()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            *([MofNCompleteColumn()] if unit else [TextColumn("{task.percentage:>3.0f}%")]),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[text]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal or console.quiet,
        )
        self._task = self._progress.add_task(description, total=total, text="")

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, completed: float, text: str = "") -> None:
        """Set how much of `total` is done, and the text beside the bar."""
        self._progress.update(self._task, completed=completed, text=text)
        now = time.monotonic()
        if not console.is_terminal and now - self._last_line >= PLAIN_SECONDS:
            self._last_line = now
            share = completed / self.total if self.total else 1.0
            left = (now - self._started) * (1 - share) / share if share > 0 else float("nan")
            say(f"{self.description}: {share:.0%}, {left:.0f} s left  {text}".rstrip())
