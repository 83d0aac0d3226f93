"""Say in the terminal what was measured: the number that counts in a sentence, then a table for each set of rows.

A table fits into 80 columns without breaking a cell: baselines stand beside the model where there is room, else below.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from groundup.evaluation.metrics_json import (
    BESIDE,
    TRAINED,
    difference,
    family_notes,
    headline,
    notes,
    number,
    row_key,
    section,
    split_title,
    spread,
    title,
)

WIDTH = 80
NAME_WIDTHS = 26, 15  # at most so many letters of a model's or a baseline's name, and fewer where there is no room
ALONE = 36  # the same where a name has a line of its own
GAP = 2  # between two columns
GENERATED = ("stopped", "repeated_4grams", "distinct_1", "distinct_2", "words", "copied", "continued_word_for_word")
THIS_MODEL = " (this model)"  # ends the dataset of a row that is of one run where others are of several
_BLANK = Text("")

Row = dict[str, Any]
Lines = list[list[str]]


def summary(metrics: dict[str, Any]) -> RenderableType:
    """Return what was measured for the terminal; curves, families and the tokenizer's costs are in other files.

    Where there are test rows, validation rows are left out: they chose the weights.
    """
    rows = section(metrics["metrics"], "results")
    tested, overlap, own = sorted_rows(rows)
    said = headline([*tested, *section(metrics["metrics"], "comparison")])
    parts: list[RenderableType] = [Text(said, "bold"), _BLANK] if said else []
    for name, some in grouped(tested).items():
        parts += [_table(name, some), _BLANK]
    below = [*notes(rows), *(difference(row) for row in section(metrics["metrics"], "comparison"))]
    below = [*(note for note in below if note != said), *_in_short(overlap), *_in_short(own)]
    below += family_notes(section(metrics["metrics"], "families"))
    below += [f"{part} failed: {reason}" for part, reason in metrics.get("failures", {}).items()]
    return Group(*parts, *(Text(note, "dim") for note in below))


def sorted_rows(rows: Sequence[Row]) -> tuple[list[Row], list[Row], list[Row]]:
    """Return the rows to show in tables, those of the same without overlap, and those of the one run that was kept."""
    splits = {row["split"] for row in rows}
    shown = splits & {"test", TRAINED} or splits & {"validation"} or splits
    own = [row for row in rows if row["dataset"].endswith(THIS_MODEL) and row["split"] in shown]
    whole = [row for row in rows if not row["dataset"].endswith(THIS_MODEL)]
    apart = [row for row in whole if any(row["split"].startswith(f"{split} without ") for split in shown)]
    return [row for row in whole if row["split"] in shown], apart, own


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return the rows of each table by its title: those of a data set, or those of all tasks."""
    found: dict[str, list[Row]] = {}
    generated = {(row["dataset"], row["split"]) for row in rows if row["name"] == "distinct_1"}
    for row in rows:
        if row.get("num_fewshot") is not None:
            name = "tasks"
        elif row["name"] in GENERATED and (row["dataset"], row["split"]) in generated:
            name = f"text generated after beginnings of {row['dataset']}"
        else:
            name = f"{row['dataset']}, {split_title(row['split'])}"
            name += f", {row['windows']}" if row.get("windows") else ""
        found.setdefault(name, []).append(row)
    return {name + _size(some): some for name, some in found.items()}


def _size(rows: Sequence[Row]) -> str:
    """Return on how much a group was measured, where it is all alike: ": 1,115 rows"."""
    counts = {row["count"] for row in rows if row["name"] in ("accuracy", "exact_match") and row.get("count")}
    if len(counts) == 1 and rows[0].get("num_fewshot") is None:
        return f": {counts.pop():,} rows"
    text = next((row for row in rows if row.get("bytes") and row.get("context")), None)
    if text is None:
        return ""
    return f": {text['count']:,} tokens, {text['bytes']:,} bytes"


def _label(row: Row) -> str:
    """Return the name of a measure in its table; of a task with what it was measured on."""
    if row.get("num_fewshot") is None:
        return title(row)
    on = f"{row['dataset']}, {row['num_fewshot']} examples"
    return f"{on}{', ' + row['filter'] if row.get('filter') else ''}: {title(row)}"


