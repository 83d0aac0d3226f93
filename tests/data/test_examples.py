import json
import re
from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.data.examples import (
    Columns,
    Examples,
    also_in,
    find_columns,
    label_names,
    load_examples,
    load_texts,
    stratified,
)
from groundup.data.tables import ArrowTable

ROWS = [("good film", "pos"), ("bad film", "neg"), ("fine, really", "pos"), ("no", "neg")] * 5


def load(path, columns=Columns()):  # noqa: B008 (frozen)
    return load_examples([str(path)], columns)[0]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_lines_of_label_tab_text_are_read_without_header_or_quoting_in_either_order(tmp_path):
    (tmp_path / "first").write_text('ham\tsay "hi\nspam\t"win" now\nham\tok\n', encoding="utf-8")
    (tmp_path / "second.txt").write_text('say "hi\tham\n"win" now\tspam\nok\tham\n', encoding="utf-8")
    expected = Examples(['say "hi', '"win" now', "ok"], ["ham", "spam", "ham"])
    assert load(tmp_path / "first") == load(tmp_path / "second.txt") == expected


def test_columns_are_found_by_name_by_content_or_as_they_are_named(tmp_path):
    usual = written(tmp_path / "a.jsonl", [{"id": str(n), "label": b, "text": a} for n, (a, b) in enumerate(ROWS)])
    two = written(tmp_path / "b.jsonl", [{"what": a, "kind": b} for a, b in ROWS])
    odd = written(tmp_path / "c.jsonl", [{"x": a, "z": b, "text": "no", "w": "1"} for a, b in ROWS])
    expected = Examples([a for a, _ in ROWS], [b for _, b in ROWS])
    assert load(usual) == load(two) == load(odd, Columns("x", "z")) == expected


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([{"a": "x", "b": "y", "c": "z"}] * 3, Columns(), "which column of rows.jsonl holds the label"),
        ([{"a": "x", "label": "y"}] * 3, Columns(label="labl"), "did you mean 'label'"),
        ([{"text": f"t{n}", "label": f"unique {n}"} for n in range(50)], Columns(), "these are no classes"),
        ([{"text": "t", "label": None}] * 3, Columns(), "no row of .* has a label"),
        ([{"text": "t", "label": ["a", "b"]}] * 3, Columns(), "line 1: column 'label' holds a list, no single"),
        ([{"x": ["a"], "label": "y"}] * 3, Columns(text="x"), "line 1: column 'x' holds a list, no single"),
    ],
)
def test_a_table_that_is_not_labelled_is_refused_in_one_sentence(tmp_path, rows, columns, message):
    path = written(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=message):
        load(path, columns)


def test_a_header_that_is_missing_is_noticed(tmp_path):
    (tmp_path / "rows.csv").write_text("good,pos\nbad,neg\nfine,pos\nwell,pos\n", encoding="utf-8")
    with pytest.raises(InputError, match="its first line is data"):
        load(tmp_path / "rows.csv")


@pytest.mark.parametrize("columns", [Columns(label="spam"), Columns(text="message")])
def test_a_header_with_a_column_that_the_user_named_is_a_header_whatever_the_labels_are(tmp_path, columns):
    (tmp_path / "rows.csv").write_text("message,spam\nwin,spam\nhello,ham\nhow are you,ham\n", encoding="utf-8")
    expected = Examples(["win", "hello", "how are you"], ["spam", "ham", "ham"])
    assert load(tmp_path / "rows.csv", columns) == expected
    with pytest.raises(InputError, match="if it is a header, give --label-column 'spam'"):
        load(tmp_path / "rows.csv")


@pytest.mark.parametrize("blank", ["", "  ", None])
def test_rows_without_a_label_are_left_out_and_counted(tmp_path, capsys, blank):
    rows = [*({"text": a, "label": b} for a, b in ROWS), {"text": "x", "label": blank}]
    examples = load(written(tmp_path / "rows.jsonl", rows))
    assert (len(examples), set(examples.labels)) == (len(ROWS), {"pos", "neg"})
    assert "1 of 21 rows have no label" in capsys.readouterr().err


