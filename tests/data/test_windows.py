import itertools

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundup.data.tokens import TokenStream
from groundup.data.windows import (
    IGNORED,
    MASKED_SHARE,
    BatchOrder,
    Masking,
    PackedRows,
    SlidingWindow,
    document_borders,
    pack,
)
from groundup.modeling import GroundupConfig, GroundupForCausalLM

END, PAD = 0, 999
MASK, SPECIAL = 7, {0, 1}
LENGTHS = st.lists(st.integers(0, 25), min_size=1, max_size=30)


def stream_of(lengths, shard=7) -> TokenStream:
    """Return documents of so many tokens, all tokens different, in shards of `shard` tokens."""
    ids, following = [END], itertools.count(1)
    for length in lengths:
        ids += [*itertools.islice(following, length), END]
    return TokenStream([np.array(ids[at : at + shard]) for at in range(0, len(ids), shard)], {"end_of_text": END})


def stretches(rows: PackedRows) -> list[list[tuple[list[int], list[int]]]]:
    """Return the stretches of each row that its position ids tell apart: their inputs and labels, without padding."""
    found = []
    for index in range(len(rows)):
        row = {name: values.tolist() for name, values in rows[index].items()}
        begins = [at for at, position in enumerate(row["position_ids"]) if position == 0]
        parts = []
        for begin, end in itertools.pairwise([*begins, rows.context_length]):
            assert row["position_ids"][begin:end] == list(range(end - begin))
            labels = row["labels"][begin:end]
            if labels[0] == IGNORED:
                assert set(labels) == {IGNORED}
                assert set(row["input_ids"][begin:end]) == {PAD}
            else:
                parts.append((row["input_ids"][begin:end], labels))
        found.append(parts)
    return found


@given(LENGTHS, st.integers(1, 12))
def test_packed_rows_have_every_token_but_the_first_as_a_target_exactly_once(lengths, context_length):
    stream = stream_of(lengths)
    rows = PackedRows(stream, context_length, pad_id=PAD)
    targets = [label for row in stretches(rows) for _, labels in row for label in labels]
    assert sorted(targets) == sorted(stream.read(1, len(stream)).tolist())


@given(LENGTHS, st.integers(1, 12))
def test_a_stretch_lies_within_one_document_and_each_label_is_the_next_token(lengths, context_length):
    stream = stream_of(lengths)
    ids = stream.read(0, len(stream)).tolist()
    following = {before: after for before, after in itertools.pairwise(ids) if before != END}
    openings = {after for before, after in itertools.pairwise(ids) if before == END}
    for inputs, labels in itertools.chain(*stretches(PackedRows(stream, context_length, pad_id=PAD))):
        assert inputs[1:] == labels[:-1]
        assert END not in inputs[1:]  # a document begins nowhere but at the beginning of a stretch
        assert labels[0] in openings if inputs[0] == END else labels[0] == following[inputs[0]]


