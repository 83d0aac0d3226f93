"""Read tables of labelled texts: find columns, take labels as words, split by seed, find rows on both sides.

--data ──load_examples──> Examples ──split──> training, selection, test ──(encoding)──> ids ──> batches
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import numpy.typing as npt

from groundup.common.console import say
from groundup.common.errors import InputError, listed, user_path
from groundup.data import python_docs
from groundup.data.documents import same_text
from groundup.data.files import PACKINGS, ROW_KINDS, TEXT_KINDS, check_text
from groundup.data.json_rows import GAPS, Row
from groundup.data.sources import Once, Source, find_files, is_hub_name, load_tables, tables_of
from groundup.data.tables import ArrowTable, Table, check_column, rows_of, texts_of
from groundup.data.text_columns import columns_read, find_text_column, say_columns

LABEL_COLUMNS = ("label", "labels", "class", "category", "target", "topic", "sentiment", "intent", "area", "tag", "y")
MOST_LABELS = 1000

_TO_LABEL = "test rows need labels; to label texts, give --predict"
_NUMBER, _FRACTION, _SEPARATOR = re.compile(r"-?\d+(\.\d+)?"), re.compile(r"-?\d+\.\d+"), re.compile("[,;|]")
_MOST_FRACTIONS = 20  # different ones that may be classes; more are amounts

FEW_ROWS, MANY_TIMES = 5, 10  # a label with so few rows is rare beside one with so many times as many
ALIKE = 0.85  # `difflib`'s ratio of two labels of which one may be the other, misspelt

Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Examples:
    """Texts and the label of each, in order."""

    texts: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.texts)

    def __add__(self, other: "Examples") -> "Examples":
        return Examples(self.texts + other.texts, self.labels + other.labels)

    def take(self, places: Places | npt.NDArray[np.bool_]) -> "Examples":
        """Return the rows at these indices, or where a mask is true."""
        chosen = np.arange(len(self))[places]
        return Examples([self.texts[place] for place in chosen], [self.labels[place] for place in chosen])


@dataclass(frozen=True)
class Columns:
    """The names of a table's columns, as far as they were given."""

    text: str | None = None
    label: str | None = None


def load_examples(
    data: Sequence[str], columns: Columns, *, like: Columns | None = None, held_out: bool = False
) -> tuple[Examples, list[dict[str, Any]], Columns]:
    """Read labelled texts in the order of the names given; return them, their sources and the columns of the last.

    A name is a table (JSON, CSV, TSV, Parquet; packed or not), a folder or glob of them, a Hub dataset, a text file of
    lines `label TAB text` without a header, or the built-in task `library-areas`. Rows without a label are left out
    and counted. The columns that are read are printed and recorded in the row of each source.

    Args:
        columns: the columns of text and label that the user named; the others are found.
        like: the columns of other rows of the same task, used for those not named if a table has both.
        held_out: read the built-in task's rows for testing, not those for training.

    Raises:
        InputError: for data that cannot be read, has no column of labels, or labels that are no classes.
    """
    if not data:
        raise InputError("no --data given: name a table of texts and labels, a Hub dataset or library-areas")
    examples, sources, found, once = Examples(), [], columns, Once()
    for item in data:
        for name, table, row in _tables(item, held_out, once):
            found = find_columns(table, columns, name, like)
            new = _examples_of(table, found, name)
            known, there = set(examples.labels), set(new.labels)
            if known and len(there) > 1 and not known & there:
                labels = f"{listed(sorted(there), 4)} there, {listed(sorted(known), 4)} before"
                say(f"{name}: none of its labels is in the data before it ({labels}): they count as different labels")
            examples += new
            row |= columns_read({"text": found.text or "", "label": found.label or ""}, table)
            sources += [row] if row not in sources else []
    once.say()
    say_columns(sources)
    if not len(examples):
        raise InputError(f"no row of {', '.join(data)} has a label" + (f": {_TO_LABEL}" if like is not None else ""))
    for line in _doubts(examples):
        say(f"{', '.join(data)}: {line}")
    return examples, sources, found


def sizes_said(parts: Mapping[str, Examples]) -> str:
    """Say how the rows fall to "train", "selection" and perhaps "test", and how many have each label."""
    counts = Counter(label for part in parts.values() for label in part.labels)
    test = f", {len(parts['test']):,} test" if "test" in parts else ""
    said = f"{len(parts['train']):,} rows to learn from, {len(parts['selection']):,} validation{test}"
    return f"{said}; {len(counts):,} labels: {listed((f'{name} {n:,}' for name, n in counts.most_common()), 8)}"


