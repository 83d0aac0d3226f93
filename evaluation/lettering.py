"""Words in a picture, in any script: which installed fonts have their letters, and which words none can write."""

import unicodedata
from collections.abc import Sequence
from functools import cache

from matplotlib import font_manager

OWN_FONT = "DejaVu Sans"  # matplotlib brings it
_NOT_TO_DRAW = ("Last Resort", "Color Emoji")  # boxes with a name in them; pictures that matplotlib cannot scale


def fonts_for(words: Sequence[str]) -> list[str]:
    """The fonts that together have the letters of the words as far as any that is installed has; ours comes first."""
    fonts = [OWN_FONT]
    missing = {letter for word in words for letter in word} - _letters(font_manager.findfont(OWN_FONT))
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.weight != 400, entry.name)):
        if not missing:
            break
        if not any(kind in entry.name for kind in _NOT_TO_DRAW) and missing & (letters := _letters(entry.fname)):
            fonts.append(entry.name)
            missing -= letters
    return list(dict.fromkeys(fonts))


def can_write(word: str, fonts: Sequence[str]) -> bool:
    """Whether fonts have all letters of a word, and it runs from left to right: matplotlib would turn others round."""
    letters = set().union(*(_letters(font_manager.findfont(font)) for font in fonts))
    return set(word) <= letters and not any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in word)


@cache
def _letters(path: str) -> frozenset[str]:
    """The letters that a font has."""
    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError):  # a font that matplotlib cannot read
        return frozenset()