@given(LENGTHS, st.integers(1, 12))
def test_only_the_last_row_has_a_gap(lengths, context_length):
    rows = stretches(PackedRows(stream_of(lengths), context_length, pad_id=PAD))
    assert all(sum(len(inputs) for inputs, _ in row) == context_length for row in rows[:-1])
    assert rows[-1]
    assert len(rows) == -(-(sum(lengths) + len(lengths)) // context_length)


@given(LENGTHS, st.integers(2, 12))
@example([3, 3, 3, 5, 5, 14], 9)
def test_a_document_is_cut_only_at_the_end_of_a_row_and_where_nothing_left_would_fit(lengths, context_length):
    borders = document_borders(stream_of(lengths), END)
    packed = pack(borders, context_length)
    row_of = np.searchsorted(packed.first, np.arange(len(packed.starts)), side="right") - 1
    document_ends = borders[np.searchsorted(borders, packed.starts, side="right")]
    left = document_ends - packed.starts  # of its document, from each stretch's beginning on
    piece_before = dict(zip((packed.starts + packed.lengths).tolist(), row_of))
    for at in np.flatnonzero((packed.lengths < left) & (packed.lengths < context_length)):
        assert at == packed.first[row_of[at] + 1] - 1
        for other in range(at + 1, len(packed.starts)):
            start = packed.starts[other]
            was_waiting = start in borders or piece_before[int(start)] < row_of[at]
            assert not was_waiting or left[other] > packed.lengths[at]


def test_documents_that_fill_rows_together_stay_whole():
    rows = stretches(PackedRows(stream_of([4, 9, 2, 5, 1, 3]), 10, pad_id=PAD))  # with end of text 5 10 3 6 2 4
    assert sorted(sorted(len(inputs) for inputs, _ in row) for row in rows) == [[2, 3, 5], [4, 6], [10]]
    assert all(inputs[0] == END and labels[-1] == END for row in rows for inputs, labels in row)


def test_a_long_document_fills_rows_from_its_beginning_and_its_tail_waits():
    rows = stretches(PackedRows(stream_of([24]), 10, pad_id=PAD))
    assert [[inputs[0] for inputs, _ in row] for row in rows] == [[END], [10], [20]]


@given(LENGTHS, st.integers(1, 12), st.integers(0, 99), st.integers(1, 8), st.integers(0, 20))
def test_a_batch_is_a_pure_function_of_seed_and_step(lengths, context_length, seed, batch_rows, step):
    batches = []
    for shard in (7, 50):  # another run, on another cutting into shards
        rows = PackedRows(stream_of(lengths, shard), context_length, pad_id=PAD)
        batches.append(rows.batch(BatchOrder(len(rows), batch_rows, seed).indices(step)))
    first, second = batches
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(values.shape == (batch_rows, context_length) for values in first.values())
    assert all(values.dtype == torch.int64 for values in first.values())


def test_a_stream_that_begins_or_ends_within_a_document_loses_nothing():
    stream = TokenStream([np.array([5, 6, END, 7, 8, 9])], {"end_of_text": END})
    rows = stretches(PackedRows(stream, 8, pad_id=PAD))
    assert sorted(inputs for inputs, _ in rows[0]) == [[END, 7, 8], [5, 6]]


@pytest.mark.parametrize("count", [0, 1])
def test_a_stream_with_nothing_to_predict_has_no_rows(count):
    assert len(PackedRows(TokenStream([np.zeros(count, np.uint16)], {"end_of_text": END}), 4)) == 0


def test_borders_are_found_whatever_is_read_at_once(monkeypatch):
    stream = stream_of([3, 0, 11, 5])
    expected = document_borders(stream, END).tolist()
    monkeypatch.setattr("groundup.data.windows.READ_TOKENS", 4)
    assert document_borders(stream, END).tolist() == expected == [0, 4, 5, 17, 23]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_no_document_sees_another(lengths):
    # The loss of a model over packed rows is that over each stretch alone.
    torch.manual_seed(0)
    config = GroundupConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, max_position_embeddings=16
    )
    model = GroundupForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=1.0)
    rows = PackedRows(stream_of(lengths), 12)
    with torch.no_grad():
        for index in range(len(rows)):
            row = rows.batch([index])
            packed = model(input_ids=row["input_ids"], position_ids=row["position_ids"]).logits[0]
            for at in torch.nonzero(row["position_ids"][0] == 0).flatten().tolist():
                length = next((n for n in range(at + 1, 12) if row["position_ids"][0, n] == 0), 12) - at
                alone = model(input_ids=row["input_ids"][:, at : at + length]).logits[0]
                torch.testing.assert_close(packed[at : at + length], alone, rtol=1e-4, atol=1e-4)


def test_both_kinds_of_rows_have_the_same_interface():
    stream = stream_of([5, 6])
    for rows in (SlidingWindow(stream, 4), PackedRows(stream, 4)):
        assert torch.equal(rows[-1]["input_ids"], rows.batch([len(rows) - 1])["input_ids"][0])
        with pytest.raises(IndexError):
            rows[len(rows)]


