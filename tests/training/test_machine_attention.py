"""Attention in blocks of queries: the formula's, and only where it is meant to be."""

import pytest
import torch

import groundup
from groundup.modeling import GroundupConfig, GroundupForCausalLM, GroundupForMaskedLM
from groundup.modeling.modeling_groundup import eager_attention_forward
from groundup.training import machine
from groundup.training.machine import NAME, attending_in_blocks, causal_attention
from groundup.training.objectives import TokenLoss


class PlainModule:
    num_key_value_groups = 1
    training = False


def with_gradients(attend, *inputs):
    """Return what `attend` gives for copies of the inputs, and their gradients for a fixed one of the output."""
    copies = [x.clone().requires_grad_() for x in inputs]
    mixed = attend(*copies)
    mixed.backward(torch.linspace(-1, 1, mixed.numel(), dtype=mixed.dtype).view_as(mixed))
    return [mixed, *(x.grad for x in copies)]


@pytest.mark.parametrize("length", [1, 7, 128, 129, 300])
def test_blocks_give_the_formula_and_its_gradients(length):
    inputs = [torch.randn(2, 3, length, 8, dtype=torch.float64) for _ in range(3)]
    mask = torch.full((length, length), -torch.inf, dtype=torch.float64).triu(1)[None, None]

    def formula(query, key, value):
        scores = query @ key.mT * 0.3 + mask
        return scores.softmax(-1) @ value

    def written_out(query, key, value):
        mixed, _ = eager_attention_forward(PlainModule(), query, key, value, mask, 0.3)
        return mixed.transpose(1, 2)

    ours = with_gradients(lambda q, k, v: causal_attention(q, k, v, 0.3), *inputs)
    torch.testing.assert_close(ours, with_gradients(formula, *inputs), rtol=1e-10, atol=1e-12)
    # The network's own formula takes its softmax in fp32.
    torch.testing.assert_close(ours[0], written_out(*inputs), rtol=1e-5, atol=1e-6)


def config_of(**fields):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return GroundupConfig(vocab_size=64, max_position_embeddings=600, zero_init=False, **sizes, **fields)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GroundupForCausalLM(config_of()).train()


@pytest.fixture
def calls(monkeypatch):
    """Return the lengths of the texts that went through the blocks."""
    seen, real = [], machine.causal_attention
    monkeypatch.setattr(machine, "causal_attention", lambda q, *rest: seen.append(q.size(2)) or real(q, *rest))
    return seen


def loss_and_gradients(model, length=160, **inputs):
    ids = torch.arange(2 * length).view(2, length) * 7 % 64
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = TokenLoss(model)(input_ids=ids, labels=ids.roll(-1, 1), **inputs) / ids.numel()
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


def test_a_step_in_bf16_is_that_of_torchs_kernel(model, calls):
    """Fewer key heads than query heads too; the gradients differ by bf16's rounding, not by more."""
    loss, gradients = loss_and_gradients(model)
    assert not calls
    with attending_in_blocks(model):
        loss_in_blocks, gradients_in_blocks = loss_and_gradients(model)
    assert calls == [160, 160]
    assert loss_in_blocks == pytest.approx(loss, abs=2e-3)
    for name, gradient in gradients.items():
        difference = (gradients_in_blocks[name] - gradient).norm() / gradient.norm()
        assert difference < 0.03, name


def test_everything_else_goes_through_torchs_kernel(model, calls):
    """Scores, fp32, rows of several documents, long rows, dropout; a model with a kernel of its own keeps it."""
    ids = torch.arange(40).view(2, 20)
    with attending_in_blocks(model):
        loss_and_gradients(model, position_ids=torch.arange(160).remainder(80).expand(2, -1))
        loss_and_gradients(model, length=520)
        model(input_ids=ids)
        with torch.autocast("cpu", torch.bfloat16):
            model.eval()(input_ids=ids)
            model.train()(input_ids=ids, attention_mask=(ids > 0).long())
        for block in model.model.layers:
            block.self_attn.config.attention_dropout = 0.5
        loss_and_gradients(model)
    assert not calls
    model.set_attn_implementation("eager")
    with attending_in_blocks(model):
        assert model.config._attn_implementation == "eager"


def test_who_looks_ahead_aside_or_only_a_little_back_goes_through_torchs_kernel(calls, monkeypatch):
    """An encoder, a decoder's look at an encoder, a window shorter than the row; too much to keep."""
    ids = torch.arange(40).view(2, 20)
    encoder = GroundupForMaskedLM(config_of(is_causal=False)).train()
    window = GroundupForCausalLM(config_of(sliding_window=8)).train()
    crossing = GroundupForCausalLM(config_of(add_cross_attention=True)).train()
    plain = GroundupForCausalLM(config_of()).train()
    for model, inputs, expected in (
        (encoder, {}, []),
        (window, {}, []),
        (crossing, {"encoder_hidden_states": torch.randn(2, 20, 32)}, [20, 20]),
        (plain, {}, [20, 20]),
    ):
        calls.clear()
        with attending_in_blocks(model), torch.autocast("cpu", torch.bfloat16):
            model(input_ids=ids, use_cache=False, **inputs)
        assert calls == expected, type(model)
    calls.clear()
    monkeypatch.setattr(machine, "LARGEST_WEIGHTS", 2 * 4 * 20**2 - 1)
    with attending_in_blocks(plain), torch.autocast("cpu", torch.bfloat16):
        plain(input_ids=ids)
    assert not calls


def test_the_kernel_is_put_back_and_never_saved(model, tmp_path):
    with pytest.raises(KeyError), attending_in_blocks(model):
        assert model.config._attn_implementation == NAME
        model.save_pretrained(tmp_path)
        raise KeyError
    assert model.config._attn_implementation == "sdpa"
    assert NAME not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(("precision", "expected"), [("bf16", {32}), ("fp32", set())])
def test_a_run_in_bf16_attends_so_and_is_saved_as_ever(precision, expected, calls, story, tmp_path, monkeypatch):
    monkeypatch.setattr("groundup.training.plan.bf16_is_native", lambda: True)
    sizes = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "context_length": 32, "batch_tokens": 256}
    settings = {"max_steps": 2, "precision": precision, "quiet": True, **sizes}
    groundup.pretrain(data=[str(story)], out=str(tmp_path / "run"), **settings)
    assert set(calls) == expected
    assert NAME not in (tmp_path / "run" / "config.json").read_text()
