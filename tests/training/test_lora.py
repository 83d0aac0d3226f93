"""What an adapter has for weights, and that nothing else in the model is trained."""

import json

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from groundup.common.errors import InputError
from groundup.inference.loading import save_adapter
from groundup.modeling import (
    GroundupConfig,
    GroundupForCausalLM,
    GroundupForConditionalGeneration,
    GroundupForSequenceClassification,
)
from groundup.training.lora import LeanLinear, add_lora, hold_base
from groundup.training.optim import build_optimizers, split_parameters
from groundup.training.settings import LoraOptions

TINY = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "max_position_embeddings": 32}
RATES = dict.fromkeys(("matrix", "embedding", "head", "vector", "adapter"), 0.01)


def tiny(model_class=GroundupForCausalLM, **knobs):
    torch.manual_seed(0)
    model = model_class(GroundupConfig(**TINY | {"zero_init": False} | knobs))
    model.name_or_path = "somebody/base"
    return model


def gpt2(fused):
    """Return a two-class GPT-2 of 124 M weights that takes no memory."""
    with torch.device("meta"):
        model = (
            GPT2ForSequenceClassification(GPT2Config(num_labels=2))
            if fused
            else GroundupForSequenceClassification(GroundupConfig.preset("gpt2", num_labels=2))
        )
    model.name_or_path = "openai-community/gpt2"
    return model


@pytest.mark.parametrize(
    ("fused", "adapter_with_head", "the_books"), [(False, 2_655_744, 2_666_528), (True, 2_360_832, 2_371_616)]
)
def test_gpt2_with_rank_16_has_the_known_number_of_trained_weights(fused, adapter_with_head, the_books):
    model = gpt2(fused)
    adapted = add_lora(model, LoraOptions())
    trained, _ = adapted.get_nb_trainable_parameters()
    assert trained == adapter_with_head
    assert trained < 0.05 * model.num_parameters()
    # The book (appendix E) freezes the head and gives it factors of rank 16 too, 768 wide in and 2 out.
    assert trained - 768 * 2 + 16 * (768 + 2) == the_books


def test_how_much_is_trained_is_printed(capsys):
    model = tiny(num_attention_heads=2, intermediate_size=32)
    add_lora(model, LoraOptions(lora_rank=4, lora_targets=["q_proj", "up_proj"]))
    # Two layers, each with 4 rows of 16 and 16 of 4 beside the 16 x 16 of q, 4 of 16 and 32 of 4 beside the 32 x 16.
    trained = 2 * (4 * (16 + 16) + 4 * (16 + 32))
    assert f"LoRA of rank 4 on q_proj, up_proj: {trained} weights are trained, " in (said := capsys.readouterr().err)
    # Two tables of 50 x 16; in each of two layers four 16 x 16 and three 16 x 32 matrices and norms; the last norm.
    whole = 2 * 50 * 16 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16 + 2 * 8) + 16
    assert f"{trained / whole:.2%} of the {whole:,} that base has" in said


@pytest.mark.parametrize(("rslora", "factor"), [(False, 20 / 4), (True, 20 / 2)])
def test_alpha_and_dropout_reach_the_adapter_and_its_files(rslora, factor, tmp_path):
    tiny().save_pretrained(tmp_path / "base")
    model = GroundupForCausalLM.from_pretrained(tmp_path / "base")
    options = LoraOptions(lora_rank=4, lora_alpha=20, lora_dropout=0.25, lora_rslora=rslora)
    adapted = add_lora(model, options)
    layers = [module for module in adapted.modules() if isinstance(module, LoraLayer)]
    assert len(layers) == 2 * 7
    assert all(layer.scaling == {"default": factor} for layer in layers), "alpha / rank, or alpha / sqrt(rank)"
    assert all(layer.lora_dropout["default"].p == 0.25 for layer in layers)
    save_adapter(tmp_path, adapted)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    wanted = {"r": 4, "lora_alpha": 20, "lora_dropout": 0.25, "use_rslora": rslora, "use_dora": False}
    assert {name: written[name] for name in wanted} == wanted


