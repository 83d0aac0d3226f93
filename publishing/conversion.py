"""The verbs `import-gpt2` and `export`: GPT-2's weights become a checkpoint of ours, ours become a stock model.

Both are exact. An export is loaded again from its folder, without code of ours, and must give the same logits.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import disable_progress_bars
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    GenerationConfig,
    GPT2Tokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

from groundup.common.console import console, say
from groundup.common.errors import InputError, near, public_name, user_path
from groundup.common.files import (
    CONFIG_FILE,
    MODEL_WEIGHTS,
    RECIPE_FILE,
    TOKENIZER_FILE,
    sha256_of,
    sync_file,
    sync_folder,
)
from groundup.common.output import OutputFolder, claim, given_folder
from groundup.common.settings import verb, write_yaml
from groundup.evaluation.metrics_json import write_metrics
from groundup.inference.loading import is_adapter, load_model, quiet_transformers, stored_dtype
from groundup.inference.saving import save_model
from groundup.modeling.export import assemble, make_twin, spell_for_transformers_4
from groundup.modeling.gguf_file import gguf_form, write_gguf
from groundup.modeling.gpt2 import from_gpt2, groundup_config
from groundup.modeling.gpt2_files import find_weights, read_gpt2, weights_files
from groundup.publishing.card import describe_twin, write_card
from groundup.publishing.proof import logits_of, probe_of, require_same
from groundup.publishing.settings import ExportSettings, ImportGpt2Settings
from groundup.tokenization.folder import fingerprint, load_tokenizer, without_length

GGUF_FILE = "model.gguf"
_VOCABULARIES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # transformers' names, OpenAI's names
# What is fetched of a repository on the Hub besides its weights; safetensors if there are any, else a pickle.
_HUB_FILES = [CONFIG_FILE, "generation_config.json", "tokenizer*.json", "vocab.json", "merges.txt"]
_SUFFIXES = (".safetensors", ".bin", ".index", ".json")
_HUB_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")
_ROUNDING = 1e-5  # of the largest logit: twins agree to the last bit where matrix products are laid out alike


@verb(ImportGpt2Settings)
def import_gpt2(settings: ImportGpt2Settings) -> Path:
    """Read a GPT-2 checkpoint, write it as one of ours into a new folder and return that.

    Takes an `ImportGpt2Settings` or its fields by keyword. Raises `InputError` for a source that is not there, is not
    whole, or is no GPT-2: each tensor that is missing, unknown or misshapen is named. What was written is loaded again.
    """
    console.quiet = settings.quiet
    if not settings.source:
        raise InputError("import-gpt2 needs a source: give a folder or file with GPT-2's weights, or a Hub name")
    name = public_name(settings.source)
    if settings.quiet:
        disable_progress_bars()
    with claim(settings.out, "import-gpt2", name) as output:
        place = _fetch(settings.source)
        try:
            weights = find_weights(place)
            tokenizer = _read_tokenizer(weights.parent, settings)
            model = _read_model(weights, tokenizer)
        except (ValueError, OSError, StrictDataclassError) as error:
            raise InputError(f"cannot import {settings.source}: {_last_line(error)}") from error
        recipe = _recipe(
            "import-gpt2", name, settings, source=name, tokenizer=settings.tokenizer and public_name(settings.tokenizer)
        )
        recipe["weights_read"] = {path.name: sha256_of(path) for path in weights_files(weights)}
        recipe["tokenizer_sha256"] = fingerprint(tokenizer)
        with output.filled() as folder:
            save_model(folder, model, tokenizer)
            write_yaml(folder / RECIPE_FILE, recipe)
            about = {"parameters": model.num_parameters(), "dtype": str(model.dtype)[6:]}
            write_metrics(folder, [], about, sha256_of(folder / MODEL_WEIGHTS))
            write_card(folder)
            _difference(model.float(), _load_again(folder, model.config), f"cannot import {settings.source}")
    say(f"GPT-2 of {model.num_parameters():,} parameters written to {output.path}")
    return output.path


@verb(ExportSettings)
def export(settings: ExportSettings) -> Path:
    """Write a checkpoint of ours as a stock model into a new folder and return that.

    The folder holds no code. `--to gguf` leaves one file there, or makes `--out` itself the file where its name ends in
    .gguf. An adapter is folded into its base first. Takes an `ExportSettings` or its fields by keyword. Raises
    `InputError` for a model that the target cannot express exactly, naming the knobs in the way.
    """
    console.quiet = settings.quiet
    if not settings.checkpoint or settings.to is None:
        raise InputError("export needs a checkpoint and a target: groundup export CHECKPOINT --to qwen3")
    if settings.to == "gguf" and importlib.util.find_spec("gguf") is None:
        raise InputError("--to gguf needs the package gguf: pip install 'groundup[gguf]'")
    name = public_name(settings.checkpoint)
    file = _named_file(settings)
    # A file is written in a folder of its own beside it, which is gone when the file is there.
    place = file.with_name(f".{file.name}.part") if file else settings.out
    with claim(place, "export", f"{name}-{settings.to}") as output:
        twin, difference = _write_twin(settings, name, settings.to, output, file)
    written = file or (output.path / GGUF_FILE if settings.to == "gguf" else output.path)
    say(f"a {twin.config.model_type} model of {twin.num_parameters():,} parameters written to {written}")
    if difference is not None:
        say(f"loaded without code of ours: logits equal (largest difference {difference:.0e})")
    return file or output.path


def _named_file(settings: ExportSettings) -> Path | None:
    """Return the file that `--out` names, None where it names a folder. Raises `InputError` for one that is there."""
    out = None if settings.out is None else given_folder(settings.out)
    if out is None or out.suffix.lower() != ".gguf":
        return None
    if settings.to != "gguf":
        raise InputError(f"--out {out} names a file for llama.cpp: add --to gguf, or name a folder for {settings.to}")
    _require_absent(out)
    return out


def _require_absent(file: Path) -> None:
    if os.path.lexists(file):
        raise InputError(f"{file} is there already: choose a new --out")


def _write_twin(
    settings: ExportSettings, name: str, target: str, output: OutputFolder, file: Path | None
) -> tuple[PreTrainedModel, float | None]:
    """Fill the folder, or write `file`; return the stock model, and how far its logits differ if it could be loaded."""
    model, tokenizer = load_model(settings.checkpoint)
    model.float().cpu()
    failed = f"cannot export {settings.checkpoint} to {settings.to}"
    config: Any = model.config
    if config.model_type != "groundup":
        raise InputError(_no_need(settings.checkpoint, config.model_type))
    try:
        form = gguf_form(config) if target == "gguf" else target
        twin = make_twin(model, form, stored_dtype(settings.checkpoint))
        with output.filled() as folder:
            if target == "gguf":
                write_gguf(folder / GGUF_FILE, twin, tokenizer, name)
            else:
                save_model(folder, twin, tokenizer)
                spell_for_transformers_4(folder / CONFIG_FILE)
            difference = _difference(model, _load_again(folder, twin.config), failed)
            if file:
                sync_file(folder / GGUF_FILE)
                _require_absent(file)  # still
                (folder / GGUF_FILE).rename(file)
                sync_folder(file.parent)
            else:
                write_yaml(folder / RECIPE_FILE, _recipe("export", name, settings, checkpoint=name))
                describe_twin(folder, user_path(settings.checkpoint), twin.num_parameters(), difference)
    except ValueError as error:
        raise InputError(f"{failed}: {_last_line(error)}") from error
    return twin, difference


def _no_need(checkpoint: str, model_type: str) -> str:
    """Return what to say of a model that is not ours."""
    if is_adapter(checkpoint):
        return f"{checkpoint} is an adapter for a {model_type} model, none of ours to export: fold it by groundup merge"
    return f"{checkpoint} is a {model_type} model already, none of ours to export"


def _fetch(source: str) -> Path:
    """Return the folder or file of a source: itself, or what was fetched from its repository on the Hub."""
    path = user_path(source)
    if path.exists():
        return path
    looks_local = path.is_absolute() or source.startswith((".", "~")) or path.suffix in _SUFFIXES
    if looks_local or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir()):
        known = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        raise InputError(f"{source} does not exist{near(path.name, known)}: give GPT-2's folder, a file or a Hub name")
    folder = path
    try:
        for weights in _HUB_WEIGHTS:
            folder = Path(snapshot_download(source, allow_patterns=[*_HUB_FILES, weights]))
            if any(folder.glob(weights)):
                break
    except (OSError, ValueError) as error:
        raise InputError(f"no folder or file {source}, and the Hub gives none: {_last_line(error)}") from error
    return folder


def _read_model(weights: Path, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Read GPT-2's weights into a model of ours. Raises `ValueError` where they, config and tokenizer disagree."""
    config, tensors = read_gpt2(weights)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}: "
            "give the one it was trained with by --tokenizer"
        )
    if config.eos_token_id is None:
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = assemble(groundup_config(config), from_gpt2(tensors, config))
    if (weights.parent / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(weights.parent)
    return model


def _read_tokenizer(folder: Path, settings: ImportGpt2Settings) -> PreTrainedTokenizerFast:
    """Read the tokenizer that was named, or the one whose files lie beside the weights, in any of three forms."""
    if settings.tokenizer:
        return without_length(load_tokenizer(settings.tokenizer))
    if (folder / TOKENIZER_FILE).is_file():
        return load_tokenizer(folder)
    for vocabulary, merges in _VOCABULARIES:
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            try:
                tokens, pairs = BPE.read_file(str(folder / vocabulary), str(folder / merges))
            except Exception as error:  # the library's own kind
                raise ValueError(f"{vocabulary} or {merges} is broken ({error}): fetch them again") from error
            return GPT2Tokenizer(vocab=tokens, merges=pairs)  # type: ignore[arg-type]
    raise InputError(
        f"no tokenizer lies beside the weights of {settings.source}: add --tokenizer with a folder that has "
        "tokenizer.json, or put vocab.json and merges.txt there"
    )


def _load_again(folder: Path, config: PreTrainedConfig) -> Any:
    """Load what was written as transformers does, in fp32; None for a kind of file that transformers cannot read."""
    if not (folder / GGUF_FILE).is_file():
        return load_model(folder)[0].float().cpu()
    if config.model_type not in GGUF_SUPPORTED_ARCHITECTURES:
        say(f"transformers reads no {config.model_type} from a GGUF file, llama.cpp and what is built on it do")
        return None
    load = functools.partial(AutoModelForCausalLM.from_pretrained, folder, gguf_file=GGUF_FILE, dtype=torch.float32)
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


def _difference(model: PreTrainedModel, twin: Any, failed: str) -> float | None:
    """Return the largest difference between the logits of two models, None without a second one.

    Raises `InputError`, which begins with `failed`, where it is more than rounding.
    """
    if twin is None:
        return None
    inputs = probe_of(model)
    ours = logits_of(model, inputs)
    most = _ROUNDING * ours.abs().max().item()
    told = f"{failed}: what was written gives other logits, by "
    return require_same(ours, logits_of(twin, inputs), most, lambda by: f"{told}{by}, and is not kept")


def _recipe(of: str, name: str, settings: ImportGpt2Settings | ExportSettings, **public: str | None) -> dict[str, Any]:
    """Return what was asked for, with names in place of paths on this machine."""
    return {"name": name, "verb": of, "settings": dataclasses.asdict(settings) | {"out": None} | public}


def _last_line(error: Exception) -> str:
    """Return the last line of a message: transformers and huggingface_hub say there what is wrong."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip() if lines else type(error).__name__
