"""groundup: a GPT from the ground up that is at home on the Hugging Face Hub.

Public names are imported when first used, so that `import groundup` costs nothing; the first one that needs the
network registers it with transformers' Auto classes.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "GroundupConfig": "groundup.modeling",
    "GroundupModel": "groundup.modeling",
    "GroundupForCausalLM": "groundup.modeling",
    "GroundupForSequenceClassification": "groundup.modeling",
    "GroundupForMaskedLM": "groundup.modeling",
    "train_tokenizer": "groundup.data.preparation",
    "prepare": "groundup.data.preparation",
    "pretrain": "groundup.training.pretraining",
    "classify": "groundup.training.classification",
    "instruct": "groundup.training.instruction",
    "evaluate": "groundup.evaluation.evaluating",
    "merge": "groundup.publishing.conversion",
    "import_model": "groundup.publishing.importing",
    "import_gpt2": "groundup.publishing.importing",
    "export": "groundup.publishing.conversion",
    "publish": "groundup.hub_upload",
}

__all__ = list(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'groundup' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
