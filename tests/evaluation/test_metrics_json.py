import json
import math

import pytest

from groundup.common.errors import InputError
from groundup.evaluation.likelihood import LanguageScore, language_rows
from groundup.evaluation.metrics_json import notes, read_metrics, write_metrics

TRAINING = {"seconds": 61.5, "tokens": 1_234_567, "parameters": 2_560_000, "device": "cpu"}


@pytest.fixture
def rows():
    model = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=256)
    unigram = LanguageScore(nats=4000.0, tokens=1000, correct=100, bytes=3000, context=None)
    return language_rows(model, dataset="docs", split="validation", seed=0, unigram=unigram, xz=2.41)


# metrics.json


def test_metrics_come_back_as_they_were_written(tmp_path, rows):
    write_metrics(tmp_path, rows, TRAINING, "ab" * 32)
    metrics = read_metrics(tmp_path)
    assert metrics["metrics"] == rows and metrics["training"] == TRAINING and metrics["weights_sha256"] == "ab" * 32
    assert {"python", "torch", "transformers", "tokenizers", "groundup"} <= metrics["versions"].keys()


def test_a_number_that_is_not_finite_is_null_with_a_note(tmp_path, rows):
    for value in (math.nan, math.inf):
        write_metrics(tmp_path, [rows[0] | {"value": value}], {"loss": value}, None)
        text = (tmp_path / "metrics.json").read_text()
        metrics = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
        assert metrics["metrics"][0]["value"] is None and metrics["metrics"][0]["note"] == "not a finite number"


def test_a_folder_without_metrics_has_none_and_a_broken_file_is_the_users_error(tmp_path):
    assert read_metrics(tmp_path)["metrics"] == []
    (tmp_path / "metrics.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("count, said", [(1, "1 text only"), (7, "7 texts only"), (8, None)])
def test_a_share_of_few_texts_is_said_to_be_one(count, said):
    rows = [{"name": "stopped", "value": 1.0, "dataset": "d", "split": "test", "baseline": None, "count": count}]
    assert notes(rows) == ([f"generated text was measured on {said}"] if said else [])
