"""The code on a card loads what the folder holds: run here as it stands there, for every kind of checkpoint."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from groundup.common.files import sha256_of
from groundup.common.settings import write_yaml
from groundup.evaluation.metrics_json import write_metrics
from groundup.inference.folder import auto_class_of
from groundup.inference.loading import load_adapter, load_model, load_network, save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.publishing.card import code_on_card, write_card
from groundup.publishing.conversion import export
from groundup.publishing.proof import prove
from groundup.tokenization.training import train_bpe
from groundup.training.lora import add_lora
from groundup.training.settings import LoraOptions

TEXTS = ["The cat sat on the mat. The dog sat on the log, and the frog in the bog.\n" * 9]
LABELS = {"id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}}


def shaken(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2 * parameter.requires_grad)
    return model.eval()


def small(vocab_size):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "vocab_size": vocab_size}
    return GroundupForCausalLM(GroundupConfig(max_position_embeddings=64, tie_word_embeddings=True, **sizes, **ids))


def of_peft(folder, base, bpe):
    adapted = get_peft_model(load_model(base)[0], LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    shaken(adapted).save_pretrained(folder)
    return base


def of_peft_for_a_classifier(folder, base, bpe):
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=5)
    shaken(get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"]))).save_pretrained(folder)
    return base


def of_ours(folder, base, bpe):
    model, _ = load_model(base)
    model.generation_config.eos_token_id = [0, 5]  # where it learnt to end, which its base does not know
    save_model(folder, shaken(add_lora(model, LoraOptions(lora=True, lora_rank=2))), bpe)
    return base


def with_new_tokens(folder, base, bpe):
    bpe, base = train_bpe(TEXTS, 300), folder.parent / "base"
    save_model(base, shaken(small(len(bpe))), bpe)
    model, known = load_model(base)[0], len(bpe)
    bpe.add_special_tokens({"additional_special_tokens": ["<|one|>", "<|two|>"]})
    model.resize_token_embeddings(len(bpe))
    save_model(folder, shaken(add_lora(model, LoraOptions(lora=True, lora_rank=2), range(known, len(bpe)))), bpe)
    return base


def for_a_classifier(folder, base, bpe):
    model = load_network(base, AutoModelForSequenceClassification, new_head=True, **LABELS)
    save_model(folder, shaken(add_lora(model, LoraOptions(lora=True, lora_rank=2))), bpe)
    return base


ADAPTERS = (of_peft, of_peft_for_a_classifier, of_ours, with_new_tokens, for_a_classifier)


@pytest.fixture
def adapter(tmp_path, makers, bpe):
    """Make an adapter's folder with its card, and say where its base is."""

    def make(kind):
        folder = tmp_path / "adapter"
        folder.mkdir()
        base = kind(folder, makers("language"), bpe)
        write_yaml(folder / "recipe.yaml", {"name": "x", "verb": "instruct", "license": "mit"})
        write_metrics(folder, [], {}, sha256_of(folder / "adapter_model.safetensors"))
        return folder, base

    return make


def run(code):
    made = {}
    exec(code, made)
    return made["model"].eval(), made["tokenizer"]


def logits(model, ids):
    with torch.no_grad():
        output = model(ids, **({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}))
    return output["logits"] if "logits" in output else output[0]


def shown_code(folder, *base):
    return re.search(r"```python\n(.*?)```", write_card(folder, "alice/x", *base).read_text(), re.S)[1]


IDS = torch.tensor([[5, 6, 7, 30, 31]])


@pytest.mark.parametrize("kind", ["language", "classifier", "masked", "words", "answers", "answering", "body"])
def test_the_code_on_a_models_card_loads_it(kind, checkpoint, capsys):
    folder = checkpoint(kind)
    assert shown_code(folder).replace("alice/x", str(folder)) == code_on_card(folder, str(folder))
    model, tokenizer = run(code_on_card(folder, str(folder)))
    assert capsys.readouterr().out and tokenizer.model_max_length == 64
    import transformers

    here = load_network(folder, getattr(transformers, auto_class_of(folder)))
    assert torch.equal(logits(model, IDS), logits(here, IDS))


@pytest.mark.parametrize("kind", ADAPTERS, ids=lambda kind: kind.__name__)
def test_the_code_on_an_adapters_card_loads_it(kind, adapter, capsys):
    folder, base = adapter(kind)
    code = shown_code(folder, base)
    known = re.search(r"^base = (.*)$", code, re.M)[1]
    code = code.replace("alice/x", str(folder)).replace(f"base = {known}", f'base = "{base}"')
    assert code == code_on_card(folder, str(folder), base)
    model, tokenizer = run(code)
    here = load_adapter(folder)
    assert capsys.readouterr().out
    ids = torch.cat([IDS, torch.tensor([[len(tokenizer) - 1]])], 1)
    assert torch.allclose(logits(model, ids), logits(here, ids), atol=1e-6)
    if here.can_generate():
        inner = model.get_base_model().generation_config, here.get_base_model().generation_config
        assert inner[0].eos_token_id == inner[1].eos_token_id == ([0, 5] if kind is of_ours else 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADAPTERS, ids=lambda kind: kind.__name__)
def test_the_gate_runs_the_code_on_an_adapters_card_where_this_package_is_not(kind, adapter):
    folder, base = adapter(kind)
    assert prove(folder, "The cat", base=base).largest_difference < 1e-5


@pytest.mark.slow
def test_the_gate_runs_the_code_on_a_twins_card(checkpoint, tmp_path):
    export(checkpoint=str(checkpoint()), to="qwen3", out=str(tmp_path / "twin"))
    assert "trust_remote_code" not in code_on_card(tmp_path / "twin", "x")
    assert prove(tmp_path / "twin", "The cat").largest_difference < 1e-5


@pytest.mark.slow
def test_a_card_whose_code_fails_does_not_pass(checkpoint, monkeypatch):
    folder = checkpoint()
    monkeypatch.setattr("groundup.publishing.proof.code_on_card", lambda *_: "raise SystemExit('this code is wrong')")
    with pytest.raises(Exception, match="does not load without this package: this code is wrong"):
        prove(folder, "The cat")
