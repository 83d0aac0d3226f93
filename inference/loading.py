"""Load a model and its tokenizer from a folder or a name on the Hub, ask it for what it can do, and save it.

Every failure is an error of one line.
"""

import contextlib
import functools
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from torch import nn
from transformers import (
    MODEL_FOR_MASKED_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import CONFIG_NAME, find_adapter_config_file, logging

from groundup.common.errors import InputError, printable, user_path
from groundup.modeling import GroundupConfig
from groundup.tokenization.folder import load_tokenizer, save_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel

DEFAULT_CONTEXT = 1024  # tokens, for a model whose config names no limit
_ENCODER = "an encoder cannot write"  # words of our models' own error
# What transformers says at length, or not at all, in one line: (words of its message, our reason).
_REASONS = (
    ("contains custom code", "it brings code of its own: add --trust-remote-code if you trust whoever made it"),
    ("ignore_mismatched_sizes", "its weights have other shapes than its config.json says: save the model again"),
    ("for this kind of AutoModel", "it is a model of another kind: give {wanted}"),
    ("does not recognize this architecture", "transformers does not know its model_type: check its config.json"),
    ("makes two models", "it is an encoder with a decoder: give {wanted}"),
    (_ENCODER, "it is an encoder, which sees the tokens that follow: give {wanted}"),
    ("couldn't connect", "there is no such folder, and the Hub cannot be reached"),
    ("is not a local folder", "there is no such folder, and the Hub has no such model that you may read"),
    ("deserializing header", "its weights file is truncated or not safetensors: download or save the model again"),
    ("no file named", "it has no model.safetensors: give a folder with the weights"),
)
_WANTED = {
    AutoModelForCausalLM: "a model that predicts the next token",
    AutoModelForSeq2SeqLM: "an encoder with a decoder",
    AutoModelForMaskedLM: "an encoder that predicts masked tokens",
    AutoModelForSequenceClassification: "a classifier, such as the folder that groundup classify wrote",
}


def load_model(
    source: str | Path, *, trust_remote_code: bool = False, kind: Any = AutoModelForCausalLM
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load any causal language model and its tokenizer, in evaluation mode, on the accelerator where there is one.

    `kind` is the Auto class to load it by; another one loads a model of another kind. A LoRA adapter is folded into its
    base.

    On a CPU the weights are fp32 whatever was stored, elsewhere as stored. Code that comes with the model runs only
    with `trust_remote_code`; our own models never need theirs. Raises `InputError`, in one sentence, for a source that
    is missing, not whole, or no causal language model.
    """
    if is_adapter(source):
        from groundup.inference.folder import fold, tokenizer_of

        model = fold(load_adapter(source, trust_remote_code=trust_remote_code, kind=kind))
        return model, tokenizer_of(source)
    return load_network(source, kind, trust_remote_code=trust_remote_code), load_tokenizer(source)


def load_writer(
    source: str | Path, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Load a model that writes text, as `load_model` does: a decoder, or an encoder with a decoder."""
    path, is_pair = str(check_place(source)), False
    # Names nothing that can be read, or holds no names and values: `load_model` says what is wrong.
    with contextlib.suppress(OSError, ValueError, AttributeError):
        if adapter := find_adapter_config_file(path):
            is_pair = json.loads(Path(adapter).read_text(encoding="utf-8")).get("task_type") == "SEQ_2_SEQ_LM"
        else:
            is_pair = bool(PreTrainedConfig.get_config_dict(path)[0].get("is_encoder_decoder"))
    kind = AutoModelForSeq2SeqLM if is_pair else AutoModelForCausalLM
    return load_model(source, trust_remote_code=trust_remote_code, kind=kind)


def load_network(
    source: str | Path, kind: Any, *, trust_remote_code: bool = False, new_head: bool = False, **config: Any
) -> PreTrainedModel:
    """Load a model as `load_model` does, without a tokenizer; `config` changes its fields, `new_head` may lack weights.

    Weights that are missing are drawn at random; `new_modules` says of the result where. Raises `InputError` as
    `load_model` does.
    """
    path = check_place(source)
    if path.is_dir() and not (path / CONFIG_NAME).is_file():
        raise InputError(f"{source} has no config.json: give the folder of a model, one that save_pretrained wrote")
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
    # An encoder of transformers that its head alone makes a language model loads in silence; our own refuse it.
    is_both = type(model.config) in MODEL_FOR_MASKED_LM_MAPPING and not isinstance(model.config, GroundupConfig)
    sees_ahead = is_both and getattr(model.config, "is_decoder", None) is False
    if kind is AutoModelForCausalLM and sees_ahead:
        raise InputError(f"cannot load a language model from {source}: {_reason(ValueError(_ENCODER), wanted)}")
    if info["missing_keys"] and not new_head:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise InputError(f"{source} has no weights for {missing}: give {wanted}")
    model.new_weights = frozenset(info["missing_keys"])
    return model.to(device).eval()


def load_adapter(
    source: str | Path, *, base: str | None = None, trust_remote_code: bool = False, kind: Any = None
) -> "PeftModel":
    """Load the base of an adapter and put the adapter beside its weights, in evaluation mode.

    Args:
        source: a folder or a Hub name that has adapter_config.json.
        base: where the base is, if not where the adapter says.
        trust_remote_code: run code that comes with the base.
        kind: the Auto class of the kind of model that is wanted; by default any will do.

    Raises:
        InputError: in one sentence, where adapter or base are missing, do not belong together, or lack weights.
    """
    from groundup.inference import folder  # not needed where a model alone writes text

    check_place(source)
    base, own_kind, overrides = folder.what_to_load(source, base, kind)
    try:
        model = load_network(base, own_kind, trust_remote_code=trust_remote_code, new_head=True, **overrides)
    except InputError as error:
        raise InputError(f"the adapter {source} needs its base; {error}") from error
    with quiet_transformers():
        return folder.attach(model, source, base, new_modules(model))


def is_adapter(source: str | Path) -> bool:
    """Return whether a folder or a Hub name holds a LoRA adapter. Raises `InputError` for what can be neither."""
    return find_adapter_config_file(str(check_place(source))) is not None


def stored_dtype(source: str | Path) -> torch.dtype | None:
    """Return the dtype of a model's weights as they are stored; None where that is not said, and for an adapter.

    Rounded to the dtype of its base, the sum of the two would lose most of what the adapter says.
    """
    if is_adapter(source):
        return None
    stored: Any = AutoConfig.from_pretrained(str(user_path(source))).dtype
    return stored


def new_modules(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules for which `load_network` found no weights: a classifier's head, perhaps a pooler.

    A module that is new as a whole is named instead of its parts.
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


def check_place(source: str | Path) -> Path:
    """Return where a model or an adapter lies. Raises `InputError` for a path or a name that can be neither."""
    path = user_path(source)
    if path.is_file():
        if path.suffix.lower() == ".gguf":
            raise InputError(
                f"{source} is a GGUF file: give the folder of the model, or make one of it by groundup import"
            )
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
    from groundup.common.console import say  # rich, which nothing else here needs

    say(f"there is no folder {source} here: looking for it on the Hub")


def _reason(error: Exception, wanted: str) -> str:
    """Return why a model could not be loaded, in one line; `wanted` says what to give instead of another kind."""
    message = str(error).strip() or type(error).__name__
    ours = [reason.format(wanted=wanted) for words, reason in _REASONS if words in message]
    return ours[0] if ours else " ".join(message.split("\n\n")[0].split())[:300]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep the libraries' reports, bars and warnings off the terminal: what matters becomes an error of ours."""
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
    """Switch off transformers' bars over its files: ours shows how far the work is."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def context_of(model: PreTrainedModel) -> int:
    """Return the number of positions that a model was made for (tokens): 1,024 where its config names none."""
    return stated_context(model) or DEFAULT_CONTEXT


def stated_context(model: PreTrainedModel) -> int | None:
    """Return the number of positions that a model's config names (tokens), None where it names none."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(limit := getattr(config, name, None), int) and limit > 0:
            return limit
    return None


def require_known(model: PreTrainedModel, largest: int) -> None:
    """Raise `InputError` where a model has no embedding for an id that is to be read."""
    known = model.config.get_text_config().vocab_size
    if largest >= known:
        raise InputError(
            f"the tokenizer gives the text a token {largest}, and the model has only the ids 0 to {known - 1:,}: "
            "put the model's own tokenizer into its folder"
        )


def device_of(model: PreTrainedModel) -> torch.device:
    """Return where a model takes its ids: on the CPU where its weights lie on the disk until they are called."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside, and afterwards put every module back into the mode it was in."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True


@torch.no_grad()
def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """Return the output embeddings if their weight times the last hidden states gives the logits: tried on a few ids.

    None for a head with a bias or an adapter, and for a model that scales or caps its logits.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    ids = torch.arange(min(8, context_of(model)), device=device_of(model))[None]  # (1, T)
    with evaluating(model):
        hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        logits = model(input_ids=ids, use_cache=False).logits
    return head if hidden is not None and torch.equal(head(hidden), logits) else None


# ---------------------------------------------------------------------------------------------------------------------
# Saving


def save_model(
    folder: Path,
    model: "PreTrainedModel | PeftModel",
    tokenizer: PreTrainedTokenizerFast,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write weights, configs, code and tokenizer into `folder`: everything that loading needs.

    Of a model with a LoRA adapter the adapter alone is written: its base is named, not copied. `weights` are the
    model's where it holds only a share of them.
    """
    with without_bars():
        if isinstance(model, PreTrainedModel):
            model.save_pretrained(folder, state_dict=weights)
        else:
            save_adapter(folder, model, weights)
    save_tokenizer(tokenizer, folder, stated_context(cast(PreTrainedModel, model)))  # peft hands its config on


# Fields of a config that say nothing of how a model computes.
_HOUSEKEEPING = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "transformers_version",
    "use_cache",
    "vocab_size",
)


def save_adapter(folder: Path, adapted: "PeftModel", weights: dict[str, torch.Tensor] | None = None) -> None:
    """Write an adapter as peft has it, and beside it what its base must be told to become the model that was trained.

    `config_overrides.json` has the fields in which the model's config differs from the base's (labels, pooling), as the
    keywords for `from_pretrained`; it is absent where there are none. peft keeps none of them, and a config.json beside
    the adapter would make transformers look for the whole model there.
    """
    from groundup.common.files import ADAPTER_FILE, OVERRIDES_FILE  # which whoever only reads a model need not load

    model = cast(PreTrainedModel, adapted.get_base_model())
    settings = adapted.peft_config["default"]
    base = type(model.config).from_pretrained(
        str(settings.base_model_name_or_path), revision=settings.revision or "main"
    )
    resized = model.config.get_text_config().vocab_size != base.get_text_config().vocab_size
    adapted.save_pretrained(str(folder), save_embedding_layers=resized, state_dict=weights)
    written = json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))
    for name, value in written.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            written[name] = sorted(set(value))  # peft keeps sets: their order is another in every process
    (folder / ADAPTER_FILE).write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    before, now = base.to_dict(), model.config.to_dict()
    differ = {name: value for name, value in now.items() if name not in _HOUSEKEEPING and before.get(name) != value}
    if differ:
        (folder / OVERRIDES_FILE).write_text(json.dumps(differ, indent=2) + "\n", encoding="utf-8")
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