def _doubts(examples: Examples) -> list[str]:
    """Return what a person should know about labels that are taken as they are and may be meant otherwise."""
    labels = examples.labels
    counts, said = Counter(labels), []
    alike: dict[str, list[str]] = {}
    for label in counts:  # without what the eye misses: capitals, extra blanks, signs of no width, zeros ahead
        plain = "".join(sign for sign in unicodedata.normalize("NFKC", label) if unicodedata.category(sign) != "Cf")
        plain = same_text(plain)
        alike.setdefault(str(int(plain)) if re.fullmatch(r"[-+]?[0-9]{1,18}", plain) else plain, []).append(label)
    if several := [_told_apart(same) for same in alike.values() if len(same) > 1]:
        what = "labels that differ in capitals or blanks alone, or in how a character or a number is written, "
        said.append(f"{what}count as different labels: {listed(several, 4)}")
    if gaps := [label for label in counts if label.casefold() in GAPS]:
        rows = sum(counts[label] for label in gaps)
        said.append(f"{rows:,} of {len(labels):,} rows have the label {listed(gaps)}: taken as a label like any other")
    labels_of: dict[str, set[str]] = {"": set()}  # of empty texts it is said elsewhere
    texts = [same_text(text) for text in examples.texts]
    for text, label in zip(texts, labels):
        if text:
            labels_of.setdefault(text, set()).add(label)
    if unlike := sum(len(labels_of[text]) > 1 for text in texts):
        said.append(f"{unlike:,} of {len(labels):,} rows have a text that also occurs with another label")
    of_others = [label for label in counts if _parts(label) and _parts(label) <= counts.keys()]
    if of_others:
        rows = sum(counts[label] for label in of_others)
        said.append(
            f"{rows:,} of {len(labels):,} rows have several labels, such as {of_others[0]!r}: a classifier gives one, "
            "so each such combination is taken as a label of its own"
        )
    said += _rare_labels(counts)
    if any(_FRACTION.fullmatch(label) for label in counts) and all(_NUMBER.fullmatch(label) for label in counts):
        said.append(f"{len(counts):,} numbers are taken as classes, of which none is nearer to another")
    return said


def _rare_labels(counts: Counter[str]) -> list[str]:
    """Return what to know of labels with hardly a row beside one with many: misspelt, or too few to learn."""
    rare = sorted(label for label in counts if counts[label] < FEW_ROWS)
    common = [label for label in counts if counts[label] >= MANY_TIMES * FEW_ROWS]
    if not rare or not common:
        return []
    said = []
    for label in rare:
        near = difflib.get_close_matches(label, common, n=1, cutoff=ALIKE)
        if near and same_text(label) != same_text(near[0]) and not _NUMBER.fullmatch(label):
            rows = "row" if counts[label] == 1 else "rows"
            said.append(f"the label {label!r} ({counts[label]} {rows}) is spelt nearly as {near[0]!r} is: two labels")
    labels = "label has" if len(rare) == 1 else "labels have"
    said.append(f"{len(rare):,} {labels} fewer than {FEW_ROWS} rows, too few to learn or to measure: {listed(rare, 4)}")
    return said


def _told_apart(labels: Sequence[str]) -> str:
    """Write labels so that a person sees the difference: where they look the same, by their characters' codes."""
    same = len({unicodedata.normalize("NFKC", label) for label in labels}) < len(labels)
    return " and ".join(map(ascii if same else repr, labels))


def _parts(label: str) -> set[str]:
    """Return the parts of a label with separators if there are at least two, else none."""
    parts = {part.strip() for part in _SEPARATOR.split(label.strip("[]"))}
    return parts if len(parts) > 1 else set()


def load_texts(data: str, text_column: str | None) -> list[str]:
    """Read texts to be labelled, without the other cells of their rows, as `rows_to_label` does."""
    return [text for text, _ in rows_to_label(data, text_column)]


def rows_to_label(data: str, text_column: str | None) -> list[tuple[str, Row]]:
    """Read the texts that `data` names as `load_rows` does, or take it as the one text to be labelled.

    A text is what has a space and is no file, nor called like one.
    """
    return [(data, {})] if is_one_text(data) else load_rows(data, text_column)


def is_one_text(data: str) -> bool:
    """Return whether `data` is a text itself: it has a space, is no file or folder, and is not called like one."""
    ending = (*TEXT_KINDS, *ROW_KINDS, *PACKINGS)
    if len(data.split()) < 2 or data.startswith(("/", "./", "../", "~")) or data.lower().endswith(ending):
        return False
    try:
        path = user_path(data)
        return not any(place.exists() for place in (path, *path.parents[:-1]))
    except (InputError, OSError):  # longer than a name can be
        return True


