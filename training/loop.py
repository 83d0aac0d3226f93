"""The one training loop: batches in, weights out, through Accelerate, on whatever devices there are.

What is trained (an objective that gives a summed loss), on what (a source of micro-batches for each step), for how
long (a budget) and what happens on the way (validate, save) come from outside; the loop is the same for all of them.
Learning rate and momentum are functions of the share of the budget used: a run in minutes ends annealed, however fast
the machine turns out to be.
"""

import contextlib
import importlib.util
import json
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from torch import nn

from groundup.common.console import ProgressBar, say
from groundup.common.errors import Diverged, InputError, Interrupted
from groundup.data.windows import IGNORED, Batch

LOG_ROWS = 200  # rows of log.jsonl in a run
SAVES = 10  # validations and saved states in a run
SAVE_SECONDS = 60.0  # and at least one state a minute
BAD_STEPS = 3  # steps in a row whose loss is not a number end the run


def learning_rate_factor(share: float, *, warmup: float, decay: float) -> float:
    """Return the factor on every learning rate after `share` (0 to 1) of the budget: up, level, then in a line to zero.

    The trapezoid of Zhai et al. 2022 and Hägele et al. 2024; `warmup` and `decay` are shares of the budget.
    """
    rise = share / warmup if share < warmup else 1.0
    fall = (1.0 - share) / decay if share > 1.0 - decay else 1.0
    return max(0.0, min(rise, fall, 1.0))


def momentum(share: float, *, warmup: float, start: float = 0.85, end: float = 0.95) -> float:
    """Return Muon's momentum after `share` of the budget: short memory while the weights move fast, then longer."""
    return start + (end - start) * min(1.0, share / warmup) if warmup > 0 else end


@dataclass
class Budget:
    """Hold what a run may use: `steps`, `seconds` of training time, or both; one may be None."""

    steps: int | None = None
    seconds: float | None = None

    def share_used(self, steps: int, seconds: float) -> float:
        """Return the larger share of the budget, 0 to 1, that `steps` and `seconds` of training have used."""
        of_steps = 0.0 if self.steps is None else steps / max(1, self.steps)
        of_seconds = 0.0 if self.seconds is None else seconds / max(1e-9, self.seconds)
        return min(1.0, max(of_steps, of_seconds))


class Stopwatch:
    """Measure the seconds of training, going on from those of an earlier process."""

    def __init__(self, seconds_before: float = 0.0):
        self._origin = time.perf_counter() - seconds_before

    @property
    def seconds(self) -> float:
        """Return the seconds since the run began, those of earlier processes included."""
        return time.perf_counter() - self._origin


@dataclass
class Position:
    """Hold how far a run is: all but weights and optimizer that it needs to go on as if it had never stopped."""

    step: int = 0
    labels: int = 0  # learned from, over all processes
    seconds: float = 0.0
    step_seconds: float = 0.0  # of the last step, with what was due after the one before
    budget_seconds: float | None = None
    budget_minutes: float | None = None  # of the whole command, which `budget_seconds` are a part of
    best_value: float | None = None  # of the step that is kept
    best_step: int = 0
    peak_value: float | None = None  # the best seen
    stale: int = 0
    bad_steps: int = 0
    validation_tokens: int | None = None
    validated_step: int | None = None  # the last one that was measured
    losses: list[float] = field(default_factory=list)  # of the steps since the last row of the log
    logged_labels: int = 0  # `labels` and `seconds` at that row
    logged_seconds: float = 0.0


