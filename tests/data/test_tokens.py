import itertools
import json

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.data import tokens
from groundup.data.tokens import TokenStream, write_shards
from groundup.tokenization.training import train_bpe, train_word_level

TEXTS = ["One document.\nOf two lines.\n", "Another — with é and 👋.", "<|endoftext|> spelt out", "The last one."]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe([*TEXTS, "documents of many lines\n" * 9], 300)


def documents(texts) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"text": list(texts)})


def expected_ids(texts, tokenizer) -> list[int]:
    ids = [tokenizer.eos_token_id]
    for text in texts:
        ids += [*tokenizer(text, split_special_tokens=True).input_ids, tokenizer.eos_token_id]
    return ids


def test_a_document_boundary_is_marked_by_end_of_text(tokenizer, tmp_path):
    stream = write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    ids = stream.read(0, len(stream))
    borders = np.flatnonzero(ids == tokenizer.eos_token_id)
    assert len(borders) == len(TEXTS) + 1
    between = [ids[start + 1 : stop] for start, stop in itertools.pairwise(borders)]
    assert [tokenizer.decode(part, skip_special_tokens=False) for part in between] == TEXTS


def test_the_ids_are_those_of_the_tokenizer_itself(tokenizer, tmp_path):
    stream = write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    assert stream.read(0, len(stream)).tolist() == expected_ids(TEXTS, tokenizer)


def test_special_tokens_spelt_out_in_a_document_are_only_text(tokenizer, tmp_path):
    text = "a<|endoftext|>b<|pad|><|user|>"
    stream = write_shards(documents([text]), tokenizer, tmp_path / "shards")
    special = set(tokenizer.all_special_ids)
    assert [place for place, token in enumerate(stream.read(0, len(stream))) if token in special] == [
        0,
        len(stream) - 1,
    ]


def test_a_word_tokenizer_makes_shards_too(tmp_path):
    words = train_word_level(TEXTS, 50)
    stream = write_shards(documents(TEXTS), words, tmp_path / "shards")
    assert stream.read(0, len(stream)).tolist() == expected_ids(TEXTS, words)


def test_the_meta_file_says_what_the_shards_hold(tokenizer, tmp_path):
    stream = write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    meta = json.loads((tmp_path / "shards" / "meta.json").read_text())
    assert meta == stream.meta
    assert meta["tokens"] == len(stream) == len(expected_ids(TEXTS, tokenizer))
    assert meta["documents"] == len(TEXTS)
    assert meta["bytes"] == sum(len(text.encode()) for text in TEXTS)
    assert (meta["dtype"], meta["vocab_size"]) == ("uint16", len(tokenizer))
    assert meta["shards"] == ["shard-00000.npy"]


@pytest.mark.parametrize(("size", "dtype"), [(2**16, "uint16"), (2**16 + 1, "uint32")])
def test_ids_take_16_bits_as_long_as_they_fit(size, dtype, tmp_path):
    # Distinct words up to the size: with the three special tokens exactly as many ids.
    words = train_word_level([" ".join(map(str, range(size)))], size)
    stream = write_shards(documents(["1 2 3"]), words, tmp_path / "shards")
    assert stream.meta["dtype"] == dtype == str(stream.shards[0].dtype)


@settings(max_examples=25, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from(["line one\n", "two words ", "\n", "é\r\n", "👋", "a longer line of text\n"]), max_size=30
    ),
    size=st.integers(3, 50),
)
def test_shards_pieces_and_batches_of_any_size_hold_the_same_ids(parts, size, tokenizer, tmp_path_factory):
    texts = ["".join(parts[:10]) or "x", "".join(parts[10:]) or "y"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "SHARD_TOKENS", size)
        patch.setattr(tokens, "BATCH_BYTES", size)
        stream = write_shards(documents(texts), tokenizer, tmp_path_factory.mktemp("run") / "shards")
    expected = expected_ids(texts, tokenizer)
    assert stream.read(0, len(stream)).tolist() == expected
    assert {len(shard) for shard in stream.shards[:-1]} <= {size}
    starts = np.arange(max(0, len(expected) - 4))
    rows = stream.gather(starts, 4)
    assert rows.tolist() == [expected[start : start + 4] for start in starts]