def test_classes_are_read_by_name_and_one_that_is_not_told_is_no_label(tmp_path):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, 0]}, features=features)
    table.to_parquet(tmp_path / "rows.parquet")
    assert load(tmp_path / "rows.parquet") == Examples(["a", "c"], ["yes", "no"])


def test_numbers_that_are_labels_are_words_in_the_order_of_numbers(tmp_path):
    path = written(tmp_path / "rows.jsonl", [{"text": f"t{n}", "label": [1.0, 10, 2][n % 3]} for n in range(9)])
    examples = load(path)
    assert label_names(examples.labels) == ["1", "2", "10"]


@pytest.mark.parametrize(
    ("labels", "names"), [("² 1 10", ["1", "10", "²"]), ("--1 2", ["--1", "2"]), ("-1 2 10", ["-1", "2", "10"])]
)
def test_labels_of_which_one_is_no_whole_number_are_in_the_order_of_words(labels, names):
    assert label_names(labels.split()) == names


def test_numbers_that_are_texts_are_read_as_they_are_written_and_zero_is_one(tmp_path):
    rows = [{"code": value, "label": label} for value, label in ((0, 0), (12, 1), (-3, 0), (None, 1))]
    whole, gaps = written(tmp_path / "rows.jsonl", rows[:3]), written(tmp_path / "gaps.jsonl", rows)
    parts = written(tmp_path / "parts.jsonl", [{"code": 0.5, "label": True}, {"code": 0.25, "label": False}])
    assert load(whole, Columns(text="code")) == Examples(["0", "12", "-3"], ["0", "1", "0"])
    assert load(gaps, Columns(text="code")) == Examples(["0", "12", "-3", ""], ["0", "1", "0", "1"])
    assert load(parts, Columns(text="code")) == Examples(["0.5", "0.25"], ["true", "false"])
    assert load_texts(str(gaps), "code") == ["0", "12", "-3", ""]


LONG = "word " * 40_000  # Python's csv takes fields of 131,072 characters at most
ODD = "one\u2028two\x85three\x0cfour"  # each of them ends a line for str.splitlines


@pytest.mark.parametrize(("name", "separator"), [("rows.txt", "\t"), ("rows.tsv", "\t"), ("rows.csv", ",")])
def test_long_texts_and_texts_with_odd_separators_are_read_whole(tmp_path, name, separator):
    header = "" if name == "rows.txt" else f"label{separator}text\n"
    lines = [f"{label}{separator}{text}\r\n" for label, text in (("a", LONG), ("b", ODD), ("b", "x"))]
    (tmp_path / name).write_text(header + "".join(lines), encoding="utf-8", newline="")
    assert load(tmp_path / name) == Examples([LONG, ODD, "x"], ["a", "b", "b"])


def test_a_line_that_is_wrong_is_named_by_its_place_in_the_file(tmp_path):
    (tmp_path / "rows.txt").write_text("\nham\tok\n\n \nspam win\n", encoding="utf-8")
    with pytest.raises(InputError, match="line 5 has not two fields"):
        load(tmp_path / "rows.txt")


def test_other_rows_have_columns_of_their_own_and_those_of_the_first_ones_where_they_have_both(tmp_path):
    def columns_of(names, like, given=Columns()):  # noqa: B008 (frozen)
        table = datasets.Dataset.from_dict({name: ["some text", "more text"] for name in names})
        return find_columns(ArrowTable.of(table, "test.csv"), given, "test.csv", like)

    lines = Columns("text", "label")  # what a file of lines without a header has
    assert columns_of(["category", "message"], lines) == Columns("message", "category")
    assert columns_of(["text", "category"], lines) == Columns("text", "category")
    odd = Columns("body", "kind")
    assert columns_of(["label", "text", "kind", "body"], odd) == odd
    assert columns_of(["label", "text", "kind", "body"], odd, Columns(text="body")) == odd
    with pytest.raises(InputError, match=r"test\.csv has no column 'kind' for --label-column: it has label"):
        columns_of(["label", "text"], odd, Columns(label="kind"))