class Batches(Protocol):
    """Give the loop what it trains on."""

    def micro_batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of a step for this process, a pure function of the step; empty past the last."""
        ...


@dataclass
class Schedule:
    """Hold shares of the budget: warm-up and decay of the learning rate, warm-up of the momentum."""

    warmup: float = 0.0
    decay: float = 0.5
    momentum_warmup: float = 0.15
    clip: float | None = None


@dataclass
class Loop:
    """Train, from `position` on, until the budget is used.

    Args:
        accelerator: devices and precision.
        objective: a module that takes a micro-batch's tensors by name and gives the summed loss over the labels that
            count.
        optimizers: all of them step together; a group's `initial_lr` is its rate at the top of the schedule.
        batches: the micro-batches of each step.
        budget: when to stop.
        validate: measures the model: values by name.
        save: writes the state after a step; called on every process.
        unit: what one label stands for in the log: a token, or a row that is classified.
        log_path: where rows are added, one JSON object a line; None on all processes but the first.
        best_by: the measure that chooses the best step: the least, or the greatest if `higher_is_better`. Where
            `validate` gives its standard error too, as `{best_by}_error`: the latest that cannot be told from the best.
        patience: validations in a row without a better one that end the run before its budget does.
    """

    accelerator: Accelerator
    objective: nn.Module
    optimizers: list[torch.optim.Optimizer]
    batches: Batches
    budget: Budget
    schedule: Schedule
    validate: Callable[[], dict[str, float]]
    save: Callable[[Position], None]
    unit: Literal["tokens", "rows"] = "tokens"
    log_path: Path | None = None
    save_every: int | None = None
    best_by: str = "validation_loss"
    higher_is_better: bool = False
    patience: int | None = None
    position: Position = field(default_factory=Position)

    def run(self) -> Position:
        """Train until the budget is used and return the last position.

        What is due at a step is done before the run stops there, and a position says what was: however often a run is
        stopped and gone on with, it validates, logs and keeps the same. Raises `Interrupted` after Ctrl-C or SIGTERM,
        with the state saved, and `Diverged` when the loss is not a number several steps in a row.
        """
        self._watch = Stopwatch(self.position.seconds)
        self._last_save, self._saved_step = time.monotonic(), self.position.step if self.position.step else None
        self._losses = [torch.tensor(loss, device=self.accelerator.device) for loss in self.position.losses]
        before, share = self._shares()
        with stop_signals() as stopped, ProgressBar("training", total=1.0) as bar:
            # Under a clock the last step is the one that ends nearest to the budget.
            while share + (share - before) / 2 < 1.0 and not self._is_stale():
                self._stop_if_told(stopped)
                if not (batches := self.batches.micro_batches(self.position.step)):
                    break
                self.objective.train()
                self._set_rates(share)
                self._step(batches)
                self._read_clock()
                before, share = self._shares()
                if crossed(before, share, LOG_ROWS):
                    bar.update(share, self._log())
                if share < 1.0 and crossed(before, share, SAVES):
                    self._validate()
                    self._save()
                elif share < 1.0 and self._save_is_due():
                    self._save()
            if self.position.validated_step != self.position.step:
                self._validate()
                self._save()
            self._stop_if_told(stopped)
        return self.position

    def _stop_if_told(self, stopped: list[int]) -> None:
        """Save and raise `Interrupted` if a process has got a stop signal: all stop at the same step."""
        told = bool(stopped)
        if self.accelerator.num_processes > 1:
            told = bool(self._sum(torch.tensor(float(told), device=self.accelerator.device)))
        if told:
            self._save()
            raise Interrupted("stopped, and the state is saved: resume with --resume")

    def _read_clock(self) -> None:
        """Note the seconds of training so far, the same on every process where they are a budget: the first one's."""
        now = self._watch.seconds
        if self.budget.seconds is not None and self.accelerator.num_processes > 1:
            shared = torch.tensor([now], dtype=torch.float64, device=self.accelerator.device)
            torch.distributed.broadcast(shared, src=0)
            now = shared.item()
        self.position.step_seconds, self.position.seconds = now - self.position.seconds, now

    def _shares(self) -> tuple[float, float]:
        """Return the shares of the budget used before the last step and after it, by the position alone."""
        at = self.position
        before = self.budget.share_used(max(0, at.step - 1), at.seconds - at.step_seconds)
        return before, self.budget.share_used(at.step, at.seconds)

    def _set_rates(self, share: float) -> None:
        factor = learning_rate_factor(share, warmup=self.schedule.warmup, decay=self.schedule.decay)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
                if "momentum" in group:
                    group["momentum"] = momentum(share, warmup=self.schedule.momentum_warmup)
        self._factor = factor

    def _step(self, batches: list[Batch]) -> None:
        """Make one update from the micro-batches of all processes, equal to that of one large batch.

        Each micro-batch gives a sum; it is divided by the labels that count in all of them together, since a mean of
        means would weigh a short micro-batch like a long one.
        """
        device = self.accelerator.device
        counted = sum(int((batch["labels"] != IGNORED).sum()) for batch in batches)
        count = int(self._sum(torch.tensor([counted], device=device)))
        total = torch.zeros((), device=device)
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.objective):
                loss = self.objective(**{name: value.to(device) for name, value in batch.items()}) / max(1, count)
                # DDP takes the mean over processes, the sum is wanted.
                self.accelerator.backward(loss * self.accelerator.num_processes)
            total += loss.detach()
        total = self._sum(total)
        if torch.isfinite(total):
            self.position.bad_steps = 0
            self._update()
            self._losses.append(total)
        else:
            self._skip()
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.position.step += 1
        self.position.labels += count

    def _sum(self, value: torch.Tensor) -> torch.Tensor:
        """Return the sum of a scalar over all processes."""
        return cast(torch.Tensor, self.accelerator.reduce(value, reduction="sum"))

    def _update(self) -> None:
        if self.schedule.clip is not None:
            self.accelerator.clip_grad_norm_(self.objective.parameters(), self.schedule.clip)
        for optimizer in self.optimizers:
            optimizer.step()

    def _skip(self) -> None:
        self.position.bad_steps += 1
        say(f"step {self.position.step}: the loss is not a number, so the step is skipped")
        if self.position.bad_steps >= BAD_STEPS:
            raise Diverged(
                f"the loss was not a number {BAD_STEPS} steps in a row: try a smaller --learning-rate, or fp32"
            )

    def _log(self) -> str:
        """Add a row to the log and return the text that stands beside the progress bar."""
        position = self.position
        labels, seconds = position.labels - position.logged_labels, position.seconds - position.logged_seconds
        rate = labels / max(1e-9, seconds)
        row = {
            "step": position.step,
            "loss": round(torch.stack(self._losses).mean().item(), 6) if self._losses else None,
            "learning_rate": self.optimizers[0].param_groups[0]["lr"],
            self.unit: position.labels,
            "seconds": round(position.seconds, 3),
            f"{self.unit}_per_second": round(rate, 1),
        }
        self._losses.clear()
        position.logged_labels, position.logged_seconds = position.labels, position.seconds
        self.write_log(row)
        return f"loss {row['loss'] or float('nan'):.3f}  {rate:,.0f} {self.unit}/s"

    def write_log(self, row: dict[str, Any]) -> None:
        """Add a row to log.jsonl, on the process that has one, and its numbers to the trackers if there are any."""
        self.accelerator.log({name: value for name, value in row.items() if isinstance(value, float)}, row["step"])
        if self.log_path is not None:
            with self.log_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def _save_is_due(self) -> bool:
        if self.save_every is not None:
            return self.position.step % self.save_every == 0
        # A clock may differ between processes: those of a run of several save by its share alone.
        return self.accelerator.num_processes == 1 and time.monotonic() - self._last_save >= SAVE_SECONDS

    def _validate(self) -> None:
        values = self.validate()
        self._note_best(values[self.best_by], values.get(f"{self.best_by}_error", 0.0))
        self.position.validated_step, self._saved_step = self.position.step, None  # what was saved does not know it
        self.write_log({"step": self.position.step, **values})

    def _save(self) -> None:
        """Save the state, unless that of this step is saved."""
        if self._saved_step == self.position.step:
            return
        self.position.losses = [loss.item() for loss in self._losses]
        self.save(self.position)
        self._last_save, self._saved_step = time.monotonic(), self.position.step

    def _note_best(self, value: float, error: float) -> None:
        """Keep this step if it is the best so far, or cannot be told from the best: its learning rate is lower.

        That is the rule of one standard error (Breiman et al. 1984, section 3.4.3), in favour of the later step.
        """
        position, sign = self.position, 1 if self.higher_is_better else -1
        peak = position.peak_value
        if peak is None or sign * (value - peak) > 0:
            position.peak_value, position.stale = value, 0
        else:
            position.stale += 1
        if peak is None or sign * (value - peak) > -error:
            position.best_value, position.best_step = value, position.step

    def _is_stale(self) -> bool:
        return self.patience is not None and self.position.stale >= self.patience


