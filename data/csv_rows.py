"""Read CSV and TSV a row at a time; choose separator, quotes and header together, so that every row of the file fits.

`csv.Sniffer` looks at letters that repeat; here a form is right if every row has as many fields as the header. What
no form explains is an error that names its line, so that no row is ever swallowed by the one before.
"""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from groundup.common.console import say
from groundup.common.errors import InputError

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
LONGEST_FIELD = 2**25  # characters: a quote that is never closed would take in all of the file

_SAMPLE = 1000  # rows looked at to find the separator
_BLOCK_BYTES = 2**20
_EXCEL_HINT = re.compile(r'"?sep=(.)"?')  # a first line that Excel writes and reads
_NUMBERS = re.compile(r"[-+]?[\d.,:;|/ -]*\d[\d.,:;|/ %-]*(e[-+]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True)
class CsvForm:
    """How the fields of a file are told apart, its columns and how many rows it has."""

    separator: str
    quoted: bool  # whether quotes hold a field together, or are characters like any other
    columns: list[str]
    rows: int
    skipped: int  # lines before the header
    spaced: bool  # whether blanks may stand before a quote that opens a field
    doubt: str | None  # why the header may be a row


@dataclass(frozen=True)
class _Fit:
    """How far a form explains a file: the fields of the header, the rows below it, and what is wrong where."""

    width: int
    rows: int
    within_lines: bool = True  # no field holds the end of a line
    spaced: bool = False  # a field begins with blanks and a quote
    line: int = 0
    fault: str = ""
    repeats: int = 0  # rows that are the header again


class _FaultAt(Exception):  # noqa: N818 (turned into an error where the other forms are known)
    """What the parser found wrong with the row that begins on a line."""

    def __init__(self, line: int, reason: str) -> None:
        self.line, self.fault = line, "a quote opens a field and none closes it rightly"
        if "field larger" in reason:
            self.fault = f"a field has more than {LONGEST_FIELD:,} characters: perhaps a quote is never closed"


def find_form(path: Path, kind: str, name: str) -> CsvForm:
    """Find how to read a UTF-8 file, and print how it differs from what its ending promises; `name` is for messages.

    Raises `InputError` for rows that no form explains, for a header that is none, and for a file without rows.
    """
    usual = "\t" if kind == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as file:
        found = _EXCEL_HINT.fullmatch(file.readline(16).rstrip("\r\n"))
    hint = found[1] if found else None
    skipped = int(hint is not None)
    separator = hint or _separator(path, usual)
    spaced = _spaced(path, separator, skipped)
    quoted, fit = (True, spaced) if spaced else _quotes(path, separator, skipped, name)
    if not fit.rows:
        raise InputError(f"cannot read {name} as {kind}: there are no rows below its header")
    if separator != usual:
        say(f"{name}: its fields are separated by {SEPARATORS.get(separator, repr(separator))}")
    if spaced:
        say(f"{name}: spaces before the quotes of a field are ignored")
    if fit.repeats:
        say(f"{name}: {fit.repeats:,} of its {fit.rows + fit.repeats:,} rows repeat the header and are left out")
    rows = _records(path, separator, quoted, skipped, spaced is not None)
    sample = [fields for _, fields in itertools.islice(rows, 1 + _SAMPLE)]
    doubt = _doubt_of(sample[0], [row for row in sample[1:] if not _is_repeat(row, sample[0])], name)
    columns = [field.strip() or f"column {number}" for number, field in enumerate(sample[0], 1)]
    if twice := [column for column, count in Counter(columns).items() if count > 1]:
        places = " and ".join(str(number) for number, column in enumerate(columns, 1) if column == twice[0])
        raise InputError(f"{name}: its columns {places} are both named {twice[0]!r}: give each a name of its own")
    return CsvForm(separator, quoted, columns, fit.rows, skipped, spaced is not None, doubt)


def read_csv(path: Path, form: CsvForm) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield the rows below the header as texts, each with the line on which it begins; skip the header's repeats."""
    rows = _records(path, form.separator, form.quoted, form.skipped, form.spaced)
    _, header = next(rows)
    for line, fields in rows:
        if not _is_repeat(fields, header):
            yield line, dict(zip(form.columns, fields))


def _is_repeat(fields: list[str], header: list[str]) -> bool:
    """Return whether a row is the header again, as in files that were joined; a single field may be a text."""
    return fields == header and len(header) > 1


def _records(
    path: Path, separator: str, quoted: bool, skipped: int = 0, spaced: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield the line on which each row begins, and its fields; skip blank lines. Raises `_FaultAt`."""
    csv.field_size_limit(LONGEST_FIELD)  # for the process, there is no other; the usual 131,072 are less than a book
    quoting = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    with path.open(encoding="utf-8-sig", newline="") as file:
        for _ in range(skipped):
            file.readline()
        reader = csv.reader(file, delimiter=separator, quoting=quoting, skipinitialspace=spaced, strict=True)
        width, line = 0, 1 + skipped
        try:
            for fields in reader:
                blank = not fields or (len(fields) == 1 < width and not fields[0].strip())
                if not blank:
                    width = width or len(fields)
                    yield line, fields
                line = reader.line_num + 1 + skipped
        except csv.Error as error:
            raise _FaultAt(line, str(error)) from error


def _fit(
    path: Path, separator: str, quoted: bool, skipped: int = 0, most: int | None = None, skip_blanks: bool = False
) -> _Fit:
    """Return how well a form explains a file, or its first rows."""
    width, rows, within_lines, spaced, repeats = 0, -1, True, False, 0
    header: list[str] = []
    try:
        for line, fields in itertools.islice(_records(path, separator, quoted, skipped, skip_blanks), most):
            repeats += _is_repeat(fields, header)
            header, width = header or fields, width or len(fields)
            spaced = spaced or any(map(_begins_with_blank_and_quote, fields))
            if len(fields) != width:
                fault = f"it has {len(fields)} fields, the header has {width}"
                return _Fit(width, rows, within_lines, spaced, line, fault)
            rows += 1
            if quoted and within_lines:
                within_lines = not any("\n" in field or "\r" in field for field in fields)
    except _FaultAt as error:
        return _Fit(width, rows, within_lines, spaced, error.line, error.fault)
    return _Fit(width, max(rows - repeats, 0), within_lines, spaced, repeats=repeats)


def _separator(path: Path, usual: str) -> str:
    """Return what separates the fields: the usual one if it explains the first rows, else another that does.

    If none does, it is the one that splits the header into most fields, so that the error is about that one.
    """
    fits = {
        separator: [_fit(path, separator, quoted, most=1 + _SAMPLE) for quoted in (True, False)]
        for separator in [usual, *(other for other in SEPARATORS if other != usual)]
    }
    for separator, forms in fits.items():
        if any(fit.width > 1 and not fit.fault for fit in forms):
            return separator
    if max(fits[usual][1].width, fits[usual][0].width) > 1:
        return usual
    return max(fits, key=lambda separator: fits[separator][1].width)


def _spaced(path: Path, separator: str, skipped: int) -> _Fit | None:
    """Return the fit of a file whose fields have a blank and then quotes (`"a", "b"`); None for any other file.

    Blanks and quotes are otherwise read as characters of the text. Between tabs they are that.
    """
    quoted = _fit(path, separator, True, skipped)
    if separator == "\t" or not (quoted.spaced or quoted.fault):
        return None
    fit = _fit(path, separator, True, skipped, skip_blanks=True)
    # Some quotes must open after blanks, rather than hold a text that begins with a blank and a quote.
    as_written, skipping = (_records(path, separator, True, skipped, spaced) for spaced in (False, True))
    if fit.fault or fit.width < 2:
        return None
    if not quoted.fault and not any(
        _begins_with_blank_and_quote(field) and field != other
        for (_, fields), (_, others) in zip(as_written, skipping)
        for field, other in zip(fields, others)
    ):
        return None
    if quoted.within_lines and not fit.within_lines:  # two lone quotes would hold together what is between
        return fit if quoted.fault and _fit(path, separator, False, skipped).fault else None
    return fit


def _begins_with_blank_and_quote(field: str) -> bool:
    return field[:1] == " " and field.lstrip(" ")[:1] == '"'


def _quotes(path: Path, separator: str, skipped: int, name: str) -> tuple[bool, _Fit]:
    """Return whether quotes hold fields together, and the fit then. Raises `InputError` if the file fits neither way.

    Where both ways fit and rows of several lines would be held together, two lone quotes may have swallowed what is
    between. Commas often stand in such a text and the lines fit by chance; tabs do not.
    """
    quoted = _fit(path, separator, True, skipped)
    with path.open("rb") as file:
        holds_quotes = any(b'"' in block for block in iter(lambda: file.read(_BLOCK_BYTES), b""))
    if (not quoted.fault and (quoted.within_lines or quoted.width == 1)) or not holds_quotes:
        if quoted.fault:
            raise _ragged(quoted, name)
        return True, quoted
    plain = _fit(path, separator, False, skipped)
    if not plain.fault and (quoted.fault or separator in "\t|"):
        say(f"{name}: its quotes do not come in pairs, so they are read as text")
        return False, plain
    if quoted.fault:
        raise _ragged(max(quoted, plain, key=lambda fit: fit.line), name)
    if not plain.fault:
        say(f"{name}: quoted fields span several lines, so its {plain.rows:,} lines are {quoted.rows:,} rows")
    return True, quoted


def _ragged(fit: _Fit, name: str) -> InputError:
    return InputError(
        f"cannot read {name}: line {fit.line} does not fit: {fit.fault}; "
        'a text that holds a separator, a quote or the end of a line needs quotes (") around it, '
        "and a quote within them is written twice"
    )


def _doubt_of(header: list[str], rows: list[list[str]], name: str) -> str | None:
    """Return why the header may be a row: it has a label above the same labels. It may still be the name of a column.

    Raises `InputError` if it certainly is one: it has a number above numbers.
    """
    doubt = None
    for field, column in zip(header, zip(*rows)):
        field = field.strip()
        values = Counter(value.strip() for value in column if value.strip())
        message = (
            f"{name}: its first line is data, not a header ({field!r} is above values of its kind): "
            "put a line of names above it, `text,label` or the like"
        )
        numbers = sum(count for value, count in values.items() if _NUMBERS.fullmatch(value))
        if _NUMBERS.fullmatch(field) and numbers > 0.9 * values.total() > 0:
            raise InputError(message)
        if values[field] and len(values) <= values.total() / 2:
            doubt = doubt or f"{message} (if it is a header, say so: name a column of it by --text-column)"
    return doubt
