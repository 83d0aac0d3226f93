import pytest

from groundup.common.console import console
from groundup.tokenization.folder import structure_ids
from groundup.tokenization.report import (
    LANGUAGES,
    joins,
    kinds_of_text,
    report_table,
    token_pieces,
    tokenizer_report,
    tokenizer_rows,
)
from groundup.tokenization.training import train_bpe, train_word_level

TRAIN = ["one two three four five six seven, and eight nine ten. " * 30]
HELD_BACK = ["one two three", "eleven twelve."]


def test_a_bpe_stands_beside_words_and_bytes():
    rows = tokenizer_report(train_bpe(TRAIN, 290), iter(TRAIN), iter(HELD_BACK))
    bpe, words, plain = rows
    assert [row["tokenizer"] for row in rows] == ["byte-level BPE", "word-level", "bytes"]
    assert words["unknown_rate"] == pytest.approx(2 / 6)  # "eleven" and "twelve" of one two three eleven twelve .
    assert words["tokens_per_document"] == 3
    assert words["bytes_per_token"] == pytest.approx(27 / 6)
    assert bpe["unknown_rate"] == plain["unknown_rate"] == 0
    assert plain["bytes_per_token"] == 1
    assert plain["tokens_per_document"] == 27 / 2
    assert plain["vocabulary_used"] == len(set("".join(HELD_BACK))) / 256
    assert bpe["bytes_per_token"] > 1


def test_the_numbers_are_those_of_the_tokenizer_itself():
    tokenizer = train_bpe(TRAIN, 290)
    ids = [tokenizer(text).input_ids for text in HELD_BACK]
    row = tokenizer_report(tokenizer, TRAIN, HELD_BACK)[0]
    assert row["tokens_per_document"] == sum(map(len, ids)) / 2
    assert row["vocabulary_used"] == len(set(ids[0] + ids[1])) / 290


def test_a_word_tokenizer_is_not_compared_with_itself():
    rows = tokenizer_report(train_word_level(TRAIN, 20), TRAIN, HELD_BACK)
    assert [row["tokenizer"] for row in rows] == ["word-level", "bytes"]


def test_the_table_shows_every_row():
    rows = tokenizer_report(train_bpe(TRAIN, 290), TRAIN, HELD_BACK)
    with console.capture() as captured:
        console.print(report_table(rows))
    assert all(row["tokenizer"] in captured.get() for row in rows)


def test_each_kind_of_text_has_its_cost_coverage_and_language_its_price_against_english(bpe, words, texts):
    rows = tokenizer_rows({None: bpe, "word-level": words}, kinds_of_text({"mine": "\n".join(texts)}), seed=0)
    values = {(row["name"], row["dataset"], row["baseline"]): row["value"] for row in rows}
    whole = "\n".join(texts)
    assert values["bytes_per_token", "mine", None] == pytest.approx(len(whole.encode()) / len(bpe.encode(whole)))
    assert all(values["unknown_rate", kind, None] == 0 for kind in LANGUAGES)  # it knows every byte
    assert values["unknown_rate", "Greek", "word-level"] > 0.5 > values["unknown_rate", "mine", "word-level"]
    assert values["tokens_against_english", "English", None] == 1
    greek, english = (len(bpe.encode(LANGUAGES[name])) for name in ("Greek", "English"))
    assert values["tokens_against_english", "Greek", None] == pytest.approx(greek / english)
    assert ("tokens_against_english", "Python code", None) not in values


@pytest.mark.parametrize("make", [train_bpe, train_word_level])
def test_the_pieces_of_a_text_are_the_whole_text_and_name_every_token(make):
    tokenizer = make(TRAIN, 290)
    for text in ("one  two\n 你好 👩‍👩‍👧!  ", "", " "):
        pieces = token_pieces(tokenizer, text)
        assert "".join(piece for piece, _ in pieces) == text
        named = [int(index) for _, said in pieces if said != "no token" for index in said.split()[1:]]
        assert named == tokenizer.encode(text, add_special_tokens=False)


def test_words_are_runs_of_letters_and_digits_whatever_the_script():
    tokenizer = train_bpe(["the cat's 12 naïve 猫 <b>"] * 3, 280)
    inside = joins(tokenizer)
    begins = {letter: inside[tokenizer.encode(letter, add_special_tokens=False)[0]].tolist() for letter in "a1' <"}
    assert begins == {"a": [True] * 2, "1": [True] * 2, "'": [False] * 2, " ": [False] * 2, "<": [False] * 2}
    assert all(inside[token].all() for token in tokenizer.encode("猫", add_special_tokens=False))
    assert not inside[sorted(structure_ids(tokenizer))].any()
    assert not joins(train_word_level(["a b c"], 20)).any()
