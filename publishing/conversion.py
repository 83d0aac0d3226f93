"""The verbs `export` and `merge`: a checkpoint becomes a stock model, an adapter and its base become one checkpoint.

Both are exact: what was written is loaded again, an export without code of ours, and must give the same logits.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from groundup.common.console import console, say
from groundup.common.errors import InputError, public_name, user_path
from groundup.common.files import (
    ADAPTER_WEIGHTS,
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    GGUF_WEIGHTS,
    LOG_FILE,
    METRICS_FILE,
    MODEL_WEIGHTS,
    MODELFILE,
    RECIPE_FILE,
    TOKENIZER_FILE,
    remove,
    sha256_of,
    sync_file,
    sync_folder,
)
from groundup.common.output import OutputFolder, claim, given_folder
from groundup.common.settings import read_yaml, verb, write_yaml
from groundup.common.verbs import ExportSettings, ImportSettings, MergeSettings
from groundup.evaluation.metrics_json import own_metrics, write_metrics
from groundup.inference.folder import adapter_settings, file_of, fold, tokenizer_of
from groundup.inference.llama_cpp import has_llama_cpp, require_llama_cpp
from groundup.inference.loading import (
    is_adapter,
    load_adapter,
    load_model,
    load_network,
    quiet_transformers,
    save_model,
    stored_dtype,
)
from groundup.modeling.export import gguf_form, make_twin, spell_for_transformers_4
from groundup.publishing.card import write_card
from groundup.publishing.gguf import PROVEN, Expected, Proven, cost_rows, modelfile, prove_file, write_file
from groundup.publishing.proof import Probed
from groundup.tokenization.folder import fingerprint


@dataclasses.dataclass(frozen=True)
class Written:
    """Hold what was written: the class, its parameters, how far its logits differ if it could be loaded, what llama.cpp
    was found to do alike and what it measured, if it was asked.
    """

    model_type: str
    parameters: int
    difference: float | None
    proven: Proven | None = None
    rows: Sequence[dict[str, Any]] = ()


@verb(ExportSettings)
def export(settings: ExportSettings) -> Path:
    """Write a checkpoint of ours as a stock model into a new folder and return that.

    The folder holds no code. `--to gguf` leaves one file there, or makes `--out` itself the file where its name ends in
    .gguf, with a Modelfile for Ollama beside it. An adapter is folded into its base first. Takes an `ExportSettings` or
    its fields by keyword. Raises `InputError` for a model that the target cannot express exactly, naming the knobs in
    the way.
    """
    console.quiet = settings.quiet
    if not settings.checkpoint or settings.to is None:
        raise InputError("export needs a checkpoint and a target: groundup export CHECKPOINT --to qwen3")
    if settings.to == "gguf" and not has_gguf():
        raise InputError("--to gguf needs the package gguf: pip install 'groundup[gguf]'")
    for option, value in (("--quantize", settings.quantize), ("--eval-data", settings.eval_data)):
        if value and settings.to != "gguf":
            raise InputError(f"{option} is about a file for llama.cpp: add --to gguf, or leave it out")
    if settings.eval_data:
        require_llama_cpp("--eval-data")
    name = public_name(settings.checkpoint)
    file = _named_file(settings)
    # A file is written in a folder of its own beside it, which is gone when the file is there.
    place = file.with_name(f".{file.name}.part") if file else settings.out
    with claim(place, "export", f"{name}-{settings.to}") as output:
        twin = _write_twin(settings, name, settings.to, output, file)
    written = file or (output.path / GGUF_WEIGHTS if settings.to == "gguf" else output.path)
    say(f"a {twin.model_type} model of {twin.parameters:,} parameters written to {written}")
    before = "before it was rounded, " if settings.quantize else ""
    if twin.difference is not None:
        say(f"{before}loaded without code of ours: logits equal (largest difference {twin.difference:.0e})")
    if twin.proven is not None:
        say(f"{before}{twin.proven}")
    elif settings.to == "gguf":
        say("not opened in llama.cpp, which publishing asks for: pip install 'groundup[serve]'")
    return file or output.path


def _named_file(settings: ExportSettings) -> Path | None:
    """Return the file that `--out` names, None where it names a folder. Raises `InputError` for one that is there."""
    out = None if settings.out is None else given_folder(settings.out)
    if out is None or out.suffix.lower() != ".gguf":
        return None
    if settings.to != "gguf":
        raise InputError(f"--out {out} names a file for llama.cpp: add --to gguf, or name a folder for {settings.to}")
    _require_absent(out)
    _require_absent(_modelfile_of(out))
    return out


def _modelfile_of(file: Path) -> Path:
    return file.with_suffix(f".{MODELFILE}")


def _require_absent(file: Path) -> None:
    if os.path.lexists(file):
        raise InputError(f"{file} is there already: choose a new --out")


def _write_twin(settings: ExportSettings, name: str, target: str, output: OutputFolder, file: Path | None) -> Written:
    """Fill the folder, or write `file`; no more than one model is in memory at any time."""
    model, tokenizer = load_model(settings.checkpoint)
    model.float().cpu()
    failed = f"cannot export {settings.checkpoint} to {settings.to}"
    config: Any = model.config
    if config.model_type != "groundup":
        raise InputError(_no_need(settings.checkpoint, config.model_type))
    try:
        # What is compared is taken from the model, which then makes room.
        probed, expected = Probed.of(model), Expected.all_of(model, tokenizer) if target == "gguf" else []
        form = gguf_form(config) if target == "gguf" else target
        twin = make_twin(model, form, stored_dtype(settings.checkpoint))
        del model
        with output.filled() as folder:
            if target == "gguf":
                weights = file.name if file else GGUF_WEIGHTS
                text = modelfile(weights, twin, tokenizer)
                (folder / MODELFILE).write_text(text, encoding="utf-8")
                written = _fill_gguf(folder, twin, tokenizer, name, settings, probed, expected)
            else:
                written = Written(twin.config.model_type, twin.num_parameters(), None)
                save_model(folder, twin, tokenizer)
                take_over(user_path(settings.checkpoint), tokenizer, folder)
                spell_for_transformers_4(folder / CONFIG_FILE)
                del twin
                difference = probed.require_same(load_model(folder)[0].float().cpu(), failed)
                written = dataclasses.replace(written, difference=difference)
            if file:
                _move_up(folder, file)
            else:
                data = [public_name(item) for item in settings.eval_data]
                write_yaml(
                    folder / RECIPE_FILE, public_recipe("export", name, settings, checkpoint=name, eval_data=data)
                )
                describe_twin(folder, user_path(settings.checkpoint), written)
    except ValueError as error:
        raise InputError(f"{failed}: {last_line(error)}") from error
    return written


def _fill_gguf(
    folder: Path,
    twin: Any,
    tokenizer: PreTrainedTokenizerFast,
    name: str,
    settings: ExportSettings,
    probed: Probed,
    expected: list[Expected],
) -> Written:
    """Write a GGUF file and prove it; of one with rounded weights, the same weights in fp32 in its place.

    Raises `InputError` and `ValueError` for what is not the same.
    """
    write_file(folder / GGUF_WEIGHTS, twin, tokenizer, name, settings.quantize)
    config, parameters, exact = twin.config, twin.num_parameters(), folder
    if settings.quantize or (twin.dtype != torch.float32 and has_llama_cpp()):
        exact = folder / "exact"
        exact.mkdir()
        write_file(exact / GGUF_WEIGHTS, twin.float(), tokenizer, name)
    rows = cost_rows(twin, tokenizer, settings.eval_data, exact / GGUF_WEIGHTS) if settings.eval_data else []
    del twin
    again = _load_again(exact if settings.quantize else folder, config)
    failed = f"cannot export {settings.checkpoint} to gguf"
    difference = None if again is None else probed.require_same(again, failed)
    del again
    proven = None
    if has_llama_cpp():
        proven = prove_file(exact / GGUF_WEIGHTS, tokenizer, expected, is_coarse=config.model_type == "gpt2")
        if exact != folder:
            prove_file(folder / GGUF_WEIGHTS, tokenizer)
    if exact != folder:
        remove(exact)
    return Written(config.model_type, parameters, difference, proven, rows)


def _move_up(folder: Path, file: Path) -> None:
    """Put the GGUF file and its Modelfile in their places, if nothing has come there meanwhile."""
    places = {folder / MODELFILE: _modelfile_of(file), folder / GGUF_WEIGHTS: file}
    for source, place in places.items():
        sync_file(source)
        _require_absent(place)
    for source, place in places.items():
        source.rename(place)
    sync_folder(file.parent)


def _no_need(checkpoint: str, model_type: str) -> str:
    """Return the message for a model that is not ours."""
    if is_adapter(checkpoint):
        return f"{checkpoint} is an adapter for a {model_type} model, none of ours to export: fold it by groundup merge"
    return f"{checkpoint} is a {model_type} model already, none of ours to export"


def _load_again(folder: Path, config: PreTrainedConfig) -> Any:
    """Load a GGUF file as transformers does, in fp32; None for a kind of model that transformers cannot read there."""
    if config.model_type not in GGUF_SUPPORTED_ARCHITECTURES:
        say(f"transformers reads no {config.model_type} from a GGUF file, llama.cpp and what is built on it do")
        return None
    load = functools.partial(AutoModelForCausalLM.from_pretrained, folder, gguf_file=GGUF_WEIGHTS, dtype=torch.float32)
    with contextlib.redirect_stderr(io.StringIO()), quiet_transformers():  # its bar over the tensors knows no switch
        try:
            return load()
        except RuntimeError:  # a size that it has no name for, and takes its own value of
            model = load(config=config)
    say(
        f"transformers does not find every size of this {config.model_type} in a GGUF file: it needs config= beside "
        "gguf_file=; llama.cpp and what is built on it do"
    )
    return model


def take_over(source: Path, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Copy the tokenizer's own files into `folder`, byte for byte, if they say the same as the files written there.

    A tokenizer's class may change what its tokenizer.json says; then the file that was written holds.
    """
    if (own := source / CHAT_TEMPLATE_FILE).is_file():
        shutil.copyfile(own, folder / CHAT_TEMPLATE_FILE)
    own = source / TOKENIZER_FILE
    if own.is_file() and fingerprint(PreTrainedTokenizerFast(tokenizer_file=str(own))) == fingerprint(tokenizer):
        shutil.copyfile(own, folder / TOKENIZER_FILE)