def load_rows(data: str, text_column: str | None, usual: str | None = None) -> list[tuple[str, Row]]:
    """Read texts, each with the other cells of its row: a table's text column, or every line of a text file.

    `usual` is the column that holds the text of a table that has one of this name. Raises `InputError` for what cannot
    be read, and for a table without the column that is named.
    """
    if is_hub_name(data):
        return [row for _, table in load_tables([data])[0] for row in _rows_with_text(table, text_column, usual)]
    rows: list[tuple[str, Row]] = []
    for source in find_files(data):
        if source.kind in TEXT_KINDS:
            rows += [(line, {}) for line in _lines(source)]
        else:
            rows += _rows_with_text(source.table(), text_column, usual)
    return rows


def _rows_with_text(table: Table, text_column: str | None, usual: str | None) -> list[tuple[str, Row]]:
    check_column("--text-column", text_column, table)
    column = text_column or (usual if usual in table.column_names else None)
    if column is None and table.doubt:
        raise InputError(table.doubt)
    column = column or find_text_column(table)
    if column != usual:  # which says of itself what it is, and the others are kept
        say_columns([{"name": table.name} | columns_read({"text": column}, table)])
    others = ({name: cell for name, cell in row.items() if name != column} for row in rows_of(table))
    return [(text or "", row) for text, row in zip(texts_of(table, column), others, strict=True)]


def _lines(source: Source) -> list[str]:
    """Return the lines of a UTF-8 text file. Other characters that end a line for Python (U+2028) are text."""
    check_text(source.plain, source.name)
    with source.plain.open(encoding="utf-8-sig", newline="") as file:
        *lines, last = file.read().replace("\r\n", "\n").split("\n")
    return [*lines, last] if last else lines


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _tables(item: str, held_out: bool, once: Once) -> list[tuple[str, Table, dict[str, Any]]]:
    """Return the tables to which a name leads: the name of each, its rows, and where they come from."""
    if item == python_docs.LIBRARY_AREAS:
        if not once.new(item, item):
            return []
        rows = python_docs.library_areas()["test" if held_out else "train"]
        return [(item, ArrowTable.of(rows, item), python_docs.library_areas_source())]
    if is_hub_name(item):
        tables, rows = load_tables([item], once)
        return [(name, table, row) for (name, table), row in zip(tables, rows)]
    found = []
    for source in tables_of(find_files(item, once), item, (".md", ".rst")):
        table = _table_of_lines(source) if source.kind in TEXT_KINDS else source.table()
        found.append((source.name, table, source.row()))
    return found


def _table_of_lines(source: Source) -> Table:
    """Read lines `label TAB text` or `text TAB label`, without header or quotes: there are fewer labels than texts."""
    rows = {number: line.split("\t") for number, line in enumerate(_lines(source), 1) if line.strip()}
    bad = next((number for number, fields in rows.items() if len(fields) != 2), None)
    if bad is not None or not rows:
        where = f"line {bad} has not" if bad else "it is empty, no line has"
        raise InputError(
            f"{source.name}: {where} two fields with a tab between; give label TAB text, or CSV, JSONL, Parquet"
        )
    first, second = (list(fields) for fields in zip(*rows.values()))
    label, text = (first, second) if len(set(first)) <= len(set(second)) else (second, first)
    return ArrowTable.of(datasets.Dataset.from_dict({"label": label, "text": text}), source.name)


def find_columns(table: Table, given: Columns, name: str, like: Columns | None = None) -> Columns:
    """Find the columns of text and label: those given, else those of `like`, else by usual names, else by content.

    If no name helps, the label of a table of two columns is in the one with fewer different values. Raises
    `InputError`, naming the columns, if it is not clear.
    """
    columns = table.column_names
    check_column("--text-column", given.text, table)
    check_column("--label-column", given.label, table)
    if like is not None:
        both = Columns(given.text or like.text, given.label or like.label)
        if {both.text, both.label} <= set(columns):
            return both
        if both.label not in columns and _usual_label(columns, given.text) is None:
            raise InputError(f"{name} has no column {both.label!r}, it has {listed(columns)}: {_TO_LABEL}")
    if given == Columns() and table.doubt:
        raise InputError(table.doubt)
    label = given.label or _usual_label(columns, given.text)
    if label is None and len(columns) == 2:
        label = _label_by_content(table, given.text, name)
    if label is None and len(columns) == 1:
        raise InputError(
            f"{name} has the one column {columns[0]!r}: rows need a text and a label, in columns of their own"
        )
    if label is None:
        raise InputError(f"which column of {name} holds the label? It has {', '.join(columns)}: give --label-column")
    text = given.text or find_text_column(table, without=[label])
    if text == label:
        raise InputError(f"--text-column and --label-column are both {text!r}: name two")
    return Columns(text, label)


