"""The flat way through a network of ours says what its own forward pass says, and serves nothing else."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from groundup.inference.decoding import FlatDecoder, ForwardDecoder, decoder_for
from groundup.inference.generation import Sampling, lay_out_for_decoding, stream_tokens
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.configuration_groundup import GPT2_KNOBS

SIZES = {"vocab_size": 199, "hidden_size": 48, "num_hidden_layers": 2, "max_position_embeddings": 64}
SIZES |= {"bos_token_id": 0, "eos_token_id": 0}
PROMPT = [7, 130, 12, 99, 5, 12, 99]
LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "factor": 2.0}
LONGROPE |= {"original_max_position_embeddings": 16}
KINDS = {
    "modern": {"num_attention_heads": 4, "head_dim": 16},
    "gpt2": {**GPT2_KNOBS, "num_attention_heads": 4},
    "grouped queries": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16},
    "one key head": {"num_attention_heads": 6, "num_key_value_heads": 1, "head_dim": 8, "qk_norm": False},
    "sliding window": {"num_attention_heads": 4, "sliding_window": 5, "num_key_value_heads": 2},
    "window on one layer": {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
    "llama": {"qk_norm": False, "num_attention_heads": 4},
    "arcee": {"qk_norm": False, "gated_mlp": False, "hidden_act": "relu2"},
    "biases everywhere": {"qkv_bias": True, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0}},
    "layer norm, rotary": {"norm": "layer_norm", "num_attention_heads": 4},
    "longrope": {"num_attention_heads": 3, "rope_parameters": LONGROPE},
}


def build(**knobs):
    """Return a tiny network with random weights everywhere, so that no two logits nearly tie."""
    torch.manual_seed(0)
    model = GroundupForCausalLM(GroundupConfig(**{**knobs, **SIZES, "zero_init": False}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


def written(model, count=40):
    return list(stream_tokens(model, PROMPT, Sampling(temperature=0, max_new_tokens=count, stop_ids=(-1,))))


def generated(model, count=40):
    prompt = torch.tensor([PROMPT])
    ids = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=count, eos_token_id=-1
    )
    return ids[0, len(PROMPT) :].tolist()


@pytest.mark.parametrize("laid_out", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_greedy_ids_are_those_of_generate(kind, laid_out):
    model = build(**KINDS[kind])
    expected = generated(model)
    assert isinstance(decoder_for(model, 64), ForwardDecoder if kind == "longrope" else FlatDecoder)
    if laid_out:
        lay_out_for_decoding(model)
    assert written(model) == expected and len(set(expected)) > 3


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_the_logits_are_those_of_the_forward_pass_for_any_choice_of_knobs(data):
    one_of = lambda *values: data.draw(st.sampled_from(values))  # noqa: E731
    groups, width = one_of(1, 2, 3), one_of(4, 8)
    norm, learned = one_of("rms_norm", "layer_norm"), one_of(True, False)
    knobs = {
        "num_key_value_heads": groups, "num_attention_heads": groups * one_of(1, 2, 4), "head_dim": width,
        "norm": norm, "position_embedding": "learned" if learned else "rotary", "qk_norm": one_of(True, False),
        "hidden_act": one_of("silu", "gelu_new", "relu2", "gelu"), "gated_mlp": one_of(True, False),
        "sliding_window": one_of(None, 2, 6), "tie_word_embeddings": one_of(True, False),
        **{bias: one_of(True, False) for bias in ("qkv_bias", "attention_bias", "mlp_bias")},
    }  # fmt: skip
    model, prompt, more = build(**knobs), PROMPT[: one_of(1, 3, 7)], [3, 44, 198, 44, 44, 7, 0, 9]
    with torch.inference_mode():
        decoder, cache = FlatDecoder(model, len(prompt) + len(more)), DynamicCache(config=model.config)
        for new in [prompt, *([token] for token in more)]:
            ours = decoder.start(new) if new is prompt else decoder.step(*new)
            theirs = model(torch.tensor([new]), past_key_values=cache).logits[0, -1]
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_weights_that_change_between_two_texts_are_seen():
    model = build(num_attention_heads=4)
    before = written(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    assert written(model) == generated(model) != before


def with_kernel(model):
    AttentionInterface.register("upside_down", lambda *a, **k: (-sdpa_attention_forward(*a, **k)[0], None))
    AttentionMaskInterface.register("upside_down", sdpa_mask)
    model.set_attn_implementation("upside_down")
    return model


class Colder(GroundupForCausalLM):
    """A network of someone's own."""

    def forward(self, *args, **kwargs):
        output = super().forward(*args, **kwargs)
        output.logits = -output.logits
        return output


def with_class(model):
    other = Colder(model.config).eval()
    other.load_state_dict(model.state_dict())
    return other


def with_bf16(model):
    return model.to(torch.bfloat16)


@pytest.mark.parametrize("change", [with_kernel, with_class, with_bf16])
def test_a_network_that_someone_changed_is_asked_itself(change):
    """As are those whose modules were changed (test_changed_modules.py)."""
    model = build(num_attention_heads=4)
    before = written(model)
    changed = change(model)
    assert isinstance(decoder_for(changed, 64), ForwardDecoder)
    assert written(changed) == generated(changed)
    assert change is with_bf16 or written(changed) != before
