"""What stands in a cell of a table: values as they were written, whatever stands in the other rows.

A library that finds a type for a column turns the one number among forty texts into forty JSON texts, 007 into 7 and a
large number into another. Here a cell is decoded alone.
"""

import math
from collections.abc import Iterable
from typing import Any

Cell = Any  # None, str, Number, bool, bytes, or a list or dict of them
Row = dict[str, Cell]


class Number(str):
    """A number or a time as it stands in the file, `1.0` or `007`: it can be read as text but was none."""

    __slots__ = ()


def written(cell: Cell) -> str | None:
    """The text of a cell that holds a single value, as it stands in the file; None for a gap.

    Raises `ValueError`, saying what the cell holds, for a list or the like.
    """
    if cell is None or type(cell) is str:
        return cell
    if isinstance(cell, str):
        return str(cell)
    if isinstance(cell, bool):
        return "true" if cell else "false"
    raise ValueError(kind_of_cell(cell))


def kind_of_cell(cell: Cell) -> str:
    """What a cell holds, in a word for a person."""
    return KINDS[type(cell)]


KINDS = {
    type(None): "nothing",
    str: "text",
    Number: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
    bytes: "bytes",
}


def cell_of(value: Any) -> Cell:
    """A value of Arrow or Python as a cell: numbers and times as they are written, 1.0 as 1, no number as a gap."""
    if value is None or isinstance(value, str | bool | bytes):
        return value
    if isinstance(value, dict):
        return {key: cell_of(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [cell_of(inner) for inner in value]
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if value.is_integer():  # as a table with gaps stores 1
            return Number(int(value))
    return Number(value)


def listed(names: Iterable[str], most: int = 12) -> str:
    """Names with commas between, at most so many and then how many more there are."""
    names = list(names)
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown
