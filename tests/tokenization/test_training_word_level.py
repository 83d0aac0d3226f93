import re
import string

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.tokenization.folder import load_tokenizer, save_tokenizer
from groundup.tokenization.training import split_words, train_word_level

TEXT = (
    'I HAD always thought Jack Gisburn rather a cheap genius -- though a "good" fellow enough, so it was no surprise.'
)


@pytest.fixture(scope="module")
def tokenizer():
    return train_word_level([TEXT], 100)


def split_like_the_book(text: str) -> list[str]:
    """Split as Raschka's book does (chapter 2, the preprocessing of its tokenizers)."""
    pieces = re.split(r'([,.:;?_!"()\']|--|\s)', text)
    return [piece.strip() for piece in pieces if piece.strip()]


odd_text = st.text(st.one_of(st.sampled_from("-ab ,.'\"\n\t\r"), st.characters(exclude_categories=["Cs"])), max_size=40)


@settings(max_examples=400, deadline=None)
@given(odd_text)
@example("a---b\x1cc\x85d\u2028e--")
def test_words_are_split_as_in_the_book(text):
    assert split_words(text) == split_like_the_book(text)


@settings(max_examples=400, deadline=None)
@given(odd_text)
@example("a---b\x1cc\x85d\u2028e--")
def test_the_tokenizer_splits_as_the_function_does(tokenizer, text):
    pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)
    assert [piece for piece, _ in pieces] == split_words(text)


def test_a_known_text_is_read_and_written_as_the_book_writes_it(tokenizer):
    ids = tokenizer(TEXT).input_ids
    joined = re.sub(r'\s+([,.?!"()\'])', r"\1", " ".join(split_words(TEXT)))
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == joined


def test_an_unknown_word_is_the_unknown_token(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("Jack juggled").input_ids) == ["Jack", "<|unk|>"]


def test_the_vocabulary_holds_the_most_frequent_words():
    tokenizer = train_word_level(["b b b a a c d"], 5)
    assert set(tokenizer.get_vocab()) == {"<|unk|>", "<|endoftext|>", "<|pad|>", "b", "a"}


def test_equally_frequent_words_are_taken_in_a_fixed_order():
    words = list(string.ascii_letters)
    assert (
        train_word_level([" ".join(words)], 20).get_vocab() == train_word_level([" ".join(words[::-1])], 20).get_vocab()
    )


def test_a_vocabulary_without_room_for_words_is_refused():
    with pytest.raises(InputError, match="more than 3"):
        train_word_level([TEXT], 3)


def test_a_saved_word_tokenizer_loads_with_the_same_ids(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert loaded(TEXT + " unheard").input_ids == tokenizer(TEXT + " unheard").input_ids
    assert loaded.decode(loaded(TEXT).input_ids) == tokenizer.decode(tokenizer(TEXT).input_ids)
    assert {loaded.pad_token, loaded.eos_token, loaded.unk_token} == {"<|pad|>", "<|endoftext|>", "<|unk|>"}
