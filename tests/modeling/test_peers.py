"""The network against the models of transformers that it can stand for: the same bits from the same weights."""

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Trainer,
    TrainingArguments,
)
from transformers.quantizers.base import get_keys_to_not_convert

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.stock import from_stock

SCALINGS = {
    "linear": {"factor": 2.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
    "llama3": {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "original_max_position_embeddings": 32},
}


def fields_of(config):
    return {
        "vocab_size": config.vocab_size, "hidden_size": config.hidden_size, "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size, "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads, "num_key_value_heads": config.num_key_value_heads,
        "max_position_embeddings": config.max_position_embeddings, "rms_norm_eps": config.norm_eps,
        "rope_parameters": dict(config.rope_parameters), "tie_word_embeddings": config.tie_word_embeddings,
    }  # fmt: skip


def llama_of(model, **fields):
    peer = LlamaForCausalLM(LlamaConfig(**fields_of(model.config), **fields)).eval()
    peer.load_state_dict(model.state_dict())
    return peer


def qwen3_of(model, **fields):
    peer = Qwen3ForCausalLM(Qwen3Config(**fields_of(model.config), **fields)).eval()
    peer.load_state_dict(model.state_dict())
    return peer


def same_logits(model, peer, *arguments, **named):
    with torch.no_grad():
        return torch.equal(model(*arguments, **named).logits, peer(*arguments, **named).logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("qk_norm", "peer_of"), [(True, qwen3_of), (False, llama_of)])
def test_qwen3_and_llama_give_the_same_bits_from_the_same_state_dict(qk_norm, peer_of, dtype, attention, build, ids):
    model = build(qk_norm=qk_norm)
    peer = peer_of(model)
    for each in (model, peer):
        each.to(dtype).set_attn_implementation(attention)
    mask = torch.ones_like(ids)
    mask[0, :9], mask[1, -5:] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    assert same_logits(model, peer, ids)
    assert same_logits(model, peer, ids, attention_mask=mask, position_ids=positions)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_gradients_and_hidden_states_are_the_peers_too(qk_norm, build, ids):
    model = build(qk_norm=qk_norm)
    peer = (qwen3_of if qk_norm else llama_of)(model)
    ours, theirs = (each(ids, labels=ids, output_hidden_states=True) for each in (model, peer))
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True))
    assert torch.equal(ours.loss, theirs.loss)
    ours.loss.backward(), theirs.loss.backward()
    wanted = {name: parameter.grad for name, parameter in peer.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[name], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_rotary_positions_are_llamas(scaling, build, ids):
    rope = {"rope_type": scaling, "rope_theta": 5e4, **SCALINGS[scaling]}
    model = build(qk_norm=False, rope_parameters=dict(rope))
    plain = build(qk_norm=False, rope_parameters={"rope_type": "default", "rope_theta": 5e4})
    assert same_logits(model, llama_of(model), ids)
    assert not same_logits(model, plain, ids)


def test_biases_are_llamas(build, ids):
    model = build(qk_norm=False, qkv_bias=True, attention_bias=True, mlp_bias=True)
    assert same_logits(model, llama_of(model, attention_bias=True, mlp_bias=True), ids)


def test_a_sliding_window_is_qwen3s_also_token_by_token(build, ids):
    model = build("sliding")
    peer = qwen3_of(model, use_sliding_window=True, sliding_window=8, max_window_layers=0)
    assert peer.config.layer_types == model.config.layer_types == ["sliding_attention"] * 2
    assert same_logits(model, peer, ids)
    caches = [DynamicCache(config=model.config), DynamicCache(config=peer.config)]
    for part in ids.split([13] + [1] * 27, dim=1):
        with torch.no_grad():
            ours, theirs = (each(part, past_key_values=cache) for each, cache in zip((model, peer), caches))
        assert torch.equal(ours.logits, theirs.logits)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_gpt2_gives_the_same_bits(attention, build, perturb, ids):
    sizes = {"n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = GPT2Config(vocab_size=199, **sizes, bos_token_id=None, eos_token_id=None)
    peer, model = perturb(GPT2LMHeadModel(config)), build("gpt2")
    model.load_state_dict(from_stock(peer.state_dict(), config), strict=False)
    for each in (model, peer):
        each.set_attn_implementation(attention)
    with torch.no_grad():
        ours, theirs = (each(ids, output_hidden_states=True) for each in (model, peer))
    assert torch.equal(ours.logits, theirs.logits)
    assert all(torch.equal(a, b) for a, b in zip(ours.hidden_states, theirs.hidden_states, strict=True))


def test_gpt2_sizes_have_the_known_parameter_counts():
    with torch.device("meta"):
        small = GroundupForCausalLM(GroundupConfig.preset("gpt2"))
        book = GroundupForCausalLM(GroundupConfig.preset("gpt2", qkv_bias=False, tie_word_embeddings=False))
        largest = GroundupForCausalLM(GroundupConfig.preset("gpt2-xl"))
    assert small.num_parameters() == 124_439_808  # Radford et al. 2019, as released
    assert book.num_parameters() == 163_009_536  # Raschka, Build a Large Language Model (From Scratch), chapter 4
    assert largest.num_parameters() == 1_557_611_200


def test_initial_weights_have_the_spread_that_gpt2_has_though_the_code_is_not_transformers_own(config_of):
    # transformers asks `_init_weights` only about modules that own weights where the code is not its own.
    torch.manual_seed(0)
    model = GroundupForCausalLM(config_of("gpt2", hidden_size=256, num_hidden_layers=8))
    assert model.is_custom_code()
    layer = model.model.layers[0]
    assert layer.self_attn.q_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
    for projection in (layer.self_attn.o_proj, layer.mlp.down_proj):
        assert projection.weight.std().item() == pytest.approx(0.02 / math.sqrt(2 * 8), rel=0.05)
        assert not projection.bias.any()


def test_with_zero_init_every_block_starts_as_the_identity_and_every_token_is_as_likely(config_of, ids):
    model = GroundupForCausalLM(config_of(zero_init=True)).eval()
    with torch.no_grad():
        output = model(ids, labels=ids, output_hidden_states=True)
    assert torch.equal(output.hidden_states[0], output.hidden_states[1])
    assert output.loss.item() == pytest.approx(math.log(199))


@pytest.mark.slow
def test_an_untrained_gpt2_small_knows_nothing():
    torch.manual_seed(0)
    model = GroundupForCausalLM(GroundupConfig.preset("gpt2")).eval()
    tokens = torch.randint(0, 50257, (2, 256))
    with torch.no_grad():
        # ln(50257) = 10.82 and the spread of the first logits; Raschka's chapter 5 gets 10.99 on a text.
        assert model(tokens, labels=tokens).loss.item() == pytest.approx(10.95, abs=0.15)


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_trainer_treats_it_as_a_stock_causal_model_label_smoothing_included(smoothing, adapted, build, tmp_path):
    # Trainer asks tables of its own for what it cannot ask a class: whether labels stand one token on, what it counts.
    rows = [{"input_ids": row, "labels": row} for row in torch.randint(1, 199, (6, 12))]
    rows[0]["labels"] = rows[0]["labels"].where(torch.arange(12) > 6, -100)
    seen, ours = [], build()
    for model in (ours, qwen3_of(ours)):
        if adapted:
            torch.manual_seed(0)
            model = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
        arguments = TrainingArguments(
            output_dir=str(tmp_path), label_smoothing_factor=smoothing, per_device_train_batch_size=3, max_steps=2,
            gradient_accumulation_steps=2, logging_steps=1, learning_rate=0.01, use_cpu=True, report_to=[],
            disable_tqdm=True, save_strategy="no",
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=rows)
        trainer.train()
        losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        facts = trainer.label_names, trainer.can_return_loss, trainer.model_accepts_loss_kwargs
        seen.append((losses, *facts, trainer._loss_shifts_labels, get_keys_to_not_convert(model)))
    assert seen[0][0] == pytest.approx(seen[1][0], rel=1e-5) and seen[0][1:] == seen[1][1:]