def test_a_test_table_with_names_of_its_own_follows_on_lines_without_a_header(tmp_path):
    (tmp_path / "train.txt").write_text("ham\tok\nspam\twin\nham\thello\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("category,message\nham,fine\nham,good\nspam,money\n", encoding="utf-8")
    _, _, found = load_examples([str(tmp_path / "train.txt")], Columns())
    test, _, _ = load_examples([str(tmp_path / "test.csv")], Columns(), like=found)
    assert test == Examples(["fine", "good", "money"], ["ham", "ham", "spam"])


@pytest.mark.parametrize(
    "rows",
    [
        [{"id": "1", "text": "win"}, {"id": "2", "text": "hi"}],
        [{"text": "win"}, {"text": "hi"}],
        [{"text": "win", "target": ""}, {"text": "hi", "target": None}],
    ],
)
def test_rows_to_test_on_without_labels_are_refused_with_what_to_do(tmp_path, rows):
    path = written(tmp_path / "test.jsonl", rows)
    with pytest.raises(
        InputError, match=r"test\.jsonl has (no column 'target'|a label): .*|to label texts, give --predict"
    ):
        load_examples([str(path)], Columns(), like=Columns("text", "target"))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["27", "2", "14", "2,14"], "1 of 8 rows have several labels, such as '2,14'"),
        (["joy", "anger", "joy|anger", "anger; joy"], "2 of 8 rows have several labels"),
        (["[1]", "1", "2", "[1, 2]"], "1 of 8 rows have several labels, such as '.1, 2.'"),
        (["Ham", "ham", "spam", "spam"], "different labels: 'Ham' and 'ham'"),
        (["a  b", "a b", "c", "c"], "different labels: 'a  b' and 'a b'"),
        (["caf\u00e9", "cafe\u0301", "tea", "tea"], r"different labels: 'caf.xe9' and 'cafe.u0301'"),
        (["a", "a\u200b", "b", "b"], r"different labels: 'a' and 'a.u200b'"),
        (["007", "7", "8", "8"], "different labels: '007' and '7'"),
        (["+1", "1", "-1", "-1"], "different labels: '.1' and '1'"),
        (["pos", "neg", "NaN", "neg"], "1 of 8 rows have the label NaN: taken as a label"),
        (["None", "n/a", "x", "y"], "6 of 8 rows have the label None, n/a: taken as a label"),
        (["0.5", "1", "1.5", "2"], "4 numbers are taken as classes"),
    ],
)
def test_labels_that_may_be_meant_otherwise_are_told(tmp_path, capsys, labels, says):
    load(written(tmp_path / "rows.jsonl", [{"text": f"t {n}", "label": labels[n % 4]} for n in range(4)] + [
        {"text": f"u {n}", "label": labels[0]} for n in range(4)
    ]))  # fmt: skip
    assert re.search(says, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("rare", "says"),
    [
        (["projec"], r"'projec' \(1 row\) is spelt nearly as 'project' is: two labels"),
        (["projec"], r"1 label has fewer than 5 rows, too few to learn or to measure: projec"),
        (["bug", "bug", "question"], r"2 labels have fewer than 5 rows, .*: bug, question"),
    ],
)
def test_labels_with_hardly_a_row_are_told(tmp_path, capsys, rare, says):
    labels = ["project"] * 60 + ["feature"] * 60 + rare
    load(written(tmp_path / "rows.jsonl", [{"text": f"t {n}", "label": label} for n, label in enumerate(labels)]))
    said = capsys.readouterr().err
    assert re.search(says, said)
    assert ("spelt" in said) == ("projec" in rare)


