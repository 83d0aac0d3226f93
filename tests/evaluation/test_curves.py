"""The curve of a run, drawn from its log."""

import json
import math
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from groundup.evaluation.curves import Curve, chart, plot_curve, read_log, training_charts


@pytest.fixture
def log(tmp_path):
    """Return a function: rows and events -> the path of a log.jsonl with them."""

    def write(*lines):
        path = tmp_path / "log.jsonl"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    return write


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
    """Return a function: losses -> the curve that is drawn through them."""
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


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0], [3.0, 1.0, 2.0], [0.0] * 1000, [1e-9, 5e6], [-1.0, 1.0]])
def test_a_curve_on_a_page_stays_inside_its_frame(values):
    drawn = chart("Loss <1>", [Curve("a & b", range(len(values)), values, has_dots=True), Curve("c", [0], [1])], "step")
    root = ElementTree.fromstring(f"<div>{drawn}</div>")
    points = [[float(x) for x in pair.split(",")] for pair in root.find(".//polyline").get("points").split()]
    assert all(0 <= x <= 480 and 0 <= y <= 260 for x, y in points) and len(points) <= 500
    assert root.find(".//figcaption").text == "Loss <1>" and root.find(".//li/span").text == "a & b"
    labels = [float(text.text.replace(",", "")) for text in root.findall(".//text[@text-anchor='end']")]
    assert len(labels) >= 2 and labels == sorted(labels)


def test_the_losses_of_a_classifier_share_no_plot():
    log = [{"step": n, "loss": 2.0, "validation_loss": 0.02, "validation_accuracy": 0.9} for n in range(1, 9)]
    assert training_charts(log).count("<svg") == 3
    for row in log:
        del row["validation_accuracy"]
    assert training_charts(log).count("<svg") == 1 and training_charts([]) == ""
