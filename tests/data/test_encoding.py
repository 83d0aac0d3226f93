import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.data.conversations import Conversation, RowCounts
from groundup.data.encoding import (
    ConversationRows,
    ExampleRows,
    encode_conversations,
    encode_examples,
    for_classifying,
)
from groundup.data.windows import IGNORED, BatchOrder, by_size
from groundup.tokenization.chat import CHAT_TEMPLATE
from groundup.tokenization.folder import END_OF_TEXT, load_tokenizer, save_tokenizer
from groundup.tokenization.training import train_bpe

ANSWERED = [{"role": "user", "content": "Hello\nyou"}, {"role": "assistant", "content": "Yes"}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["the cat sat on the mat and the dog saw the cat"] * 20, 300)


def rows_of(lengths, labels=None):
    ids = [np.full(length, place + 1, np.int32) for place, length in enumerate(lengths)]
    return ExampleRows(ids, np.array(labels or [place % 2 for place in range(len(lengths))]))


def test_a_text_stands_between_end_of_text_tokens_and_an_empty_one_has_tokens_too(tokenizer):
    ready = for_classifying(tokenizer, 32)
    end = tokenizer.eos_token_id
    assert ready("")["input_ids"] == [end, end]
    assert ready("the cat")["input_ids"] == [end, *tokenizer("the cat")["input_ids"], end]
    assert tokenizer("")["input_ids"] == []  # the one given is as it was


def test_special_tokens_spelt_out_in_a_text_are_text_also_after_saving(tokenizer, tmp_path):
    save_tokenizer(for_classifying(tokenizer, 32), tmp_path)
    saved = load_tokenizer(tmp_path)
    end = tokenizer.eos_token_id
    assert saved(f"a{END_OF_TEXT}b")["input_ids"].count(end) == 2
    assert saved.model_max_length == 32


def test_long_texts_keep_their_beginning_and_are_counted(tokenizer):
    ready = for_classifying(tokenizer, 6)
    texts = ["the cat", "the cat sat on the mat and the dog", "cat cat cat cat"]
    rows = encode_examples(texts, ["x", "y", "unknown"], ["x", "y"], ready, 6)
    assert rows.cut == 1
    assert [len(ids) for ids in rows.ids] == [4, 6, 6]
    assert list(rows.labels) == [0, 1, IGNORED]
    whole = ready(texts[1])["input_ids"]
    assert list(rows.ids[1]) == [*whole[:5], whole[-1]]


def test_every_row_comes_once_an_epoch_whatever_the_order_by_length():
    chance = np.random.default_rng(0)
    rows = rows_of(chance.integers(1, 40, 101))
    batches = rows.deal(BatchOrder(101, 7, seed=3, limit=202), 0, micro_batch_tokens=64)
    seen, step = [], 0
    while micro := batches.micro_batches(step):
        for batch in micro:
            assert batch["input_ids"].numel() <= 64
            seen += [int(ids[0]) for ids in batch["input_ids"]]
        step += 1
    assert sorted(seen) == sorted([*range(1, 102)] * 2)
    assert step == 29


def test_a_step_is_the_same_whichever_was_asked_before():
    rows = rows_of(list(range(1, 60)))

    def step(*steps):
        batches = rows.deal(BatchOrder(59, 4, seed=0), 0, 10**6)
        return [batches.micro_batches(number)[0]["input_ids"].tolist() for number in steps][-1]

    assert step(20) == step(0, 5, 20) == step(40, 20)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_split_a_step_into_equally_many_micro_batches_and_count_each_row_once(processes):
    rows = rows_of([3, 9, 4, 7, 5, 6, 8, 2, 9, 3])
    order = BatchOrder(10, 7, seed=1, limit=10)
    parts = [rows.deal(order, 0, 18, rank, processes) for rank in range(processes)]
    counted = []
    for step in range(2):
        micro = [part.micro_batches(step) for part in parts]
        assert len({len(batches) for batches in micro}) == 1
        for batch in (batch for batches in micro for batch in batches):
            counted += [int(ids[0]) for ids, label in zip(batch["input_ids"], batch["labels"]) if label != IGNORED]
    assert sorted(counted) == list(range(1, 11))


