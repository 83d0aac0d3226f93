"""One part of a corpus that is prepared on many machines: `--part 2/4` is the second of four."""

import re
from dataclasses import dataclass
from typing import Protocol, TypeVar

from groundup.common.errors import InputError

_FOLDER = re.compile(r"part-(\d+)-of-(\d+)")


class _Sliced(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> "_Sliced": ...


S = TypeVar("S", bound=_Sliced)


@dataclass(frozen=True)
class Share:
    """Part `number` of `count`, counted from 1."""

    number: int
    count: int

    @classmethod
    def read(cls, text: str) -> "Share":
        """The share that `I/N` names. Raises `InputError` for anything else."""
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        share = cls(*map(int, found.groups())) if found else None
        if share is None or not 1 <= share.number <= share.count:
            raise InputError(f"--part {text}: give I/N, the I-th of N parts, 1/N to N/N")
        return share

    @property
    def folder(self) -> str:
        """What the folder of this part is called."""
        return f"part-{self.number:05}-of-{self.count:05}"

    @classmethod
    def of_folder(cls, name: str) -> "Share | None":
        """The share whose folder has this name."""
        found = _FOLDER.fullmatch(name)
        return cls(*map(int, found.groups())) if found else None

    def of(self, whole: S) -> S:
        """This part of a sequence: a stretch of it, as long as the others or one longer. Raises `InputError`."""
        if len(whole) < self.count:
            raise InputError(f"--part {self.number}/{self.count}: there are only {len(whole)} documents to divide")
        begin, end = (len(whole) * number // self.count for number in (self.number - 1, self.number))
        return whole[begin:end]  # type: ignore[return-value]
