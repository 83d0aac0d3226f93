import io
import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.console import Console

from groundup.common.errors import InputError
from groundup.evaluation.likelihood import LanguageScore, language_rows
from groundup.evaluation.metrics_json import notes, read_metrics, summary_table, write_metrics
from groundup.evaluation.report import plot_curve, read_log

TRAINING = {"seconds": 61.5, "tokens": 1_234_567, "parameters": 2_560_000, "device": "cpu"}


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


@pytest.fixture
def smoothed(log, tmp_path, monkeypatch):
    """Losses -> the curve that is drawn through them."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))

    def draw(values):
        plot_curve(log(*({"step": step, "loss": value} for step, value in enumerate(values))), tmp_path / "curve.png")
        lines = {line.get_label(): line for line in figures.pop().axes[0].get_lines()}
        return lines["training (smoothed)"].get_ydata()

    return draw


def test_smoothing_keeps_the_ends_and_stays_between_the_extremes(smoothed):
    for count in (0, 1, 2, 49, 50, 51, 200):
        values = np.random.default_rng(count).uniform(-10, 10, count)
        smooth = smoothed(values)
        assert len(smooth) == len(values)
        if count:
            assert (smooth[0], smooth[-1]) == pytest.approx((values[0], values[-1]), abs=1e-9)
            assert min(values) - 1e-9 <= min(smooth) and max(smooth) <= max(values) + 1e-9


def test_smoothing_a_straight_line_changes_nothing(smoothed):
    np.testing.assert_allclose(smoothed(range(300)), range(300))


def test_a_curve_is_drawn_of_any_log(log, tmp_path):
    full = [
        {"step": step, "loss": 9 / step, "learning_rate": 0.1, "validation_loss": 10 / step} for step in range(1, 90)
    ]
    bits = [row | {"validation_bits_per_byte": row["validation_loss"] / 2} for row in full]
    broken = [{"step": 1, "loss": math.nan}, {"step": 2, "loss": None}]
    for lines in (full, bits, bits[:1], broken, [], [{"event": "resume", "step": 0}]):
        plot_curve(log(*lines), tmp_path / "curve.png")
        assert imread(tmp_path / "curve.png").shape[:2] == (720, 1200)


@pytest.mark.parametrize("count, said", [(1, "1 text only"), (7, "7 texts only"), (8, None)])
def test_a_share_of_few_texts_is_said_to_be_one(count, said):
    rows = [{"name": "stopped", "value": 1.0, "dataset": "d", "split": "test", "baseline": None, "count": count}]
    assert notes(rows) == ([f"generated text was measured on {said}"] if said else [])
