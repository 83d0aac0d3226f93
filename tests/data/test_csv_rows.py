import csv
import gzip
import io

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from groundup.common.console import console
from groundup.common.errors import InputError
from groundup.data import csv_rows
from groundup.data.conversations import load_conversations
from groundup.data.csv_rows import find_form, read_csv
from groundup.data.examples import Columns, Examples, load_examples, load_texts
from groundup.data.sources import load_documents, load_tables

WORDS = ["see", "you", "at", "lunch", "bring", "the", "notes"]


@pytest.fixture
def rows_of(tmp_path):
    def read(content, kind=".csv"):
        path = tmp_path / f"rows{kind}"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with console.capture() as said:
            rows = [(line, *row.values()) for line, row in read_csv(path, find_form(path, kind, path.name))]
        read.said = said.get()
        return rows

    return read


@pytest.mark.parametrize("kind", [".csv", ".tsv"])
@pytest.mark.parametrize("separator", csv_rows.SEPARATORS)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_separator_is_found_whatever_the_ending_and_said_where_it_is_another(rows_of, kind, separator, end):
    other = "," if separator != "," else ";"
    lines = [["text", "label"], *([f"{word}{other} and so on 1{other}5", "ab"[n % 2]] for n, word in enumerate(WORDS))]
    rows = rows_of(end.join(separator.join(line) for line in lines), kind)
    assert rows == [(number, *line) for number, line in enumerate(lines[1:], 2)]
    usual = {".csv": ",", ".tsv": "\t"}[kind]
    assert ("fields are separated by" in rows_of.said) == (separator != usual)


@given(
    rows=st.lists(st.tuples(st.text('ab ",;|\n\té', max_size=8), st.text("xyz", min_size=1, max_size=3)), min_size=1),
    separator=st.sampled_from(",;"),
    end=st.sampled_from(["\n", "\r\n"]),
    mark=st.booleans(),
)
def test_what_csv_writes_is_read_back(tmp_path_factory, rows, separator, end, mark):
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([("some text", "label"), *rows])
    path = tmp_path_factory.mktemp("csv") / "rows.csv"
    path.write_bytes(stream.getvalue().encode("utf-8-sig" if mark else "utf-8"))
    form = find_form(path, ".csv", path.name)
    assert form.columns == ["some text", "label"]
    assert [tuple(row.values()) for _, row in read_csv(path, form)] == rows


@given(st.lists(st.text("ab \"'", min_size=1, max_size=6).filter(str.strip), min_size=2, max_size=12))
def test_no_line_of_a_tsv_without_quoting_is_ever_swallowed(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("tsv") / "rows.tsv"
    path.write_text("text\tlabel\n" + "".join(f"{text}\tx\n" for text in texts), encoding="utf-8")
    rows = list(read_csv(path, find_form(path, ".tsv", path.name)))
    assert [line for line, _ in rows] == list(range(2, 2 + len(texts)))


def test_a_lone_quote_is_a_character_and_that_is_said(rows_of):
    rows = rows_of('text\tlabel\n"see you\tham\na 5" screen\tspam\n"again\tham\nso 6"\tspam\n', ".tsv")
    assert [row[1] for row in rows] == ['"see you', 'a 5" screen', '"again', 'so 6"']
    assert "so they are read as text" in rows_of.said


def test_quotes_that_hold_lines_together_by_chance_are_said(rows_of):
    assert rows_of('text,label\n"one, two\nthree",x\n') == [(2, "one, two\nthree", "x")]
    assert "its 2 lines are 1 rows" in rows_of.said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("text,label\na,x\nb, and c,y\n", "line 3 does not fit: it has 3 fields, the header has 2"),
        ("text,label\na,x\n\n\nb\n", "line 5 does not fit: it has 1 fields"),
        ('text,label\n"a, b",x\n"c, d,y\n"e, f",x\n', "line 3 does not fit: a quote opens a field"),
        ("text\nhello, world\n", "line 2 does not fit"),
        ("text,label,text\na,x,b\n", "columns 1 and 3 are both named 'text'"),
        ("text,label\n", "no rows below its header"),
        ("\n\n", "no rows below its header"),
        ("see you,27,a\nsee me,2,b\nat lunch,14,c\n", "its first line is data, not a header .'27'"),
        ("see you,0.5\nsee me,-1e3\n", "its first line is data"),
    ],
)
def test_what_no_form_explains_is_one_line_that_names_the_place(rows_of, content, says):
    with pytest.raises(InputError, match=says) as error:
        rows_of(content)
    assert "\n" not in str(error.value)


def test_a_fault_far_down_is_found_before_anything_is_read(rows_of):
    content = "text,label\n" + "some words,x\n" * 3000 + "a, b,x\n"
    with pytest.raises(InputError, match="line 3002 does not fit"):
        rows_of(content)


def test_columns_without_a_name_are_numbered_and_blank_lines_are_no_rows(rows_of, tmp_path):
    assert rows_of(",text,,\n0,a,,\n\n  \n1,b,,\n") == [(2, "0", "a", "", ""), (5, "1", "b", "", "")]
    assert find_form(tmp_path / "rows.csv", ".csv", "rows").columns == ["column 1", "text", "column 3", "column 4"]


