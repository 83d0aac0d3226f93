"""`pretrain --data` of a folder of shards."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from groundup.common.errors import InputError
from groundup.common.settings import Deadline
from groundup.data.preparation import open_prepared_data, prepare
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.folder import fingerprint, load_tokenizer, save_tokenizer
from groundup.tokenization.training import train_bpe, train_word_level
from groundup.training.checkpoint import RunFolder
from groundup.training.pretraining import pretrain
from groundup.training.pretraining_preparation import open_prepared, prepare_run
from groundup.training.settings import PretrainSettings

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


@pytest.mark.parametrize("change", ["the tokenizer alone", "the held-out text", "nothing"])
def test_a_run_goes_on_with_the_very_shards_that_it_was_begun_with(change, story, tokenizer, tmp_path):
    made = {"data": [str(story)], "tokenizer": tokenizer, "out": "shards", "quiet": True}
    corpus, run = open_prepared_data(prepare(**made)), RunFolder(tmp_path / "run")
    prepare_run(PretrainSettings(data=["shards"], **SMALL), run, Deadline())
    shutil.rmtree("shards")
    if change == "the tokenizer alone":
        save_tokenizer(train_bpe([story.read_text()[:3000]], 290), tmp_path / "tok")
    elif change == "the held-out text":
        story.write_text(story.read_text()[:-5] + "here.")
    prepare(**made)
    if change == "nothing":
        assert len(open_prepared(run).train) == len(corpus.train)
    else:
        with pytest.raises(InputError, match="does not hold the shards that"):
            open_prepared(run)


IDS = {
    "its own": lambda own: own,
    "one with a token more": lambda own: own.add_tokens(["<new>"]) and own,
    "one with a special token more": lambda own: [own.add_special_tokens({"additional_special_tokens": ["<x>"]}), own][
        1
    ],
    "an unrelated one of bytes": lambda own: train_bpe(["nothing alike, " * 9, "zebra quiz jumps"], len(own)),
    "an unrelated one, larger": lambda own: train_bpe(["nothing alike " * 9, "a zebra jumps"] * 9, len(own) + 3),
    "one of words": lambda own: train_word_level(["the cat saw the dog here"] * 5, 20),
    "one with tokens fewer": lambda own: train_bpe(["the cat saw the dog here "] * 9, len(own) - 4),
}


@pytest.mark.parametrize("how", ["text", "shards"])
@pytest.mark.parametrize("name", IDS)
def test_a_model_goes_on_with_no_ids_but_its_own(name, how, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the cat saw the dog here " * 300)
    own = train_bpe(["the cat saw the dog here "] * 9, 270)
    save_tokenizer(own, tmp_path / "model")
    config = GroundupConfig(vocab_size=len(own), hidden_size=32, num_hidden_layers=1, max_position_embeddings=32)
    GroundupForCausalLM(config).save_pretrained(tmp_path / "model")
    save_tokenizer(IDS[name](own), tmp_path / "given")
    settings = {"init_from": str(tmp_path / "model"), "max_steps": 1, "out": str(tmp_path / "out"), "quiet": True}
    if how == "text":
        settings |= {"data": [str(text)], "tokenizer": str(tmp_path / "given")}
    else:
        shards = prepare(data=[str(text)], tokenizer=str(tmp_path / "given"), out=str(tmp_path / "shards"), quiet=True)
        settings |= {"data": [str(shards)]}
    run = RunFolder(tmp_path / "out")
    if name.startswith(("its own", "one with a ")):
        prepare_run(PretrainSettings(**settings), run, Deadline())
        assert run.has_begun
    else:
        with pytest.raises(InputError, match="tokens that the model knows have another id or none"):
            pretrain(**settings)
        assert not run.out.exists()
