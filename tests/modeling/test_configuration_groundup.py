"""A config says what is wrong with it when it is made: the field, the value and what would do."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoConfig
from transformers.modeling_rope_utils import RopeParameters

from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.modeling.configuration_groundup import PRESETS

NUMBERS = [
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "sliding_window",
]  # fmt: skip
FLAGS = [
    "qk_norm", "gated_mlp", "qkv_bias", "attention_bias", "mlp_bias", "tie_word_embeddings", "is_causal",
    "add_cross_attention", "is_encoder_decoder", "zero_init", "use_cache",
]  # fmt: skip
SHARES = ["embedding_dropout", "attention_dropout", "residual_dropout", "classifier_dropout"]
NAMES = ["position_embedding", "norm", "hidden_act", "classifier_pooling"]
TOKENS = ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"]
ROPE = {"rope_type": "default", "rope_theta": 1e4}


def refusal(**wrong):
    with pytest.raises((StrictDataclassError, ValueError)) as error:
        GroundupConfig(**wrong)
    return str(error.value)


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", [8], float("nan")])
def test_a_size_is_a_whole_number_above_zero(field, value):
    assert field in refusal(**{field: value})


@pytest.mark.parametrize("field", FLAGS)
@pytest.mark.parametrize("value", [0, 1, "yes", None])
def test_a_flag_is_true_or_false(field, value):
    assert field in refusal(**{field: value})


@pytest.mark.parametrize("field", SHARES)
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, True, "0.1", None, float("nan")])
def test_a_dropout_is_a_share(field, value):
    assert field in refusal(**{field: value})


@pytest.mark.parametrize("field", ["norm_eps", "initializer_range"])
@pytest.mark.parametrize("value", [0, -1e-6, True, "1e-5", None, float("nan"), float("inf")])
def test_a_spread_is_above_zero_and_finite(field, value):
    assert field in refusal(**{field: value})


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("value", ["swishy", 1, None, True])
def test_a_choice_is_one_of_its_names(field, value):
    assert field in refusal(**{field: value})


@pytest.mark.parametrize("field", TOKENS)
@pytest.mark.parametrize("value", [-1, 4096, 1.5, True, "end"])
def test_a_special_token_lies_in_the_vocabulary(field, value):
    assert field in refusal(**{field: value})


def test_one_of_several_ends_of_text_outside_the_vocabulary_is_found():
    assert "eos_token_id=[1, 5000]" in refusal(eos_token_id=[1, 5000])


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"hidden_size": 50, "num_attention_heads": 4}, "hidden_size=50 does not divide by num_attention_heads=4"),
        ({"num_attention_heads": 6, "num_key_value_heads": 4}, "num_key_value_heads=4: choose a divisor"),
        ({"num_key_value_heads": 12}, "num_attention_heads=6 does not divide by num_key_value_heads=12"),
        ({"hidden_size": 27, "num_attention_heads": 9}, "head_dim=3 must be even"),
        ({"hidden_size": 63}, "head_dim=63 must be even"),
        ({"head_dim": 15}, "head_dim=15 must be even"),
        ({"hidden_act": "swishy"}, "hidden_act='swishy' is unknown: try silu"),
        ({"position_embedding": "learned", "rope_parameters": ROPE}, "rope_parameters with position_embedding"),
        ({"position_embedding": "learned", "rope_theta": 1e5}, "rope_parameters with position_embedding"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"layer_types": ["round_attention"] * 6}, "layer_types"),
        ({"layer_types": ["sliding_attention"] * 6}, "sliding_window is None: set it, in tokens"),
        ({"sliding_window": 1}, "sliding_window=1 must be at least 2"),
        ({"sliding_window": 4, "is_causal": False}, "sliding_window needs is_causal=True"),
        ({"sliding_window": 4, "add_cross_attention": True}, "sliding_window does not go with cross-attention"),
        ({"is_encoder_decoder": True}, "needs decoder_start_token_id"),
        ({"is_encoder_decoder": True, "decoder_start_token_id": 0, "is_causal": False}, "is_causal=False with"),
        ({"rope_parameters": ROPE | {"rope_type": "spiral"}}, "rope_type='spiral': choose one of default, linear"),
        ({"rope_parameters": ROPE | {"rope_type": "dynamic", "factor": 2.0}}, "rope_type='dynamic'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type='yarn' needs factor"),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "needs high_freq_factor and low_freq_factor"),
        ({"rope_parameters": {"rope_type": "linear", "factor": -2}}, "factor=-2: it must be a number, at least 1"),
        ({"rope_parameters": {"rope_theta": 0}}, "rope_theta=0"),
        ({"rope_parameters": {"rope_theta": "big"}}, "rope_theta='big'"),
        ({"rope_parameters": {"theta": 3}}, "['theta']: choose from"),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": "default"}, "rope_parameters"),
    ],
)
def test_what_cannot_work_together_is_refused_with_what_would_do(wrong, words):
    assert words in refusal(**wrong)


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
ANYTHING = st.sampled_from(
    [
        None,
        True,
        "2",
        0,
        -1,
        0.5,
        1,
        2,
        8.0,
        float("nan"),
        float("inf"),
        [],
        [1.0] * 8,
        [1] * 7,
        [0.0] * 8,
        ["a"] * 8,
        {},
    ]
)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"long_factor": [2.0] * 7}, "long_factor with 7 factors: give a list of head_dim / 2 = 8 numbers"),
        ({"short_factor": 1.0}, "short_factor with 1.0: give a list of head_dim / 2 = 8 numbers"),
        ({"short_factor": [1.0] * 7 + ["1"]}, "a short_factor='1': it must be a number, above 0"),
        ({"long_factor": [1.0] * 7 + [float("nan")]}, "a long_factor=nan"),
        ({"long_factor": None}, "rope_type='longrope' needs long_factor"),
        ({"attention_factor": -1}, "attention_factor=-1: it must be a number, above 0"),
        ({"original_max_position_embeddings": "32"}, "original_max_position_embeddings='32'"),
        ({"rope_type": ["longrope"]}, "rope_type=['longrope']: choose one of"),
    ],
)
def test_malformed_scalings_of_the_angles_are_refused_with_what_would_do(wrong, words):
    assert words in refusal(head_dim=16, rope_parameters=LONGROPE | wrong)


@settings(deadline=None, max_examples=150)
@example(kind="linear", rest={"partial_rotary_factor": None})
@given(
    kind=st.sampled_from(["default", "linear", "yarn", "llama3", "longrope", "dynamic", None]),
    rest=st.dictionaries(st.sampled_from([*RopeParameters.__annotations__, "zork", 5]), ANYTHING, max_size=5),
)
def test_whatever_the_rotary_settings_a_config_is_refused_or_its_model_runs(kind, rest):
    needed = {"factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **LONGROPE}
    try:
        rope = {**needed, "rope_theta": 1e4, "rope_type": kind, **rest}
        config = GroundupConfig(vocab_size=9, hidden_size=32, num_hidden_layers=1, head_dim=16, rope_parameters=rope)
    except (StrictDataclassError, ValueError) as error:
        assert "rope_parameters" in str(error)
        return
    with torch.no_grad():
        assert GroundupForCausalLM(config)(torch.zeros(1, 40, dtype=torch.long)).logits.isfinite().all()


def test_a_field_changed_later_is_looked_at_when_the_model_is_made():
    config = GroundupConfig()
    config.num_key_value_heads = 4
    with pytest.raises((StrictDataclassError, ValueError), match="num_key_value_heads=4"):
        GroundupForCausalLM(config)


def test_a_size_overridden_while_loading_is_looked_at_too(build, tmp_path):
    build().save_pretrained(tmp_path)
    with pytest.raises((StrictDataclassError, ValueError), match="layer_types"):
        GroundupForCausalLM.from_pretrained(tmp_path, num_hidden_layers=3)


def test_a_wrong_value_in_a_saved_config_is_refused(tmp_path):
    GroundupConfig().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(values | {"hidden_size": "wide"}))
    with pytest.raises((StrictDataclassError, ValueError), match="hidden_size"):
        AutoConfig.from_pretrained(tmp_path)


def test_sizes_that_are_not_given_follow_from_those_that_are():
    config = GroundupConfig(hidden_size=256)
    assert (config.num_attention_heads, config.num_key_value_heads, config.head_dim) == (4, 4, 64)
    assert config.intermediate_size == 704  # 8/3 of the width, rounded up to a multiple of 64
    assert GroundupConfig(hidden_size=256, gated_mlp=False).intermediate_size == 1024
    assert GroundupConfig(hidden_size=40).num_attention_heads == 1
    assert GroundupConfig(hidden_size=256, head_dim=32).num_attention_heads == 8
    assert GroundupConfig(hidden_size=50, num_attention_heads=4, head_dim=12).head_dim == 12
    assert GroundupConfig(sliding_window=8).layer_types == ["sliding_attention"] * 6


def test_gpt2s_names_and_ours_mean_the_same_field():
    config = GroundupConfig(n_embd=64, n_layer=3, n_head=2, n_positions=128)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 2)
    assert (config.head_dim, config.num_key_value_heads, len(config.layer_types)) == (32, 2, 3)
    assert config.n_positions == config.max_position_embeddings == 128


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_saving(name, tmp_path):
    config = GroundupConfig.preset(name)
    config.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert GroundupConfig.preset(name, hidden_size=128, num_attention_heads=2).hidden_size == 128


def test_an_unknown_preset_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match="unknown preset 'gpt3': choose one of gpt2, gpt2-medium"):
        GroundupConfig.preset("gpt3")
