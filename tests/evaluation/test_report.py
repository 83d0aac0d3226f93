import io
import json
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread
from rich.console import Console

from groundup.common.errors import InputError
from groundup.common.settings import write_yaml
from groundup.evaluation import report
from groundup.evaluation.language import LanguageScore, language_rows
from groundup.evaluation.report import plot_curve, read_log, read_metrics, summary_table, write_card, write_metrics
from groundup.tokenization.folder import save_tokenizer

TRAINING = {"seconds": 61.5, "tokens": 1_234_567, "parameters": 2_560_000, "device": "cpu"}
RECIPE = {
    "name": "tiny-docs",
    "verb": "pretrain",
    "plan": {"learning_rate": 0.02, "batch_tokens": 8192},
    "license": "apache-2.0",
    "sources": [{"name": "docs.txt", "bytes": 2_010_000, "sha256": "ab" * 32}],
    "text_column": None,
}


@pytest.fixture
def rows():
    model = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=256)
    unigram = LanguageScore(nats=4000.0, tokens=1000, correct=100, bytes=3000, context=None)
    return language_rows(model, dataset="docs", split="validation", seed=0, unigram=unigram, xz=2.41)


@pytest.fixture
def log(tmp_path):
    """Rows and events -> the path of a log.jsonl with them."""

    def write(*lines):
        path = tmp_path / "log.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


def shown(table) -> str:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


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


# The table


def test_the_table_puts_each_baseline_beside_the_model(rows):
    text = shown(summary_table({"metrics": rows}))
    header, bits, perplexity = text.splitlines()[:3]
    assert header.split() == ["on", "this", "model", "unigram", "xz", "-9e"]
    assert bits.split()[-3:] == [f"{2000 / math.log(2) / 3000:.3f}", f"{4000 / math.log(2) / 3000:.3f}", "2.410"]
    assert perplexity.split()[-3:] == ["7.389", "54.598", "–"]
    assert "40.0%" in text and "10.0%" in text


def test_the_table_says_why_a_number_is_missing():
    score = LanguageScore(nats=20.0, tokens=10, correct=4, bytes=None, context=8, note="it drops white space")
    text = shown(summary_table({"metrics": language_rows(score, dataset="d", split="test", seed=0)}))
    assert "bits per byte: it drops white space" in text


# The curve


def test_a_resumed_run_replaces_the_steps_it_did_again(log):
    path = log(
        {"step": 1, "loss": 5.0},
        {"step": 2, "loss": 4.0},
        {"step": 3, "loss": 99.0},
        {"event": "resume", "step": 2},
        {"step": 3, "loss": 3.0, "validation_loss": 3.5},
    )
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # the machine went down here
    assert [(row["step"], row["loss"]) for row in read_log(path)] == [(1, 5.0), (2, 4.0), (3, 3.0)]


@given(st.lists(st.floats(-10, 10), max_size=200))
def test_smoothing_keeps_the_ends_and_stays_between_the_extremes(values):
    smooth = report._smoothed(values)
    assert len(smooth) == len(values)
    if values:
        assert smooth[0] == pytest.approx(values[0], abs=1e-9) and smooth[-1] == pytest.approx(values[-1], abs=1e-9)
        assert min(values) - 1e-9 <= min(smooth) and max(smooth) <= max(values) + 1e-9


def test_smoothing_a_straight_line_changes_nothing():
    np.testing.assert_allclose(report._smoothed(range(300)), range(300))


def test_a_curve_is_drawn_of_any_log(log, tmp_path):
    full = [
        {"step": step, "loss": 9 / step, "learning_rate": 0.1, "validation_loss": 10 / step} for step in range(1, 90)
    ]
    bits = [row | {"validation_bits_per_byte": row["validation_loss"] / 2} for row in full]
    broken = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}]
    for lines in (full, bits, bits[:1], broken, [], [{"event": "resume", "step": 0}]):
        plot_curve(log(*lines), tmp_path / "curve.png")
        assert imread(tmp_path / "curve.png").shape[:2] == (720, 1200)


# The card


def test_a_card_is_valid_and_says_what_the_metrics_and_the_recipe_say(tmp_path, rows):
    write_metrics(tmp_path, rows, TRAINING, None)
    write_yaml(tmp_path / "recipe.yaml", RECIPE)
    card = ModelCard.load(write_card(tmp_path))
    assert (card.data.library_name, card.data.pipeline_tag, card.data.license) == (
        "transformers",
        "text-generation",
        "apache-2.0",
    )
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {row["name"]: row["value"] for row in rows if row["baseline"] is None}
    assert card.data.model_name == "tiny-docs" and "custom_code" in card.data.tags
    for part in ("2,560,000 parameters", "ab" * 32, "| bits per byte | docs, validation | 0.962 | 1.924 | 2.410 |"):
        assert part in card.text
    assert "1,000 tokens (3,000 bytes of text), in windows of 256 tokens" in card.text
    assert "| `plan.learning_rate` | 0.02 |" in card.text and "text_column" not in card.text
    assert "trust_remote_code=True" in card.text


def test_a_card_made_twice_is_the_same(tmp_path, rows):
    write_metrics(tmp_path, rows, TRAINING, None)
    write_yaml(tmp_path / "recipe.yaml", RECIPE)
    first = write_card(tmp_path).read_text()
    assert write_card(tmp_path).read_text() == first


def test_a_card_before_the_first_measurement_says_so(tmp_path):
    write_yaml(tmp_path / "recipe.yaml", {"verb": "pretrain"})
    for _ in range(2):
        card = ModelCard.load(write_card(tmp_path))
        assert "Not yet measured." in card.text and card.data.eval_results is None and card.data.license is None
        write_metrics(tmp_path, [], {}, None)


def test_a_setting_cannot_break_the_cards_tables(tmp_path):
    write_yaml(tmp_path / "recipe.yaml", {"prompt": "a | b\nc", "data": ["x.txt", "y.txt"], "smoke": False})
    text = write_card(tmp_path).read_text()
    assert "| `prompt` | a \\| b c |" in text and "| `data` | x.txt, y.txt |" in text and "| `smoke` | no |" in text


@pytest.mark.slow
def test_the_code_on_the_card_runs_in_a_fresh_process(tmp_path, tiny, bpe):
    tiny("groundup").save_pretrained(tmp_path)
    save_tokenizer(bpe, tmp_path)
    write_yaml(tmp_path / "recipe.yaml", RECIPE)
    code = write_card(tmp_path).read_text().split("```python\n")[1].split("```")[0]
    code = code.replace("max_new_tokens=50", "max_new_tokens=5").replace("Once upon a time", "The")  # its context is 32
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.startswith("The")