def _usual_label(columns: Sequence[str], text: str | None) -> str | None:
    lowered = {column.lower(): column for column in reversed(columns) if column != text}
    return next((lowered[usual] for usual in LABEL_COLUMNS if usual in lowered), None)


def _label_by_content(table: Table, text: str | None, name: str) -> str:
    """Return the one of two columns that has fewer different values, or that is not named as the text.

    Raises `InputError` if the user named no column and the header looks like a row.
    """
    values = {column: set(texts_of(table, column)) for column in table.column_names if column != text}
    label = min(values, key=lambda column: len(values[column]))
    if text is None and label in values[label]:
        raise InputError(
            f"{name}: its first line is data, not a header: put `text,label` or the like above it "
            f"(if it is a header, give --label-column {label!r})"
        )
    return label


def _examples_of(table: Table, columns: Columns, name: str) -> Examples:
    texts, labels = (texts_of(table, column or "") for column in (columns.text, columns.label))
    # A table with gaps stores 1 as 1.0, and its rows without gaps stand in another file.
    labels = [re.sub(r"^(-?\d+)\.0$", r"\1", label) if label is not None else None for label in labels]
    rows = [(text or "", label.strip()) for text, label in zip(texts, labels) if label is not None and label.strip()]
    if len(rows) < len(table):
        say(f"{name}: {len(table) - len(rows):,} of {len(table):,} rows have no label and are left out")
    if empty := sum(not text.strip() for text, _ in rows):
        say(f"{name}: {empty:,} of {len(table):,} rows have a label and no text: taken as empty texts")
    different = len({label for _, label in rows})
    numbers = all(_NUMBER.fullmatch(label) for _, label in rows)
    if numbers and different > _MOST_FRACTIONS and any(_FRACTION.fullmatch(label) for _, label in rows):
        raise InputError(
            f"column {columns.label!r} of {name} has {different:,} different numbers with fractions: these are "
            "amounts, no classes; give --label-column, or put the amounts into a few classes"
        )
    if different > MOST_LABELS or (len(rows) > 20 and different > len(rows) / 2):
        raise InputError(
            f"column {columns.label!r} of {name} has {different:,} different values in {len(rows):,} rows: "
            "these are no classes, give another column as --label-column"
        )
    return Examples([text for text, _ in rows], [label for _, label in rows])


# ---------------------------------------------------------------------------------------------------------------------
# Splits


def label_names(labels: Sequence[str]) -> list[str]:
    """Return the different labels, sorted as numbers if all are, else as words. Raises `InputError` if there is one."""
    names = sorted(set(labels))
    if len(names) < 2:
        raise InputError(f"all rows have the label {names[0] if names else ''!r}: a classifier needs at least two")
    numeric = all(re.fullmatch(r"-?\d+", name) for name in names)
    return sorted(names, key=int) if numeric else names


def stratified(labels: Sequence[str], share: float, seed: int) -> tuple[Places, Places]:
    """Return the rows to keep and the rows to hold out, `share` of every label's, drawn by `seed`; both in order.

    Rows are rounded by label, so that each side has its part of a rare label; labels too rare for a held-out row of
    their own are rounded together. At least one row of every label is kept.
    """
    generator = np.random.default_rng([seed, 1])
    places: dict[str, list[int]] = {}
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    held_back, pool, rows_of_rare = [], [], 0
    for label in sorted(places):
        drawn = generator.permutation(places[label])
        count = min(round(share * len(drawn)), len(drawn) - 1)
        held_back.append(drawn[:count])
        if count == 0:
            pool.append(drawn[1:])  # one is kept
            rows_of_rare += len(drawn)
    if pool:
        held_back.append(generator.permutation(np.concatenate(pool))[: round(share * rows_of_rare)])
    back = np.sort(np.concatenate(held_back)).astype(np.int64)
    return np.setdiff1d(np.arange(len(labels)), back), back


def spread(labels: npt.NDArray[np.int64], count: int) -> npt.NDArray[np.int64]:
    """Return the places of so many rows, of each label about as many as its share."""
    by_label = np.argsort(labels, kind="stable")
    middles = (np.arange(count) * 2 + 1) * len(labels) // (2 * count)
    return np.sort(by_label[middles])


def also_in(texts: Sequence[str], others: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Return whether each text also occurs in `others`, (N,); case and white space do not count."""
    known = {same_text(text) for text in others}
    return np.array([same_text(text) in known for text in texts], bool)
