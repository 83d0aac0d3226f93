"""`pretrain --objective mlm`: an encoder from nothing, filling in what is hidden."""

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from groundup.common.errors import InputError
from groundup.data.windows import Dealer
from groundup.evaluation.metrics_json import read_metrics
from groundup.training.pretraining import pretrain

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "context_length": 32, "vocab_size": 300, "quiet": True}


def value(folder, name, baseline=None):
    (found,) = [
        row["value"] for row in read_metrics(folder)["metrics"] if row["name"] == name and row["baseline"] == baseline
    ]
    return found


def test_an_encoder_learns_to_fill_in_what_is_hidden(story, tmp_path):
    out = pretrain(data=[str(story)], objective="mlm", max_steps=60, out=str(tmp_path / "out"), **SMALL)
    assert value(out, "loss") < 0.7 * value(out, "loss", "unigram")
    assert value(out, "bits_per_byte") is None
    model, tokenizer = AutoModelForMaskedLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert not model.config.is_causal
    assert tokenizer.mask_token == "<|mask|>"
    found = pipeline("fill-mask", model=model, tokenizer=tokenizer)(f"the ki{tokenizer.mask_token} saw a dog at sea.")
    assert len(found) == 5


def test_a_stopped_run_resumes_to_the_same_weights_and_another_goes_on_from_them(story, tmp_path, monkeypatch):
    options = {"data": [str(story)], "objective": "mlm", "max_steps": 6, "save_every": 2} | SMALL
    whole = pretrain(out=str(tmp_path / "whole"), **options)
    right = Dealer.micro_batches

    def stopped(self, step):
        if step == 5:
            raise KeyboardInterrupt
        return right(self, step)

    monkeypatch.setattr(Dealer, "micro_batches", stopped)
    with pytest.raises(KeyboardInterrupt):
        pretrain(out=str(tmp_path / "stopped"), **options)
    monkeypatch.undo()
    resumed = pretrain(out=str(tmp_path / "stopped"), resume=True, **options)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()

    more = pretrain(
        data=[str(story)], objective="mlm", init_from=str(whole), max_steps=2, quiet=True, out=str(tmp_path / "more")
    )
    before, after = (AutoModelForMaskedLM.from_pretrained(folder).state_dict() for folder in (whole, more))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize(
    ("made", "asked", "says"),
    [
        ("clm", "mlm", "predicts the next token: leave out --objective mlm"),
        ("mlm", "clm", "predicts masked tokens: add --objective mlm"),
    ],
)
def test_a_base_cannot_go_on_with_the_other_objective(made, asked, says, story, tmp_path):
    base = pretrain(data=[str(story)], objective=made, max_steps=1, out=str(tmp_path / "base"), **SMALL)
    options = {"data": [str(story)], "max_steps": 1, "quiet": True, "out": str(tmp_path / "out")}
    with pytest.raises(InputError, match=f"base {says}"):
        pretrain(init_from=str(base), objective=asked, **options)
