"""Make instructions whose answers a program can check, so that a model can be taught with no file at hand.

Numbers in words between English, French and German; letters and words; and what a name of the standard library does,
from the built-in corpus. An instance (a number, a word, a set of words, a name) is held out by its sha256, so that no
phrasing of a question about it, in any family about numbers in either direction, occurs in training.
"""

import functools
import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import datasets

from groundup.common.errors import InputError, near
from groundup.data import python_docs
from groundup.data.python_docs import split_of

NAME = "instruction-tasks"
HELD_OUT_ROWS = 200
LONGEST_ANSWER = 80  # characters of a documentation answer

Instance = tuple[str, str, str]  # what is held out by, the input, the answer


# ---------------------------------------------------------------------------------------------------------------------
# Numbers in words


_ENGLISH, _ENGLISH_TENS, _FRENCH, _FRENCH_TENS, _GERMAN, _GERMAN_TENS = map(
    str.split,
    (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen",
        "- - twenty thirty forty fifty sixty seventy eighty ninety",
        "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize",
        "- dix vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt",
        "null ein zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn",
        "- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig",
    ),
)


def english(number: int) -> str:
    """Write a number from 0 to 999,999 in British English: `two hundred and five`, `one thousand and one`."""
    if number < 20:
        return _ENGLISH[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _ENGLISH_TENS[tens] + (f"-{_ENGLISH[ones]}" if ones else "")
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_ENGLISH[hundreds]} hundred" + (f" and {english(rest)}" if rest else "")
    thousands, rest = divmod(number, 1000)
    joint = " and " if rest < 100 else " "
    return f"{english(thousands)} thousand" + (joint + english(rest) if rest else "")


def french(number: int) -> str:
    """Write a number from 0 to 999,999 in French, in the spelling before 1990: `quatre-vingts`, `deux cent un`.

    `vingt` and `cent` take an s where they are multiplied and nothing follows; `mille` never does.
    """
    if number < 1000:
        return _french_below_1000(number, ends=True)
    thousands, rest = divmod(number, 1000)
    head = "mille" if thousands == 1 else f"{_french_below_1000(thousands, ends=False)} mille"
    return head + (f" {_french_below_1000(rest, ends=True)}" if rest else "")


def _french_below_1000(number: int, ends: bool) -> str:
    if number < 100:
        return _french_below_100(number, ends)
    hundreds, rest = divmod(number, 100)
    head = "cent" if hundreds == 1 else f"{_FRENCH[hundreds]} cent"
    if rest:
        return f"{head} {_french_below_100(rest, ends)}"
    return head + ("s" if hundreds > 1 and ends else "")


def _french_below_100(number: int, ends: bool) -> str:
    if number < 17:
        return _FRENCH[number]
    tens, ones = divmod(number, 10)
    if tens in (7, 9):  # 71 is sixty-eleven, 91 four-twenty-eleven
        ones += 10
    head = _FRENCH_TENS[tens]
    if ones == 0:
        return head + ("s" if number == 80 and ends else "")
    if ones in (1, 11) and tens not in (1, 8, 9):
        return f"{head} et {_FRENCH[ones]}"
    return f"{head}-{_FRENCH[ones] if ones < 17 else _french_below_100(ones, ends)}"


def german(number: int) -> str:
    """Write a number from 0 to 999,999 in German, as one word: `zweihunderteins`, `eintausendeinundzwanzig`."""
    return _german_part(number) + ("s" if number % 100 == 1 else "")


def _german_part(number: int) -> str:
    if number < 20:
        return _GERMAN[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return (f"{_GERMAN[ones]}und" if ones else "") + _GERMAN_TENS[tens]
    if number < 1000:
        hundreds, rest = divmod(number, 100)
        return f"{_GERMAN[hundreds]}hundert" + (_german_part(rest) if rest else "")
    thousands, rest = divmod(number, 1000)
    return f"{_german_part(thousands)}tausend" + (_german_part(rest) if rest else "")


def _numbers(read: Callable[[int], str], write: Callable[[int], str]) -> Callable[[random.Random], Iterator[Instance]]:
    def instances(chance: random.Random) -> Iterator[Instance]:
        while True:
            digits = chance.choices((1, 2, 3, 4, 5), (1, 4, 10, 15, 20))[0]
            number = chance.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)
            yield f"number {number}", read(number), write(number)

    return instances


# ---------------------------------------------------------------------------------------------------------------------
# Letters and words


@functools.lru_cache(maxsize=1)
def words() -> tuple[str, ...]:
    """Return the words of the built-in corpus, of 3 to 12 small letters, sorted."""
    found: set[str] = set()
    for split in python_docs.load().values():
        for text in split["text"]:
            found.update(re.findall(r"(?<![\w.'`])[a-z]{3,12}(?![\w('`])", text))
    return tuple(sorted(found))


def _upper_case(chance: random.Random) -> Iterator[Instance]:
    while True:
        phrase = " ".join(chance.sample(words(), chance.randint(1, 4)))
        yield f"phrase {phrase}", phrase, phrase.upper()


def _spell_out(chance: random.Random) -> Iterator[Instance]:
    while True:
        word = chance.choice(words())
        yield f"word {word}", word, " ".join(word)


