import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.data import json_rows
from groundup.data.json_rows import Number, read_json
from groundup.data.tables import FileTable, texts_of

scalars = st.none() | st.booleans() | st.integers() | st.text(max_size=6) | st.floats(allow_nan=False)
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab"), inner))
tables = st.lists(st.dictionaries(st.sampled_from(["text", "n", "é"]), values, min_size=1), min_size=2, max_size=6)


def read(path, content, kind=".jsonl"):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_json(path, kind, path.name))


def as_written(value):
    """Return numbers as their digits, which is all that a cell may differ in from what was written."""
    if isinstance(value, dict):
        return {name: as_written(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [as_written(inner) for inner in value]
    return value if value is None or isinstance(value, bool | str) else json.dumps(value)


@given(tables, st.sampled_from([None, 1]), st.booleans())
def test_a_cell_is_what_was_written_whatever_stands_in_the_other_rows(tmp_path_factory, rows, indent, ascii_only):
    path = tmp_path_factory.mktemp("json") / "rows"
    expected = [as_written(row) for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "BUFFER", 7)  # so that values lie across blocks
        lines = "\r\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
        assert [row for _, row in read(path, lines)] == expected
        assert [row for _, row in read(path, json.dumps(rows, indent=indent), ".json")] == expected
        after_each_other = "\n".join(json.dumps(row, indent=indent) for row in rows)
        assert [row for _, row in read(path, after_each_other, ".json")] == expected


def test_numbers_keep_their_digits_and_are_known_for_numbers(tmp_path):
    ((_, row),) = read(tmp_path / "rows.jsonl", '{"a": 1.0, "b": 12345678901234567890123, "c": -0, "d": 1e3, "e": NaN}')
    assert row == {"a": "1.0", "b": "12345678901234567890123", "c": "-0", "d": "1e3", "e": None}
    assert all(isinstance(row[name], Number) for name in "abcd")


@pytest.mark.parametrize("odd", [12345, 1.5, True, None, "007"])
def test_one_odd_value_changes_no_other(tmp_path, odd):
    rows = [{"text": f'a "text"\n{n}'} for n in range(40)]
    rows[7]["text"] = odd
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    table = FileTable("rows.jsonl", lambda: read_json(tmp_path / "rows.jsonl", ".jsonl", "rows.jsonl"), "key")
    texts = texts_of(table, "text")
    assert texts.pop(7) == (odd if isinstance(odd, str | None) else json.dumps(odd))
    assert texts == [row["text"] for number, row in enumerate(rows) if number != 7]


def test_a_row_has_all_columns_and_a_text_is_a_row(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text('["one", {"n": 2}, {"text": null}]', encoding="utf-8")
    table = FileTable("rows.json", lambda: read_json(path, ".json", "rows.json"), "key")
    assert table.column_names == ["text", "n"]
    assert [row for _, row in table.numbered()] == [
        {"text": "one", "n": None},
        {"text": None, "n": "2"},
        {"text": None, "n": None},
    ]
    assert table.kinds("n") == {Number}


@pytest.mark.parametrize("kind", [".jsonl", ".json"])
@pytest.mark.parametrize("broken", ['{"a": "x', '{"a": 1,', "{'a': 1}", '{"a": 1} x', "[1]", "5", '{"a": 1, "a": 2}'])
def test_what_is_wrong_is_named_by_its_line_in_the_file(tmp_path, kind, broken, monkeypatch):
    monkeypatch.setattr(json_rows, "BUFFER", 50)
    lines = ['{"a": "some text"}'] * 300
    lines[250] = broken
    with pytest.raises(InputError, match=r"line 25[12]\b") as error:
        read(tmp_path / f"rows{kind}", "\n".join(lines), kind)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (json.dumps({f"q{n}": {"text": "a"} for n in range(1000)}), "is one object, not a list of rows"),
        (json.dumps({f"q{n}": "a text" for n in range(1000)}, indent=1), "is one object, not a list of rows"),
        ('{"data": [{"text": "a"}]}', "is one object, not a list of rows"),
        ('{"text": ["a", "b"], "label": ["x", "y"]}', "is one object, not a list of rows"),
        ('{"text": {"0": "a", "1": "b"}}', "is one object, not a list of rows"),
        ('{"instruction": ["a"], "output": ["b"]}', "is one object, not a list of rows"),
        ('{"train": [{"text": "a"}], "test": []}', "is one object, not a list of rows"),
        ('[{"a": 1}', "line 1 is no valid JSON"),
        ('[{"a": 1}\n{"a": 2}]', "line 2 is no valid JSON"),
        ('[{"a": 1},]', "line 1 is no valid JSON"),
        ('[{"a": 1}]\n[{"a": 2}]', "line 2 is no valid JSON: Extra data"),
        ('[{"a":\n"\\ud83d"}]', "half a character"),
        ("[" * 100_000, "too deep"),
        ("nonsense", "line 1 is no valid JSON"),
    ],
)
def test_what_is_no_list_of_rows_is_a_short_line(tmp_path, content, says):
    with pytest.raises(InputError, match=says) as error:
        read(tmp_path / "rows.json", content, ".json")
    assert len(str(error.value)) < 200


def test_a_single_object_with_a_text_or_a_conversation_is_a_row(tmp_path):
    assert read(tmp_path / "a.json", '{\n"Text": "a", "id": 1}', ".json") == [(1, {"Text": "a", "id": "1"})]
    for row in ('{"id": 1, "messages": [{"role": "user"}]}', '{"prompt": [{"role": "user"}], "completion": []}'):
        assert len(read(tmp_path / "b.json", row, ".json")) == 1
    assert read(tmp_path / "a.jsonl", '{"any": "a"}') == [(1, {"any": "a"})]


@pytest.mark.parametrize("indent", [1, 4])
def test_rows_of_several_lines_in_jsonl_are_told_how_they_can_be_read(tmp_path, indent):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    content = "\n".join(json.dumps(row, indent=indent) for row in rows)
    with pytest.raises(InputError, match=r"line 1 ends within a row: .* let the name end in \.json$"):
        read(tmp_path / "rows.jsonl", content)
    assert [row for _, row in read(tmp_path / "rows.json", content, ".json")] == rows  # and that helps