def test_all_matrices_of_the_blocks_are_adapted_and_nothing_outside_them():
    adapted = add_lora(tiny(), LoraOptions())
    names = {name.rpartition(".")[2] for name in adapted.targeted_module_names}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert all(".layers." in name for name in adapted.targeted_module_names)
    bert = BertForSequenceClassification(
        BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    )
    bert.name_or_path = "somebody/bert"
    adapted = add_lora(bert, LoraOptions())
    assert len(adapted.targeted_module_names) == 12
    assert all(".layer." in name for name in adapted.targeted_module_names), "its pooler lies outside"


def test_a_new_adapter_changes_no_logit():
    model, ids = tiny().eval(), torch.arange(20)[None]
    before = model(ids).logits
    add_lora(model, LoraOptions(lora_dora=True))
    torch.testing.assert_close(model.eval()(ids).logits, before)


def test_only_the_adapter_and_a_classifiers_head_are_trained():
    adapted = add_lora(tiny(GroundupForSequenceClassification, num_labels=3), LoraOptions())
    trained = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in name or ".lora_B." in name or "score.modules_to_save" in name for name in trained)
    assert any("score" in name for name in trained)


def test_an_encoder_decoder_gets_adapters_in_both_halves():
    model = tiny(GroundupForConditionalGeneration, is_encoder_decoder=True, decoder_start_token_id=0)
    adapted = add_lora(model, LoraOptions())
    assert adapted.peft_config["default"].task_type == "SEQ_2_SEQ_LM"
    assert {name.partition(".layers.")[0] for name in adapted.targeted_module_names} == {"encoder", "decoder"}


def test_factors_have_adamw_even_where_matrices_would_have_muon():
    model = tiny(GroundupForSequenceClassification, num_labels=3)
    add_lora(model, LoraOptions(lora_dora=True))
    (adamw,) = build_optimizers(model, "muon", RATES, 0.1)
    assert type(adamw) is torch.optim.AdamW
    kinds = split_parameters(model)
    assert [len(kinds[name]) for name in ("matrix", "embedding", "head", "vector")] == [0, 0, 1, 0]
    assert len(kinds["adapter"]) == 2 * 7 * 3


@pytest.mark.parametrize("tied", [True, False])
def test_single_tokens_can_be_trained_and_are_learned_with_the_adapter(tied):
    model = tiny(tie_word_embeddings=tied)
    adapted = add_lora(model, LoraOptions(), trained_tokens=[7, 3])
    before = model.get_input_embeddings().weight.clone()
    loss = adapted(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss
    loss.backward()
    for optimizer in build_optimizers(model, "muon", RATES, 0.0):
        optimizer.step()
    moved = (adapted.merge_and_unload().get_input_embeddings().weight != before).any(1).nonzero().flatten().tolist()
    assert moved == [3, 7]


def test_gradients_reach_the_adapter_through_checkpointed_blocks():
    model = tiny()
    model.gradient_checkpointing_enable()
    adapted = add_lora(model, LoraOptions()).train()
    adapted(input_ids=torch.arange(20)[None], labels=torch.arange(20)[None]).loss.backward()
    assert all(
        parameter.grad is not None and (parameter.grad.abs().sum() > 0 or ".lora_A." in name)  # B is zero at first
        for name, parameter in adapted.named_parameters()
        if parameter.requires_grad
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lora_rank": 0}, "lora_rank 0"),
        ({"lora_alpha": 0}, "lora_alpha 0"),
        ({"lora_dropout": 1.0}, "lora_dropout 1.0"),
        ({"lora_targets": ["q_porj"]}, "did you mean 'q_proj'"),
    ],
)
def test_options_that_make_no_sense_are_refused_in_one_line(options, words):
    with pytest.raises(InputError) as error:
        add_lora(tiny(), LoraOptions(**options))
    assert words in str(error.value)