def _sort_words(chance: random.Random) -> Iterator[Instance]:
    while True:
        chosen = chance.sample(words(), chance.randint(2, 4))
        ordered = ", ".join(sorted(chosen))
        yield f"words {ordered}", ", ".join(chosen), ordered


def _count_letters(chance: random.Random) -> Iterator[Instance]:
    while True:
        word = chance.choice(words())
        letter = chance.choice(word if chance.random() < 0.85 else "abcdefghijklmnopqrstuvwxyz")
        yield f"word {word}", f"{letter} in {word}", counted(letter, word)


def counted(letter: str, word: str) -> str:
    """Count aloud how often a letter is in a word: `b1 o b2 = 2`.

    The steps before the answer are what makes counting learnable by a small model (Nye et al. 2021): each looks at one
    letter and at the count so far.
    """
    seen = itertools.count(1)
    steps = [f"{each}{next(seen)}" if each == letter else each for each in word]
    return f"{' '.join(steps)} = {word.count(letter)}"


# ---------------------------------------------------------------------------------------------------------------------
# The standard library


def _python_names(chance: random.Random) -> Iterator[Instance]:
    rows: list[Any] = [row for split in python_docs.load().values() for row in split]
    rows = [row for row in rows if not row["name"].startswith(("topics.", "_")) and "._" not in row["name"]]
    chance.shuffle(rows)
    for row in rows * 3:  # the same name is asked for in several ways
        paragraph = " ".join(row["text"].split("\n\n")[1].split())
        if len(paragraph) > LONGEST_ANSWER:  # cut after the last whole sentence that fits
            end = paragraph.rfind(". ", 0, LONGEST_ANSWER)
            paragraph = paragraph[: end + 1 if end > 0 else paragraph.rfind(" ", 0, LONGEST_ANSWER)]
        yield row["name"], row["name"], paragraph


# ---------------------------------------------------------------------------------------------------------------------
# Families


def _translation(of: str, into: str) -> tuple[str, ...]:
    return (
        f"Translate this number from {of} into {into}.",
        f"What is this {of} number in {into}?",
        f"Write in {into}:",
    )


@dataclass(frozen=True)
class Family:
    """A kind of task: its instances, its phrasings, and the most rows for training."""

    instances: Callable[[random.Random], Iterator[Instance]]
    phrasings: tuple[str, ...]
    rows: int


FAMILIES = {
    "english-french": Family(_numbers(english, french), _translation("English", "French"), 8_000),
    "french-english": Family(_numbers(french, english), _translation("French", "English"), 8_000),
    "english-german": Family(_numbers(english, german), _translation("English", "German"), 8_000),
    "german-english": Family(_numbers(german, english), _translation("German", "English"), 8_000),
    "upper-case": Family(
        _upper_case, ("Write this in capital letters.", "Turn into upper case:", "Capitalise every letter."), 12_000
    ),
    "spell-out": Family(
        _spell_out, ("Spell this word.", "Spell out the word:", "Write the word letter by letter."), 8_000
    ),
    "sort-words": Family(
        _sort_words, ("Sort these words.", "Put into alphabetical order.", "Order the words from A to Z:"), 24_000
    ),
    "count-letters": Family(
        _count_letters, ("Count this letter.", "How many times is the letter there?", "Count the letter:"), 16_000
    ),
    "python-names": Family(
        _python_names, ("What does this name of Python do?", "Explain this part of Python.", "What is"), 8_000
    ),
}


def load(name: str, held_out: bool = False) -> datasets.Dataset:
    """Return the rows of the families that `name` means: `instruction-tasks`, or with `:one,another` behind it.

    Columns `instruction`, `input`, `output` and `family`; the same on every machine but for what follows the Python
    (its words and names). `held_out` gives the rows to test on. Raises `InputError` for an unknown family.
    """
    return datasets.Dataset.from_list([row for family in families_of(name) for row in _rows(family, held_out)])


def is_tasks(name: str) -> bool:
    """Return whether `--data` means these tasks."""
    return name.split(":")[0] == NAME


def families_of(name: str) -> Sequence[str]:
    """Return the families that a value of `--data` names. Raises `InputError` for an unknown one."""
    chosen = name.partition(":")[2].split(",") if ":" in name else list(FAMILIES)
    for family in chosen:
        if family not in FAMILIES:
            raise InputError(f"no family {family!r} in {NAME}{near(family, FAMILIES)}: there are {', '.join(FAMILIES)}")
    return chosen


def _rows(name: str, held_out: bool) -> Iterator[dict[str, str]]:
    """Yield different rows of a family; stop when a thousand tries in a row bring nothing new."""
    family = FAMILIES[name]
    count = HELD_OUT_ROWS if held_out else family.rows
    chance = random.Random(f"{name} {held_out}")
    seen: set[tuple[str, str]] = set()
    tries = 0
    for key, given, answer in family.instances(chance):
        row = (chance.choice(family.phrasings), given)
        fits = (split_of(key) == "validation") == held_out
        tries = 0 if fits and row not in seen else tries + 1
        if fits and row not in seen:
            seen.add(row)
            yield {"instruction": row[0], "input": given, "output": answer, "family": name}
        if len(seen) == count or tries == 1000:
            return
