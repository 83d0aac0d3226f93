"""`--track`: what is logged also stands in a tracker on this machine."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from groundup.common.errors import InputError
from groundup.training.pretraining import pretrain

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "context_length": 32,
    "vocab_size": 300,
    "max_steps": 3,
    "quiet": True,
}


def test_tensorboard_has_what_the_log_has(story, tmp_path):
    out = pretrain(data=[str(story)], out=str(tmp_path / "out"), track="tensorboard", **SMALL)
    found = EventAccumulator(str(out / "tracking" / "groundup"))
    found.Reload()
    assert {"loss", "validation_loss", "learning_rate"} <= set(found.Tags()["scalars"])
    assert [event.step for event in found.Scalars("loss")] == [1, 2, 3]


def test_trackio_keeps_it_on_this_machine(story, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pretrain(data=[str(story)], out=str(tmp_path / "out"), track="trackio", **SMALL)
    assert any(path.stat().st_size for path in (tmp_path / "trackio").rglob("*") if path.is_file())


def test_a_tracker_that_is_not_installed_is_named(story, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="--track wandb"):
        pretrain(data=[str(story)], out=str(tmp_path / "out"), track="wandb", **SMALL)
