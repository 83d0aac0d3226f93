"""Tell what a checkpoint's folder holds: a model for which task, an adapter to one, or a file for llama.cpp."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from groundup.common.errors import InputError, user_path
from groundup.common.files import ADAPTER_FILE, ADAPTER_WEIGHTS, CONFIG_FILE, OVERRIDES_FILE

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
# What a model is that has no next token to predict: with shared weights it might load as one that has, and lie.
_OTHERS = {
    "AutoModelForMaskedLM": "an encoder, which sees the words that follow",
    "AutoModelForSequenceClassification": "a classifier",
    "AutoModelForTokenClassification": "a classifier of words",
    "AutoModelForQuestionAnswering": "a finder of answers",
}
_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")  # the last layer of a classifier
WRITERS = ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")


def auto_class_of(folder: Path) -> str:
    """Return the Auto class that loads the model, or the base of the adapter, in `folder`.

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


def require_next_token(source: str) -> None:
    """Raise `InputError` for a folder whose config names a model of another kind than one that goes on with a text."""
    folder = user_path(source)
    try:
        is_pair = (folder / CONFIG_FILE).is_file() and read_json(folder / CONFIG_FILE).get("is_encoder_decoder")
        kind = "an encoder with a decoder" if is_pair else _OTHERS.get(auto_class_of(folder))
    except InputError:  # a name on the Hub, or a folder that only loading can judge
        return
    if kind is not None:
        raise InputError(
            f"{source} is {kind}, and evaluate measures models that predict the next token of a text: "
            "docs/howto/evaluate.md says how to measure the others"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that must hold a mapping. Raises `InputError` when it does not."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InputError(f"{path.name} is missing or no mapping in JSON: save the model again")
    return values


def overrides_of(adapter: Path) -> dict[str, Any]:
    """Return what the base of an adapter must be told when it is loaded (labels, pooling); empty for most.

    Of a classifier's adapter that peft alone wrote it is the number of labels, by the shape of the head in it.
    """
    if (adapter / OVERRIDES_FILE).is_file():
        told = read_json(adapter / OVERRIDES_FILE)
        if isinstance(
            names := told.get("id2label"), dict
        ):  # JSON has no numbers for keys, and a config keeps what it gets
            told["id2label"] = {int(number): name for number, name in names.items() if str(number).isdigit()}
        return told
    weights = adapter / ADAPTER_WEIGHTS
    if read_json(adapter / ADAPTER_FILE).get("task_type") not in ("SEQ_CLS", "TOKEN_CLS") or not weights.is_file():
        return {}
    try:
        with safe_open(weights, "pt") as tensors:
            heads = [name for name in tensors.keys() if name.endswith(_HEADS)]  # noqa: SIM118
            return {"num_labels": tensors.get_slice(heads[0]).get_shape()[0]} if heads else {}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{ADAPTER_WEIGHTS} of {adapter} is no whole safetensors file: save the adapter again"
        ) from error
