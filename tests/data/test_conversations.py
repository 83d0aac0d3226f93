import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.data import conversations as module
from groundup.data.conversations import (
    Conversation,
    ConversationRows,
    RowCounts,
    encode_conversations,
    load_conversations,
)
from groundup.data.windows import IGNORED
from groundup.tokenization.bpe import train_bpe
from groundup.tokenization.chat import CHAT_TEMPLATE

ANSWERED = [{"role": "user", "content": "Hello\nyou"}, {"role": "assistant", "content": "Yes"}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["Hello, hello. Be brief, be very brief and say no more. " * 10], 300)


@pytest.fixture
def write(tmp_path):
    def rows(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [str(path)]

    return rows


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Hello", "input": "you", "output": "Yes"},
        {"instruction": "Hello\nyou", "output": "Yes"},
        {"prompt": "Hello\nyou", "completion": "Yes"},
        {"prompt": ANSWERED[:1], "completion": ANSWERED[1:]},
        {"messages": ANSWERED},
    ],
)
def test_rows_of_every_form_become_the_same_messages(write, row):
    conversations, counts, sources = load_conversations(write(row), "\n")
    assert [conversation.messages for conversation in conversations] == [ANSWERED]
    assert counts == RowCounts(rows=1)
    assert sources[0]["name"] == "rows.jsonl" and len(sources[0]["sha256"]) == 64


def test_rows_without_an_answer_are_left_out_and_counted(write):
    rows = [{"instruction": "a", "output": answer} for answer in ("b", "", "  ", None)]
    conversations, counts, _ = load_conversations(write(*rows), "\n")
    assert (len(conversations), counts.rows, counts.without_answer) == (1, 4, 3)
    assert counts.warnings(8) == ["3 of 4 rows: have no answer and are left out"]


def test_data_in_which_nothing_is_answered_is_an_error(write):
    with pytest.raises(InputError, match="has an answer: there is nothing to learn"):
        load_conversations(write({"instruction": "a", "output": ""}), "\n")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, "has the columns text: rows need messages .or conversations.; prompt and completion"),
        ({"messages": [{"user": "a"}]}, "line 1: a message needs a role and a content .*this one has user"),
        ({"messages": [{"role": "user"}]}, "line 1: a message needs a role and a content .*this one has role"),
        ({"messages": "hello"}, "line 1: messages must be a list"),
        ({"messages": [*ANSWERED, {"role": "assistant", "content": "a", "weight": 0.5}]}, "line 1: .* the weight 0.5"),
        ({"instruction": "a", "output": "b", "history": [["one"]]}, "line 1: history must be a list of pairs"),
    ],
)
def test_rows_of_another_form_are_refused_in_one_sentence(write, row, says):
    with pytest.raises(InputError, match=says):
        load_conversations(write(row), "\n")


def encode(tokenizer, messages, context=200):
    counts = RowCounts(rows=1)
    return *encode_conversations([Conversation(messages)], tokenizer, context, counts), counts


def test_only_the_answer_and_its_end_are_trained(tokenizer):
    rows, places, ends, _ = encode(tokenizer, ANSWERED)
    batch = rows.batch([0], pad_id=1)
    trained = [token for token in batch["shift_labels"][0].tolist() if token != IGNORED]
    assert tokenizer.decode(trained) == "Yes<|end|>"
    assert places == [0] and ends == {tokenizer.convert_tokens_to_ids("<|end|>")}
    ids, _ = rows.row(0)
    assert batch["input_ids"][0].tolist() == ids[:-1].tolist()


def test_a_row_longer_than_the_context_is_cut_within_its_answer_and_counted(tokenizer):
    prompt = len(encode(tokenizer, ANSWERED)[0].split(0)[0])
    rows, _, _, counts = encode(tokenizer, ANSWERED, context=prompt + 1)
    assert rows.lengths.tolist() == [prompt + 1]
    assert (counts.cut, counts.cut_before_answer) == (1, 0)
    (said,) = counts.warnings(1024)
    assert said == "1 of 1 rows: are longer than 1,024 tokens (--context-length): truncated within their answer"


def test_a_row_cut_before_its_answer_is_left_out_and_counted(tokenizer):
    short = [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]
    counts = RowCounts(rows=2)
    rows, places, _ = encode_conversations([Conversation(ANSWERED), Conversation(short)], tokenizer, 5, counts)
    assert (len(rows), places, counts.cut, counts.cut_before_answer) == (1, [1], 0, 1)


def test_data_of_which_no_token_would_be_trained_is_an_error(tokenizer):
    with pytest.raises(InputError, match="no token would be trained"):
        encode(tokenizer, ANSWERED, context=3)


