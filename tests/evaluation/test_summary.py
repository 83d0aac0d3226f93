"""Measurements as the terminal shows them: a sentence, then tables that fit."""

import io
import math

import numpy as np
import pytest
from rich.console import Console

from groundup.evaluation.classification import MAJORITY, SVM, Measured, classification_rows, mean_rows
from groundup.evaluation.comparison import share_interval
from groundup.evaluation.likelihood import LanguageScore, language_rows
from groundup.evaluation.summary import THIS_MODEL, WIDTH, summary

SCORE = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=256)
UNIGRAM = LanguageScore(nats=4000.0, tokens=1000, correct=100, bytes=3000, context=None)


def shown(rows, width=80, **more):
    """Return the lines of a summary on a terminal of 80 columns."""
    console = Console(width=width, record=True, file=io.StringIO(), soft_wrap=True, highlight=False)
    console.print(summary({"metrics": rows, **more}))
    return console.export_text().splitlines()


def judged(right=95, dataset="sms.csv"):
    truth = np.zeros(100, np.int64)
    truth[:40] = 1
    half = {MAJORITY: np.zeros(100, np.int64), SVM: np.where(np.arange(100) < 9, 1 - truth, truth)}
    measured = Measured(truth, np.where(np.arange(100) < 100 - right, 1 - truth, truth), half, np.full(100, 0.9))
    rows = classification_rows(measured, ["ham", "spam"], dataset=dataset, split="test", seed=0)
    rows += classification_rows(
        measured.take(np.arange(100) > 3), ["ham", "spam"], dataset=dataset, split="test without overlap", seed=0
    )
    return rows + classification_rows(measured, ["ham", "spam"], dataset=dataset, split="validation", seed=0)


def judged_by_several(model, nats):
    score = LanguageScore(nats=nats, tokens=1000, correct=400, bytes=3000, context=256)
    rows = language_rows(score, dataset="docs", split="test", seed=0, unigram=UNIGRAM, xz=2.41)
    return [row | {"model": model} for row in rows]


def test_the_sentence_comes_first_then_baselines_beside_the_model():
    rows = language_rows(SCORE, dataset="docs", split="validation", seed=0, unigram=UNIGRAM, xz=2.41)
    rows[0] |= {"low": 0.95, "high": 0.97, "interval": "documents"}
    said, _, name, header, bits, perplexity, *_ = shown(rows)
    assert said == "0.962 bits per byte on docs, 50% below unigram (1.924)"
    assert name == "docs, validation: 1,000 tokens, 3,000 bytes"
    assert header.split() == ["this", "model", "95", "%", "interval", "unigram", "xz", "-9e"]
    assert bits.split()[3:] == ["0.962", "0.950", "to", "0.970", f"{4000 / math.log(2) / 3000:.3f}", "2.410"]
    assert perplexity.split()[-3:] == ["7.389", "54.598", "–"]


def test_a_classifier_is_shown_by_its_test_rows_alone_and_nothing_twice():
    lines = shown(judged())
    assert lines[0] == "accuracy 95.00%: 4.00 points above TF-IDF + linear SVM (91.00%)"
    assert lines[2] == "sms.csv, test: 100 rows" and "95 % interval" in lines[3]
    assert [line.split("  ")[0] for line in lines[4:9]] == ["accuracy", "macro F1", "MCC", "F1 of spam", "ECE"]
    assert "88.8% to 97.8%" in lines[4]
    assert lines[10] == "sms.csv, deduplicated test set, 96 rows: accuracy 99.0%, macro F1 0.989; " + (
        "TF-IDF + linear SVM 94.8%"
    )
    assert len(lines) == 11 and not any("validation" in line for line in lines)


def test_of_several_seeds_the_mean_has_its_spread_in_a_column_and_the_kept_run_a_line():
    mean = mean_rows([judged(94), judged(96)])
    own = [row | {"dataset": row["dataset"] + THIS_MODEL} for row in judged(96)]
    lines = shown([*mean, *own])
    assert "± (seeds)" in lines[3] and "± 1.4%" in lines[4] and sum("test: " in line for line in lines) == 1
    assert any("the run that is kept, test, 100 rows: accuracy 96.0%" in line for line in lines)


