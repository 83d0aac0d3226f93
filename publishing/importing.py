"""The verb `import`: a model of a stock class becomes a checkpoint of ours that computes the same.

What was written is loaded again and must give the logits of the stock class itself on the source's weights.
"""

import contextlib
import io
import shutil
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import StrictDataclassError
from huggingface_hub.utils import disable_progress_bars
from tokenizers.models import BPE
from transformers import AutoTokenizer, GenerationConfig, GPT2Tokenizer, PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import console, say
from groundup.common.errors import InputError, near_file, public_name, user_path
from groundup.common.files import (
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    MODEL_WEIGHTS,
    RECIPE_FILE,
    TOKENIZER_FILE,
    sha256_of,
)
from groundup.common.output import claim
from groundup.common.settings import verb, write_yaml
from groundup.common.verbs import ImportSettings
from groundup.evaluation.metrics_json import write_metrics
from groundup.inference.loading import load_model, quiet_transformers, save_model
from groundup.modeling.export import assemble
from groundup.modeling.stock import from_stock, full_names, groundup_config
from groundup.modeling.weights_files import find_weights, read_config, read_weights, weights_files
from groundup.publishing.card import write_card
from groundup.publishing.conversion import has_gguf, last_line, public_recipe, take_over
from groundup.publishing.proof import Probed
from groundup.tokenization.folder import fingerprint, load_tokenizer, without_length

_VOCABULARIES = (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe"))  # transformers' names, OpenAI's names
# What is fetched of a repository on the Hub besides its weights.
_HUB_FILES = [
    *(CONFIG_FILE, GENERATION_FILE, CHAT_TEMPLATE_FILE, "tokenizer*.json", "tokenizer.model"),
    *("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
]
_HUB_WEIGHTS = ("model*.safetensors*", "pytorch_model*.bin*")  # a pickle of GPT-2 alone, without safetensors
_SUFFIXES = (".safetensors", ".bin", ".index", ".json", ".gguf")


@verb(ImportSettings)
def import_model(settings: ImportSettings) -> Path:
    """Read a stock model, write it as a checkpoint of ours with the same outputs into a new folder and return that.

    Weights keep the dtype in which they are stored; those of a GGUF file become fp32. Tokenizer, chat template and
    generation settings are the source's. Takes an `ImportSettings` or its fields by keyword. Raises `InputError` for a
    source that is not there, is not whole, or cannot be held exactly: the setting in the way is named, as is each
    tensor that is missing, unknown or misshapen.
    """
    console.quiet = settings.quiet
    if not settings.source:
        raise InputError("import needs a source: give the folder of a model, its file of weights, or a Hub name")
    name, failed = public_name(settings.source), f"cannot import {settings.source}"
    if settings.quiet:
        disable_progress_bars()
    with claim(settings.out, "import", name) as output:
        try:
            weights = find_weights(_fetch(settings.source))
            stock, model, tokenizer = _read_source(weights, settings)
        except (ValueError, OSError, StrictDataclassError) as error:
            raise InputError(f"{failed}: {last_line(error)}") from error
        about = {"parameters": model.num_parameters(), "dtype": str(model.dtype)[6:]}
        kind = type(stock).__name__
        named_tokenizer = settings.tokenizer and public_name(settings.tokenizer)
        recipe = public_recipe("import", name, settings, source=name, tokenizer=named_tokenizer)
        recipe["weights_read"] = {path.name: sha256_of(path) for path in weights_files(weights)}
        recipe["tokenizer_sha256"] = fingerprint(tokenizer)
        with output.filled() as folder:
            save_model(folder, model, tokenizer)
            _take_over(weights, tokenizer, settings.tokenizer, folder)
            write_yaml(folder / RECIPE_FILE, recipe)
            write_metrics(folder, [], about, sha256_of(folder / MODEL_WEIGHTS))
            write_card(folder)
            del model
            probed = Probed.of(stock.float())
            del stock  # no more than one model is in memory
            again, tokenizer_again = load_model(folder)
            difference = probed.require_same(again.float(), failed)
            if fingerprint(tokenizer_again) != recipe["tokenizer_sha256"]:
                raise InputError(f"{failed}: the tokenizer that was written gives other ids, and is not kept")
    say(f"a {kind} of {about['parameters']:,} parameters written to {output.path}")
    say(f"loaded again: logits equal to {kind}'s (largest difference {difference:.0e})")
    say(f"next: groundup generate {output.path}, or groundup instruct {output.path} --data your_rows.jsonl")
    return output.path


import_gpt2 = import_model


def _fetch(source: str) -> Path:
    """Return the folder or file of a source: itself, or what was fetched from its repository on the Hub.

    Raises `ValueError` for a repository whose model cannot be held.
    """
    path = user_path(source)
    if path.exists():
        return path
    looks_local = path.is_absolute() or source.startswith((".", "~")) or path.suffix.lower() in _SUFFIXES
    if looks_local or len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir()):
        raise InputError(f"{source} does not exist{near_file(path)}: give a model's folder, a file or a Hub name")
    folder = _fetch_files(source, _HUB_FILES)
    config = read_config(folder)  # refuses what cannot be held before gigabytes are fetched
    for weights in _HUB_WEIGHTS if config is None or config.model_type == "gpt2" else _HUB_WEIGHTS[:1]:
        folder = _fetch_files(source, [*_HUB_FILES, weights])
        if any(folder.glob(weights)):
            break
    return folder


def _fetch_files(source: str, patterns: list[str]) -> Path:
    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        raise InputError(f"no folder or file {source}, and the Hub gives none: {last_line(error)}") from error


def _read_source(
    weights: Path, settings: ImportSettings
) -> tuple[PreTrainedModel, PreTrainedModel, PreTrainedTokenizerFast]:
    """Return the stock model, ours and their tokenizer; the models share their memory where both store a tensor alike.

    Raises `ValueError` where weights, config and tokenizer disagree.
    """
    if _is_gguf(weights) and not has_gguf():
        raise ValueError("a GGUF file needs the package gguf: pip install 'groundup[gguf]'")
    with contextlib.redirect_stderr(io.StringIO()), quiet_transformers():  # the bar over a GGUF's tensors has no switch
        config, tensors = read_weights(weights)
    ours = from_stock(tensors, config)
    tokenizer = _read_tokenizer(weights, config.model_type, settings)
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {len(tokenizer)} tokens, the model only {config.vocab_size}: "
            "give the one it was trained with by --tokenizer"
        )
    if config.eos_token_id is None and not (weights.parent / CONFIG_FILE).is_file():
        config.bos_token_id, config.eos_token_id = tokenizer.bos_token_id, tokenizer.eos_token_id
    model = assemble(groundup_config(config), ours)
    if not _is_gguf(weights) and (weights.parent / GENERATION_FILE).is_file():
        model.generation_config = GenerationConfig.from_pretrained(weights.parent)
    return assemble(config, full_names(tensors, config.model_type)), model, tokenizer