def _table(name: str, rows: Sequence[Row]) -> Table:
    """Return one table: what fits beside the model, else what stands below it."""
    models = list(dict.fromkeys(row.get("model") for row in rows if not row.get("baseline")))
    header, lines = _below(rows, models)
    for name_width in NAME_WIDTHS:
        found = beside(rows, models, name_width)
        if _width([found[0], *found[1]]) <= WIDTH:
            header, lines = found
            break
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", title=name)
    table.title_justify, table.title_style = "left", "bold"
    for column, cell in enumerate(header):
        table.add_column(cell, justify="right" if column else "left", no_wrap=True, overflow="ellipsis")
    for line in lines:
        cells = [Text(cell, "bold" if column == 1 else "") for column, cell in enumerate(line)]
        table.add_row(*cells, style="dim" if line[0].startswith(BESIDE) and len(models) < 2 else "")
    return table


def _width(lines: Iterable[Sequence[str]]) -> int:
    return sum(max(map(len, column)) + GAP for column in zip(*lines))


def beside(rows: Sequence[Row], models: Sequence[str | None], name_width: int) -> tuple[list[str], Lines]:
    """Return a header and lines with a column for each model, for its interval, and for each baseline."""
    baselines = list(dict.fromkeys(row["baseline"] for row in rows if row.get("baseline")))
    values = {(row_key(row), row.get("model"), row.get("baseline")): row for row in rows}
    one, own = models[0] if len(models) == 1 else None, [row for row in rows if not row.get("baseline")]
    spreads = [column] if len(models) == 1 and (column := _spread_title(own)) else []
    header = ["", *(_short(name or "this model", name_width) for name in models), *spreads]
    header += [_short(name, max(name_width, NAME_WIDTHS[0])) for name in baselines if len(models) == 1]
    lines = []
    for row in {row_key(row): row for row in own}.values():
        key = row_key(row)
        cells = [number(values.get((key, name, None))) for name in models]
        cells += [spread(values.get((key, one, None)))] * len(spreads)
        cells += [number(values.get((key, one, name))) for name in baselines if len(models) == 1]
        lines.append([_label(row), *cells])
        for name in baselines if len(models) > 1 else ():
            cells = [number(values.get((key, model, name))) for model in models]
            if any(cell != number(None) for cell in cells):
                lines.append([BESIDE + _short(name, ALONE), *cells])
    return header, lines


def _below(rows: Sequence[Row], models: Sequence[str | None]) -> tuple[list[str], Lines]:
    """Return a header and lines with a column of numbers and one of intervals: a line for each model and baseline."""
    spreads = [column] if (column := _spread_title(rows)) else []
    several, lines, before = len(models) > 1, [], None
    for row in sorted(rows, key=_order(rows)):
        who = row.get("baseline") or row.get("model") or ""
        if row_key(row) != before and several:
            lines.append([_label(row), "", *[""] * len(spreads)])
        before = row_key(row)
        label = BESIDE + _short(who, ALONE) if several or row.get("baseline") else _label(row)
        line = [label, number(row), *[spread(row)] * len(spreads)]
        if not row.get("baseline") or line not in lines[-len(models) - 1 :]:  # each model's rows have the text's own
            lines.append(line)
    return ["", "this model" if not several else "", *spreads], lines


def _order(rows: Sequence[Row]) -> Any:
    """Return a key that sorts rows by measure, each measure's own rows before its baselines'."""
    keys = list(dict.fromkeys(row_key(row) for row in rows))
    return lambda row: (keys.index(row_key(row)), row.get("baseline") is not None)


def _spread_title(rows: Sequence[Row]) -> str:
    """Return what the column beside the numbers holds; an empty text for nothing."""
    if any(row.get("std") is not None for row in rows):
        return "± (seeds)"
    return "95 % interval" if any(row.get("low") is not None for row in rows) else ""


def _short(name: str, most: int) -> str:
    """Return a name that leaves room for numbers: its beginning and its end."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-((most - 1) // 2) :]}"


def _in_short(rows: Sequence[Row]) -> list[str]:
    """Return a line for each set of rows that needs no table of its own: its main measures and the best baseline's."""
    said = []
    for name in dict.fromkeys((row["dataset"], row["split"]) for row in rows):
        some = [row for row in rows if (row["dataset"], row["split"]) == name]
        own = [f"{title(row)} {number(row)}" for row in some if not row.get("baseline")][:2]
        first = next((row for row in some if not row.get("baseline")), None)
        rivals = [row for row in some if row.get("baseline") and first and row_key(row) == row_key(first)]
        beside = f"; {rivals[-1]['baseline']} {number(rivals[-1])}" if rivals else ""
        counted = f", {first['count']:,} rows" if first and first.get("count") else ""
        where = name[0].replace(THIS_MODEL, ", the run that is kept")
        said.append(f"{where}, {split_title(name[1])}{counted}: {', '.join(own)}{beside}")
    return said
