import re

import pytest

from groundup.common.errors import InputError
from groundup.data import instruction_tasks as tasks

# Spellings from Duden, the Académie française before 1990, and Hart's Rules.
KNOWN = {
    0: ("zero", "zéro", "null"),
    1: ("one", "un", "eins"),
    16: ("sixteen", "seize", "sechzehn"),
    17: ("seventeen", "dix-sept", "siebzehn"),
    21: ("twenty-one", "vingt et un", "einundzwanzig"),
    71: ("seventy-one", "soixante et onze", "einundsiebzig"),
    80: ("eighty", "quatre-vingts", "achtzig"),
    81: ("eighty-one", "quatre-vingt-un", "einundachtzig"),
    91: ("ninety-one", "quatre-vingt-onze", "einundneunzig"),
    97: ("ninety-seven", "quatre-vingt-dix-sept", "siebenundneunzig"),
    100: ("one hundred", "cent", "einhundert"),
    101: ("one hundred and one", "cent un", "einhunderteins"),
    200: ("two hundred", "deux cents", "zweihundert"),
    283: ("two hundred and eighty-three", "deux cent quatre-vingt-trois", "zweihundertdreiundachtzig"),
    1000: ("one thousand", "mille", "eintausend"),
    1001: ("one thousand and one", "mille un", "eintausendeins"),
    21000: ("twenty-one thousand", "vingt et un mille", "einundzwanzigtausend"),
    80000: ("eighty thousand", "quatre-vingt mille", "achtzigtausend"),
    200300: ("two hundred thousand three hundred", "deux cent mille trois cents", "zweihunderttausenddreihundert"),
}


@pytest.mark.parametrize("number", KNOWN)
def test_numbers_are_written_as_the_languages_write_them(number):
    assert (tasks.english(number), tasks.french(number), tasks.german(number)) == KNOWN[number]


@pytest.mark.parametrize("write", [tasks.english, tasks.french, tasks.german])
def test_no_two_numbers_are_written_alike(write):
    assert len({write(number) for number in range(100_000)}) == 100_000


@pytest.fixture(scope="module")
def rows():
    return {held_out: list(tasks.load(tasks.NAME, held_out)) for held_out in (False, True)}


def test_no_instance_that_is_held_out_occurs_in_training_in_any_phrasing(rows):
    numbers = ("english-french", "french-english", "english-german", "german-english")

    def instances(held_out):
        for row in rows[held_out]:
            if row["family"] in numbers:
                yield from ((language, row[column]) for language, column in languages_of(row))
            elif row["family"] == "sort-words":
                yield "sort-words", row["output"]
            elif row["family"] == "count-letters":
                yield "word", row["input"].split(" in ")[1]
            else:
                yield {"spell-out": "word"}.get(row["family"], row["family"]), row["input"]

    assert not set(instances(True)) & set(instances(False))


def languages_of(row):
    of, into = row["family"].split("-")
    return (of, "input"), (into, "output")


def test_every_family_has_rows_to_learn_from_and_rows_to_be_tested_on(rows):
    for held_out, least in ((False, 3000), (True, 200)):
        counts = dict.fromkeys(tasks.FAMILIES, 0)
        for row in rows[held_out]:
            counts[row["family"]] += 1
        assert min(counts.values()) >= least


def test_answers_about_letters_and_words_are_right(rows):
    for row in rows[True]:
        given, answer = row["input"], row["output"]
        if row["family"] == "upper-case":
            assert answer.lower() == given and answer.isupper()
        elif row["family"] == "spell-out":
            assert answer.replace(" ", "") == given
        elif row["family"] == "sort-words":
            assert sorted(given.split(", ")) == answer.split(", ")
        elif row["family"] == "count-letters":
            letter, word = given.split(" in ")
            steps, count = answer.split(" = ")
            assert int(count) == word.count(letter)
            assert re.sub(r"[\d ]", "", steps) == word
            assert re.findall(rf"{letter}(\d+)", steps) == [str(number + 1) for number in range(int(count))]


def test_the_rows_are_the_same_each_time():
    name = f"{tasks.NAME}:spell-out,sort-words"
    assert list(tasks.load(name, True)) == list(tasks.load(name, True))
    assert set(tasks.load(name, True)["family"]) == {"spell-out", "sort-words"}


def test_an_unknown_family_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="did you mean 'sort-words'"):
        tasks.load(f"{tasks.NAME}:sort-word")
