"""The verb `merge`: a LoRA adapter and its base become one full checkpoint that computes the same.

The sum is checked before anything is written, and what is written is loaded again.
"""

import dataclasses
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from groundup.common.console import console, say
from groundup.common.errors import InputError, public_name
from groundup.common.files import (
    ADAPTER_WEIGHTS,
    CURVE_FILE,
    LOG_FILE,
    METRICS_FILE,
    MODEL_WEIGHTS,
    RECIPE_FILE,
    sha256_of,
)
from groundup.common.output import claim
from groundup.common.settings import read_yaml, verb, write_yaml
from groundup.evaluation.metrics_file import own_metrics, write_metrics
from groundup.inference.adapters import adapter_settings, file_of, fold, tokenizer_of
from groundup.inference.loading import context_of, load_adapter, load_network
from groundup.inference.saving import save_model
from groundup.publishing.card import write_card
from groundup.publishing.settings import MergeSettings

_PROBE_TOKENS = 64
_ROUNDING = 1e-4  # of the largest logit: each weight is rounded once more than with the adapter beside it


@verb(MergeSettings)
def merge(settings: MergeSettings) -> Path:
    """Fold an adapter into its base, write the model into a new folder and return that.

    Takes a `MergeSettings` or its fields by keyword. Raises `InputError` for an adapter or a base that is missing, for
    two that do not belong together, and where the merged model would give other logits. The weights are stored in fp32,
    whatever the base's are: rounded to bf16 the sum would lose most of what the adapter says.
    """
    console.quiet = settings.quiet
    if not settings.adapter:
        raise InputError("merge needs an adapter: groundup merge FOLDER")
    with claim(settings.out, "merge", public_name(settings.adapter)) as output:
        adapted = load_adapter(settings.adapter, base=settings.base, trust_remote_code=settings.trust_remote_code)
        adapted.float().cpu()
        before = _probe(adapted)
        model = fold(adapted)
        _require_equal(before, _probe(model), settings.adapter)
        with output.filled() as folder:
            save_model(folder, model, tokenizer_of(settings.adapter, settings.base))
            _describe(folder, model, settings)
            again = load_network(folder, type(model))
            difference = _require_equal(before, _probe(again), settings.adapter)
    say(f"a {model.config.model_type} model of {model.num_parameters():,} parameters written to {output.path}")
    say(f"loaded again: logits equal to the adapter's (largest difference {difference:.0e})")
    return output.path


def _probe(model: PreTrainedModel | PeftModel) -> torch.Tensor:
    """The logits for a fixed row of ids, on one thread: several split a product differently at each call."""
    length = min(_PROBE_TOKENS, context_of(cast(PreTrainedModel, model)))  # peft hands its config on
    ids = torch.randint(model.config.vocab_size, (1, length), generator=torch.Generator().manual_seed(0))
    inputs = {"input_ids": ids} | ({"decoder_input_ids": ids} if model.config.is_encoder_decoder else {})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return model.cpu()(**inputs).logits
    finally:
        torch.set_num_threads(threads)


def _require_equal(before: torch.Tensor, after: torch.Tensor, adapter: str) -> float:
    """The largest difference between two tensors of logits. Raises `InputError` where it is more than rounding."""
    difference = (before - after).abs().max().item()
    if not difference <= _ROUNDING * before.abs().max().item():
        raise InputError(f"{adapter} cannot be merged into its base: the logits would differ by {difference:.2g}")
    return difference


def _describe(folder: Path, model: PreTrainedModel, settings: MergeSettings) -> None:
    """Recipe, log, scores, curve and card: the adapter's own, for the model is the one that it made, and the merge."""
    base = settings.base or adapter_settings(settings.adapter)["base_model_name_or_path"]
    merged = dataclasses.asdict(settings) | {
        "adapter": public_name(settings.adapter),
        "base": public_name(base),
        "out": None,
    }
    recipe = file_of(settings.adapter, RECIPE_FILE)
    own = read_yaml(recipe) if recipe else {"name": merged["adapter"]}
    write_yaml(folder / RECIPE_FILE, {"verb": "merge"} | own | {"merged": merged})
    for name in (LOG_FILE, CURVE_FILE):
        if file := file_of(settings.adapter, name):
            shutil.copyfile(file, folder / name)
    known, weights = file_of(settings.adapter, METRICS_FILE), file_of(settings.adapter, ADAPTER_WEIGHTS)
    metrics = {"metrics": [], "training": {}} | (own_metrics(known.parent, weights) if known else {})
    training: dict[str, Any] = metrics["training"] | {"parameters": model.num_parameters()}
    write_metrics(folder, metrics["metrics"], training, sha256_of(folder / MODEL_WEIGHTS))
    write_card(folder)
