"""The network. Importing this registers it with transformers' Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from .configuration_groundup import GroundupConfig
from .modeling_groundup import (
    GroundupForCausalLM,
    GroundupForMaskedLM,
    GroundupForSequenceClassification,
    GroundupModel,
    GroundupPreTrainedModel,
)

AutoConfig.register("groundup", GroundupConfig, exist_ok=True)
GroundupConfig.register_for_auto_class()
for auto_class, model_class in {
    AutoModel: GroundupModel,
    AutoModelForCausalLM: GroundupForCausalLM,
    AutoModelForMaskedLM: GroundupForMaskedLM,
    AutoModelForSequenceClassification: GroundupForSequenceClassification,
}.items():
    auto_class.register(GroundupConfig, model_class, exist_ok=True)
    model_class.register_for_auto_class(auto_class.__name__)  # its code travels with every saved checkpoint

__all__ = [
    "GroundupConfig",
    "GroundupForCausalLM",
    "GroundupForMaskedLM",
    "GroundupForSequenceClassification",
    "GroundupModel",
    "GroundupPreTrainedModel",
]
