import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from groundup.tokenization.folder import plain_backend
from groundup.tokenization.training import cut_pieces, train_bpe, train_word_level

LINES = st.lists(st.sampled_from(["word", " ", "  ", "\n", "\r\n", "\n\n", "é", "漢", "👋", "12", "!", "'s", "\t"]))


def gpt2_like() -> Tokenizer:
    """Make a tokenizer with GPT-2's own pattern, whose white space differs from Qwen2's, over single bytes."""
    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.WordLevel(alphabet | {"?": 256}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return backend


@settings(max_examples=200, deadline=None)
@given(LINES, st.integers(8, 40))
def test_pieces_put_together_are_the_text(parts, limit):
    text = "".join(parts)
    pieces = list(cut_pieces(text.encode(), limit))
    assert "".join(pieces) == text
    assert all(0 < len(piece.encode()) <= limit for piece in pieces)


@settings(max_examples=200, deadline=None)
@given(LINES)
def test_cuts_at_lines_and_spaces_change_no_piece_of_the_pattern(parts):
    # A word of 4 letters and a space every 20 bytes at most: so each cut finds its place.
    text = " wide open\n".join("".join(parts[at : at + 2]) for at in range(0, len(parts), 2))
    pieces = list(cut_pieces(text.encode(), 60))
    for tokenizer in (train_bpe(["x"], 262), train_word_level(["wide open word 12"], 10)):
        backend = plain_backend(tokenizer).pre_tokenizer
        whole = [piece for piece, _ in backend.pre_tokenize_str(text)]
        assert [piece for part in pieces for piece, _ in backend.pre_tokenize_str(part)] == whole
    backend = gpt2_like().pre_tokenizer
    whole = [piece for piece, _ in backend.pre_tokenize_str(text)]
    assert [piece for part in pieces for piece, _ in backend.pre_tokenize_str(part)] == whole


@pytest.mark.parametrize("text", ["x" * 1000, "é" * 1000, "\n" * 1000, " " * 1000])
def test_a_text_without_a_place_to_cut_is_still_cut(text):
    assert "".join(cut_pieces(text.encode(), 64)) == text