def test_a_label_that_stands_as_the_name_of_its_column_is_doubted_unless_a_column_is_named(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("see you,ham,a1\n" + "come now,spam,a2\nat lunch,ham,a3\n" * 3, encoding="utf-8")
    assert "its first line is data" in (find_form(path, ".csv", "rows.csv").doubt or "")
    path.write_text("text,label\n" + "come now,spam\nat lunch,ham\n" * 3, encoding="utf-8")
    assert find_form(path, ".csv", "rows.csv").doubt is None


def test_the_line_by_which_a_spreadsheet_tells_its_separator_is_no_header(rows_of):
    assert rows_of("sep=;\ntext;label\na, b;x\n") == [(3, "a, b", "x")]


def test_a_quote_that_is_never_closed_takes_in_no_more_than_a_field_may_hold(rows_of, monkeypatch):
    monkeypatch.setattr(csv_rows, "LONGEST_FIELD", 1000)
    content = 'text,label\n"a, b",x\n"c,y\n' + "some, words,x\n" * 500
    with pytest.raises(InputError, match="line 3 does not fit: a field has more than 1,000 characters"):
        rows_of(content)


@pytest.mark.parametrize("separator", [",", ";", "|"])
@example(rows=[("", ' "')], blanks=[0, 0, 0, 0, 0, 1])
@given(
    rows=st.lists(st.tuples(st.text("ab ,;|\"'é"), st.text('ab," ')), min_size=1, max_size=5),
    blanks=st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(any),
)
def test_blanks_before_a_quote_are_no_part_of_the_field(tmp_path_factory, separator, rows, blanks):
    def quoted(value):
        return '"' + value.replace('"', '""') + '"'

    lines = [("text", "label"), *rows]
    written = [f"{quoted(a)}{separator}{' ' * n}{quoted(b)}" for (a, b), n in zip(lines, blanks)]
    path = tmp_path_factory.mktemp("spaced") / "rows.csv"
    path.write_text("\n".join(written) + "\n", encoding="utf-8", newline="")
    with console.capture() as said:
        read = [(row["text"], row["label"]) for _, row in read_csv(path, find_form(path, ".csv", path.name))]
    assert read == rows
    assert ("spaces before the quotes" in said.get()) == any(blanks[: len(lines)])


def test_blanks_before_a_quote_are_passed_over_in_rows_of_several_lines_but_lone_quotes_hold_none_together(rows_of):
    assert rows_of('"text", "label"\n"a\nb", "x"\nc, "y, z"\n') == [(2, "a\nb", "x"), (4, "c", "y, z")]
    lone = [(2, "he", ' "hi'), (3, 'bye"', "x")]
    assert rows_of('text,label\nhe, "hi\nbye",x\n') == lone


def test_blanks_without_a_quote_and_quotes_within_a_field_stay(rows_of):
    assert rows_of('text,label\n a,b "c" d\n b,x\n') == [(2, " a", 'b "c" d'), (3, " b", "x")]
    assert rows_of('text,label\n "a" said,x\nb,y\n') == [(2, ' "a" said', "x"), (3, "b", "y")]
    assert rows_of('text\tlabel\n "a"\tx\nb\ty\n', ".tsv") == [(2, ' "a"', "x"), (3, "b", "y")]


@pytest.mark.parametrize("separator", csv_rows.SEPARATORS)
@pytest.mark.parametrize("kind", [".csv", ".tsv", ".csv.gz"])
def test_every_door_reads_the_same_rows_whatever_separates_them(kind, separator, tmp_path):
    lines = [[f"{word} at {number}:15", "ab"[number % 2], f"who? {word}", word] for number, word in enumerate(WORDS)]
    table = "\n".join(separator.join(line) for line in [["text", "label", "prompt", "completion"], *lines]).encode()
    path = tmp_path / f"rows{kind}"
    path.write_bytes(gzip.compress(table) if kind.endswith(".gz") else table)
    texts = [line[0] for line in lines]
    assert list(load_documents([str(path)])[0].texts()) == texts == load_texts(str(path), None)
    ((_, rows),) = load_tables([str(path)])[0]
    assert [list(row.values()) for _, row in rows.numbered()] == lines
    assert load_examples([str(path)], Columns())[0] == Examples(texts, [line[1] for line in lines])
    read = [[message["content"] for message in found.messages] for found in load_conversations([str(path)], "\n")[0]]
    assert read == [line[2:] for line in lines]


@pytest.mark.parametrize("times", [1, 3])
def test_rows_that_repeat_the_header_are_left_out_and_counted(tmp_path, times, capsys):
    part = "text,label\n" + "".join(f"{word},{label}\n" for word in "abcd" for label in ("x", "y"))
    (tmp_path / "rows.csv").write_text(part * (1 + times))
    examples = load_examples([str(tmp_path / "rows.csv")], Columns())[0]
    assert len(examples) == 8 * (1 + times) and set(examples.labels) == {"x", "y"}
    said = " ".join(capsys.readouterr().err.split())
    assert f"{times} of its {9 * times + 8} rows repeat the header and are left out" in said


def test_a_first_line_of_data_that_stands_there_twice_is_no_header(tmp_path):
    (tmp_path / "rows.csv").write_text("ok,ham\nwin,spam\nok,ham\nhello,ham\nmoney,spam\n")
    with pytest.raises(InputError, match="its first line is data"):
        load_examples([str(tmp_path / "rows.csv")], Columns())


def test_of_a_single_column_no_row_is_taken_for_the_header(tmp_path):
    (tmp_path / "rows.csv").write_text("text\na text\ntext\nmore text\n")
    assert list(load_documents([str(tmp_path / "rows.csv")])[0].texts()) == ["a text", "text", "more text"]
