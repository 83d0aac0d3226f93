import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.data.examples import (
    Columns,
    Examples,
    also_in,
    label_names,
    load_examples,
    load_texts,
    stratified,
)

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
        ([{"text": "t", "label": ["a", "b"]}] * 3, Columns(), "holds no single label a row"),
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


def test_rows_without_a_label_are_left_out_and_counted(tmp_path, capsys):
    path = written(tmp_path / "rows.jsonl", [{"text": a, "label": b} for a, b in ROWS] + [{"text": "x", "label": ""}])
    assert len(load(path)) == len(ROWS)
    assert "1 of 21 rows have no label" in capsys.readouterr().err


def test_numbers_that_are_labels_are_words_in_the_order_of_numbers(tmp_path):
    path = written(tmp_path / "rows.jsonl", [{"text": f"t{n}", "label": [1.0, 10, 2][n % 3]} for n in range(9)])
    examples = load(path)
    assert label_names(examples.labels) == ["1", "2", "10"]


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
    for label in set(labels):
        total = labels.count(label)
        taken = sum(labels[place] == label for place in back)
        assert taken == min(round(share * total), total - 1)
    again = stratified(labels, share, seed)
    assert np.array_equal(kept, again[0])
    assert np.array_equal(back, again[1])


def test_another_seed_holds_back_other_rows():
    labels = ["a", "b"] * 50
    assert not np.array_equal(stratified(labels, 0.2, 0)[1], stratified(labels, 0.2, 1)[1])


def test_a_text_is_the_same_whatever_its_capitals_and_white_space():
    assert list(also_in(["Win  NOW\n", "other"], ["win now"])) == [True, False]


def test_texts_to_label_are_lines_of_a_text_file_or_the_column_of_a_table(tmp_path):
    (tmp_path / "lines.txt").write_text("one\ntwo, three\n", encoding="utf-8")
    (tmp_path / "rows.csv").write_text('id,text\n1,one\n2,"two, three"\n', encoding="utf-8")
    expected = ["one", "two, three"]
    assert load_texts(str(tmp_path / "lines.txt"), None) == load_texts(str(tmp_path / "rows.csv"), None) == expected
