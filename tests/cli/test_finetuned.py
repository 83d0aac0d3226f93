"""What was fine-tuned in the terminal: an adapter beside its base, and an encoder with a decoder."""

import pytest
import torch

from groundup.cli.main import main
from groundup.inference.loading import load_model, save_model
from groundup.modeling import GroundupConfig, GroundupForConditionalGeneration
from groundup.tokenization.chat import ChatEncoder
from groundup.training.lora import add_lora
from groundup.training.settings import LoraOptions


@pytest.fixture
def adapter(taught, tmp_path):
    """Return an adapter of the model that converses, its factors far from zero."""
    model, tokenizer = load_model(taught)
    torch.manual_seed(0)
    adapted = add_lora(model, LoraOptions(lora_rank=2))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.add_(torch.randn_like(parameter))
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_model(folder, adapted, tokenizer)
    return folder


@pytest.fixture
def pair(taught, tmp_path):
    tokenizer = load_model(taught)[1]
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "max_position_embeddings": 48, "zero_init": False}
    fields = {"vocab_size": len(tokenizer), "is_encoder_decoder": True, "decoder_start_token_id": 0, "eos_token_id": 0}
    folder = tmp_path / "pair"
    folder.mkdir()
    save_model(folder, GroundupForConditionalGeneration(GroundupConfig(**sizes, **fields)), tokenizer)
    return folder


def written(capsys, model, *options):
    command = ["generate", "--model", str(model), "--prompt", "The cat", "--max-new-tokens", "12"]
    assert main([*command, "--temperature", "0", *options]) == 0
    return capsys.readouterr().out


def answered(capsys, monkeypatch, model):
    lines = iter(["The cat", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--model", str(model), "--max-new-tokens", "8", "--temperature", "0"]) == 0
    return capsys.readouterr().out.strip()


def test_an_adapters_folder_writes_and_talks_as_the_merged_model_does(adapter, taught, tmp_path, monkeypatch, capsys):
    assert main(["merge", str(adapter), "--out", str(tmp_path / "merged"), "--quiet"]) == 0
    assert written(capsys, adapter) == written(capsys, tmp_path / "merged") != written(capsys, taught)
    said = answered(capsys, monkeypatch, adapter)
    assert said and said == answered(capsys, monkeypatch, tmp_path / "merged")


def test_an_encoder_and_a_decoder_answer_without_repeating_the_prompt(pair, monkeypatch, capsys):
    assert not written(capsys, pair).startswith("The cat")
    assert written(capsys, pair, "--as-message").strip()[:10] == answered(capsys, monkeypatch, pair)[:10]


def test_a_prompt_can_be_a_message_in_the_models_own_template(taught, capsys):
    model, tokenizer = load_model(taught)
    ids = ChatEncoder(tokenizer).prompt_ids([{"role": "user", "content": "The cat"}])
    asked = torch.tensor([ids])
    expected = model.generate(asked, attention_mask=torch.ones_like(asked), do_sample=False, max_new_tokens=12)
    answer = written(capsys, taught, "--as-message").strip()
    assert answer == str(tokenizer.decode(expected[0, len(ids) :], skip_special_tokens=True)).strip("\ufffd").strip()
