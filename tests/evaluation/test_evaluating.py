import json
import math

import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2ForSequenceClassification,
    Qwen3Config,
    Qwen3ForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

import groundup
from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.common.verbs import EvaluateSettings
from groundup.evaluation.evaluating import evaluate, other_tokenizers
from groundup.evaluation.metrics_json import read_metrics
from groundup.inference.loading import load_model
from groundup.modeling import (
    GroundupConfig,
    GroundupForConditionalGeneration,
    GroundupForMaskedLM,
)
from groundup.tokenization.folder import save_tokenizer

MODELS = ("gpt2", "qwen3", "groundup", "groundup-gpt2")
CONTEXT = 32
SIZES = {"vocab_size": 400, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8}


@pytest.fixture
def checkpoint(tmp_path, tiny, bpe, words):
    """Return a function: the name of a tiny model -> a folder with it and its tokenizer."""

    def save(name="groundup", tokenizer=bpe):
        folder = tmp_path / "model"
        tiny(name, len(tokenizer)).save_pretrained(folder)
        save_tokenizer(tokenizer, folder)
        return folder

    return save


@pytest.fixture
def text_file(tmp_path, texts):
    path = tmp_path / "held-back.txt"
    path.write_bytes("\n".join(texts).encode())
    return path


def values(folder):
    return {(row["name"], row["baseline"]): row["value"] for row in read_metrics(folder)["metrics"]}


@pytest.mark.parametrize("name", MODELS)
def test_any_causal_model_is_measured_with_a_baseline_beside_it(name, checkpoint, text_file, tmp_path, bpe):
    model = checkpoint(name)
    out = evaluate(model=str(model), data=[str(text_file)], out=str(tmp_path / "out"), quiet=True)
    found = values(out)
    assert {*found} >= {("bits_per_byte", None), ("perplexity", None), ("loss", None), ("bits_per_byte", "xz -9e")}
    assert found["perplexity", None] == pytest.approx(math.exp(found["loss", None]))
    row = read_metrics(out)["metrics"][0]
    assert (row["dataset"], row["split"], row["context"]) == ("held-back.txt", "test", CONTEXT)
    assert row["bytes"] == text_file.stat().st_size and row["count"] == len(bpe.encode(text_file.read_text()))
    assert read_metrics(out)["weights_sha256"] == sha256_of(model / "model.safetensors")


def test_a_word_level_model_gets_a_perplexity_and_no_bits_per_byte(checkpoint, words, text_file, tmp_path):
    out = evaluate(model=str(checkpoint("qwen3", words)), data=[str(text_file)], out=str(tmp_path / "out"), quiet=True)
    assert values(out)["perplexity", None] > 1 and values(out)["bits_per_byte", None] is None


def test_the_recipe_repeats_the_settings_without_a_path_of_this_machine(checkpoint, text_file, tmp_path):
    settings = EvaluateSettings(
        model=str(checkpoint()), data=[str(text_file)], out=str(tmp_path / "out"), batch_rows=2, quiet=True
    )
    recipe = (evaluate(settings) / "recipe.yaml").read_text()
    assert {"model": ["model"], "data": ["held-back.txt"], "batch_rows": 2}.items() <= yaml.safe_load(recipe).items()
    assert str(tmp_path) not in recipe


def test_without_a_folder_named_a_new_one_is_made_each_time(checkpoint, text_file, tmp_path, monkeypatch, capfd):
    model = checkpoint()
    monkeypatch.chdir(tmp_path)
    made = [str(evaluate(model=str(model), data=[str(text_file)])) for _ in range(2)]
    assert made == ["runs/evaluate-model", "runs/evaluate-model-1"]
    said = capfd.readouterr().err
    assert made[0] in said and "bits per byte" in said and "xz -9e" in said


def test_a_quiet_evaluation_prints_nothing(checkpoint, text_file, tmp_path, capfd):
    model = checkpoint()
    capfd.readouterr()
    evaluate(model=str(model), data=[str(text_file)], out=str(tmp_path / "out"), quiet=True)
    assert capfd.readouterr() == ("", "")


