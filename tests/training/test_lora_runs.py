"""`pretrain --lora` from outside: its files, a resumed run, and what differs from the same run without."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BertConfig, BertForMaskedLM

import groundup as package
from groundup.cli.main import main
from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.inference.loading import load_adapter
from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe
from groundup.training.checkpoint import RunFolder

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 32, "batch_tokens": 256}
GO_ON = {"context_length": 32, "batch_tokens": 256, "max_steps": 12, "quiet": True}
WEIGHTS = "adapter_model.safetensors"
COLOURS = ("red", "green", "blue", "black")


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, story_text):
    folder = tmp_path_factory.mktemp("pretrained")
    (folder / "story.txt").write_text(story_text)
    return package.pretrain(
        data=[str(folder / "story.txt")], out=str(folder / "base"), max_steps=10, quiet=True, **TINY
    )


@pytest.fixture
def base(pretrained):
    return Path(shutil.copytree(pretrained, "base"))


@pytest.fixture
def other_story(tmp_path):
    path = tmp_path / "other.txt"
    path.write_text("\n".join(f"Here the {what} went home at sea!" for what in ("cat", "dog", "king", "bird") * 250))
    return str(path)


def adapt(base, data, out, **options):
    return package.pretrain(data=[data], init_from=str(base), out=out, **GO_ON | {"lora": True} | options)


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=torch.arange(20)[None] + 5).logits


def test_a_run_leaves_an_adapter_that_names_its_base_and_leaves_the_base_alone(base, other_story, tmp_path):
    before = sha256_of(base / "model.safetensors")
    out = adapt(base, other_story, "adapter", save_every=6)
    steps = sorted((out / "checkpoints").iterdir())
    assert all((folder / WEIGHTS).is_file() for folder in [out, *steps])
    assert not list(out.rglob("model.safetensors"))
    assert sha256_of(base / "model.safetensors") == before
    training = json.loads((out / "metrics.json").read_text())["training"]
    assert training["base"] == "base"
    assert training["base_weights_sha256"] == before
    assert training["trained_parameters"] < 0.5 * training["parameters"]
    loaded = AutoPeftModelForCausalLM.from_pretrained(out)
    assert loaded.peft_config["default"].base_model_name_or_path == str(base.resolve())
    package.evaluate(model=[str(out)], data=[other_story], out="scores", quiet=True)  # the base is found by its name
    assert json.loads((tmp_path / "scores" / "metrics.json").read_text())["metrics"]
    losses = [json.loads(line).get("validation_loss") for line in (out / "log.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss]
    assert losses[-1] < losses[0]
    # Every file but the one that peft reads the base's place from is free of this machine's folders.
    for path in out.rglob("*"):
        if path.is_file() and path.name != "adapter_config.json":
            assert str(tmp_path).encode() not in path.read_bytes(), path


@pytest.mark.parametrize("variant", [{"lora_dora": True}, {"base_precision": "int8"}])
def test_a_stopped_run_goes_on_to_the_same_adapter_bit_for_bit(variant, base, other_story, monkeypatch):
    import groundup.training.run as run

    options = variant | {"lora_dropout": 0.2, "save_every": 3}
    whole = adapt(base, other_story, "whole", **options)
    original, calls = run.save_state, []

    def save_state(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the power is gone")
        original(*arguments)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(run, "save_state", save_state)
        adapt(base, other_story, "stopped", **options)
    stopped = package.pretrain(out="stopped", resume=True, quiet=True)
    assert sha256_of(stopped / WEIGHTS) == sha256_of(whole / WEIGHTS)
    assert '"resume"' in (stopped / "log.jsonl").read_text()


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_a_base_held_in_fewer_bits_is_scored_and_saved_as_it_was(precision, base, other_story):
    held, exact = adapt(base, other_story, precision, base_precision=precision), adapt(base, other_story, "exact")
    rows = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (held, exact)]
    first = [next(row["loss"] for row in log if "loss" in row) for log in rows]
    assert first[0] != first[1] and first[0] == pytest.approx(first[1], rel=0.01)
    assert yaml.safe_load((held / "recipe.yaml").read_text())["plan"]["base_precision"] == precision
    saved = [load_file(out / WEIGHTS) for out in (held, exact)]
    assert {name: tensor.dtype for name, tensor in saved[0].items()} == dict.fromkeys(saved[1], torch.float32)
    text = Path(other_story).read_text()
    Path("held_out.txt").write_text(text[int(len(text) * 0.9) :])
    package.evaluate(model=[str(held)], data=["held_out.txt"], out="scores", quiet=True)
    bits = [
        next(row["value"] for row in rows if row["name"] == "bits_per_byte" and row["baseline"] is None)
        for rows in (json.loads((folder / "metrics.json").read_text())["metrics"] for folder in (held, Path("scores")))
    ]
    assert bits[0] == pytest.approx(bits[1], rel=1e-6)


def weights_changed(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight.mul_(1.01)
    model.save_pretrained(folder)


@pytest.mark.parametrize("lora", [True, False])
def test_a_base_that_was_replaced_since_the_stop_is_said(lora, base, other_story, monkeypatch):
    import groundup.training.run as run

    def save_state(*arguments):
        raise RuntimeError("the power is gone")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(run, "save_state", save_state)
        adapt(base, other_story, "stopped", lora=lora)
    (base / "README.md").write_text("A card that says more.")
    note, before = Path("stopped/work/base.json"), sha256_of(base / "model.safetensors")
    assert before in note.read_text()
    shutil.copytree(base, "kept")
    weights_changed(base)
    with pytest.raises(InputError, match=r"base has changed since .*stopped was started: restore its weights"):
        package.pretrain(out="stopped", resume=True, quiet=True)
    assert before in note.read_text()
    shutil.copyfile("kept/model.safetensors", base / "model.safetensors")
    assert (package.pretrain(out="stopped", resume=True, quiet=True) / "metrics.json").is_file()


def test_the_same_run_without_adapters_differs_in_that_option_alone(base, other_story):
    with_lora = adapt(base, other_story, "with")
    without = adapt(base, other_story, "without", lora=False)

    def recipe(folder):
        values = yaml.safe_load((folder / "recipe.yaml").read_text())
        values["settings"].pop("out")
        values["plan"].pop("memory")
        return values

    one, other = recipe(with_lora), recipe(without)
    assert (one["settings"].pop("lora"), other["settings"].pop("lora")) == (True, False)
    assert one == other
    first = [json.loads((folder / "log.jsonl").read_text().splitlines()[0]) for folder in (with_lora, without)]
    assert first[0]["loss"] == pytest.approx(first[1]["loss"], abs=1e-6), "the first batch meets the same model"
    assert first[0]["tokens"] == first[1]["tokens"]


def test_merge_leaves_a_whole_checkpoint_with_the_adapters_scores(base, other_story):
    adapter = adapt(base, other_story, "adapter")
    assert main(["merge", "adapter", "--out", "merged", "--quiet"]) == 0
    merged = adapter.with_name("merged")
    names = {path.name for path in merged.iterdir()}
    assert names == {
        "README.md", "chat_template.jinja", "config.json", "configuration_groundup.py", "curve.png",
        "generation_config.json", "generation_groundup.py", "log.jsonl", "metrics.json", "model.safetensors",
        "modeling_groundup.py", "recipe.yaml", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    scores = [json.loads((folder / "metrics.json").read_text()) for folder in (adapter, merged)]
    assert scores[0]["metrics"] == scores[1]["metrics"]
    assert scores[1]["weights_sha256"] == sha256_of(merged / "model.safetensors")
    recipe = yaml.safe_load((merged / "recipe.yaml").read_text())
    assert recipe["merged"]["base"] == "base"
    assert recipe["verb"] == "pretrain", "what it was taught, not how it was stored"
    assert "the LoRA adapter `adapter` folded into its base, `base`" in (merged / "README.md").read_text()


@pytest.fixture
def encoder(tmp_path):
    """Return a BERT that has learned masked tokens: its checkpoint has no pooler, which a classifier looks through."""
    tokenizer = train_bpe(["red green blue black"] * 20, 270)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    torch.manual_seed(0)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path / "encoder")
    save_tokenizer(tokenizer, tmp_path / "encoder")
    return tmp_path / "encoder"


def test_a_classifier_on_a_base_without_a_pooler_is_the_trained_one_at_each_loading(encoder, tmp_path, monkeypatch):
    from groundup.inference import loading

    rows = [{"text": f"{a} {b} {n}", "label": b} for n in range(8) for a in COLOURS for b in COLOURS]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained, save = [], loading.save_adapter

    def save_adapter(folder, adapted, weights=None):
        trained.append(logits(adapted))
        save(folder, adapted, weights)

    monkeypatch.setattr(loading, "save_adapter", save_adapter)
    out = package.classify(
        data=["rows.jsonl"], model=str(encoder), lora=True, lora_rank=4, max_steps=8, out="adapter", quiet=True
    )
    in_full = {name.removeprefix("base_model.model.") for name in load_file(out / WEIGHTS) if ".lora_" not in name}
    assert {name.rpartition(".")[0] for name in in_full} == {"bert.pooler.dense", "classifier"}
    told = json.loads((out / "config_overrides.json").read_text())
    merged = package.merge(adapter=str(out), out="merged", quiet=True)
    for seed in (1, 2):
        torch.manual_seed(seed)
        loaded = load_adapter(out)
        wanted = logits(loaded)
        assert any(torch.equal(wanted, one) for one in trained)
        assert torch.equal(logits(AutoPeftModelForSequenceClassification.from_pretrained(out, **told)), wanted)
        ours = logits(AutoModelForSequenceClassification.from_pretrained(merged))
        torch.testing.assert_close(ours, wanted, rtol=0, atol=1e-5)


def test_a_base_with_other_weights_is_refused(base, other_story):
    adapter = adapt(base, other_story, "adapter")
    package.pretrain(data=[other_story], out="another", max_steps=3, quiet=True, **TINY | {"vocab_size": 280})
    with pytest.raises(InputError, match="does not have the weights"):
        package.merge(adapter=str(adapter), base="another", out="merged", quiet=True)


def test_lora_needs_a_model_to_adapt(other_story, tmp_path):
    with pytest.raises(InputError, match="--init-from"):
        package.pretrain(data=[other_story], lora=True, out="nothing", quiet=True)
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_targets": ["query"]}, "query"),
        ({"lora_rank": 0}, "lora_rank 0"),
        ({"lora": False, "lora_rank": 4}, "--lora-rank is an option of LoRA: add --lora"),
        ({"lora": False, "lora_targets": ["q_proj"]}, "--lora-targets is an option of LoRA"),
    ],
)
def test_what_is_refused_leaves_nothing_in_the_way_of_the_same_command_mended(base, other_story, options, words):
    with pytest.raises(InputError, match=words):
        adapt(base, other_story, "adapter", **options)
    assert (adapt(base, other_story, "adapter", max_steps=2) / WEIGHTS).is_file()


def test_what_was_trained_is_not_taken_back(base):
    before = {path: path.read_bytes() for path in base.rglob("*") if path.is_file()}
    RunFolder(base).take_back()
    assert {path: path.read_bytes() for path in base.rglob("*") if path.is_file()} == before