def test_a_base_that_lies_nowhere_and_one_with_an_adapter_are_refused():
    model = tiny()
    model.name_or_path = ""
    with pytest.raises(InputError, match="LoRA adapts a saved model"):
        add_lora(model, LoraOptions())
    model = tiny()
    add_lora(model, LoraOptions())
    with pytest.raises(InputError, match="already has an adapter"):
        add_lora(model, LoraOptions())


def loss_and_gradients(as_peft, **knobs):
    """Return those of a model with an adapter whose B is not zero, by `LowRankSum` or by peft's own layers."""
    model = tiny(**knobs).double()
    adapted = add_lora(model, LoraOptions(lora_rank=4)).double()
    for layer in [module for module in adapted.modules() if type(module) is LeanLinear]:
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
        if as_peft:
            layer.__class__ = PeftLinear
    ids = torch.arange(36).reshape(3, 12)
    loss = adapted.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in adapted.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("biases", [False, True])
def test_loss_and_gradients_are_those_of_pefts_own_layers(biases):
    knobs = {"qkv_bias": biases, "attention_bias": biases, "mlp_bias": biases}
    ours, ours_by_name = loss_and_gradients(False, **knobs)
    theirs, theirs_by_name = loss_and_gradients(True, **knobs)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    assert len(ours_by_name) == 2 * 7 * 2
    torch.testing.assert_close(ours_by_name, theirs_by_name, rtol=1e-9, atol=1e-14)


def test_within_autocast_the_adapter_computes_in_bf16_as_pefts_does():
    torch.manual_seed(0)
    base = torch.nn.Linear(32, 48)
    base.weight.requires_grad_(False)
    layer = LeanLinear(base, "default", config=LoraConfig(r=4), r=4, lora_alpha=8)
    torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    x = torch.randn(2, 5, 32)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = layer(x), PeftLinear.forward(layer, x)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert (ours - exact).norm() < 1.1 * (theirs - exact).norm()
    ours.float().sum().backward()
    assert layer.lora_A["default"].weight.grad.dtype == torch.float32


@pytest.mark.parametrize(("precision", "bits", "error"), [("bf16", torch.bfloat16, 2**-8), ("int8", torch.int8, 2**-7)])
def test_a_frozen_matrix_is_held_in_fewer_bits_and_used_in_its_place(precision, bits, error):
    adapted = add_lora(tiny(), LoraOptions())
    layers = [module for module in adapted.modules() if type(module) is LeanLinear]
    before = [layer.get_base_layer().weight.clone() for layer in layers]
    hold_base(adapted, precision)
    for layer, weight in zip(layers, before):
        held = layer.get_base_layer().weight
        assert held.dtype == bits and not held.requires_grad
        worst = (layer(torch.eye(weight.size(1))).T - weight).abs().amax(1)
        assert (worst <= error * weight.abs().amax(1)).all() and worst.max() > 0
    ids = torch.arange(20)[None]
    adapted(input_ids=ids, labels=ids).loss.backward()
    assert all(layer.lora_B["default"].weight.grad.abs().sum() > 0 for layer in layers)


def test_matrices_that_are_no_linear_layers_cannot_be_held_in_fewer_bits():
    adapted = add_lora(gpt2(fused=True), LoraOptions())
    with pytest.raises(InputError, match=r"--base-precision int8: .*gpt2 has no linear layers: groundup import"):
        hold_base(adapted, "int8")


def test_dropout_on_the_adapters_input_is_heeded():
    adapted = add_lora(tiny(), LoraOptions(lora_dropout=0.5)).train()
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.ones_(parameter)
    ids = torch.arange(20)[None]
    assert not torch.equal(adapted(ids).logits, adapted(ids).logits)
    adapted.eval()
    assert torch.equal(adapted(ids).logits, adapted(ids).logits)
