"""Files that are not what their names say, folders that hold several parts, and what lies beside tables."""

import json

import pytest

from groundup.common.errors import InputError
from groundup.data.conversations import load_conversations
from groundup.data.examples import Columns, load_examples
from groundup.data.sources import load_documents

FORMATS = {
    "a PDF file": b"%PDF-1.4\n%\xe2\xe3\xcf\xd3\n",
    "a zip archive or an Office file": b"PK\x03\x04\x14\x00\x06\x00",
    "an Office file": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
    "an RTF file": rb"{\rtf1\ansi hello}",
    "a Parquet file": b"PAR1\x15\x04",
    "packed by gzip": b"\x1f\x8b\x08\x00",
    "packed by xz": b"\xfd7zXZ\x00\x00",
    "a tar archive": b"a.txt".ljust(257, b"\0") + b"ustar\x0000",
}


@pytest.mark.parametrize("what", FORMATS)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.jsonl", "a.dat"])
def test_a_file_of_another_format_is_named_whatever_its_ending_and_the_cure_helps(what, name, tmp_path):
    (tmp_path / name).write_bytes(FORMATS[what])
    for read in (lambda data: load_documents(data), lambda data: load_examples(data, Columns())):
        with pytest.raises(InputError, match=f"{name} is {what}: ") as error:
            read([str(tmp_path / name)])
        assert "UTF-8" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.html", "<!DOCTYPE html>\n<p>hello</p>", "a.html: read as plain text, tags and all"),
        ("a.txt", "<html><body>hello</body></html>", "a.txt: read as plain text, tags and all"),
        ("a.py", "print('hello')", "a.py: read as plain text"),
        ("a.jsonl.txt", '{"text": "one"}\n{"text": "two"}\n', "let the name end in .jsonl to read the rows"),
        ("a.txt", "hello", None),
        ("a", "hello", None),
        ("a.md", "{not JSON}\n", None),
    ],
)
def test_what_is_read_as_text_and_may_be_meant_otherwise_is_told(name, content, says, tmp_path, capsys):
    (tmp_path / name).write_text(content)
    assert list(load_documents([str(tmp_path / name)])[0].texts()) == [content]
    said = " ".join(capsys.readouterr().err.split())
    assert says in said if says else said == ""


def test_many_files_that_are_read_as_plain_text_are_told_in_one_line(tmp_path, capsys):
    for number in range(9):
        (tmp_path / f"{number}.py").write_text(f"print({number})")
    load_documents([str(tmp_path / "*.py")])
    assert " ".join(capsys.readouterr().err.split()) == "0.py, 1.py, 2.py and 6 more: read as plain text"


@pytest.mark.parametrize("test", ["test.jsonl", "x-dev.jsonl", "data/valid.jsonl", "eval/part_1.jsonl", "TEST_2.jsonl"])
@pytest.mark.parametrize("door", ["documents", "examples", "conversations"])
def test_of_a_folder_with_a_part_to_test_on_it_is_told_that_all_is_read(test, door, tmp_path, capsys):
    row = {"text": "a b", "prompt": "a b", "completion": "c"}
    for name in ("train.jsonl", test):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows = [row | {"text": f"{name} {number}", "label": "xy"[number % 2]} for number in range(4)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = {"documents": load_documents, "examples": load_examples, "conversations": load_conversations}[door]
    read([str(tmp_path)], *{"examples": [Columns()], "conversations": ["\n"]}.get(door, []))
    assert f"{test} is read like the rest, as one set" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("names", [["a.txt", "b.txt"], ["test.txt", "more.txt"], ["latest.txt", "trainer.txt"]])
def test_of_other_folders_nothing_is_told(names, tmp_path, capsys):
    for name in names:
        (tmp_path / name).write_text(f"a text of {name}")
    load_documents([str(tmp_path)])
    assert capsys.readouterr().err == ""


def test_a_readme_beside_tables_is_no_text_to_learn_from_and_beside_texts_it_is(tmp_path, capsys):
    (tmp_path / "README.md").write_text("# What these rows are")
    (tmp_path / "a.txt").write_text("a text")
    assert len(load_documents([str(tmp_path)])[0]) == 2
    (tmp_path / "rows.jsonl").write_text('{"text": "one"}\n')
    assert sorted(load_documents([str(tmp_path)])[0].texts()) == ["a text", "one"]
    assert "skipped README.md beside tables" in " ".join(capsys.readouterr().err.split())
