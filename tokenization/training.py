"""Train a tokenizer: byte-level BPE, or whole words for teaching and as a baseline; cut its texts into pieces.

Byte-level BPE (Sennrich et al. 2016, https://arxiv.org/abs/1508.07909, on bytes as in GPT-2) has ids for every text and
gives every text back exactly. Words and punctuation (Raschka, "Build a Large Language Model (From Scratch)", chapter 2)
are the simplest tokens: white space is not kept, a word that was not seen often enough is `<|unk|>`. The library
`tokenizers` does the work.
"""

import codecs
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from groundup.common.errors import InputError
from groundup.tokenization.chat import CHAT_TEMPLATE
from groundup.tokenization.folder import CHAT_TOKENS, END_OF_TEXT, PAD

PIECE_BYTES = 2**16

# Qwen2's pattern: no piece crosses a line end into the next line, digits stand alone (a number costs its length, so
# that arithmetic is learnable), and llama.cpp knows it by name ("qwen2"), so that an exported model runs there.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL_TOKENS = (END_OF_TEXT, PAD, *CHAT_TOKENS)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
LARGEST_VOCABULARY = 2**16  # ids still fit 16 bits on disk

UNKNOWN = "<|unk|>"
WORD_SPECIAL_TOKENS = (UNKNOWN, END_OF_TEXT, PAD)
# A word token is a double dash, one mark of punctuation, or the longest run with neither of them nor white space in it.
# \x1c-\x1f are white space to Python but not to the regex engine of `tokenizers`; named, both split alike.
_MARKS = r""",.:;?_!"()'"""
_WORD = rf"--|[{_MARKS}]|(?:(?!--)[^\s\x1c-\x1f{_MARKS}])+"
_NO_SPACE_BEFORE = r"""^(?![,.?!"()'])"""


# ---------------------------------------------------------------------------------------------------------------------
# Words


def split_words(text: str) -> list[str]:
    """Split a text into words and marks of punctuation; white space only separates.

    >>> split_words("Well -- isn't it?")
    ['Well', '--', 'isn', "'", 't', 'it', '?']
    """
    return re.findall(_WORD, text)


def train_word_level(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Take the most frequent words as the vocabulary: `vocab_size` tokens with `<|unk|>` and the other special ones.

    Decoding joins words by one space and puts none before `,.?!"()'`. Raises `InputError` for a size that leaves no
    room for a word.
    """
    special = list(WORD_SPECIAL_TOKENS)
    if vocab_size <= len(special):
        raise InputError(f"a word vocabulary needs more than {len(special)} tokens, not {vocab_size}")
    backend = Tokenizer(models.WordLevel(vocab={}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_WORD), behavior="removed", invert=True)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(Regex(_NO_SPACE_BEFORE), " "), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    return _trained(backend, trainer, texts, unk_token=UNKNOWN)


# ---------------------------------------------------------------------------------------------------------------------
# Byte-level BPE


def train_bpe(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Learn a byte-level BPE of `vocab_size` tokens, the 256 bytes and the special tokens among them.

    `texts` is read once and never held. A text with too few repeated pairs gives a smaller vocabulary: look at
    `len(tokenizer)`. Raises `InputError` for a size that cannot hold the bytes and the special tokens.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"a byte-level vocabulary needs at least {SMALLEST_VOCABULARY} tokens "
            f"(256 bytes and {len(SPECIAL_TOKENS)} special tokens), not {vocab_size}"
        )
    backend = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, as_bytes])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair seen once teaches nothing
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    chat = {"additional_special_tokens": list(CHAT_TOKENS), "chat_template": CHAT_TEMPLATE}
    return _trained(backend, trainer, texts, **chat)


def suitable_vocab_size(text_bytes: float, *, seen_often: bool = False) -> int:
    """Return the vocabulary size for a text of `text_bytes` bytes: the power of two at or above its square root.

    The number of distinct words grows like the square root of a text (Heaps' law), and so do the merges worth having.
    For a text that is `seen_often` it is the nearest power of two: what is rare is then memorised all too easily
    (docs/experiments.md).
    """
    power = math.log2(max(1, text_bytes)) / 2
    size = 2 ** (round(power) if seen_often else math.ceil(power))
    return min(max(size, 512), LARGEST_VOCABULARY)


def _trained(backend: Tokenizer, trainer: Any, texts: Iterable[str], **options: Any) -> PreTrainedTokenizerFast:
    backend.train_from_iterator(pieces_of(texts), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        **options,
    )


# ---------------------------------------------------------------------------------------------------------------------
# Long texts in pieces: many threads can share a text then, and memory stays flat, whatever its length


class Sliceable(Protocol):
    """Bytes in memory, or bytes read when a slice of them is asked for."""

    def __len__(self) -> int: ...

    def __getitem__(self, place: slice, /) -> bytes | memoryview: ...


def cut_pieces(content: Sliceable, piece_bytes: int) -> Iterator[str]:
    """Cut one long UTF-8 text into strings of at most `piece_bytes` bytes.

    Each cut lies after the last line end that has no white space on either side, or, in a text without one, before
    the last single space between two words. No piece of our own or of GPT-2's and Qwen2's patterns crosses such a
    place, so the ids are those of the whole text. A tokenizer that marks the beginning of a text (SentencePiece's
    "▁"), or a stretch of `piece_bytes` without a space, may differ by a token at a cut.
    """
    start = 0
    while start < len(content):
        text, used = codecs.utf_8_decode(content[start : start + piece_bytes], "strict", False)
        if start + piece_bytes < len(content):
            text = text[: _last_border(text)]
            used = len(text.encode())
        yield text
        start += used


def _last_border(text: str) -> int:
    for mark, offset in (("\n", 1), (" ", 0)):
        at = len(text) - 1
        while (at := text.rfind(mark, 1, at)) > 0:
            if not text[at - 1].isspace() and not text[at + 1].isspace():
                return at + offset
    return len(text)


def pieces_of(texts: Iterable[str]) -> Iterator[str]:
    """Yield all pieces of all texts, one after another."""
    for text in texts:
        yield from cut_pieces(text.encode(), PIECE_BYTES)


def bytes_a_token(vocab_size: int) -> float:
    """Return how many bytes of English a token of a BPE stands for: 2.6 at 1,024 tokens, 3.6 at 8,192 (measured)."""
    return 2.6 + (math.log2(vocab_size) - 10) / 3
