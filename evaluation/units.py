"""The units that measures of written text count in: words, marks, and characters where no blanks stand between words.

Unicode says which scripts are written without blanks (UAX #14: ideographs, and those that need a dictionary to find a
word's end), so no language has to be known.
"""

import unicodedata

import regex

LONGEST_WORD = 40  # letters; a longer run without a blank is no word but a loop, or a text of another kind

_UNSPACED = r"[\p{Line_Break=Ideographic}\p{Line_Break=Complex_Context}\p{Line_Break=Conditional_Japanese_Starter}]"
_UNIT = regex.compile(rf"(?P<letter>{_UNSPACED}\p{{M}}*)|(?P<word>(?:(?!{_UNSPACED})\w)+)|\S")
_HAS_UNSPACED = regex.compile(_UNSPACED)


def units(text: str) -> list[str]:
    """Words and marks one by one, and every letter of a script without blanks or of a run too long for a word."""
    found = []
    for unit in _UNIT.finditer(text):
        word = unit["word"]
        found += regex.findall(r"\X", word) if word and len(word) > LONGEST_WORD else [unit[0]]
    return found


def as_compared(text: str) -> str:
    """A text as it is held against another: an accent of its own or a part of its letter (NFC), no blanks around it."""
    return unicodedata.normalize("NFC", text).strip()


def is_unspaced(text: str) -> bool:
    """Whether a text has letters of a script that is written without blanks."""
    return _HAS_UNSPACED.search(text) is not None


class WordTokenizer:
    """What ROUGE counts, for `rouge_score`, whose own knows the letters a to z alone: for those it gives the same.

    Words in lower case, without marks; of a text that has nothing else, the marks.
    """

    def tokenize(self, text: str) -> list[str]:
        """The words of a text."""
        found = units(text.lower().replace("_", " "))
        return [unit for unit in found if regex.search(r"\w", unit)] or found
