"""Our networks for transformers' own model tests; `test_common_suite` lays this file into the package of those tests.

Each class below is one configuration. A test of theirs that does not apply is skipped here, with the reason beside it.
"""

# ruff: noqa: RUF012 -- their test classes are set up by class attributes

import unittest

import torch
from transformers.models.auto import modeling_auto

from groundup.modeling import (
    GroundupConfig,
    GroundupForCausalLM,
    GroundupForConditionalGeneration,
    GroundupForMaskedLM,
    GroundupForQuestionAnswering,
    GroundupForSequenceClassification,
    GroundupForTokenClassification,
    GroundupModel,
)
from groundup.modeling.configuration_groundup import GPT2_KNOBS

from .generation.test_utils import GenerationTesterMixin
from .test_configuration_common import ConfigTester
from .test_modeling_common import ModelTesterMixin, ids_tensor, random_attention_mask
from .test_training_mixin import TrainingTesterMixin

# By these lists the tests know which labels a class wants.
for names, model_class in {
    "MODEL_MAPPING_NAMES": GroundupModel,
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": GroundupForCausalLM,
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": GroundupForMaskedLM,
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": GroundupForSequenceClassification,
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": GroundupForTokenClassification,
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": GroundupForQuestionAnswering,
    "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES": GroundupForConditionalGeneration,
}.items():
    getattr(modeling_auto, names)["groundup"] = model_class.__name__

CLASSIFIERS = (GroundupForSequenceClassification, GroundupForTokenClassification, GroundupForQuestionAnswering)
DECODERS = (GroundupModel, GroundupForCausalLM, *CLASSIFIERS)
SIZES = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "zero_init": False, "embedding_dropout": 0.0, "attention_dropout": 0.0,
    "residual_dropout": 0.0, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


class Tester:
    """What their tests ask for: a config, inputs, and the sizes by name."""

    batch_size, seq_length, is_training = 3, 7, True
    config_class, base_model_class, causal_lm_class = GroundupConfig, GroundupModel, GroundupForCausalLM

    def __init__(self, parent):
        self.parent, self.fields = parent, {**parent.knobs, **SIZES}
        vars(self).update(self.fields)

    def get_config(self):
        return GroundupConfig(**self.fields)

    def rows(self):
        return ids_tensor([self.batch_size, self.seq_length], self.vocab_size - 3) + 3

    def mask(self):
        return random_attention_mask([self.batch_size, self.seq_length])

    def prepare_config_and_inputs_for_common(self):
        inputs = {"input_ids": self.rows(), "attention_mask": self.mask(), **self.parent.more_inputs(self)}
        return self.get_config(), inputs


class Common(ModelTesterMixin):
    test_can_init_all_missing_weights_before_2023 = True  # ours is no model of before 2023: this turns that test on
    knobs = {}
    skips = {}
    ours_too = {
        "test_model_rope_scaling_from_config": "gives rows longer than the model's positions: an error by design",
    }

    def setUp(self):
        for name, reason in {**Common.ours_too, **self.skips}.items():
            if self._testMethodName.startswith(name):
                self.skipTest(f"groundup: {reason}")
        self.model_tester = Tester(self)

    def more_inputs(self, tester):
        return {}

    def test_config(self):
        sizes = {"hidden_size": 32, "num_attention_heads": 4}
        ConfigTester(self, config_class=GroundupConfig, **{**self.knobs, **sizes}).run_common_tests()


class Gpt2StyleTest(Common, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase):
    knobs = {name: value for name, value in GPT2_KNOBS.items() if name not in SIZES}
    all_model_classes = DECODERS
    skips = {"test_model_rope_with_partial_rotation": "learned positions leave rope_parameters None"}


class ModernTest(Common, GenerationTesterMixin, TrainingTesterMixin, unittest.TestCase):
    knobs = {"num_key_value_heads": 2}
    all_model_classes = DECODERS


class SlidingWindowTest(Common, GenerationTesterMixin, unittest.TestCase):
    knobs = {"sliding_window": 4}
    all_model_classes = DECODERS


class EncoderTest(Common, unittest.TestCase):
    knobs = {"is_causal": False, "num_key_value_heads": 2}
    all_model_classes = (GroundupModel, GroundupForMaskedLM, *CLASSIFIERS)


class CrossAttentionTest(Common, GenerationTesterMixin, unittest.TestCase):
    knobs = {"add_cross_attention": True}
    all_model_classes = (GroundupModel, GroundupForCausalLM)

    def more_inputs(self, tester):
        encoded = torch.rand(tester.batch_size, tester.seq_length, tester.hidden_size)
        return {"encoder_hidden_states": encoded, "encoder_attention_mask": tester.mask()}


class EncoderDecoderTest(Common, GenerationTesterMixin, unittest.TestCase):
    knobs = {"is_encoder_decoder": True, "decoder_start_token_id": 1}
    all_model_classes = (GroundupForConditionalGeneration,)
    is_encoder_decoder = True
    skips = {
        "test_model_base_model_prefix": "two base models, none of which is the base",
        "test_base_model_prefix_loads_base_weights": "two base models, none of which is the base",
    }

    def more_inputs(self, tester):
        return {"decoder_input_ids": tester.rows()}
