"""What tokens stand for in bytes: of every kind of tokenizer, not only of a byte-level one that knows all bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from groundup.data.tokens import write_shards
from groundup.evaluation.baselines import unigram_score
from groundup.evaluation.likelihood import comparable_bytes
from groundup.tokenization.folder import structure_ids
from groundup.tokenization.report import TokenBytes, bytes_lost, is_byte_level
from groundup.tokenization.training import train_bpe, train_word_level

LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = ["▁", "▁the", "▁cat", "e", "t", "h", "c", "a", ".", "é", "人"]


def _finished(backend, end="</s>"):
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end)


def byte_level(letters=LETTERS, **parts):
    """Make a byte-level BPE without merges that has only `letters`; `parts` replace normalizer or pre-tokenizer."""
    backend = Tokenizer(models.BPE({letter: index for index, letter in enumerate(letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    for name, part in parts.items():
        setattr(backend, name, part)
    return _finished(backend)


def unigram(byte_fallback):
    """Make a SentencePiece unigram model: "▁" for spaces, one added in front, bytes or an unknown id for the rest."""
    spare = [f"<0x{byte:02X}>" for byte in range(256)] if byte_fallback else []
    vocabulary = [("<unk>", 0.0), *((piece, -1.0) for piece in PIECES), *((piece, -9.0) for piece in spare)]
    backend = Tokenizer(models.Unigram(vocabulary, 0, byte_fallback))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _finished(backend)


def word_piece():
    words = ["[UNK]", "the", "cat", "##s", ".", "人", "e", "##e"]
    backend = Tokenizer(models.WordPiece({word: at for at, word in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return _finished(backend)


def characters(unknown=None):
    """Return a BPE of a few characters; without an unknown token it passes over all others."""
    backend = Tokenizer(models.BPE({"c": 0, "a": 1, "t": 2, "<unk>": 3}, [], unk_token=unknown))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    return _finished(backend)


KNOWN = {
    "byte-level, all bytes": (byte_level(), "né 人\x01 \n"),
    "byte-level that lacks bytes the text has not": (byte_level([x for x in LETTERS if x not in "ÀÁõö"]), "né 人\n"),
    "byte-level behind NFC": (byte_level(normalizer=normalizers.NFC()), "e\u0301 e\u0301"),
    "byte-level behind lower case": (byte_level(normalizer=normalizers.Lowercase()), "Straße İ"),
    "byte-level with a space in front": (byte_level(pre_tokenizer=pre_tokenizers.ByteLevel()), "the"),
    "unigram with bytes to fall back on": (unigram(True), "the cat ☃ 人\n\ttwice"),
    "unigram that knows the text": (unigram(False), "the cat.é"),
    "word pieces": (word_piece(), "The Cats. 人"),
    "words": (train_word_level(["the cat sat, twice"], 20), "twice the  cat"),
    "characters": (characters("<unk>"), "cat act"),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_the_tokens_of_a_text_have_all_its_bytes_whatever_the_tokenizer(kind, tmp_path):
    tokenizer, text = KNOWN[kind]
    documents = [text, "", text]
    stream = write_shards(_texts(documents), tokenizer, tmp_path / "shards")
    special, known = structure_ids(tokenizer), TokenBytes.of(tokenizer)
    raw = sum(len(document.encode()) for document in documents)
    assert comparable_bytes(stream, special, known) == (raw, None)
    seen = np.where(np.isin(np.arange(len(stream.counts)), list(special)), 0, stream.counts)
    assert comparable_bytes(stream, special, known, seen) == (raw, None)
    score = unigram_score(stream, stream, len(tokenizer), special, known)
    assert score.bits_per_byte > 0 and score.note is None


LOST = {
    "byte-level": (byte_level([x for x in LETTERS if x not in "ĀÃ"]), "a\x00b é", "2 of the text's 6 bytes"),
    "characters": (characters(), "cat dog 人", "6 of the text's 11 bytes"),
    "unknown by unigram": (unigram(False), "the ☃ dog", "tokens stand for words"),
    "unknown by word pieces": (word_piece(), "the ☃ dog", "2 of 5 tokens stand for words"),
    "unknown by words": (train_word_level(["the cat"], 20), "the dog", "1 of 4 tokens stand for words"),
    "unknown by characters": (characters("<unk>"), "cat d", "1 of 6 tokens stand for words"),
    "unknown that is the end of text": (_finished(characters("<unk>").backend_tokenizer, "<unk>"), "cat d", "1 of 6 t"),
}


@pytest.mark.parametrize("kind", LOST)
def test_what_a_tokenizer_lost_is_counted_and_leaves_no_bits_per_byte(kind, tmp_path):
    tokenizer, text, said = LOST[kind]
    stream = write_shards(_texts([text]), tokenizer, tmp_path / "shards")
    found, note = comparable_bytes(stream, structure_ids(tokenizer), TokenBytes.of(tokenizer))
    assert found is None and said in note and "cannot be compared" in note


def _texts(documents):
    from datasets import Dataset

    return Dataset.from_dict({"text": documents})


@settings(deadline=None, max_examples=100)
@given(text=st.text(max_size=40))
def test_a_byte_level_vocabulary_has_the_exact_bytes_of_any_text(text):
    tokenizer = _SHARED
    assert TokenBytes.of(tokenizer).lengths[tokenizer.encode(text, split_special_tokens=True)].sum() == len(
        text.encode()
    )
    assert bytes_lost(tokenizer, [text]) == 0


_SHARED = train_bpe(["Zażółć gęślą jaźń, 你好 and the cat"] * 3, 300)


def test_the_letters_of_a_vocabulary_are_known_by_its_decoder():
    assert is_byte_level(_SHARED) and is_byte_level(byte_level(LETTERS[:3]))
    assert not is_byte_level(unigram(True)) and not is_byte_level(word_piece()) and not is_byte_level(characters())
