"""Every stock class in the table: its logits, hidden states, gradients and text, and the same bits out again."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconConfig,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PhiConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.architectures import ARCHITECTURES
from groundup.modeling.export import assemble, make_twin
from groundup.modeling.stock import from_stock, groundup_config, to_stock

SIZES = {
    "vocab_size": 211, "hidden_size": 96, "intermediate_size": 136, "num_hidden_layers": 3, "num_attention_heads": 6,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "bos_token_id": 0, "eos_token_id": [0, 7],
    "pad_token_id": 1,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 32}
LINEAR = {"rope_type": "linear", "rope_theta": 5e4, "factor": 2.0}
SOME = {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}  # all layers but the first
TIED = {"tie_word_embeddings": True}
CASES = [
    ("llama", TIED),
    ("llama", {"rms_norm_eps": 1e-5, "rope_parameters": LLAMA3}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "rope_parameters": LINEAR}),
    ("qwen2", {}),
    ("qwen2", {**TIED, **SOME}),
    ("qwen3", TIED),
    ("qwen3", {"head_dim": 20, "attention_bias": True, "rope_parameters": YARN}),
    (
        "qwen3",
        {**SOME, "max_window_layers": 0, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    ("mistral", {"sliding_window": 9}),
    ("mistral", {"sliding_window": None, "head_dim": 20}),
    (
        "ministral",
        {"head_dim": 16, "sliding_window": 9, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
    ),
    ("arcee", {}),
    ("arcee", {"attention_bias": True, "mlp_bias": True, **TIED}),
    ("starcoder2", {"sliding_window": 9}),
    ("starcoder2", {"use_bias": False, "tie_word_embeddings": False}),
]


def peer_of(kind, settings, attention="sdpa", dtype=torch.float32):
    """Return a stock model with random weights everywhere, gains and biases too."""
    torch.manual_seed(0)
    config = ARCHITECTURES[kind].config(**SIZES | settings)
    config._attn_implementation = attention
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    if dtype != torch.float32:  # `.to` would round the rotary angles, which loading does not
        model = assemble(config, {name: tensor.to(dtype) for name, tensor in model.state_dict().items()})
    return model.eval()


def random_ids(*shape):
    return torch.randint(2, 211, shape, generator=torch.Generator().manual_seed(1))


def test_every_class_of_the_table_is_tried():
    assert {kind for kind, _ in CASES} | {"gpt2"} == ARCHITECTURES.keys()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_logits_and_hidden_states_are_the_stock_models_to_the_last_bit(kind, settings, dtype, attention, ours_of):
    peer = peer_of(kind, settings, attention, dtype)
    model = ours_of(peer)
    assert type(model) is GroundupForCausalLM and model.dtype == dtype
    for shape in [(1, 7), (2, 40), (3, 128)]:
        with torch.no_grad():
            theirs = peer(random_ids(*shape), output_hidden_states=True)
            found = model(random_ids(*shape), output_hidden_states=True)
        assert torch.equal(found.logits, theirs.logits)
        assert len(found.hidden_states) == len(theirs.hidden_states)
        assert all(torch.equal(*pair) for pair in zip(found.hidden_states, theirs.hidden_states))


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_gradients_are_the_stock_models_but_for_rounding(kind, settings, ours_of):
    peer, ids = peer_of(kind, settings), random_ids(2, 40)
    model = ours_of(peer)
    for each in (peer, model):
        each(ids, labels=ids).loss.backward()
    found = to_stock({name: parameter.grad for name, parameter in model.named_parameters()}, peer.config)
    for name, parameter in peer.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=0, atol=1e-5 * parameter.grad.abs().max().item())


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_padded_rows_and_text_past_the_sliding_window_are_the_stock_models(kind, settings, ours_of):
    peer, ids = peer_of(kind, settings), random_ids(2, 20)
    model = ours_of(peer)
    mask = torch.ones_like(ids)
    mask[0, :6] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        theirs = peer(ids, attention_mask=mask, position_ids=positions).logits
        found = model(ids, attention_mask=mask).logits  # it counts the positions itself
    assert torch.equal(found[mask.bool()], theirs[mask.bool()])
    options = {"attention_mask": mask, "max_new_tokens": 30, "do_sample": False, "eos_token_id": None}
    written = model.generate(ids, **options)
    assert torch.equal(written, peer.generate(ids, **options))
    assert torch.equal(written, model.generate(ids, **options, use_cache=False))


@pytest.mark.parametrize(("kind", "settings"), CASES)
def test_what_goes_in_and_out_again_is_the_same_to_the_last_bit(kind, settings, ours_of):
    peer = peer_of(kind, settings)
    back = make_twin(ours_of(peer), kind)
    assert type(back) is type(peer)
    assert back.state_dict().keys() == peer.state_dict().keys()
    assert all(torch.equal(tensor, peer.state_dict()[name]) for name, tensor in back.state_dict().items())
    assert back.config.to_dict() | {"dtype": None} == peer.config.to_dict() | {"dtype": None}


def test_a_tensor_that_both_store_alike_is_in_memory_once(ours_of):
    peer = peer_of("llama", TIED)
    model = ours_of(peer)
    twin = make_twin(model, "llama")
    places = [each.get_parameter("model.layers.1.mlp.up_proj.weight").data_ptr() for each in (peer, model, twin)]
    assert len(set(places)) == 1 and model.lm_head.weight is model.model.embed_tokens.weight


def test_angles_that_old_files_keep_are_passed_over():
    peer = peer_of("llama", {})
    old = peer.state_dict() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    assert from_stock(old, peer.config).keys() == from_stock(peer.state_dict(), peer.config).keys()


EXPERTS = {"num_local_experts": 4}
HALF = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            MixtralConfig(**SIZES, **EXPERTS),
            r"a mixtral model .* mixture of experts \(num_local_experts=4\); these",
        ),
        (Gemma2Config(**SIZES), r"a gemma2 model .* caps its scores softly \(attn_logit_softcapping=50\.0\)"),
        (SmolLM3Config(**SIZES | {"num_hidden_layers": 4}), r"a smollm3 model .* layers without positions"),
        (PhiConfig(**SIZES), r"a phi model .* a part of each head only \(partial_rotary_factor=0\.5\)"),
        (GPTNeoXConfig(**{k: v for k, v in SIZES.items() if "key" not in k}), r"a gpt_neox model .* part of each head"),
        (GraniteConfig(**SIZES, embedding_multiplier=12.0), r"scales its streams \(embedding_multiplier=12\.0\)"),
        (FalconConfig(vocab_size=211, parallel_attn=True), r"side by side \(parallel_attn=True\)"),
        (CohereConfig(**SIZES), r"a cohere model .* scales its streams \(logit_scale=0\.0625\)"),
        (GroundupConfig(), "it is a groundup model already"),
        (LlamaConfig(**SIZES, hidden_act="gelu"), r"llama model has hidden_act='gelu' where it has 'silu'"),
        (LlamaConfig(**SIZES, **HALF), r"partial_rotary_factor=0\.5: only whole heads turn"),
        (LlamaConfig(**SIZES, rope_parameters={**LINEAR, "rope_type": "dynamic"}), r"rope_type='dynamic': choose one"),
        (Qwen2Config(**SIZES, head_dim=20), r"head_dim=20 where its heads share the width"),
        (
            Qwen3Config(**SIZES, layer_types=["sliding_attention"] * 3),
            r"but sliding_window is None",
        ),
        (MistralConfig(**SIZES, sliding_window=1), r"sliding_window=1 must be at least 2"),
    ],
    ids=lambda value: getattr(value, "model_type", ""),
)
def test_what_cannot_be_held_exactly_is_refused_by_name(config, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        groundup_config(config)