def has_gguf() -> bool:
    """Return whether the package that reads and writes GGUF files is installed."""
    return importlib.util.find_spec("gguf") is not None


def public_recipe(
    of: str, name: str, settings: ImportSettings | ExportSettings, **public: str | list[str] | None
) -> dict[str, Any]:
    """Return what was asked for, with names in place of paths on this machine."""
    return {"name": name, "verb": of, "settings": dataclasses.asdict(settings) | {"out": None} | public}


def last_line(error: Exception) -> str:
    """Return the last line of a message: transformers and huggingface_hub say there what is wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip().removeprefix("ValueError: ") if lines else type(error).__name__


_ROUNDING = 1e-4  # of the largest logit: each weight is rounded once more than with the adapter beside it


def describe_twin(folder: Path, original: Path, written: Written) -> None:
    """Write `metrics.json` and the card of a twin, and complete its recipe, from those of the original.

    The original's numbers hold for it because its logits are the same: by how much they differ is kept beside them. Of
    rounded weights they say nothing, and are left out.

    Args:
        folder: the twin, with its weights and a recipe.
        original: the folder it was made of; one that is none (a Hub name) gives no numbers.
        written: what is there, and what was found the same.
    """
    weights = next(name for name in (MODEL_WEIGHTS, GGUF_WEIGHTS) if (folder / name).is_file())
    measured = (original / name for name in (MODEL_WEIGHTS, ADAPTER_WEIGHTS))
    metrics = own_metrics(original, next((path for path in measured if path.is_file()), None))
    recipe = read_yaml(folder / RECIPE_FILE)
    if (original / RECIPE_FILE).is_file():
        known = read_yaml(original / RECIPE_FILE)
        recipe |= {name: known[name] for name in ("license", "language", "sources") if known.get(name)}
        write_yaml(folder / RECIPE_FILE, recipe)
    if recipe["settings"].get("quantize"):
        metrics |= {"metrics": [], "samples": []}
    about = {
        "parameters": written.parameters,
        "measured_weights_sha256": metrics["weights_sha256"],
        "largest_difference_of_logits": written.difference,
    }
    if written.proven:
        about[PROVEN] = dataclasses.asdict(written.proven)
    write_metrics(
        folder, [*metrics["metrics"], *written.rows], about, sha256_of(folder / weights), metrics.get("samples", ())
    )
    write_card(folder)


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
        probed, failed = Probed.of(adapted), f"{settings.adapter} cannot be merged into its base"
        model = fold(adapted)
        probed.require_same(model, failed, _ROUNDING)
        kind, name, parameters = type(model), model.config.model_type, model.num_parameters()
        with output.filled() as folder:
            save_model(folder, model, tokenizer_of(settings.adapter, settings.base))
            del adapted, model  # no more than one model is in memory
            _describe(folder, parameters, settings)
            difference = probed.require_same(load_network(folder, kind), failed, _ROUNDING)
    say(f"a {name} model of {parameters:,} parameters written to {output.path}")
    say(f"loaded again: logits equal to the adapter's (largest difference {difference:.0e})")
    say(f"next: groundup publish {output.path} OWNER/NAME --dry-run")
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
