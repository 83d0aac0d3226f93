"""A LoRA adapter's folder or Hub name -> its base with the adapter beside the weights, or folded into them."""

import warnings
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import SafetensorError
from torch import nn
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import GENERATION_CONFIG_NAME, cached_file, find_adapter_config_file

from groundup.common.errors import InputError, one_line, user_path
from groundup.common.files import METRICS_FILE, MODEL_WEIGHTS, OVERRIDES_FILE, TOKENIZER_FILE, sha256_of
from groundup.inference.kinds import ADAPTER_CLASSES, overrides_of, read_json
from groundup.tokenization.folder import load_tokenizer

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
    weights = file_of(source, SAFETENSORS_WEIGHTS_NAME)
    if weights is None:
        raise InputError(f"{source} has no {SAFETENSORS_WEIGHTS_NAME}: save the adapter again")
    own_kind = getattr(transformers, ADAPTER_CLASSES.get(settings.get("task_type"), ""), None)
    if own_kind is None or kind not in (None, own_kind):
        raise InputError(f"{source} is an adapter for {settings.get('task_type')}: give a model of another kind")
    _check_base(source, base)
    file_of(source, OVERRIDES_FILE)  # of one on the Hub it is fetched, to lie beside the weights
    return base, own_kind, overrides_of(weights.parent)


def attach(model: PreTrainedModel, source: str | Path, base: str, new: list[str]) -> PeftModel:
    """Put an adapter beside the weights of its base, in evaluation mode; `new` are modules without weights so far.

    Raises `InputError` where the adapter does not fit the base, or neither of them has the weights of a module.
    """
    tokens, embedding = len(tokenizer_of(source, base)), model.get_input_embeddings()
    if tokens > cast(nn.Embedding, embedding).num_embeddings:
        model.resize_token_embeddings(tokens, mean_resizing=False)
    try:
        adapted = _read_adapter(model, source)
    except SafetensorError as error:
        raise InputError(
            f"{SAFETENSORS_WEIGHTS_NAME} of {source} is truncated or not safetensors: download or save it again"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise InputError(f"the adapter {source} does not fit its base {base}: {one_line(error)}") from error
    brought = tuple(adapter_settings(source).get("modules_to_save") or ())
    if random := [name for name in new if not name.endswith(brought)]:
        raise InputError(f"neither the adapter {source} nor its base {base} has weights for {', '.join(random[:3])}: "
                         "give it a whole base, or train it again")  # fmt: skip
    if file_of(source, GENERATION_CONFIG_NAME) is not None:
        model.generation_config = GenerationConfig.from_pretrained(str(source))
    return adapted


def tokenizer_of(source: str | Path, base: str | None = None) -> PreTrainedTokenizerFast:
    """Return the tokenizer that came with an adapter, or its base's where it has none of its own."""
    if file_of(source, TOKENIZER_FILE) is not None:
        return load_tokenizer(source)
    return load_tokenizer(base or adapter_settings(source).get("base_model_name_or_path") or source)


def _read_adapter(model: PreTrainedModel, source: str | Path) -> PeftModel:
    """Return the model with an adapter beside its weights, in evaluation mode.

    Raises `ValueError` for an adapter whose file lacks some of its tensors: peft warns, and leaves them at their start.
    """
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adapted = PeftModel.from_pretrained(model, str(source)).eval()
    missing = next((str(one.message) for one in said if "missing adapter keys" in str(one.message)), None)
    if missing:
        raise ValueError(missing)
    return adapted


def _check_base(source: str | Path, base: str) -> None:
    """Raise `InputError` where the base has other weights than those that the adapter was trained on."""
    known = json_of(source, METRICS_FILE).get("training", {}).get(BASE_SHA256)
    weights = user_path(base) / MODEL_WEIGHTS
    if known and weights.is_file() and sha256_of(weights) != known:
        raise InputError(f"{base} does not have the weights that the adapter {source} was trained on")


def adapter_settings(source: str | Path) -> dict[str, Any]:
    """Return what adapter_config.json says. Raises `InputError` where there is none."""
    path = find_adapter_config_file(str(user_path(source)))
    if path is None:
        here = user_path(source).exists()
        why = "it has no adapter_config.json" if here else "there is no such folder, and none was found on the Hub"
        raise InputError(f"{source} is no adapter: {why}")
    return read_json(Path(path))


def fold(adapted: PeftModel) -> PreTrainedModel:
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
    """Return a file of an adapter's folder or repository, None where it has none of that name."""
    path = cached_file(
        str(user_path(source)),
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return None if path is None else Path(path)


def json_of(source: str | Path, name: str) -> dict[str, Any]:
    """Return what a JSON file of an adapter's folder or repository says; nothing where there is none."""
    path = file_of(source, name)
    return {} if path is None else read_json(path)