@pytest.mark.parametrize("labels", [["red, blue", "green"], ["1", "2"], ["true", "false"], ["a;b", "c|d"], ["x", "y"]])
def test_of_plain_labels_nothing_is_told(tmp_path, capsys, labels):
    load(written(tmp_path / "rows.jsonl", [{"text": f"t {n}", "label": labels[n % 2]} for n in range(8)]))
    assert capsys.readouterr().err == ""


def test_amounts_are_no_classes(tmp_path):
    path = written(tmp_path / "rows.jsonl", [{"text": f"t {n}", "label": (n % 40) / 8} for n in range(400)])
    with pytest.raises(InputError, match="40 different numbers with fractions: these are amounts"):
        load(path)


def test_columns_that_are_not_read_are_told_and_kept(tmp_path, capsys):
    rows = [{"id": str(n), "title": "a title", "text": f"t {n}", "label": "ab"[n % 2]} for n in range(8)]
    _, (source,), _ = load_examples([str(written(tmp_path / "rows.jsonl", rows))], Columns())
    assert source["columns"] == {"text": "text", "label": "label"} and source["columns_not_read"] == ["id", "title"]
    assert "rows.jsonl: reads the columns text, label; not id, title" in capsys.readouterr().err


def test_one_label_alone_is_no_task():
    with pytest.raises(InputError, match="needs at least two"):
        label_names(["a", "a"])


@given(
    labels=st.lists(st.sampled_from("aabbbc"), min_size=1, max_size=60),
    share=st.floats(0.0, 0.99),
    seed=st.integers(0, 5),
)
def test_a_split_divides_every_label_by_its_share_and_keeps_one_of_each(labels, share, seed):
    kept, back = stratified(labels, share, seed)
    assert sorted([*kept, *back]) == list(range(len(labels)))
    rare = [label for label in set(labels) if min(round(share * labels.count(label)), labels.count(label) - 1) == 0]
    for label in set(labels):
        total = labels.count(label)
        taken = sum(labels[place] == label for place in back)
        assert taken <= total - 1
        assert label in rare or taken == min(round(share * total), total - 1)
    of_rare = [label for label in labels if label in rare]
    taken = sum(labels[place] in rare for place in back)
    assert taken == min(round(share * len(of_rare)), len(of_rare) - len(rare))
    again = stratified(labels, share, seed)
    assert np.array_equal(kept, again[0])
    assert np.array_equal(back, again[1])


@pytest.mark.parametrize(
    ("classes", "each", "share"), [(90, 6, 0.1), (90, 5, 0.1), (200, 2, 0.2), (2, 4, 0.1), (30, 3, 0.1)]
)
def test_many_labels_of_few_rows_each_are_held_back_from_together(classes, each, share):
    labels = [f"intent {number}" for number in range(classes)] * each
    kept, back = stratified(labels, share, 0)
    assert len(back) == pytest.approx(share * len(labels), abs=1 + classes / 2 * (share * each >= 0.5))
    assert {labels[place] for place in kept} == set(labels)
    assert max(Counter(labels[place] for place in back).values()) < each


def test_another_seed_holds_back_other_rows():
    labels = ["a", "b"] * 50
    assert not np.array_equal(stratified(labels, 0.2, 0)[1], stratified(labels, 0.2, 1)[1])


def test_a_text_is_the_same_whatever_its_capitals_and_white_space():
    assert list(also_in(["Win  NOW\n", "other"], ["win now"])) == [True, False]


def test_texts_to_label_are_lines_of_a_text_file_or_the_column_of_a_table(tmp_path):
    (tmp_path / "lines.txt").write_text("one\r\ntwo, three\n", encoding="utf-8")
    (tmp_path / "rows.csv").write_text('id,text\n1,one\n2,"two, three"\n', encoding="utf-8")
    expected = ["one", "two, three"]
    assert load_texts(str(tmp_path / "lines.txt"), None) == load_texts(str(tmp_path / "rows.csv"), None) == expected


