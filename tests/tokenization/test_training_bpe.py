import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from groundup.common.errors import InputError
from groundup.tokenization.folder import (
    CHAT_TOKENS,
    END_OF_TEXT,
    PAD,
    fingerprint,
    load_tokenizer,
    plain_backend,
    save_tokenizer,
)
from groundup.tokenization.training import PATTERN, SMALLEST_VOCABULARY, SPECIAL_TOKENS, suitable_vocab_size, train_bpe

TEXTS = [
    "The quick brown fox jumps over the lazy dog.\nThe dog doesn't mind, and the fox won't stop.\r\n" * 20,
    "def function(argument):\n    return argument + 1234\n\n" * 20,
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 320)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\r\n\r\n",
        "\0",
        "emoji 👩‍👩‍👧 here",
        "lone mark \u0301\u0301",
        "tab\tand  two  spaces ",
        "naïve Ωμέγα 漢字",
    ],
)
def test_any_text_comes_back_exactly(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == text


@settings(max_examples=300, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_unicode_text_comes_back_exactly_as_plain_text(tokenizer, text):
    backend = plain_backend(tokenizer)
    assert backend.decode(backend.encode(text).ids, skip_special_tokens=False) == text


def test_every_byte_has_a_token(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert all(letter in vocabulary for letter in pre_tokenizers.ByteLevel.alphabet())
    assert tokenizer.unk_token is None


def test_a_special_token_spelt_out_in_a_document_is_only_text(tokenizer):
    ids = plain_backend(tokenizer).encode(f"a{END_OF_TEXT}b").ids
    assert tokenizer.eos_token_id not in ids
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
    assert tokenizer.eos_token_id in tokenizer(f"a{END_OF_TEXT}b").input_ids  # while a prompt may use them


def test_the_end_of_text_begins_and_ends_and_padding_is_another_token(tokenizer):
    assert tokenizer.eos_token == tokenizer.bos_token == END_OF_TEXT
    assert tokenizer.pad_token == PAD
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert set(tokenizer.all_special_tokens) == {END_OF_TEXT, PAD, *CHAT_TOKENS}


def test_the_vocabulary_has_the_size_asked_for_with_everything_counted(tokenizer):
    assert len(tokenizer) == 320
    assert max(tokenizer.get_vocab().values()) == 319


def test_a_text_that_cannot_fill_the_vocabulary_gives_a_smaller_one():
    assert len(train_bpe(["abcabcabc"], 5000)) < 300


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(InputError, match=str(SMALLEST_VOCABULARY)):
        train_bpe(TEXTS, SMALLEST_VOCABULARY - 1)


def test_training_twice_gives_the_same_tokenizer_however_the_text_is_handed_over(tokenizer):
    assert fingerprint(train_bpe(iter(TEXTS), 320)) == fingerprint(tokenizer)


def test_a_long_text_is_learnt_from_as_if_it_were_one_piece(monkeypatch, tokenizer):
    monkeypatch.setattr("groundup.tokenization.training.PIECE_BYTES", 200)
    assert fingerprint(train_bpe(TEXTS, 320)) == fingerprint(tokenizer)


def test_the_pattern_cuts_like_qwen2s():
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    pieces = [piece for piece, _ in split.pre_tokenize_str("I'll pay 120 €  now!!\n\n\tdone  ")]
    # Taken from Qwen2's own tokenizer.json, whose pattern this is: digits alone, one space with the word after it.
    assert pieces == ["I", "'ll", " pay", " ", "1", "2", "0", " €", " ", " now", "!!\n\n", "\tdone", "  "]


def test_a_saved_tokenizer_loads_with_the_same_ids_and_no_code(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert fingerprint(loaded) == fingerprint(tokenizer)
    assert loaded(TEXTS[1]).input_ids == tokenizer(TEXTS[1]).input_ids
    assert loaded.chat_template == tokenizer.chat_template
    assert loaded.clean_up_tokenization_spaces is False
    assert loaded.all_special_tokens == tokenizer.all_special_tokens
    assert (tmp_path / "chat_template.jinja").exists()
    written = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"  # transformers 4 knows no other name
    assert not {"backend", "is_local", "local_files_only", "auto_map"} & set(written)


def test_saving_a_loaded_tokenizer_again_changes_nothing(tokenizer, tmp_path):
    tokenizer.model_max_length = 128
    save_tokenizer(tokenizer, tmp_path / "first")
    save_tokenizer(load_tokenizer(tmp_path / "first"), tmp_path / "second")
    for path in (tmp_path / "first").iterdir():
        assert (tmp_path / "second" / path.name).read_text() == path.read_text()


def test_the_last_calls_truncation_and_padding_are_not_saved(tokenizer, tmp_path):
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    save_tokenizer(tokenizer, tmp_path)
    written = json.loads((tmp_path / "tokenizer.json").read_text())
    assert written["truncation"] is None and written["padding"] is None


def test_the_last_calls_padding_does_not_change_the_fingerprint(tokenizer):
    before = fingerprint(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    assert fingerprint(tokenizer) == before


def test_a_folder_that_is_not_there_is_answered_with_a_near_name(tokenizer, tmp_path):
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    with pytest.raises(InputError, match="did you mean 'tokenizer'"):
        load_tokenizer(tmp_path / "tokeniser")


def test_a_folder_without_a_tokenizer_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(
    ("text_bytes", "size", "nearest"),
    [(1_000_000, 1024, 1024), (2_000_000, 2048, 1024), (2_200_000, 2048, 2048), (10**9, 32768, 32768), (10, 512, 512)],
)
def test_the_vocabulary_grows_like_the_square_root_of_the_text(text_bytes, size, nearest):
    assert suitable_vocab_size(text_bytes) == size
    assert suitable_vocab_size(text_bytes, seen_often=True) == nearest
    assert size > len(SPECIAL_TOKENS) + 256
