"""`pretrain --data` of a folder of shards."""

import json
from pathlib import Path

import pytest
import yaml

from groundup.common.errors import InputError
from groundup.data.preparation import prepare
from groundup.tokenization.bpe import train_bpe
from groundup.tokenization.folder import fingerprint, load_tokenizer, save_tokenizer
from groundup.training.pretraining import pretrain

SMALL = {"max_steps": 2, "context_length": 32, "hidden_size": 32, "num_hidden_layers": 1, "quiet": True}


@pytest.fixture
def tokenizer(story, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_tokenizer(train_bpe([story.read_text()], 300), tmp_path / "tok")
    return "tok"


def scores(folder) -> list[dict]:
    return json.loads((Path(folder) / "metrics.json").read_text())["metrics"]


def test_a_prepared_folder_trains_the_same_model_as_its_text(story, tokenizer):
    shards = prepare(data=[str(story)], tokenizer=tokenizer, out="shards", quiet=True)
    from_shards = pretrain(data=[str(shards)], out="a", **SMALL)
    from_text = pretrain(data=[str(story)], tokenizer=tokenizer, out="b", **SMALL)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (from_shards, from_text)]
    assert weights[0] == weights[1]
    assert scores(from_shards)[0]["value"] == scores(from_text)[0]["value"]
    assert fingerprint(load_tokenizer(from_shards)) == fingerprint(load_tokenizer(tokenizer))
    recipe = yaml.safe_load((from_shards / "recipe.yaml").read_text())
    assert [row["name"] for row in recipe["sources"]] == ["story.txt"]
    assert recipe["settings"]["data"] == ["shards"]


def test_parts_in_one_folder_are_trained_on_together(story, tokenizer):
    rows = [{"text": line} for line in story.read_text().splitlines()]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for number in (1, 2):
        prepare(data=["rows.jsonl"], tokenizer=tokenizer, part=f"{number}/2", out="shards", quiet=True)
    out = pretrain(data=["shards"], **SMALL)
    recipe = yaml.safe_load((out / "recipe.yaml").read_text())
    assert [row["name"] for row in recipe["sources"]] == ["rows.jsonl"]


def test_shards_beside_other_data_or_with_another_tokenizer_are_refused(story, tokenizer, tmp_path):
    prepare(data=[str(story)], tokenizer=tokenizer, out="shards", quiet=True)
    save_tokenizer(train_bpe(["other words"], 262), tmp_path / "other")
    for options, message in [
        ({"data": ["shards", str(story)]}, "must be the only data"),
        ({"data": ["shards"], "tokenizer": "other"}, "not prepared with the tokenizer of other"),
        ({"data": ["shards"], "vocab_size": 999}, "the shards hold .* tokens"),
    ]:
        with pytest.raises(InputError, match=message):
            pretrain(**options, out="run", **SMALL)
        assert not Path("run").exists()
