"""Tell what a model's folder holds: a model for which task, an adapter to one and its base, or a file for llama.cpp."""

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import transformers
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import cached_file, find_adapter_config_file

from groundup.common.errors import InputError, one_line, user_path
from groundup.common.files import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CONFIG_FILE,
    GENERATION_FILE,
    METRICS_FILE,
    MODEL_WEIGHTS,
    OVERRIDES_FILE,
    TOKENIZER_FILE,
    sha256_of,
)
from groundup.tokenization.folder import load_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel  # takes a while to import

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
    """Raise `InputError` for a folder whose config names a model that does not predict the next token."""
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
        names = told.get("id2label")
        if isinstance(names, dict):  # JSON has no numbers for keys, and a config keeps what it gets
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
            f"{ADAPTER_WEIGHTS} of {adapter} is not a complete safetensors file: save the adapter again"
        ) from error


BASE_SHA256 = "base_weights_sha256"  # among what metrics.json says of the training


def what_to_load(source: str | Path, base: str | None, kind: Any) -> tuple[str, Any, dict[str, Any]]:
    """Return the name of an adapter's base, the Auto class to load it by, and the fields of its config to change.

    `base` and `kind` are as in `load_adapter`. Raises `InputError` for an adapter that is not whole, is for another
    kind of model, or was trained on another base.
    """
    settings = adapter_settings(source)
    base = base or settings.get("base_model_name_or_path")
    if not base:
        raise InputError(f"{source} names no base: give the model that it was trained on with --base of groundup merge")
    weights = file_of(source, ADAPTER_WEIGHTS)
    if weights is None:
        raise InputError(f"{source} has no {ADAPTER_WEIGHTS}: save the adapter again")
    own_kind = getattr(transformers, ADAPTER_CLASSES.get(settings.get("task_type"), ""), None)
    if own_kind is None or kind not in (None, own_kind):
        raise InputError(f"{source} is an adapter for {settings.get('task_type')}: give a model of another kind")
    if (known := file_of(source, METRICS_FILE)) is not None:
        trained_on, there = read_json(known).get("training", {}).get(BASE_SHA256), user_path(base) / MODEL_WEIGHTS
        if trained_on and there.is_file() and sha256_of(there) != trained_on:
            raise InputError(f"{base} does not have the weights that the adapter {source} was trained on")
    file_of(source, OVERRIDES_FILE)  # of one on the Hub it is fetched, to lie beside the weights
    return base, own_kind, overrides_of(weights.parent)


def attach(model: PreTrainedModel, source: str | Path, base: str, new: list[str]) -> "PeftModel":
    """Put an adapter beside the weights of its base, in evaluation mode; `new` are modules without weights so far.

    Raises `InputError` where the adapter does not fit the base, or neither of them has the weights of a module.
    """
    from peft import PeftModel

    tokens, embedding = len(tokenizer_of(source, base)), model.get_input_embeddings()
    if tokens > cast(nn.Embedding, embedding).num_embeddings:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(model, str(source)).eval()
        # Where the file lacks some of the tensors peft warns, and leaves them at their start.
        if missing := [one.message for one in said if "missing adapter keys" in str(one.message)]:
            raise ValueError(missing[0])
    except SafetensorError as error:
        raise InputError(
            f"{ADAPTER_WEIGHTS} of {source} is truncated or not safetensors: download or save it again"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"the adapter {source} does not fit its base {base}: {one_line(error)}") from error
    brought = tuple(adapter_settings(source).get("modules_to_save") or ())
    if random := [name for name in new if not name.endswith(brought)]:
        raise InputError(f"neither the adapter {source} nor its base {base} has weights for {', '.join(random[:3])}: "
                         "give a complete base model, or train it again")  # fmt: skip
    if file_of(source, GENERATION_FILE) is not None:
        model.generation_config = GenerationConfig.from_pretrained(str(source))
    return adapted


def tokenizer_of(source: str | Path, base: str | None = None) -> PreTrainedTokenizerFast:
    """Return the tokenizer that came with an adapter, or its base's where it has none of its own."""
    if file_of(source, TOKENIZER_FILE) is not None:
        return load_tokenizer(source)
    return load_tokenizer(base or adapter_settings(source).get("base_model_name_or_path") or source)


def adapter_settings(source: str | Path) -> dict[str, Any]:
    """Return what adapter_config.json says. Raises `InputError` where there is none."""
    path = find_adapter_config_file(str(user_path(source)))
    if path is None:
        here = user_path(source).exists()
        why = "it has no adapter_config.json" if here else "there is no such folder, and none was found on the Hub"
        raise InputError(f"{source} is no adapter: {why}")
    return read_json(Path(path))


def fold(adapted: "PeftModel") -> PreTrainedModel:
    """Add the adapter to the weights of its base, in place, and return a model like any other with the same logits.

    Where embedding and head share their weights and the adapter sets them apart, they become two: merged while they are
    one, each would get the other's part as well.
    """
    model = cast(PreTrainedModel, adapted.get_base_model())
    embedding, head = _plain(model.get_input_embeddings()), _plain(model.get_output_embeddings())
    were_one = head is not None and head.weight is embedding.weight
    if were_one:
        head.weight = nn.Parameter(head.weight.detach().clone())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that they are two now
        model = cast(PreTrainedModel, adapted.merge_and_unload())
    embedding, head = _plain(model.get_input_embeddings()), _plain(model.get_output_embeddings())
    if were_one and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    if head is not None:
        model.config.tie_word_embeddings = head.weight is embedding.weight
    model.name_or_path = ""  # no more the base's: another adapter must not name it
    return model.requires_grad_(True).eval()  # peft froze it, and it is a model like any other now


def _plain(layer: Any) -> Any:
    """Return the layer of the base that peft wrapped."""
    while True:
        inner = getattr(layer, "base_layer", None) or getattr(layer, "original_module", None)
        if inner is None:
            return layer
        layer = inner


def file_of(source: str | Path, name: str) -> Path | None:
    """Return a file of a folder or of a repository on the Hub, None where it has none of that name."""
    missing = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    path = cached_file(str(user_path(source)), name, **missing)
    return None if path is None else Path(path)
