"""Words and punctuation as tokens: the simplest tokenizer, for teaching and as a baseline.

After Raschka, "Build a Large Language Model (From Scratch)", chapter 2. White space is not kept, a word that was not
seen often enough is `<|unk|>`.
"""

import re
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from groundup.common.errors import InputError
from groundup.tokenization.folder import END_OF_TEXT, PAD
from groundup.tokenization.pieces import pieces_of

UNKNOWN = "<|unk|>"
SPECIAL_TOKENS = (UNKNOWN, END_OF_TEXT, PAD)

# A token is a double dash, one mark of punctuation, or the longest run with neither of them nor white space in it.
# \x1c-\x1f are white space to Python but not to the regex engine of `tokenizers`; named, both split alike.
_MARKS = r""",.:;?_!"()'"""
_PIECE = rf"--|[{_MARKS}]|(?:(?!--)[^\s\x1c-\x1f{_MARKS}])+"
_NO_SPACE_BEFORE = r"""^(?![,.?!"()'])"""


def split_words(text: str) -> list[str]:
    """Split a text into words and marks of punctuation; white space only separates.

    >>> split_words("Well -- isn't it?")
    ['Well', '--', 'isn', "'", 't', 'it', '?']
    """
    return re.findall(_PIECE, text)


def train_word_level(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Take the most frequent words as the vocabulary: `vocab_size` tokens with `<|unk|>` and the other special ones.

    Decoding joins words by one space and puts none before `,.?!"()'`. Raises `InputError` for a size that leaves no
    room for a word.
    """
    if vocab_size <= len(SPECIAL_TOKENS):
        raise InputError(f"a word vocabulary needs more than {len(SPECIAL_TOKENS)} tokens, not {vocab_size}")
    backend = Tokenizer(models.WordLevel(vocab={}, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECE), behavior="removed", invert=True)
    backend.decoder = decoders.Sequence(
        [decoders.Replace(Regex(_NO_SPACE_BEFORE), " "), decoders.Fuse(), decoders.Strip(" ", left=1, right=0)]
    )
    trainer = trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    backend.train_from_iterator(pieces_of(texts), trainer=trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token=UNKNOWN,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )
