"""Fine-tuning of models that others made, and of encoders: with all weights and by adapters."""

import json
import os

import numpy as np
import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
)

import groundup as package
from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.common.settings import public_settings, read_yaml
from groundup.inference.loading import load_model
from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe
from groundup.training.settings import ClassifySettings

COLOURS = ("red", "green", "blue", "black")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_rows):
    """Return rows to answer and to classify, and a stock Llama whose tokenizer has no chat template and no padding."""
    folder = tmp_path_factory.mktemp("bases")
    chance = np.random.default_rng(0)
    pairs = [[str(colour) for colour in chance.choice(COLOURS, 2)] for _ in range(120)]
    asked = [{"prompt": f"{n}: {' '.join(pair)}", "completion": pair[-1]} for n, pair in enumerate(pairs)]
    write_rows(folder / "asked.jsonl", asked)
    write_rows(folder / "labelled.jsonl", [{"text": row["prompt"], "label": row["completion"]} for row in asked])
    tokenizer = train_bpe([row["prompt"] for row in asked], 270)
    tokenizer.pad_token = tokenizer.chat_template = None
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=256, tie_word_embeddings=False, **sizes, **ends
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    save_tokenizer(tokenizer, folder / "llama")
    return folder


def value(out, name, baseline=None):
    rows = json.loads((out / "metrics.json").read_text())["metrics"]
    return next(row["value"] for row in rows if row["name"] == name and row["baseline"] == baseline)


def logits(model, ids):
    with torch.no_grad():
        return model.eval()(input_ids=ids).logits


def test_whoever_pretrained_a_model_decides_how_it_is_trained_on_however_often(folder, story, tmp_path):
    def plan(**options):
        out = package.pretrain(
            data=[str(story)], out=str(tmp_path / str(len(list(tmp_path.iterdir())))), max_steps=1, quiet=True,
            batch_tokens=128, context_length=32, **options,
        )  # fmt: skip
        return out, read_yaml(out / "recipe.yaml")["plan"]

    theirs, first = plan(init_from=str(folder / "llama"))
    _, second = plan(init_from=str(theirs), learning_rate=1e-4)
    for made in (first, second):
        assert (made["from_elsewhere"], made["optimizer"], made["weight_decay"]) == (True, "adamw", 0.1)
        assert made["reasons"]["size"] == made["reasons"]["vocabulary"] == "the model's"
    assert second["rates"]["matrix"] == 1e-4 < first["rates"]["matrix"] < 2e-3
    sizes = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 1}
    ours, new = plan(**sizes)
    _, more = plan(init_from=str(ours))
    assert [made["from_elsewhere"] for made in (new, more)] == [False, False]
    assert new["rates"]["matrix"] == more["rates"]["matrix"] == 0.015


@pytest.mark.parametrize("layout", [None, "chat"])
@pytest.mark.parametrize("lora", [False, True])
def test_a_stock_model_learns_to_answer_in_words_or_with_tokens_that_it_lacked(folder, tmp_path, layout, lora):
    out = package.instruct(
        data=[str(folder / "asked.jsonl")], model=str(folder / "llama"), layout=layout, lora=lora,
        out=str(tmp_path / "out"), max_steps=6, quiet=True,
    )  # fmt: skip
    assert value(out, "answer_loss") < value(out, "answer_loss", "before training")
    ids = torch.arange(20)[None] + 5
    model = load_model(out)[0]
    if lora:
        assert not (out / "model.safetensors").exists()
        theirs = AutoPeftModelForCausalLM.from_pretrained(out)
        torch.testing.assert_close(logits(model, ids), logits(theirs, ids), atol=1e-4, rtol=1e-4)
        merged = package.merge(adapter=str(out), out=str(tmp_path / "merged"), quiet=True)
        torch.testing.assert_close(logits(load_model(merged)[0], ids), logits(model, ids), atol=1e-4, rtol=1e-4)
    else:
        assert type(AutoModelForCausalLM.from_pretrained(out)) is LlamaForCausalLM
    assert model.get_input_embeddings().num_embeddings >= len(AutoTokenizer.from_pretrained(out))


def test_rows_to_test_on_that_are_trained_on_are_left_out_of_a_second_score(folder, tmp_path, capsys, write_rows):
    fresh = [{"prompt": f"new {n}: red blue", "completion": "blue"} for n in range(5)]
    seen = [json.loads(line) for line in (folder / "asked.jsonl").read_text().splitlines()]
    test = write_rows(tmp_path / "test.jsonl", [*seen, *fresh])
    out = package.instruct(
        data=[str(folder / "asked.jsonl")], eval_data=[test], model=str(folder / "llama"), max_steps=1,
        out=str(tmp_path / "out"),
    )  # fmt: skip
    rows = json.loads((out / "metrics.json").read_text())["metrics"]
    counts = {row["split"]: row["count"] for row in rows if row["name"] == "exact_match"}
    assert counts == {"test": 125, "test without them": 17}  # 5 new ones, and 12 that were held out
    assert "108 of 125 test rows have prompts that are in training too" in capsys.readouterr().err


