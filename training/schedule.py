"""How the learning rate and the momentum move through a run, as functions of the share of the budget used.

The budget may be steps or seconds: a run in minutes ends annealed however fast the machine turns out to be.
"""

import time
from dataclasses import dataclass


def learning_rate_factor(share: float, *, warmup: float, decay: float) -> float:
    """The factor on every learning rate after `share` (0 to 1) of the budget: up, level, then in a line to zero.

    The trapezoid of Zhai et al. 2022 and Hägele et al. 2024; `warmup` and `decay` are shares of the budget.
    """
    rise = share / warmup if share < warmup else 1.0
    fall = (1.0 - share) / decay if share > 1.0 - decay else 1.0
    return max(0.0, min(rise, fall, 1.0))


def momentum(share: float, *, warmup: float, start: float = 0.85, end: float = 0.95) -> float:
    """Muon's momentum after `share` of the budget: short memory while the weights move fast, then longer."""
    return start + (end - start) * min(1.0, share / warmup) if warmup > 0 else end


@dataclass
class Budget:
    """What a run may use: `steps` updates, `seconds` of training time, or both; one may be None."""

    steps: int | None = None
    seconds: float | None = None

    def share_used(self, steps: int, seconds: float) -> float:
        """The share of the budget that `steps` updates and `seconds` of training have used: the larger, 0 to 1."""
        of_steps = 0.0 if self.steps is None else steps / max(1, self.steps)
        of_seconds = 0.0 if self.seconds is None else seconds / max(1e-9, self.seconds)
        return min(1.0, max(of_steps, of_seconds))


class Stopwatch:
    """Seconds of training, going on from those of an earlier process."""

    def __init__(self, seconds_before: float = 0.0):
        self._origin = time.perf_counter() - seconds_before

    @property
    def seconds(self) -> float:
        """Seconds since the run began, those of earlier processes included."""
        return time.perf_counter() - self._origin
