import json

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
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
    return list(load_documents([path], **options)[0].texts())


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


SAID = [{"role": "user", "content": "What is 3 plus 2?"}, {"role": "assistant", "content": "5"}]


@pytest.mark.parametrize("options", [{}, {"text_column": "Messages"}])
@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_conversation_written_as_json_is_read_as_what_is_said_in_it(tmp_path, ending, options):
    table = pd.DataFrame({"id": ["a", "b", "c"], "Messages": [json.dumps(SAID), "", json.dumps(SAID[:1])]})
    path = tmp_path / f"rows.{ending}"
    if ending == "parquet":
        table.to_parquet(path)
    elif ending == "jsonl":
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, sep="\t" if ending == "tsv" else ",", index=False)
    with console.capture() as said:
        assert texts(str(path), **options) == ["What is 3 plus 2?\n\n5", "What is 3 plus 2?"]
    assert "1 of 3 rows have no text in 'Messages' and are left out" in said.get()


@pytest.mark.parametrize("again", [False, True])  # the second time from the cache
@pytest.mark.parametrize(
    ("more", "unread"),
    [
        ({}, None),
        ({"tool_calls": [], "name": None}, None),
        ({"tool_calls": [{"id": "c"}]}, ["tool_calls"]),
        ({"weight": 0, "name": "kim"}, ["name", "weight"]),
        (
            {"content": [{"type": "text", "text": "5"}, {"type": "image_url", "image_url": {}}]},
            ["content of type image_url"],
        ),
        ({"content": ["5"]}, None),
    ],
)
def test_what_messages_hold_beside_a_text_is_told_and_kept(tmp_path, more, unread, again):
    path = write(tmp_path / "rows.jsonl", [{"messages": SAID}] * 5 + [{"messages": [SAID[0], SAID[1] | more]}])
    if again:
        load_documents([path])
    with console.capture() as said:
        documents, (source,) = load_documents([path])
    assert list(documents.texts()) == ["What is 3 plus 2?\n\n5"] * 6
    assert source.get("message_keys_not_read") == unread
    assert ("of messages not" in said.get()) == (unread is not None)


OTHERS = {
    "map": pa.array([[("a", "b")], None], pa.map_(pa.string(), pa.string())),
    "half a float": pa.array([0.5, None]).cast(pa.float16()),
    "interval": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "decimal": pa.array([1, None]).cast(pa.decimal256(40, 2)),
    "nothing": pa.nulls(2),
    "union": pa.UnionArray.from_dense(
        pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array([1]), pa.array(["a"])]
    ),
    "duration": pa.array([1, None], pa.duration("s")),
    "list of maps": pa.array([[[("a", 1)]], None], pa.list_(pa.map_(pa.string(), pa.int64()))),
    "bytes": pa.array([b"a", None], pa.binary(1)),
    "view of text": pa.array(["a", None], pa.string_view()),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_column_of_any_type_of_arrow_beside_the_text_does_no_harm(kind):
    data = pa.table({"text": ["a", "b"], "other": OTHERS[kind]})
    table = ArrowTable("rows", data.schema, 2, lambda columns: iter(data.to_batches()))
    assert texts_of(table, "text") == ["a", "b"]
    assert table.kinds("other") is not None
    assert find_text_column(table) == "text"


@pytest.mark.parametrize("kind", [pa.float16(), pa.float32(), pa.float64()])
def test_numbers_of_any_width_are_as_they_were_written(kind):
    data = pa.table(
        {"n": pa.array([0.1, 2.5, 3.0, None]).cast(kind), "in": pa.array([[0.1]] * 4, pa.list_(pa.float32()))}
    )
    table = ArrowTable("rows", data.schema, 4, lambda columns: iter(data.to_batches()))
    assert texts_of(table, "n") == ["0.1", "2.5", "3", None]
    assert next(table.numbered())[1]["in"] == ["0.1"]


@pytest.mark.parametrize(
    ("columns", "metadata", "says"),
    [
        (["text", "text"], None, "rows.parquet has two columns named 'text'"),
        (["text", "n"], {"huggingface": "broken"}, "cannot read what datasets wrote into rows.parquet"),
        (
            ["text", "n"],
            {"huggingface": json.dumps({"info": {"features": {"n": {"_type": "OfTomorrow"}}}})},
            "rows.parquet about its columns: .*'OfTomorrow'",
        ),
    ],
)
def test_a_table_whose_columns_cannot_be_told_is_refused_in_one_sentence(tmp_path, columns, metadata, says):
    table = pa.table([pa.array(["a"]), pa.array([1])], names=columns).replace_schema_metadata(metadata)
    pq.write_table(table, tmp_path / "rows.parquet")
    with pytest.raises(InputError, match=says) as error:
        texts(str(tmp_path / "rows.parquet"))
    assert "\n" not in str(error.value)
