"""The network. Importing this registers it with transformers' Auto classes."""

import transformers
from transformers import AutoConfig

from .configuration_groundup import GroundupConfig
from .modeling_groundup import (
    GroundupForCausalLM,
    GroundupForConditionalGeneration,
    GroundupForMaskedLM,
    GroundupForQuestionAnswering,
    GroundupForSequenceClassification,
    GroundupForTokenClassification,
    GroundupModel,
    GroundupPreTrainedModel,
)

AutoConfig.register("groundup", GroundupConfig, exist_ok=True)
GroundupConfig.register_for_auto_class()
for auto_name, place in GroundupConfig.code_map.items():
    if auto_name != "AutoConfig":
        model_class = globals()[place.split(".")[1]]
        getattr(transformers, auto_name).register(GroundupConfig, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_name)  # its code travels with every saved checkpoint

__all__ = [
    "GroundupConfig",
    "GroundupForCausalLM",
    "GroundupForConditionalGeneration",
    "GroundupForMaskedLM",
    "GroundupForQuestionAnswering",
    "GroundupForSequenceClassification",
    "GroundupForTokenClassification",
    "GroundupModel",
    "GroundupPreTrainedModel",
]