def test_a_text_file_to_label_is_split_only_at_line_ends_so_predictions_match_its_lines(tmp_path):
    (tmp_path / "lines.txt").write_text(f"{ODD}\r\n\nlast\rline", encoding="utf-8", newline="")
    assert load_texts(str(tmp_path / "lines.txt"), None) == [ODD, "", "last\rline"]
    (tmp_path / "lines.txt").write_text("", encoding="utf-8")
    assert load_texts(str(tmp_path / "lines.txt"), None) == []


def test_of_a_table_of_texts_to_label_the_column_is_told_and_a_header_that_is_none_is_noticed(tmp_path, capsys):
    written(tmp_path / "rows.jsonl", [{"id": n, "body": "a b"} for n in range(3)])
    assert load_texts(str(tmp_path / "rows.jsonl"), None) == ["a b"] * 3
    assert "reads the column body as text; not id" in capsys.readouterr().err
    (tmp_path / "rows.csv").write_text("good,pos\n" + "bad,neg\nfine,pos\n" * 3, encoding="utf-8")
    with pytest.raises(InputError, match="its first line is data"):
        load_texts(str(tmp_path / "rows.csv"), None)


def test_a_readme_beside_tables_is_passed_over_and_counted(tmp_path, capsys):
    written(tmp_path / "rows.jsonl", [{"text": a, "label": b} for a, b in ROWS])
    (tmp_path / "more.txt").write_text("pos\tvery good\nneg\tvery bad\n", encoding="utf-8")
    (tmp_path / "README.md").write_text("# What these are", encoding="utf-8")
    assert len(load(tmp_path)) == len(ROWS) + 2
    assert "skipped 1 of 3 files, texts beside tables (README.md)" in capsys.readouterr().err


def test_a_column_to_label_that_a_table_has_not_is_refused_and_a_text_file_has_none_to_name(tmp_path):
    (tmp_path / "rows.csv").write_text("id,message\n1,one\n", encoding="utf-8")
    (tmp_path / "lines.txt").write_text("one\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"rows\.csv has no column 'mesage' .did you mean 'message'.*it has id"):
        load_texts(str(tmp_path / "rows.csv"), "mesage")
    assert load_texts(str(tmp_path / "rows.csv"), "id") == ["1"]
    assert load_texts(str(tmp_path / "lines.txt"), "message") == ["one"]


def test_rows_of_a_label_and_no_text_and_texts_with_two_labels_are_told(tmp_path, capsys):
    rows = [("a b", "x"), ("A  b", "y"), ("c", "x"), ("", "x"), (" ", "y"), (None, "y"), ("c", "x")]
    path = written(tmp_path / "rows.jsonl", [{"text": text, "label": label} for text, label in rows])
    assert len(load(path)) == 7
    said = capsys.readouterr().err
    assert "3 of 7 rows have a label and no text: taken as empty texts" in said
    assert "2 of 7 rows have a text that also occurs with another label" in said


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json"])
def test_of_a_single_column_it_is_not_asked_which_one_is_the_label(tmp_path, name):
    rows = {"a.csv": "text:label\na:x\nb:y\n", "a.jsonl": '{"text": "a"}\n' * 3, "a.json": '["a", "b"]'}
    (tmp_path / name).write_text(rows[name], encoding="utf-8")
    with pytest.raises(InputError, match=r"has the one column 'text.*rows need a text and a label"):
        load(tmp_path / name)


@pytest.mark.parametrize(("others", "said"), [(["0", "1"], True), (["pos", "0"], False), (["0"], False)])
def test_a_file_with_none_of_the_labels_before_it_is_told(tmp_path, others, said, capsys):
    first = written(tmp_path / "a.jsonl", [{"text": a, "label": b} for a, b in ROWS])
    second = written(tmp_path / "b.jsonl", [{"text": f"t {n}", "label": others[n % len(others)]} for n in range(6)])
    load_examples([str(first), str(second)], Columns())
    assert ("b.jsonl: none of its labels is in the data before it" in " ".join(capsys.readouterr().err.split())) == said