def test_several_models_stand_side_by_side_and_their_differences_are_sentences():
    rows = [row for model, nats in (("a", 2000.0), ("b", 1500.0)) for row in judged_by_several(model, nats)]
    shared = {"name": "bits_per_byte_difference", "dataset": "docs", "split": "test", "baseline": None, "against": "a"}
    rows.append({**shared, "model": "b", "value": -0.2404, "low": -0.3, "high": -0.2, "interval": "documents"})
    rows.append({**shared, "model": "c", "value": -0.0048, "low": -0.1, "high": 0.1, "interval": "documents"})
    lines = shown(rows)
    assert lines[0] == ("b is better than a: bits per byte on docs differs by -0.240, 95 % interval -0.300 to -0.200")
    assert lines[3].split() == ["a", "b"] and lines[4].split()[-2:] == ["0.962", "0.721"]
    assert lines[5].split() == ["unigram", "1.924", "1.924"]
    assert lines[-1].startswith("bits per byte on docs: no difference shown between c and a (-0.005")


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"], ["x" * 40, "y" * 40], [f"model-{n}" * 4 for n in range(5)]])
def test_no_table_is_wider_than_80_columns_and_no_cell_breaks(names):
    rows = [row for name in names for row in judged_by_several(name, 2000.0)]
    many = language_rows(SCORE, dataset="d", split="test", seed=0, unigram=SCORE, ngram=SCORE, xz=2.5, xz_primed=1.5)
    answers = [
        {"name": name, "value": 0.2, "dataset": "rows.json", "split": "test", "count": 9, "baseline": baseline}
        for name in ("answer_loss", "exact_match", "chrf", "rouge_l", "stopped", "repetition", "copied")
        for baseline in (None, "before training")
    ]
    tasks = [
        {"name": "accuracy", "value": 0.5, "dataset": f"task-{n}", "split": "test", "num_fewshot": n, "count": 50}
        | {"baseline": baseline, **(share_interval(0.5, 50) if not baseline else {})}
        for n in range(3)
        for baseline in (None, "chance", "most frequent answer")
    ]
    for some in (rows, many, answers, tasks, judged(dataset="long-name" * 5)):
        lines, wide = shown(some), shown(some, width=1000)
        tables = [line for line in lines if "  " in line.rstrip()]
        assert max(map(len, tables)) <= WIDTH and len(lines) == len(wide)
        assert not any("…" in line for line in lines) or max(map(len, names)) > 36


def test_why_a_number_is_missing_and_what_failed_is_said_below():
    score = LanguageScore(nats=20.0, tokens=10, correct=4, bytes=None, context=8, note="it drops white space")
    lines = shown(language_rows(score, dataset="d", split="test", seed=0), failures={"tasks": "no network"})
    assert lines[-2:] == ["bits per byte: it drops white space", "tasks failed: no network"]


@pytest.mark.parametrize(
    ("exact", "chrf", "said"),
    [
        (0.25, 60.0, "50 of 200 answers are exactly right (25.0%), chrF 60.0"),
        (0.0, 9.0, "0 of 200 answers are exactly right (0.0%), chrF 9.0: these answers are of no use yet; give a"),
    ],
)
def test_answers_have_a_verdict_in_words(exact, chrf, said):
    about = {"dataset": "rows", "split": "test", "count": 200, "baseline": None}
    rows = [{"name": "exact_match", "value": exact, **about}, {"name": "chrf", "value": chrf, **about}]
    assert shown(rows)[0].startswith(said)


def test_an_interval_of_a_share_is_wilsons():
    found = share_interval(0.9, 50)
    assert (found["low"], found["high"]) == (pytest.approx(0.7864, abs=1e-4), pytest.approx(0.9565, abs=1e-4))
    assert share_interval(1.0, 10)["high"] == 1.0 and share_interval(0.0, 10)["low"] == 0.0