def test_a_batch_is_filled_up_on_the_right_with_padding_that_the_mask_hides():
    batch = rows_of([3, 1, 2], labels=[7, 8, 9]).batch(np.array([2, 0, 1]), pad_id=99)
    assert batch["input_ids"].tolist() == [[3, 3, 99], [1, 1, 1], [2, 99, 99]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [9, 7, 8]


def test_whatever_side_a_tokenizer_padded_on_a_classifiers_pads_on_the_right():
    tokenizer = train_bpe(["the cat sat on the mat"] * 20, 300)
    tokenizer.padding_side = "left"
    ready = for_classifying(tokenizer, 32)
    assert ready.padding_side == "right"
    assert ready(["the cat sat", ""], padding=True)["attention_mask"][1][:2] == [1, 1]


def test_processes_with_rows_of_other_lengths_have_equally_many_micro_batches():
    rows = rows_of([20, 2, 2, 2, 2, 2, 2, 2])
    parts = [rows.deal(BatchOrder(8, 8, seed=0, limit=8), 0, 20, rank, 2) for rank in range(2)]
    assert [len(part.micro_batches(0)) for part in parts] == [4, 4]


def test_the_steps_of_a_group_are_dealt_out_in_another_order_by_every_seed_and_in_every_group():
    rows = rows_of(range(1, 65))

    def lengths(seed, group):
        batches = rows.deal(BatchOrder(64, 4, seed), 0, 10**6)
        return [batches.micro_batches(16 * group + step)[0]["input_ids"].size(1) for step in range(16)]

    orders = [lengths(seed, group) for seed, group in ((0, 0), (0, 1), (1, 0))]
    assert sorted(orders[0]) == sorted(orders[1]) == sorted(orders[2])  # each group is an epoch here
    assert orders[0] != orders[1] and orders[0] != orders[2]


def test_batches_hold_every_row_once_and_stay_near_their_size():
    lengths = np.sort(np.random.default_rng(1).integers(1, 100, 500))
    parts = by_size(np.arange(500), lengths, 1000)
    assert np.concatenate(parts).tolist() == list(range(500))
    assert all(len(part) * lengths[part].max() <= 1000 for part in parts)
    assert by_size(np.arange(0), lengths, 1000) == []


def test_batches_hold_little_padding_where_that_is_asked_for():
    lengths = np.sort(np.random.default_rng(1).geometric(0.02, 300))
    parts = by_size(np.arange(300), lengths, 4096, padding=0.2)
    assert np.concatenate(parts).tolist() == list(range(300))
    padded = [len(part) * lengths[part].max() for part in parts]
    for part, size in zip(parts, padded):
        assert size <= 256 or len(part) == 1 or lengths[part].sum() >= 0.8 * size
    assert len(parts) < 40


@pytest.fixture(scope="module")
def chat_tokenizer():
    return train_bpe(["Hello, hello. Be brief, be very brief and say no more. " * 10], 300)


def encode(chat_tokenizer, messages, context=200):
    counts = RowCounts(rows=1)
    return *encode_conversations([Conversation(messages)], chat_tokenizer, context, counts), counts


def test_only_the_answer_and_its_end_are_trained(chat_tokenizer):
    rows, places, ends, _ = encode(chat_tokenizer, ANSWERED)
    batch = rows.batch([0], pad_id=1)
    trained = [token for token in batch["labels"][0].tolist() if token != IGNORED]
    assert chat_tokenizer.decode(trained) == "Yes<|end|>"
    assert places == [0] and ends == {chat_tokenizer.convert_tokens_to_ids("<|end|>")}
    ids, _ = rows.row(0)
    assert batch["input_ids"][0].tolist() == ids[:-1].tolist()


def test_a_row_longer_than_the_context_is_cut_within_its_answer_and_counted(chat_tokenizer):
    prompt = len(encode(chat_tokenizer, ANSWERED)[0].split(0)[0])
    rows, _, _, counts = encode(chat_tokenizer, ANSWERED, context=prompt + 1)
    assert rows.lengths.tolist() == [prompt + 1]
    assert (counts.cut, counts.cut_before_answer) == (1, 0)
    (said,) = counts.warnings(1024)
    assert said == "1 of 1 rows: are longer than 1,024 tokens (--context-length): truncated within their answer"


def test_a_row_cut_before_its_answer_is_left_out_and_counted(chat_tokenizer):
    short = [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]
    counts = RowCounts(rows=2)
    rows, places, _ = encode_conversations([Conversation(ANSWERED), Conversation(short)], chat_tokenizer, 5, counts)
    assert (len(rows), places, counts.cut, counts.cut_before_answer) == (1, [1], 0, 1)


def test_data_of_which_no_token_would_be_trained_is_an_error(chat_tokenizer):
    with pytest.raises(InputError, match="no token would be trained"):
        encode(chat_tokenizer, ANSWERED, context=3)


def test_an_end_token_outside_the_marks_is_an_error(chat_tokenizer):
    template = CHAT_TEMPLATE.replace(
        "{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}",
        "{{- message['content'] -}}{%- endgeneration -%}{{- '<|end|>' -}}",
    )
    assert template != CHAT_TEMPLATE
    other = train_bpe(["Hello hello " * 10], 270)
    other.chat_template = template
    with pytest.raises(InputError, match="trains no end token"):
        encode(other, ANSWERED)


def test_special_tokens_in_a_text_are_counted(chat_tokenizer):
    counts = encode(chat_tokenizer, [{"role": "user", "content": "<|end|>"}, {"role": "assistant", "content": "a"}])[-1]
    assert counts.warnings(8) == ["1 of 1 rows: spell special tokens: read as plain text"]


ROW = st.lists(st.tuples(st.integers(2, 9), st.booleans()), min_size=2, max_size=12)


@given(st.lists(ROW, min_size=1, max_size=6))
def test_a_batch_holds_each_row_and_labels_are_the_trained_ids_that_follow(rows):
    lists = [([token for token, _ in row], [trained for _, trained in row]) for row in rows]
    stored = ConversationRows.from_lists(lists)
    batch = stored.batch(range(len(rows)), pad_id=0)
    for (ids, trained), inputs, labels in zip(lists, batch["input_ids"], batch["labels"]):
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


def test_a_row_that_is_cut_keeps_its_beginning(chat_tokenizer):
    whole, marks = encode(chat_tokenizer, ANSWERED)[0].row(0)
    for context in range(int(marks.argmax()) + 1, len(whole)):
        ids, trained = encode(chat_tokenizer, ANSWERED, context)[0].row(0)
        assert ids.tolist() == whole[:context].tolist() and trained.tolist() == marks[:context].tolist()


def test_places_are_those_of_all_conversations_however_many_are_encoded_at_once(chat_tokenizer, monkeypatch):
    monkeypatch.setattr("groundup.data.encoding.ENCODED_AT_ONCE", 2)
    short = Conversation([{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}])
    rows = [short, Conversation(ANSWERED), short, short, Conversation(ANSWERED), short]
    encoded, places, _ = encode_conversations(rows, chat_tokenizer, 5, RowCounts(rows=6))
    assert places == [0, 2, 3, 5] and len(encoded) == 4


def test_of_several_special_tokens_in_an_answer_the_last_one_ends_it():
    chat_tokenizer = train_bpe(["Hello hello " * 10], 270)
    tokenizer.chat_template = CHAT_TEMPLATE.replace(
        "{{- message['content'] + '<|end|>' -}}{%- endgeneration -%}",
        "{{- '<|user|>' + message['content'] + '<|end|>' -}}{%- endgeneration -%}",
    )
    assert tokenizer.chat_template != CHAT_TEMPLATE
    assert encode(chat_tokenizer, ANSWERED)[2] == {chat_tokenizer.convert_tokens_to_ids("<|end|>")}
