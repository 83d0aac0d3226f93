"""What a checkpoint's folder holds: a model for which task, an adapter to one, or a file for llama.cpp."""

import json
from pathlib import Path
from typing import Any

from groundup.common.errors import InputError

CONFIG_FILE, ADAPTER_FILE, OVERRIDES_FILE = "config.json", "adapter_config.json", "config_overrides.json"
MODEL_WEIGHTS, ADAPTER_WEIGHTS, GGUF_WEIGHTS = "model.safetensors", "adapter_model.safetensors", "model.gguf"
# The Auto class of a model, by how the name of its class ends.
AUTO_CLASSES = {
    "ForCausalLM": "AutoModelForCausalLM",
    "LMHeadModel": "AutoModelForCausalLM",
    "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
    "EncoderDecoderModel": "AutoModelForSeq2SeqLM",
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
    "Model": "AutoModel",
}
# The same by what peft calls the task of an adapter.
ADAPTER_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    None: "AutoModelForMaskedLM",
}
WRITERS = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


def auto_class_of(folder: Path) -> str:
    """The Auto class that loads the model, or the base of the adapter, in `folder` for what it was made for.

    Raises `InputError` where the config is missing or names no class that is known.
    """
    if (folder / ADAPTER_FILE).is_file():
        task = read_json(folder / ADAPTER_FILE).get("task_type")
        if isinstance(task, str | None) and task in ADAPTER_CLASSES:
            return ADAPTER_CLASSES[task]
        raise InputError(f"{ADAPTER_FILE} has task_type {task!r}: known are {', '.join(map(str, ADAPTER_CLASSES))}")
    names = read_json(folder / CONFIG_FILE).get("architectures")
    name = str(names[0]) if isinstance(names, list) and names else ""
    for end, auto_class in AUTO_CLASSES.items():
        if name.endswith(end):
            return auto_class
    raise InputError(f"{CONFIG_FILE} has architectures {names!r}, which names no known class: save the model again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that must hold a mapping. Raises `InputError` when it does not."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path.name} is missing or no mapping in JSON: save the model again")
    return values


def overrides_of(adapter: Path) -> dict[str, Any]:
    """What the base of an adapter must be told when it is loaded (labels, pooling); empty for most."""
    return read_json(adapter / OVERRIDES_FILE) if (adapter / OVERRIDES_FILE).is_file() else {}