def test_a_long_document_is_encoded_in_pieces_to_the_same_ids(tokenizer, tmp_path, monkeypatch):
    text = "".join(f"line {number} of a long document,\r\nand  more.\n" for number in range(300))
    monkeypatch.setattr("groundup.data.documents.PIECE_BYTES", 500)
    stream = write_shards(documents([text, "short"]), tokenizer, tmp_path / "shards")
    assert stream.read(0, len(stream)).tolist() == expected_ids([text, "short"], tokenizer)


def test_a_window_outside_the_stream_is_refused():
    stream = TokenStream([np.arange(5), np.arange(5)], {})
    assert stream.gather([0, 6], 4).shape == (2, 4)
    for start in (-1, 7):
        with pytest.raises(IndexError):
            stream.gather([start], 4)


def test_reading_past_the_end_is_cut_like_a_slice():
    assert TokenStream([np.arange(5)], {}).read(3, 99).tolist() == [3, 4]


def change_of(path) -> int:
    return (path / "meta.json").stat().st_mtime_ns


def test_unchanged_documents_and_tokenizer_are_not_tokenised_again(tokenizer, tmp_path):
    write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    before = change_of(tmp_path / "shards")
    write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    assert change_of(tmp_path / "shards") == before


@pytest.mark.parametrize(
    "texts", [[*TEXTS[:-1], "changed"], TEXTS[:-1], TEXTS[::-1], [TEXTS[0] + TEXTS[1][:1], TEXTS[1][1:], *TEXTS[2:]]]
)
def test_documents_that_changed_are_tokenised_again(tokenizer, tmp_path, texts):
    write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    stream = write_shards(documents(texts), tokenizer, tmp_path / "shards")
    assert stream.read(0, len(stream)).tolist() == expected_ids(texts, tokenizer)


def test_another_tokenizer_makes_other_shards(tokenizer, tmp_path):
    write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    other = train_bpe(TEXTS, 270)
    stream = write_shards(documents(TEXTS), other, tmp_path / "shards")
    assert stream.read(0, len(stream)).tolist() == expected_ids(TEXTS, other)


def test_damaged_shards_are_written_again(tokenizer, tmp_path):
    write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    (tmp_path / "shards" / "shard-00000.npy").write_bytes(b"damaged")
    with pytest.raises(InputError, match="is incomplete"):
        TokenStream.open(tmp_path / "shards")
    assert len(write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")) == len(expected_ids(TEXTS, tokenizer))


def test_a_crash_while_writing_leaves_the_old_shards_whole(tokenizer, tmp_path, monkeypatch):
    write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(OSError, match="No space"):
        write_shards(documents(["other"]), tokenizer, tmp_path / "shards")
    monkeypatch.undo()
    assert TokenStream.open(tmp_path / "shards").meta["documents"] == len(TEXTS)
    assert [path.name for path in tmp_path.iterdir()] == ["shards"]


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(InputError, match="no shards"):
        TokenStream.open(tmp_path)


def test_shards_are_mapped_and_hold_no_pickle(tokenizer, tmp_path):
    stream = write_shards(documents(TEXTS), tokenizer, tmp_path / "shards")
    assert isinstance(stream.shards[0], np.memmap)
    np.save(tmp_path / "shards" / "shard-00000.npy", np.array([{"a": 1}], dtype=object))
    with pytest.raises(InputError, match="is incomplete"):
        TokenStream.open(tmp_path / "shards")


def test_a_tokenizer_without_an_end_is_refused(tokenizer, tmp_path):
    endless = train_bpe(TEXTS, 262)
    endless.eos_token = endless.bos_token = None
    with pytest.raises(InputError, match="end-of-text"):
        write_shards(documents(TEXTS), endless, tmp_path / "shards")