def crossed(before: float, after: float, parts: int) -> bool:
    """Return whether a share that grew from `before` to `after` passed a border between `parts` equal parts."""
    return int(before * parts) != int(after * parts)


@contextlib.contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Yield a list that gets the number of a stop signal; a second signal stops the process at once."""
    received: list[int] = []

    def note(number: int, _: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)
        say("stopping after this step; Ctrl-C again stops at once")

    previous = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not the main thread: whoever owns that one handles signals
            break
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def require_tracker(track: str) -> None:
    """Raise `InputError` where the package of a tracker is not installed."""
    if track != "none" and importlib.util.find_spec(track) is None:
        raise InputError(f"--track {track}: {track} is not installed: run pip install {track}")


def start_tracking(accelerator: Accelerator, track: str, name: str) -> None:
    """Let what the loop logs also go to a tracker. Raises `InputError` where its package is not installed."""
    try:
        accelerator.init_trackers("groundup", init_kwargs={"trackio": {"name": name}, "wandb": {"name": name}})
    except (ImportError, ValueError) as error:
        raise InputError(f"--track {track}: {str(error).splitlines()[0]}: try pip install {track}") from error
    if accelerator.is_main_process and not accelerator.trackers:
        raise InputError(f"--track {track}: {track} is not installed: run pip install {track}")
