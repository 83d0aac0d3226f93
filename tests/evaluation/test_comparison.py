import math

import numpy as np
import pytest

from groundup.evaluation.comparison import UnitSums, compare_language, compare_tasks
from groundup.evaluation.metrics_json import verdict


def units(nats, bytes_=None):
    size = np.full(len(nats), 100) if bytes_ is None else bytes_
    return UnitSums("documents", nats, np.full(len(nats), 25), np.full(len(nats), 5), size)


@pytest.fixture
def hard():
    """Return how hard each of 60 documents is, which differs far more than models do."""
    return np.random.default_rng(0).uniform(20, 200, 60)


def test_a_small_difference_that_every_document_shows_is_shown(hard):
    (row,) = compare_language({"a": units(hard), "b": units(hard * 0.99)}, "a", dataset="d", seed=0)
    assert row["value"] == pytest.approx(-0.01 * hard.sum() / math.log(2) / 6000)
    assert row["low"] < row["value"] < row["high"] < 0
    assert (row["model"], row["against"], row["count"], row["interval"]) == ("b", "a", 60, "documents")
    assert verdict(row) == "better than a"
    (turned,) = compare_language({"a": units(hard), "b": units(hard * 0.99)}, "b", dataset="d", seed=0)
    assert verdict(turned) == "worse than b"


def test_a_difference_that_goes_both_ways_is_not_shown(hard):
    noise = np.random.default_rng(1).normal(0, 10, 60)
    (row,) = compare_language({"a": units(hard), "b": units(hard + noise - noise.mean())}, "a", dataset="d", seed=0)
    assert verdict(row) == "no difference shown"


def test_equal_models_are_said_to_differ_no_more_often_than_the_interval_allows():
    random, said = np.random.default_rng(0), 0
    for seed in range(60):
        one, other = random.normal(100, 10, (2, 50))
        (row,) = compare_language({"a": units(one), "b": units(other)}, "a", dataset="d", seed=seed)
        said += verdict(row) != "no difference shown"
    assert said <= 8


def test_what_cannot_be_compared_says_why(hard):
    lossy = UnitSums("documents", hard, np.full(60, 25), np.full(60, 5), None)
    rows = compare_language({"a": units(hard), "b": lossy, "c": units(hard, np.full(60, 99))}, "a", dataset="d", seed=0)
    assert [row["value"] for row in rows] == [None, None]
    assert "loses text" in rows[0]["note"] and "same bytes" in rows[1]["note"]
    assert {verdict(row) for row in rows} == {"not comparable"}


def test_tasks_are_compared_row_by_row():
    right = [1.0] * 30 + [0.0] * 30
    better = [1.0] * 45 + [0.0] * 15
    key = ("task", "accuracy", 2)
    rows = compare_tasks({"a": {key: right}, "b": {key: better}, "c": {("other", "accuracy", 2): right}}, "a", seed=0)
    (row,) = rows
    assert (row["name"], row["value"], row["num_fewshot"]) == ("accuracy_difference", 0.25, 2)
    assert verdict(row) == "better than a"


def test_units_come_back_from_what_is_kept_of_them(hard):
    again = UnitSums(**units(hard).as_dict())
    assert np.array_equal(again.nats, hard) and again.kind == "documents"
