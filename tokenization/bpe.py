"""Byte-level BPE: every text has ids, every id has bytes, and any text comes back exactly.

Sennrich et al. 2016 (https://arxiv.org/abs/1508.07909), on bytes as in GPT-2. The library `tokenizers` does the work.
"""

import math
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from groundup.common.errors import InputError
from groundup.tokenization.chat import CHAT_TEMPLATE
from groundup.tokenization.folder import CHAT_TOKENS, END_OF_TEXT, PAD
from groundup.tokenization.pieces import pieces_of

# Qwen2's pattern: no piece crosses a line end into the next line, digits stand alone (a number costs its length, so
# that arithmetic is learnable), and llama.cpp knows it by name ("qwen2"), so that an exported model runs there.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SPECIAL_TOKENS = (END_OF_TEXT, PAD, *CHAT_TOKENS)
SMALLEST_VOCABULARY = 256 + len(SPECIAL_TOKENS)
LARGEST_VOCABULARY = 2**16  # ids still fit 16 bits on disk


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
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,  # a pair seen once teaches nothing
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(pieces_of(texts), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        additional_special_tokens=list(CHAT_TOKENS),
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def suitable_vocab_size(text_bytes: float, *, seen_often: bool = False) -> int:
    """Return the vocabulary size for a text of `text_bytes` bytes: the power of two at or above its square root.

    The number of distinct words grows like the square root of a text (Heaps' law), and so do the merges worth having.
    For a text that is `seen_often` it is the nearest power of two: what is rare is then memorised all too easily
    (docs/experiments.md).
    """
    power = math.log2(max(1, text_bytes)) / 2
    size = 2 ** (round(power) if seen_often else math.ceil(power))
    return min(max(size, 512), LARGEST_VOCABULARY)