def test_a_folder_in_use_and_missing_settings_are_the_users_errors(checkpoint, text_file, tmp_path):
    model = str(checkpoint())
    with pytest.raises(InputError, match="already holds something"):
        evaluate(model=model, data=[str(text_file)], out=str(tmp_path / "model"))
    with pytest.raises(InputError, match="needs a model and test data"):
        evaluate(model=model)


# Loading


def test_a_stored_half_precision_model_is_loaded_in_full_on_a_cpu(checkpoint, bpe):
    folder = checkpoint("qwen3")
    AutoModelForCausalLM.from_pretrained(folder).bfloat16().save_pretrained(folder)
    model, tokenizer = load_model(folder)
    assert model.dtype == torch.float32 or model.device.type != "cpu"
    assert not model.training and tokenizer.get_vocab() == bpe.get_vocab()


def break_config(folder, **changes):
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))


def lose_a_weight(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.norm.weight")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"abc"), "is truncated or not safetensors"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "cannot load a tokenizer"),
        (lambda folder: break_config(folder, hidden_size=64, head_dim=32), "other shapes than its config.json says"),
        (lambda folder: break_config(folder, hidden_size="64"), "hidden_size"),
        (lambda folder: break_config(folder, model_type="nonesuch", auto_map={}), "does not know its model_type"),
        (lambda folder: break_config(folder, model_type="vit"), "a model of another kind"),
        (lose_a_weight, "no weights for model.norm.weight"),
    ],
)
def test_a_damaged_checkpoint_is_named_in_one_line(damage, reason, checkpoint):
    folder = checkpoint("qwen3")
    damage(folder)
    with pytest.raises(InputError, match=reason) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


def test_a_classifier_is_no_language_model(tmp_path):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8, "pad_token_id": 0}
    Qwen3ForSequenceClassification(Qwen3Config(vocab_size=64, num_attention_heads=2, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no weights for lm_head"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "auto_class, wanted",
    [
        (AutoModelForSequenceClassification, "give a classifier, such as the folder that groundup classify wrote"),
        (AutoModelForSeq2SeqLM, "give an encoder with a decoder"),
        (AutoModelForMaskedLM, "give an encoder that predicts masked tokens"),
    ],
)
def test_a_model_of_another_kind_is_told_which_kind_is_wanted(auto_class, wanted, checkpoint):
    folder = checkpoint("gpt2")  # for which transformers has a classifier's class, and none of the other two
    with pytest.raises(InputError) as caught:
        load_model(folder, kind=auto_class)
    assert str(caught.value).endswith(wanted) and str(folder) in str(caught.value)


@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda: GPT2ForSequenceClassification(GPT2Config(vocab_size=400, n_embd=16, n_layer=1, n_head=2)), "classif"),
        (
            lambda: BertForMaskedLM(BertConfig(vocab_size=400, hidden_size=24, num_hidden_layers=1)),
            "an encoder, which sees",
        ),
        (lambda: GroundupForMaskedLM(GroundupConfig(**SIZES, is_causal=False)), "an encoder, which sees"),
        (
            lambda: GroundupForConditionalGeneration(
                GroundupConfig(**SIZES, is_encoder_decoder=True, decoder_start_token_id=0)
            ),
            "with a decoder",
        ),
        (
            lambda: T5ForConditionalGeneration(T5Config(vocab_size=400, d_model=16, d_kv=8, d_ff=32, num_layers=1)),
            "with a decoder",
        ),
    ],
)
def test_a_model_of_another_kind_is_said_to_be_one_and_leaves_no_numbers(make, kind, bpe, text_file, tmp_path):
    folder = tmp_path / "model"
    make().save_pretrained(folder)
    save_tokenizer(bpe, folder)
    with pytest.raises(InputError, match=kind) as caught:
        evaluate(model=str(folder), data=[str(text_file)], out=str(tmp_path / "out"), quiet=True)
    assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


