import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from groundup.data.tokens import TokenStream
from groundup.data.windows import IGNORED, BatchOrder, SlidingWindow

PAD = 999


def targets_by_place(windows: SlidingWindow) -> dict[int, int]:
    """How often each place of the stream is a target."""
    counts: dict[int, int] = {}
    for index in range(len(windows)):
        labels = windows[index]["shift_labels"]
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
        assert row["input_ids"].shape == row["shift_labels"].shape == (context_length,)
        known = min(context_length, count - 1 - index * stride)
        expected = torch.arange(known) + index * stride
        assert torch.equal(row["input_ids"][:known], expected)
        assert torch.equal(row["shift_labels"][:known], expected + 1)
        assert (row["input_ids"][known:] == PAD).all()
        assert (row["shift_labels"][known:] == IGNORED).all()


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
        for name in ("input_ids", "shift_labels"):
            assert torch.equal(batch[name][row], plain[index][name])


def test_rows_are_whole_numbers_of_64_bits():
    row = SlidingWindow(np.arange(10, dtype=np.uint16), 4)[0]
    assert row["input_ids"].dtype == row["shift_labels"].dtype == torch.int64


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
