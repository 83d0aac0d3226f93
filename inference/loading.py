"""A folder or a name on the Hub -> a causal language model and its tokenizer, ready to be measured or to write."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import find_adapter_config_file

from groundup.common.files import user_path
from groundup.inference.from_pretrained import check_place, load_network
from groundup.tokenization.folder import load_tokenizer


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
        from groundup.inference.adapters import fold, load_adapter, tokenizer_of  # peft takes a while to import

        model = fold(load_adapter(source, trust_remote_code=trust_remote_code, kind=kind))
        return model, tokenizer_of(source)
    return load_network(source, kind, trust_remote_code=trust_remote_code), load_tokenizer(source)


def is_adapter(source: str | Path) -> bool:
    """Whether a folder or a name on the Hub holds a LoRA adapter. Raises `InputError` for what can be neither."""
    return find_adapter_config_file(str(check_place(source))) is not None


def stored_dtype(source: str | Path) -> torch.dtype | None:
    """The dtype of a model's weights as they are stored; None where that is not said, and for an adapter.

    Rounded to the dtype of its base, the sum of the two would lose most of what the adapter says.
    """
    if is_adapter(source):
        return None
    stored: Any = AutoConfig.from_pretrained(str(user_path(source))).dtype
    return stored


def load_writer(
    source: str | Path, *, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """What `load_model` loads, for a model that writes text: a decoder, or an encoder with a decoder."""
    check_place(source)
    kind = AutoModelForSeq2SeqLM if _is_pair(source) else AutoModelForCausalLM
    return load_model(source, trust_remote_code=trust_remote_code, kind=kind)


def _is_pair(source: str | Path) -> bool:
    """Whether a model, or the one that an adapter is for, has an encoder and a decoder; False where there is none."""
    path = str(user_path(source))
    try:
        if adapter := find_adapter_config_file(path):
            return json.loads(Path(adapter).read_text(encoding="utf-8")).get("task_type") == "SEQ_2_SEQ_LM"
        return bool(PreTrainedConfig.get_config_dict(path)[0].get("is_encoder_decoder"))
    except (OSError, ValueError, AttributeError):  # the last for a config.json that holds no names and values
        return False  # `load_model` says what is wrong