def test_an_adapter_is_measured_as_the_model_it_makes_of_its_base(checkpoint, tiny, bpe, text_file, tmp_path):
    base, adapter = checkpoint("qwen3"), tmp_path / "adapter"
    model = AutoModelForCausalLM.from_pretrained(base)
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    adapted.save_pretrained(adapter)
    save_tokenizer(bpe, adapter)
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    save_tokenizer(bpe, tmp_path / "merged")
    models = [str(adapter), str(tmp_path / "merged"), str(base)]
    out = evaluate(model=models, data=[str(text_file)], samples=0, out=str(tmp_path / "out"), quiet=True)
    losses = [row["value"] for row in read_metrics(out)["metrics"] if row["name"] == "loss" and row["baseline"] is None]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) and losses[0] != pytest.approx(losses[2], rel=1e-3)


def test_a_place_that_is_no_folder_is_said_so(tmp_path):
    (tmp_path / "file.txt").write_text("x")
    for source in (tmp_path / "none", "./none", "runs/some/where"):
        with pytest.raises(InputError, match="does not exist"):
            load_model(source)
    with pytest.raises(InputError, match="no such folder, and the Hub cannot be reached"):
        load_model("a-name-that-may-be-on-the-hub")
    with pytest.raises(InputError, match="is a file"):
        load_model(tmp_path / "file.txt")


@pytest.mark.parametrize(
    "name", ["a" * 300, "~nobody-here/x", "caf\udce9", "two words", "a\0b", "x" * 97, "-a", "a..b"]
)
def test_what_can_be_neither_a_folder_nor_a_name_on_the_hub_is_said_in_one_line(name):
    with pytest.raises(InputError) as raised:
        load_model(name)
    assert len(str(raised.value).splitlines()) == 1 and len(str(raised.value)) < 250


def test_weights_whose_library_is_missing_are_the_users_error(checkpoint):
    folder = checkpoint("groundup")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="cannot load a language model") as raised:
        load_model(folder)
    assert len(str(raised.value).splitlines()) == 1


def test_code_beside_the_weights_runs_only_when_asked_for(checkpoint, tmp_path):
    folder = checkpoint("qwen3")
    code = "from transformers import Qwen3Config as Base, Qwen3ForCausalLM as Model\n\nprint('the code ran')\n\n\n"
    code += "class Config(Base):\n    model_type = 'foreign'\n\n\nclass LM(Model):\n    config_class = Config\n"
    (folder / "foreign.py").write_text(code)
    code_map = {"AutoConfig": "foreign.Config", "AutoModelForCausalLM": "foreign.LM"}
    break_config(folder, model_type="foreign", auto_map=code_map)
    with pytest.raises(InputError, match="add --trust-remote-code"):
        load_model(folder)
    assert type(load_model(folder, trust_remote_code=True)[0]).__name__ == "LM"


def test_our_own_checkpoint_never_runs_the_code_it_carries(checkpoint):
    folder = checkpoint("groundup")
    (folder / "modeling_groundup.py").write_text("raise SystemExit('the code ran')\n")
    model, _ = load_model(folder, trust_remote_code=True)
    assert type(model) is groundup.GroundupForCausalLM


def test_tokenizers_named_stand_beside_and_gpt2s_only_where_it_is_at_hand(bpe, tmp_path, monkeypatch):
    save_tokenizer(bpe, tmp_path / "theirs")
    assert [*other_tokenizers([str(tmp_path / "theirs")])] == ["tokenizer of theirs"]
    monkeypatch.setattr("groundup.evaluation.evaluating.try_to_load_from_cache", lambda *_: None)
    assert other_tokenizers([]) == {}
    cached = str(tmp_path / "theirs" / "tokenizer.json")
    monkeypatch.setattr("groundup.evaluation.evaluating.try_to_load_from_cache", lambda *_: cached)
    assert [*other_tokenizers([])] == ["GPT-2's tokenizer"]


def test_tokenizers_in_folders_of_one_name_are_told_apart(bpe, tmp_path):
    folders = [str(tmp_path / place / "tokenizer") for place in ("one", "two")]
    for folder in folders:
        save_tokenizer(bpe, folder)
    assert [*other_tokenizers(folders)] == ["tokenizer of one/tokenizer", "tokenizer of two/tokenizer"]
