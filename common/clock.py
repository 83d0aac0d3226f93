"""When a verb is to be done: from where its minutes count, and what is left of them."""

import dataclasses
import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Deadline:
    """The end of a budget of `minutes` that counts from `began` [s since 1970]; without minutes there is no end."""

    began: float = field(default_factory=time.time)
    minutes: float | None = None

    def after(self, minutes: float | None) -> "Deadline":
        """Return the end of a budget of so many minutes with the same beginning."""
        return dataclasses.replace(self, minutes=minutes)

    def seconds_left(self, reserved: float = 0.0) -> float | None:
        """Return the seconds until the end, less those that are reserved, but at least one; None without an end."""
        if self.minutes is None:
            return None
        return max(1.0, self.began + 60 * self.minutes - reserved - time.time())
