"""Text that occurs in another text, verbatim or nearly: found in any script, whole or in passages."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundup.data import overlap
from groundup.data.documents import Documents, Texts
from groundup.data.overlap import KnownText

LETTERS = {
    "Latin": "abcdefghijklmnopqrstuvwxyz",
    "Cyrillic": "абвгдежзийклмнопрстуфхцчшщъыьэюя",
    "Chinese": "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳",
    "digits": "0123456789",
}


def words_of(seed, count, letters=LETTERS["Latin"]):
    draw = random.Random(seed)
    return ["".join(draw.choices(letters, k=draw.randint(3, 9))) for _ in range(count)]


def text_of(seed, count=200, letters=LETTERS["Latin"], joint=" "):
    return joint.join(words_of(seed, count, letters))


def documents(*texts):
    return Documents([Texts([text.encode() for text in texts])])


def copies(training, held_out):
    """Return for each held-out text whether it is found in the training text."""
    found = KnownText.of(documents(*training)).apart(documents(*held_out))
    fresh = list(found.fresh.texts())
    return [text not in fresh for text in held_out]


@pytest.mark.parametrize("script", LETTERS)
@pytest.mark.parametrize("joint", [" ", ""])
def test_a_copy_is_found_in_any_script_and_another_text_is_not(script, joint):
    texts = [text_of(seed, 60, LETTERS[script], joint) for seed in range(8)]
    assert copies(texts[:4], texts[2:6]) == [True, True, False, False]


CHANGES = {
    "none": lambda words: words,
    "capitals": lambda words: [word.upper() for word in words],
    "line breaks": lambda words: [word + "\n" * (place % 9 == 0) for place, word in enumerate(words)],
    "punctuation": lambda words: [word + "," * (place % 4 == 0) for place, word in enumerate(words)],
    "one word in thirty": lambda words: [word if place % 30 else "other" for place, word in enumerate(words)],
    "a beginning": lambda words: [*words_of(9, 60), *words],
    "its first two thirds alone": lambda words: words[: len(words) * 2 // 3],
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_copy_with_a_change_is_found(name):
    words = words_of(0, 300)
    assert copies([text_of(1), " ".join(words), text_of(2)], [" ".join(CHANGES[name](words)), text_of(3)]) == [
        True, False,
    ]  # fmt: skip


def test_texts_that_share_a_phrase_or_a_licence_are_not_copies():
    licence = text_of(0, 40)
    assert copies([f"{licence} {text_of(1)}", text_of(2)], [f"{licence} {text_of(3)}", text_of(4)]) == [False, False]


def test_short_texts_are_copies_only_of_the_same():
    known = ["the cat saw the dog", "yes", "a b c"]
    assert copies(known, ["The cat saw the dog!", "the cat saw the frog", "yes", "no", "x"]) == [
        True, False, True, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("letters", ["Latin", "Chinese"])
@pytest.mark.parametrize("joint", [" ", ""])
def test_of_a_long_text_the_passages_that_are_known_are_left_out(letters, joint):
    parts = [text_of(seed, 12_000, LETTERS[letters], joint) for seed in range(4)]
    held_out = joint.join([parts[0], parts[1], parts[2]])
    found = KnownText.of(documents(parts[3], parts[1])).apart(documents(held_out))
    first, last = found.fresh.texts()  # what stands before the copy, and what stands behind it
    assert held_out.startswith(first) and held_out.endswith(last)
    share = len((first + last).encode()) / len(held_out.encode())
    assert share == pytest.approx(2 / 3, abs=0.03)
    assert found.fresh_bytes == len((first + last).encode())
    assert found.unit == "passages"


def test_without_copies_the_documents_are_the_same_object():
    held_out = documents(text_of(1), text_of(2))
    assert KnownText.of(documents(text_of(3))).apart(held_out).fresh is held_out


def test_a_sample_of_the_hashes_finds_the_same_copies(monkeypatch):
    texts = [text_of(seed, 2000) for seed in range(20)]
    monkeypatch.setattr(overlap, "MOST_HASHES", 2**10)
    known = KnownText.of(documents(*texts[:15]))
    assert known.every > 64
    assert len(known.windows) < 2**12
    assert copies(texts[:15], texts[10:]) == [True] * 5 + [False] * 5


def test_the_hashes_come_back_from_a_file(tmp_path):
    known = KnownText.of(documents(text_of(1), text_of(2)))
    known.save(tmp_path / "known.safetensors")
    again = KnownText.open(tmp_path / "known.safetensors")
    assert np.array_equal(known.windows, again.windows) and np.array_equal(known.wholes, again.wholes)
    assert again.apart(documents(text_of(2), text_of(3))).copies == 1


def test_a_document_read_in_blocks_has_the_hashes_of_the_whole(monkeypatch):
    text = documents(text_of(1, 500))
    whole = KnownText.of(text)
    monkeypatch.setattr("groundup.data.documents.BLOCK_BYTES", 100)
    parts = KnownText.of(text)
    assert np.array_equal(whole.wholes, parts.wholes) and np.array_equal(whole.windows, parts.windows)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=80).filter(str.strip), min_size=1, max_size=12), st.data())
def test_what_is_kept_and_what_is_left_out_are_all_there_is_in_their_order(texts, data):
    known = data.draw(st.lists(st.sampled_from(texts), max_size=4))
    held_out = documents(*texts)
    found = KnownText.of(documents(*known)).apart(held_out)
    fresh = list(found.fresh.texts())
    assert found.count == len(texts)
    assert found.copies == len(texts) - len(fresh)
    assert not set(known) & set(fresh)
    left = iter(texts)
    assert all(text in left for text in fresh)
    for start in range(len(fresh)):  # slices too, which tokenising reads
        assert list(found.fresh[start:].texts()) == fresh[start:]
        assert [piece.text for piece in found.fresh[start::2].pieces()] == fresh[start::2]
