"""Write a model, or a LoRA adapter alone, with everything that loading it needs."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.files import ADAPTER_FILE, OVERRIDES_FILE
from groundup.inference.loading import stated_context, without_bars
from groundup.tokenization.folder import save_tokenizer

if TYPE_CHECKING:
    from peft import PeftModel  # takes a while to import


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
