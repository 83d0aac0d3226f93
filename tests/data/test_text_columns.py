import json

import datasets
import pytest

from groundup.common.console import console
from groundup.common.errors import InputError
from groundup.common.settings import read_yaml
from groundup.data.preparation import train_tokenizer
from groundup.data.sources import load_corpus, load_documents
from groundup.data.tables import ArrowTable, texts_of
from groundup.data.text_columns import columns_read, conversation_text, find_text_column, say_columns

CHAT = [{"from": "human", "value": "What is 3 plus 2?"}, {"from": "gpt", "value": "5"}]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def texts(path, **options):
    return list(load_documents([path], **options).texts())


def test_an_identifier_a_number_and_json_are_no_text_unless_they_are_named(tmp_path):
    rows = [
        {"id": f"row-{n}", "n": n, "tools": '[{"name": "add"}]', "doc_url": "a b", "at": f"2001-01-0{n}"}
        for n in range(3)
    ]
    path = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match=r"which column of rows\.jsonl holds the text\?.*give --text-column"):
        texts(path)
    assert texts(path, text_column="tools") == ['[{"name": "add"}]'] * 3
    with pytest.raises(InputError, match=r"column 'n' of rows\.jsonl holds no text"):
        texts(path, text_column="n")
    assert texts(write(tmp_path / "more.jsonl", [row | {"note": "ab"} for row in rows])) == ["ab"] * 3


def test_the_only_column_is_the_text_whatever_is_in_it(tmp_path):
    assert texts(write(tmp_path / "rows.jsonl", [{"word": "apple-1"}, {"word": "pear-2"}])) == ["apple-1", "pear-2"]


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (CHAT, "What is 3 plus 2?\n\n5"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": None}], "hi"),
        ([{"role": "user", "content": [{"type": "text", "text": "a "}, {"type": "image"}, {"text": "b"}]}], "a b"),
        ("no list", None),
        (["a"], None),
        ([{"role": "user", "content": {"a": 1}}], None),
    ],
)
def test_of_a_conversation_the_text_is_what_is_said(cell, text):
    assert conversation_text(cell) == text


@pytest.mark.parametrize("name", ["conversations", "messages", "Conversation"])
def test_a_conversation_is_read_rather_than_its_id_and_tools(tmp_path, name):
    rows = [{"id": f"conversation {n}", name: CHAT, "tools": "[{}]"} for n in range(3)] + [{"id": "empty", name: []}]
    path = write(tmp_path / "rows.jsonl", rows)
    with console.capture() as said:
        corpus = load_corpus([path])
    assert [*corpus.train.texts(), *corpus.validation.texts()] == ["What is 3 plus 2?\n\n5"] * 3
    assert f"reads the column {name} as text; not id, tools" in said.get()
    assert f"1 of 4 rows have no text in '{name}' and are left out" in said.get()
    assert corpus.sources[0]["columns"] == {"text": name}
    assert corpus.sources[0]["columns_not_read"] == ["id", "tools"]


def test_one_number_among_texts_is_its_digits_and_a_list_is_named_by_its_line(tmp_path):
    rows = [{"text": "some\ntext"}, {"text": 12345}, {"text": 'more "text"'}]
    assert texts(write(tmp_path / "rows.jsonl", rows)) == ["some\ntext", "12345", 'more "text"']
    with pytest.raises(InputError, match=r"rows\.jsonl, line 4: column 'text' holds a list, no text"):
        texts(write(tmp_path / "rows.jsonl", [*rows, {"text": ["a"]}]))


def test_the_columns_stand_in_the_recipe_of_a_verb(tmp_path, story_text):
    rows = [{"body": line, "title": "no"} for line in story_text.splitlines()]
    out = train_tokenizer(data=[write(tmp_path / "rows.jsonl", rows)], vocab_size=300, out=str(tmp_path / "out"))
    assert read_yaml(out / "recipe.yaml")["sources"][0]["columns"] == {"text": "body"}


def test_what_is_read_alike_is_said_once(capsys):
    console.quiet = False
    table = ArrowTable.of(datasets.Dataset.from_dict({"q": ["a"], "y": ["b"], "z": [1]}), "rows")
    read = columns_read({"text": "q", "label": "y"}, table)
    say_columns([{"name": name, **read} for name in "abcde"] + [{"name": "lines.txt"}])
    assert capsys.readouterr().err == "a, b, c and 2 more: reads the columns q as text, y as label; not z\n"


def test_cells_of_arrow_are_as_they_are_written():
    features = datasets.Features(
        {"class": datasets.ClassLabel(names=["no", "yes"]), "n": datasets.Value("float64"), "b": datasets.Value("bool")}
    )
    rows = datasets.Dataset.from_dict({"class": [1, -1], "n": [1.0, None], "b": [True, None]}, features=features)
    table = ArrowTable.of(rows, "rows")
    assert [texts_of(table, column) for column in table.column_names] == [["yes", None], ["1", None], ["true", None]]
    mixed = datasets.Dataset.from_dict({"a": [[{"b": 0}, {"c": "x"}]]}, on_mixed_types="use_json")
    ((_, row),) = ArrowTable.of(mixed, "rows").numbered()
    assert row == {"a": [{"b": "0"}, {"c": "x"}]}


def test_a_message_lists_no_more_columns_than_a_person_reads(tmp_path):
    table = ArrowTable.of(datasets.Dataset.from_dict({f"n{number}": [number] for number in range(500)}), "rows")
    with pytest.raises(InputError, match="and 488 more") as error:
        find_text_column(table)
    assert len(str(error.value)) < 400
