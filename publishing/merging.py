"""The verb `merge`: a LoRA adapter and its base become one full checkpoint that computes the same.

The sum is checked before anything is written, and what is written is loaded again.
"""

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import Any

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
from groundup.evaluation.metrics_json import own_metrics, write_metrics
from groundup.inference.folder import adapter_settings, file_of, fold, tokenizer_of
from groundup.inference.loading import load_adapter, load_network
from groundup.inference.saving import save_model
from groundup.publishing.card import write_card
from groundup.publishing.proof import logits_of, probe_of, require_same
from groundup.publishing.settings import MergeSettings

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
        inputs = probe_of(adapted)
        before = logits_of(adapted, inputs)
        told = f"{settings.adapter} cannot be merged into its base: the logits would differ by "
        equal = partial(require_same, before, most=_ROUNDING * before.abs().max().item(), say=told.__add__)
        model = fold(adapted)
        equal(logits_of(model, inputs))
        kind, name, parameters = type(model), model.config.model_type, model.num_parameters()
        with output.filled() as folder:
            save_model(folder, model, tokenizer_of(settings.adapter, settings.base))
            del adapted, model  # no more than one model is in memory
            _describe(folder, parameters, settings)
            difference = equal(logits_of(load_network(folder, kind), inputs))
    say(f"a {name} model of {parameters:,} parameters written to {output.path}")
    say(f"loaded again: logits equal to the adapter's (largest difference {difference:.0e})")
    return output.path


def _describe(folder: Path, parameters: int, settings: MergeSettings) -> None:
    """Write recipe, log, scores, curve and card: the adapter's own, which made this model, and how it was merged."""
    base = settings.base or adapter_settings(settings.adapter)["base_model_name_or_path"]
    names = {"adapter": public_name(settings.adapter), "base": public_name(base), "out": None}
    merged = dataclasses.asdict(settings) | names
    recipe = file_of(settings.adapter, RECIPE_FILE)
    own = read_yaml(recipe) if recipe else {"name": names["adapter"]}
    write_yaml(folder / RECIPE_FILE, {"verb": "merge"} | own | {"merged": merged})
    for name in (LOG_FILE, CURVE_FILE):
        if file := file_of(settings.adapter, name):
            shutil.copyfile(file, folder / name)
    known, weights = file_of(settings.adapter, METRICS_FILE), file_of(settings.adapter, ADAPTER_WEIGHTS)
    metrics = {"metrics": [], "training": {}} | (own_metrics(known.parent, weights) if known else {})
    training: dict[str, Any] = metrics["training"] | {"parameters": parameters}
    write_metrics(folder, metrics["metrics"], training, sha256_of(folder / MODEL_WEIGHTS))
    write_card(folder)
