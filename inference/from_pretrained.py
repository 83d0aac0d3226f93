"""Load a network by transformers' `from_pretrained`, with one clear line where that fails."""

import contextlib
import functools
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
)
from transformers.utils import logging

from groundup.common.checkpoint_files import CONFIG_FILE
from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.files import printable, user_path
from groundup.modeling import GroundupConfig

_ENCODER = "an encoder cannot write"  # words of our models' own error


# What transformers says at length, or not at all, in one line: (words of its message, our reason).
_REASONS = (
    ("contains custom code", "it brings code of its own: add --trust-remote-code if you trust whoever made it"),
    ("ignore_mismatched_sizes", "its weights have other shapes than its config.json says: save the model again"),
    ("for this kind of AutoModel", "it is a model of another kind: give {wanted}"),
    ("does not recognize this architecture", "transformers knows no such model_type: look into its config.json"),
    ("makes two models", "it is an encoder with a decoder: give {wanted}"),
    (_ENCODER, "it is an encoder, which sees the words that follow: give {wanted}"),
    ("couldn't connect", "there is no such folder, and the Hub cannot be reached"),
    ("is not a local folder", "there is no such folder, and on the Hub no such model that you may read"),
    ("deserializing header", "its file of weights is cut short, or none: fetch or save the model again"),
    ("no file named", "it has no model.safetensors: give a folder with the weights"),
)


_WANTED = {
    AutoModelForCausalLM: "a model that predicts the next token",
    AutoModelForSeq2SeqLM: "an encoder with a decoder",
    AutoModelForMaskedLM: "an encoder that predicts masked tokens",
    AutoModelForSequenceClassification: "a classifier, such as the folder that groundup classify wrote",
}


def load_network(
    source: str | Path, kind: Any, *, trust_remote_code: bool = False, new_head: bool = False, **config: Any
) -> PreTrainedModel:
    """What `load_model` loads, without a tokenizer; `new_head` allows missing weights, `config` changes its fields.

    Weights that are missing are drawn at random; `new_modules` says of the result where. Raises `InputError` as
    `load_model` does.
    """
    _check_folder(source)
    wanted = "a language model or an encoder" if new_head else _WANTED.get(kind, f"a whole {kind.__name__}")
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    try:
        with quiet_transformers():
            loaded: Any = kind.from_pretrained(
                str(source),
                dtype=torch.float32 if device.type == "cpu" else "auto",
                trust_remote_code=trust_remote_code,
                use_safetensors=True,  # a pickle can run code
                output_loading_info=True,
                **config,
            )
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise InputError(f"cannot load a language model from {source}: {_reason(error, wanted)}") from error
    model, info = loaded
    if kind is AutoModelForCausalLM and _sees_ahead(model):
        raise InputError(f"cannot load a language model from {source}: {_reason(ValueError(_ENCODER), wanted)}")
    if info["missing_keys"] and not new_head:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"{source} has no weights for {missing}: give {wanted}")
    model.new_weights = frozenset(info["missing_keys"])
    return model.to(device).eval()


def _sees_ahead(model: PreTrainedModel) -> bool:
    """Whether it is an encoder of transformers' that only its head makes a language model: it is built without a word.

    Our own refuse that themselves.
    """
    config: Any = model.config
    is_both = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not isinstance(config, GroundupConfig)
    return is_both and getattr(config, "is_decoder", None) is False


def new_modules(model: PreTrainedModel) -> list[str]:
    """The names of the modules for which `load_network` found no weights: a classifier's head, perhaps a pooler.

    A module that is new as a whole stands for all that lies in it.
    """
    missing = getattr(model, "new_weights", frozenset())
    names = set()
    for weight in missing:
        name = weight.rpartition(".")[0]
        while (parent := name.rpartition(".")[0]) and all(
            f"{parent}.{inner}" in missing for inner, _ in model.get_submodule(parent).named_parameters()
        ):
            name = parent
        names.add(name)
    return sorted(names)


def _check_folder(source: str | Path) -> None:
    """Raise `InputError` for a path that is clearly not a model's folder; a name with no folder may be on the Hub."""
    path = check_place(source)
    if path.is_dir() and not (path / CONFIG_FILE).is_file():
        raise InputError(f"{source} has no config.json: give the folder of a model, one that save_pretrained wrote")


def check_place(source: str | Path) -> Path:
    """The same where a folder may be that of an adapter, which has no config.json; returns where it lies."""
    path = user_path(source)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            raise InputError(f"{source} is a file for llama.cpp: give the folder of the model that it was made of")
        raise InputError(f"{source} is a file: give the folder of a model, the one with config.json")
    if path.is_dir():
        return path
    if path.is_absolute() or str(source).startswith((".", "~")) or len(path.parts) > 2:
        raise InputError(f"{source} does not exist: give the folder of a model or its name on the Hub (owner/name)")
    try:
        validate_repo_id(str(source))
    except HFValidationError as error:
        raise InputError(
            f"{printable(str(source))[:100]} does not exist and cannot be a name on the Hub: give the folder of a "
            "model or its name there (owner/name)"
        ) from error
    _say_where(str(source))
    return path


@functools.cache  # once for a name, however many of its files are asked for
def _say_where(source: str) -> None:
    say(f"there is no folder {source} here: looking for it on the Hub")


def _reason(error: Exception, wanted: str) -> str:
    """Why a model could not be loaded, in one line; `wanted` is what to give instead of a model of another kind."""
    message = str(error).strip() or type(error).__name__
    ours = [reason.format(wanted=wanted) for words, reason in _REASONS if words in message]
    return ours[0] if ours else " ".join(message.split("\n\n")[0].split())[:300]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without the libraries' reports, bars and warnings on the terminal: what matters is said as an error of ours."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with without_bars(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)


@contextlib.contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' bars over its files: ours shows how far the work is."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