def test_an_end_token_outside_the_marks_is_an_error(tokenizer):
    template = CHAT_TEMPLATE.replace(
        "{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}",
        "{{- message['content'] -}}{%- endgeneration -%}{{- '<|end|>' -}}",
    )
    assert template != CHAT_TEMPLATE
    other = train_bpe(["Hello hello " * 10], 270)
    other.chat_template = template
    with pytest.raises(InputError, match="trains no end token"):
        encode(other, ANSWERED)


def test_special_tokens_in_a_text_are_counted(tokenizer):
    counts = encode(tokenizer, [{"role": "user", "content": "<|end|>"}, {"role": "assistant", "content": "a"}])[-1]
    assert counts.warnings(8) == ["1 of 1 rows: spell special tokens: read as plain text"]


ROW = st.lists(st.tuples(st.integers(2, 9), st.booleans()), min_size=2, max_size=12)


@given(st.lists(ROW, min_size=1, max_size=6))
def test_a_batch_holds_each_row_and_labels_are_the_trained_ids_that_follow(rows):
    lists = [([token for token, _ in row], [trained for _, trained in row]) for row in rows]
    stored = ConversationRows.from_lists(lists)
    batch = stored.batch(range(len(rows)), pad_id=0)
    for (ids, trained), inputs, labels in zip(lists, batch["input_ids"], batch["shift_labels"]):
        length = len(ids) - 1
        assert inputs[:length].tolist() == ids[:-1] and not inputs[length:].any()
        assert labels[:length].tolist() == [token if mark else IGNORED for token, mark in zip(ids[1:], trained[1:])]
        assert (labels[length:] == IGNORED).all()


@given(st.lists(ROW, min_size=1, max_size=6))
def test_pairs_split_each_row_before_its_last_answer(rows):
    lists = [([token for token, _ in row] + [5], [trained for _, trained in row] + [True]) for row in rows]
    stored = ConversationRows.from_lists(lists)
    batch = stored.pairs(range(len(rows)), pad_id=0)
    for index, (ids, trained) in enumerate(lists):
        read, written = stored.split(index)
        assert read.tolist() + written.tolist() == ids
        assert all(trained[len(read) :]) and (len(read) == 0 or not trained[len(read) - 1])
        assert batch["input_ids"][index][batch["attention_mask"][index].bool()].tolist() == read.tolist()
        assert batch["labels"][index][batch["labels"][index] != IGNORED].tolist() == written.tolist()


def test_rows_come_back_from_disk_as_they_were(tmp_path):
    rows = ConversationRows.from_lists([([1, 2, 3], [False, True, True]), ([4, 5], [False, True])])
    rows.save(tmp_path / "rows")
    again = ConversationRows.open(tmp_path / "rows")
    assert all(np.array_equal(getattr(rows, name), getattr(again, name)) for name in ("ids", "trained", "borders"))


def test_a_row_that_is_cut_keeps_its_beginning(tokenizer):
    whole, marks = encode(tokenizer, ANSWERED)[0].row(0)
    for context in range(int(marks.argmax()) + 1, len(whole)):
        ids, trained = encode(tokenizer, ANSWERED, context)[0].row(0)
        assert ids.tolist() == whole[:context].tolist() and trained.tolist() == marks[:context].tolist()


def test_places_are_those_of_all_conversations_however_many_are_encoded_at_once(tokenizer, monkeypatch):
    monkeypatch.setattr(module, "ENCODED_AT_ONCE", 2)
    short = Conversation([{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}])
    rows = [short, Conversation(ANSWERED), short, short, Conversation(ANSWERED), short]
    encoded, places, _ = encode_conversations(rows, tokenizer, 5, RowCounts(rows=6))
    assert places == [0, 2, 3, 5] and len(encoded) == 4


def test_of_several_special_tokens_in_an_answer_the_last_one_ends_it():
    tokenizer = train_bpe(["Hello hello " * 10], 270)
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}",
        "{{- '<|user|>' + message['content'] + '<|end|>' -}}{%- endgeneration -%}",
    )
    assert tokenizer.chat_template != CHAT_TEMPLATE
    assert encode(tokenizer, ANSWERED)[2] == {tokenizer.convert_tokens_to_ids("<|end|>")}


def test_capitals_and_white_space_around_it_do_not_make_another_question():
    def key(text, answer="Yes", role="user"):
        return Conversation([{"role": role, "content": text}, {"role": "assistant", "content": answer}]).key

    assert key("What is it?") == key(" what IS it?\n") == key("What is it?", "No")
    assert key("What is it?") != key("What is this?") and key("What is it?") != key("What is it?", role="system")