def _read_tokenizer(weights: Path, kind: str, settings: ImportSettings) -> PreTrainedTokenizerFast:
    """Read the tokenizer that was named, or the one in the GGUF file or beside the weights, in any of its forms."""
    folder = weights.parent
    if settings.tokenizer:
        return without_length(load_tokenizer(settings.tokenizer))
    if _is_gguf(weights):
        return AutoTokenizer.from_pretrained(folder, gguf_file=weights.name)
    is_whole = any((folder / name).is_file() for name in (TOKENIZER_FILE, "tokenizer.model"))
    pairs = [names for names in _VOCABULARIES if all((folder / name).is_file() for name in names)]
    if kind == "gpt2" and pairs and not is_whole:
        vocabulary, merges = pairs[0]
        try:
            tokens, ranks = BPE.read_file(str(folder / vocabulary), str(folder / merges))
        except Exception as error:  # the library's own kind
            raise ValueError(f"{vocabulary} or {merges} is broken ({error}): fetch them again") from error
        return GPT2Tokenizer(vocab=tokens, merges=ranks)  # type: ignore[arg-type]
    if is_whole or pairs:  # transformers makes one of the pair, by the kind of model
        return load_tokenizer(folder)
    raise InputError(
        f"there is no tokenizer beside the weights of {settings.source}: add --tokenizer with a folder that has "
        "tokenizer.json, or put the tokenizer's files there"
    )


def _take_over(weights: Path, tokenizer: PreTrainedTokenizerFast, named: str | None, folder: Path) -> None:
    """Put the source's own files in the place of those that were written anew; a GGUF file has none."""
    if _is_gguf(weights):
        return
    if (own := weights.parent / GENERATION_FILE).is_file():
        shutil.copyfile(own, folder / GENERATION_FILE)
    take_over(weights.parent if named is None else user_path(named), tokenizer, folder)


def _is_gguf(weights: Path) -> bool:
    return weights.suffix.lower() == ".gguf"