@pytest.mark.parametrize(
    ("borders", "expected"),
    [
        ([0, 9, 14, 22, 26], [[(0, 9), (22, 1)], [(14, 8), (23, 2)], [(9, 5), (25, 1)]]),  # the shortest one is cut
        ([0, 13, 20, 23], [[(0, 10)], [(13, 7), (20, 3)], [(10, 3)]]),  # of like length a document before a tail
    ],
)
def test_what_is_cut_and_what_comes_first(borders, expected):
    found = pack(np.array(borders), 10)
    rows = [zip(found.starts[a:b].tolist(), found.lengths[a:b].tolist()) for a, b in itertools.pairwise(found.first)]
    assert [list(row) for row in rows] == expected


def targets_by_place(windows: SlidingWindow) -> dict[int, int]:
    """Count how often each position of the stream is a target."""
    counts: dict[int, int] = {}
    for index in range(len(windows)):
        labels = windows[index]["labels"]
        for place in torch.nonzero(labels != IGNORED).flatten().tolist():
            at = index * windows.stride + place + 1
            counts[at] = counts.get(at, 0) + 1
    return counts


@given(st.integers(0, 200), st.integers(1, 40))
def test_every_token_but_the_first_is_a_target_exactly_once(count, context_length):
    windows = SlidingWindow(np.arange(count), context_length, pad_id=PAD)
    assert targets_by_place(windows) == dict.fromkeys(range(1, count), 1)


@given(st.integers(2, 120), st.integers(1, 30), st.data())
def test_with_any_stride_every_token_is_a_target_at_least_once(count, context_length, data):
    stride = data.draw(st.integers(1, context_length))
    windows = SlidingWindow(np.arange(count), context_length, stride, PAD)
    assert set(targets_by_place(windows)) == set(range(1, count))
    # No window more than needed: without the last one a target would be missing.
    assert len(windows) == 1 or (len(windows) - 2) * stride + context_length < count - 1


@given(st.integers(2, 120), st.integers(1, 30), st.data())
def test_a_window_holds_the_tokens_of_its_place_and_labels_one_further(count, context_length, data):
    stride = data.draw(st.integers(1, context_length))
    windows = SlidingWindow(np.arange(count), context_length, stride, PAD)
    for index in range(len(windows)):
        row = windows[index]
        assert row["input_ids"].shape == row["labels"].shape == (context_length,)
        known = min(context_length, count - 1 - index * stride)
        expected = torch.arange(known) + index * stride
        assert torch.equal(row["input_ids"][:known], expected)
        assert torch.equal(row["labels"][:known], expected + 1)
        assert (row["input_ids"][known:] == PAD).all()
        assert (row["labels"][known:] == IGNORED).all()


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.integers(1, 12), st.data())
def test_a_batch_equals_its_rows_one_by_one_whatever_the_shards(lengths, context_length, data):
    shards = [np.arange(length, dtype=np.uint16) + 100 * number for number, length in enumerate(lengths)]
    stream, whole = TokenStream(shards, {}), np.concatenate(shards)
    stride = data.draw(st.integers(1, context_length))
    windows, plain = SlidingWindow(stream, context_length, stride), SlidingWindow(whole, context_length, stride)
    assert len(windows) == len(plain)
    indices = data.draw(st.lists(st.integers(0, len(plain) - 1), max_size=10)) if len(plain) else []
    batch = windows.batch(indices)
    assert batch["input_ids"].shape == (len(indices), context_length)
    for row, index in enumerate(indices):
        for name in ("input_ids", "labels"):
            assert torch.equal(batch[name][row], plain[index][name])


def test_rows_are_whole_numbers_of_64_bits():
    row = SlidingWindow(np.arange(10, dtype=np.uint16), 4)[0]
    assert row["input_ids"].dtype == row["labels"].dtype == torch.int64


