"""Measures of text in any script: none may take a text without blanks between words for one word."""

import random
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenizers import DefaultTokenizer

from groundup.data.examples import Examples
from groundup.evaluation.classification import baselines
from groundup.evaluation.generated_text import quality
from groundup.evaluation.instruction import Answer, repetition, score_answers
from groundup.evaluation.metrics_json import SVM
from groundup.evaluation.standard_metrics import WordTokenizer, load_metric, units

SCRIPTS = {
    "Chinese": "今天天气很好，我们去公园散步。",
    "Japanese": "カメラはとても良いです。",
    "Thai": "สวัสดีครับวันนี้อากาศดีมาก",
    "Lao": "ສະບາຍດີຂ້ອຍຊື່",
    "Khmer": "សួស្តីពិភពលោក",
    "Burmese": "မင်္ဂလာပါကမ္ဘာလောက",
    "Korean": "오늘 날씨가 아주 좋습니다",
    "Hindi": "नमस्ते दुनिया कैसे हो",
    "Arabic": "مرحبا بالعالم كيف حالك",
    "Hebrew": "שלום עולם מה שלומך",
    "Greek": "Καλημέρα κόσμε τι κάνεις",
    "Russian": "Привет, мир, как дела",
    "Amharic": "ሰላም ለዓለም እንዴት ነህ",
    "marks": "?!",
    "emoji": "🙂👩‍👩‍👧",
    "a number": "42",
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_answer_that_is_the_reference_is_right_by_every_measure_in_every_script(script):
    text = SCRIPTS[script]
    measures = score_answers([Answer(text, True)], [text])
    assert (measures["rouge_l"], measures["exact_match"], measures["chrf"]) == (1, 1, pytest.approx(100))
    assert score_answers([Answer("qqq", True)], [text])["rouge_l"] == 0


@pytest.mark.parametrize("script", [name for name in SCRIPTS if name not in ("marks", "a number")])
def test_a_loop_is_one_in_every_script_with_blanks_or_without(script):
    loop = SCRIPTS[script][:2] * 60
    assert repetition(loop) > 0.9
    measures = quality([loop], [False])
    assert measures["repeated_4grams"] > 0.9 and measures["distinct_1"] < 0.1


@pytest.mark.parametrize("loop", ["hahaha" * 20, "x" * 200, "=-" * 50, "12" * 60, "so it is " * 30])
def test_a_loop_of_latin_letters_or_marks_without_blanks_is_one_too(loop):
    assert repetition(loop) > 0.8


@given(st.text(st.characters(max_codepoint=126, min_codepoint=32), max_size=39))
def test_rouge_counts_english_as_its_own_tokenizer_does(text):
    theirs = DefaultTokenizer(use_stemmer=False).tokenize(text)
    assert WordTokenizer().tokenize(text) == (theirs or units(text.lower().replace("_", " ")))


def test_bleu_of_a_sentence_without_blanks_is_that_of_its_characters():
    text, bleu = SCRIPTS["Chinese"], load_metric("sacrebleu")
    assert bleu.compute(predictions=[text], references=[[text]])["score"] == pytest.approx(100)
    assert 20 < bleu.compute(predictions=[text[:-4]], references=[[text]])["score"] < 90


LANGUAGES = {  # the object that is praised or scolded, what is said of it, and of what label that is
    "English": (
        ["phone", "book", "film", "car"],
        {"good": ["is great", "works well"], "bad": ["is broken", "is dull"]},
        " ",
    ),
    "Chinese": (["手机", "书", "电影", "汽车"], {"good": ["很好用", "非常棒"], "bad": ["坏掉了", "太无聊"]}, ""),
    "Thai": (["โทรศัพท์", "หนังสือ", "หนัง", "รถ"], {"good": ["ดีมาก", "เยี่ยมเลย"], "bad": ["พังแล้ว", "น่าเบื่อ"]}, ""),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_baseline_reads_languages_with_and_without_blanks_between_words(language):
    things, said, between = LANGUAGES[language]
    chance, rows = random.Random(0), []
    for number in range(150):
        label = chance.choice(["good", "bad"])
        other = f"{between}{chance.choice(things)}{number * 7919 % 1000}"  # no two sentences are the same
        rows.append((chance.choice(things) + other + between + chance.choice(said[label]), label))
    train, test = rows[:100], rows[100:]
    examples = Examples([text for text, _ in train], [label for _, label in train])
    found = baselines(examples, [text for text, _ in test], ["bad", "good"])[SVM]
    assert sum(["bad", "good"][place] == label for place, (_, label) in zip(found, test)) >= 0.95 * len(test)


@pytest.mark.parametrize("text", ["café", "Zażółć gęślą", "가나다", "Ελλάδα ά", "tiếng Việt"])
def test_a_letter_is_the_same_however_its_accent_is_stored(text):
    composed, apart = (unicodedata.normalize(form, text) for form in ("NFC", "NFD"))
    for written, right in ((composed, apart), (apart, composed)):
        measures = score_answers([Answer(written, stopped=True)], [right], trained=[written])
        assert composed != apart and (measures["exact_match"], measures["rouge_l"], measures["copied"]) == (1, 1, 0)
        assert measures["chrf"] == pytest.approx(100)
        assert score_answers([Answer(written, stopped=True)], ["no"], trained=[right])["copied"] == 1