@pytest.mark.parametrize("lora", [False, True])
def test_a_stock_model_without_padding_learns_labels(folder, tmp_path, lora, write_rows):
    out = package.classify(
        data=[str(folder / "labelled.jsonl")], model=str(folder / "llama"), lora=lora, label_smoothing=0.1,
        class_weights=True, best_by="f1_macro", out=str(tmp_path / "out"), max_steps=6, quiet=True,
    )  # fmt: skip
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    chosen = [row for row in rows if "selection" in row]
    for row in chosen:
        assert row["selection"] == pytest.approx(row["validation_f1_macro"], abs=1e-5)
    if not lora:
        config = AutoModelForSequenceClassification.from_pretrained(out).config
        assert sorted(config.label2id) == sorted(COLOURS)
    text = write_rows(tmp_path / "texts.jsonl", [{"text": "7: red blue"}, {"text": "8: blue green"}])
    package.classify(model=str(out), predict=text, out=str(tmp_path / "labels"), quiet=True)
    assert len((tmp_path / "labels" / "predictions.csv").read_text().splitlines()) == 3


def test_a_merged_encoder_adapter_is_an_encoder_with_the_same_logits(story, tmp_path):
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 32, "batch_tokens": 256}
    masked = {"data": [str(story)], "objective": "mlm", "quiet": True}
    base = package.pretrain(out=str(tmp_path / "base"), max_steps=8, **masked, **sizes)
    out = package.pretrain(
        out=str(tmp_path / "adapter"), init_from=str(base), lora=True, max_steps=6, batch_tokens=256, **masked
    )
    assert not (out / "model.safetensors").exists()
    ids = torch.arange(20)[None] + 5
    theirs = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(base), out)
    merged = package.merge(adapter=str(out), out=str(tmp_path / "merged"), quiet=True)
    ours = AutoModelForMaskedLM.from_pretrained(merged)
    assert not ours.config.is_causal
    torch.testing.assert_close(logits(ours, ids), logits(theirs, ids), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(ours, ids), logits(AutoModelForMaskedLM.from_pretrained(base), ids), atol=1e-4)


@pytest.mark.parametrize("verb", ["pretrain", "classify", "instruct"])
def test_a_file_to_test_on_is_missed_before_training(folder, tmp_path, verb):
    data = folder / ("labelled.jsonl" if verb == "classify" else "asked.jsonl")
    options = {"text_column": "prompt"} if verb == "pretrain" else {}
    with pytest.raises(InputError, match=r"no file or folder .*missing.jsonl"):
        getattr(package, verb)(
            data=[str(data)], eval_data=["missing.jsonl"], out=str(tmp_path / "x"), max_steps=1, quiet=True, **options
        )
    assert not (tmp_path / "x").exists()


def test_settings_are_published_without_folders_of_this_machine(tmp_path):
    (tmp_path / "rows.csv").touch()
    settings = ClassifySettings(data=[str(tmp_path / "rows.csv"), "owner/name"], model=str(tmp_path), text_column="a/b")
    public = public_settings(settings, ("data", "model", "out"))
    assert public["data"] == ["rows.csv", "owner/name"]
    assert (public["model"], public["out"], public["text_column"]) == (tmp_path.name, None, "a/b")


@pytest.mark.slow
def test_a_classifier_is_the_same_from_another_process_with_more_tokenizer_threads(folder, tmp_path, groundup):
    """Split, tokenizer, sizes, order and weights follow from data, options and seed."""
    for number, name in enumerate(("one", "other")):
        groundup(
            "classify", "--data", folder / "labelled.jsonl", "--adapt-epochs", 1, "--max-steps", 6, "--out", name,
            "--vocab-size", 280, "--hidden-size", 32, "--num-hidden-layers", 1,
            env=os.environ | {"PYTHONHASHSEED": str(number), "RAYON_NUM_THREADS": str(number + 1)},
        )  # fmt: skip
    for name in ("model.safetensors", "tokenizer.json", "mistakes.jsonl"):
        assert sha256_of(tmp_path / "one" / name) == sha256_of(tmp_path / "other" / name), name
    recipes = [read_yaml(tmp_path / name / "recipe.yaml") for name in ("one", "other")]
    assert recipes[0].pop("settings") | {"out": None} == recipes[1].pop("settings") | {"out": None}
    assert recipes[0] == recipes[1]