def test_an_index_outside_is_refused_and_a_negative_one_counts_from_the_end():
    windows = SlidingWindow(np.arange(10), 4)
    assert torch.equal(windows[-1]["input_ids"], windows[len(windows) - 1]["input_ids"])
    with pytest.raises(IndexError):
        windows[len(windows)]


def test_the_label_that_counts_for_nothing_is_the_one_that_torch_leaves_out():
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


@pytest.mark.parametrize("stride", [0, 5])
def test_a_stride_that_leaves_tokens_out_is_refused(stride):
    with pytest.raises(ValueError, match="stride"):
        SlidingWindow(np.arange(10), 4, stride)


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 2**31))
def test_an_epoch_sees_each_row_exactly_once(rows, batch_rows, seed):
    order = BatchOrder(rows, batch_rows, seed)
    epochs = 3
    seen = np.concatenate([order.indices(step) for step in range(-(-epochs * rows // batch_rows))])
    for epoch in range(epochs):
        assert sorted(seen[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 100), st.lists(st.integers(0, 60), max_size=8))
def test_a_step_is_the_same_whenever_and_in_whatever_order_it_is_asked_for(rows, batch_rows, seed, steps):
    going_on = BatchOrder(rows, batch_rows, seed)
    for step in steps:
        resumed = BatchOrder(rows, batch_rows, seed)
        assert np.array_equal(going_on.indices(step), resumed.indices(step))
        assert len(going_on.indices(step)) == batch_rows


def test_the_order_depends_on_the_seed_and_the_epoch():
    first = BatchOrder(1000, 1000, seed=1)
    assert not np.array_equal(first.indices(0), first.indices(1))
    assert not np.array_equal(first.indices(0), BatchOrder(1000, 1000, seed=2).indices(0))


def test_the_order_is_numpys_permutation_for_seed_and_epoch():
    assert np.array_equal(BatchOrder(10, 10, seed=7).indices(3), np.random.default_rng([7, 3]).permutation(10))


def test_a_limit_cuts_the_last_batch():
    order = BatchOrder(10, 4, seed=0, limit=9)
    assert [len(order.indices(step)) for step in range(4)] == [4, 4, 1, 0]
    assert np.array_equal(order.indices(2), BatchOrder(10, 4, seed=0).indices(2)[:1])


def masked(ids, samples, seed=0):
    return Masking(MASK, SPECIAL, seed).apply(ids, samples)


@given(st.integers(0, 10), st.lists(st.integers(0, 1000), min_size=1, max_size=5))
def test_every_token_is_either_seen_or_a_label_and_special_ones_are_seen(seed, samples):
    ids = torch.randint(0, 50, (len(samples), 40), generator=torch.Generator().manual_seed(seed))
    batch = masked(ids, samples, seed)
    hidden = batch["labels"] != -100
    assert torch.equal(torch.where(hidden, batch["labels"], batch["input_ids"]), ids)
    assert (batch["input_ids"][hidden] == MASK).all()
    assert not hidden[(ids == 0) | (ids == 1)].any()


def test_a_sample_hides_the_same_tokens_in_whatever_batch_it_stands():
    ids = torch.randint(2, 50, (4, 30))
    together = masked(ids, [5, 6, 7, 8])
    for row, sample in enumerate([5, 6, 7, 8]):
        alone = masked(ids[row : row + 1], [sample])
        assert torch.equal(alone["labels"][0], together["labels"][row])
    assert not torch.equal(masked(ids[:1], [5])["labels"], masked(ids[:1], [9])["labels"])
    assert not torch.equal(masked(ids[:1], [5])["labels"], masked(ids[:1], [5], seed=1)["labels"])


def test_the_share_hidden_is_the_one_that_is_said():
    hidden = (masked(torch.full((200, 100), 5), range(200))["labels"] != -100).float().mean().item()
    assert abs(hidden - MASKED_SHARE) < 0.02
