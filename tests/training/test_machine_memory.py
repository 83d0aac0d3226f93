"""Foresee the memory that training an existing model takes, and fit it into what is free."""

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import groundup
from groundup.common.errors import InputError
from groundup.tokenization.training import train_bpe
from groundup.training.lora import LeanLinear, add_lora
from groundup.training.machine import BaseSize
from groundup.training.plan import Given, make_plan
from groundup.training.settings import LoraOptions


@pytest.fixture
def base(tmp_path):
    """Return a folder with a network of the class of SmolLM2, 2.6 M weights, and a text to go on with."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=300, intermediate_size=512, tie_word_embeddings=True, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    (tmp_path / "x.txt").write_text("a text with words\n" * 400)
    train_bpe(["a text with words"], 300).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_a_model_is_counted_without_its_weights(base):
    size = BaseSize.of(str(base))
    model = LlamaForCausalLM.from_pretrained(base)
    assert size.parameters == model.num_parameters()
    model.name_or_path = str(base)
    adapted = add_lora(model, LoraOptions(lora_rank=4))
    assert size.trained(4) == adapted.get_nb_trainable_parameters()[0]
    assert size.matrices == sum(
        module.get_base_layer().weight.numel() for module in adapted.modules() if isinstance(module, LeanLinear)
    )
    assert BaseSize.of("nobody/nothing-here") is None


def test_where_memory_is_short_rows_then_activations_then_the_bits_of_the_base_are_saved(base, monkeypatch):
    options = {"base": str(base), "lora": True, "base_precision": "auto", "context_length": 64, "optimizer": "adamw"}

    def chosen(free):
        monkeypatch.setattr("groundup.training.machine.free_memory", lambda: free)
        made = make_plan(
            Given(**options | {"batch_tokens": 2048, "hidden_size": 256, "from_scratch": False}), 1e5, None
        )
        return made.micro_batch_rows, made.checkpointed, made.base_precision, made.memory

    size, how = BaseSize.of(str(base)), {"optimizer": "adamw", "precision": "fp32", "context_length": 64}
    assert size is not None
    rows, again, held, most = chosen(1e12)
    assert (rows, again, held) == (32, False, "fp32")
    seen = [chosen(free) for free in (most - 1, size.memory(16, 1, "fp32", False, how) - 1)]
    assert seen[0][0] < 32 and seen[0][1:3] == (False, "fp32")
    assert seen[1][1:3] == (True, "fp32")
    assert chosen(size.memory(16, 1, "fp32", True, how) - 1)[2] == "bf16"
    assert chosen(1e6)[:3] == (1, True, "int8")
    options["base_precision"] = "fp32"
    assert chosen(1e6)[:3] == (1, True, "fp32")


def test_fine_tuning_that_the_memory_cannot_hold_is_refused_before_anything_is_made(base, tmp_path, monkeypatch):
    monkeypatch.setattr("groundup.training.machine.free_memory", lambda: 10**6)
    options = {"data": [str(tmp_path / "x.txt")], "out": str(tmp_path / "out"), "max_steps": 1, "quiet": True}
    with pytest.raises(InputError, match=r"fine-tuning .*base needs at least 0\.\d GB.*: train an adapter with --lora"):
        groundup.pretrain(init_from=str(base), **options)
    with pytest.raises(InputError, match=r"with --lora needs at least .* a shorter --context-length"):
        groundup.pretrain(init_from=str(base), lora=True, **options)
    assert not (tmp_path / "out").exists()
