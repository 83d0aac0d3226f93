"""Before the first step of pretraining: text to shards, sizes and baselines, all kept in the run's folder.

What is prepared is read back from the folder even by the run that made it, so that a resumed run starts from the same.
"""

import contextlib
import dataclasses
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.files import require_new
from groundup.data.preparation import TRAINING_BYTES
from groundup.data.sources import Corpus, load_corpus, sample_texts, text_bytes
from groundup.data.tokens import TokenStream, write_shards
from groundup.evaluation.language import (
    LanguageScore,
    context_of,
    structure_ids,
    token_byte_lengths,
    unigram_score,
    xz_bits_per_byte,
)
from groundup.evaluation.loading import load_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.bpe import train_bpe
from groundup.tokenization.folder import fingerprint, load_tokenizer, save_tokenizer
from groundup.training.plan import Plan, make_plan, suitable_minutes
from groundup.training.run_folder import RunFolder
from groundup.training.settings import PretrainSettings

SMOKE_STEPS = 20
PUBLIC_PATHS = ("data", "eval_data", "tokenizer", "init_from", "out")  # named in a recipe without their folders


@dataclass
class Prepared:
    """A run before (or between) its steps, as it lies in its folder."""

    settings: PretrainSettings
    plan: Plan
    name: str
    tokenizer: PreTrainedTokenizerFast
    train: TokenStream
    validation: TokenStream
    unigram: LanguageScore
    xz: float | None


def prepare_run(settings: PretrainSettings, run: RunFolder, began: float) -> None:
    """Read the text, plan, train the tokenizer, write shards and baselines into the run's folder; the recipe last.

    Raises `InputError` for data or options that will not do.
    """
    settings = with_budget(settings)
    if not settings.resume:
        require_new(run.out, ", or add --resume to go on with it")
    run.work.mkdir(parents=True, exist_ok=True)
    try:
        _prepare(settings, run, began)
    except BaseException:
        # What is wrong can be mended and the same command given again: the folder must be as it was.
        shutil.rmtree(run.work, ignore_errors=True)
        with contextlib.suppress(OSError):
            run.out.rmdir()
        raise


def _prepare(settings: PretrainSettings, run: RunFolder, began: float) -> None:
    corpus = load_corpus(settings.data, settings.text_column)
    size = text_bytes(corpus.train)
    if settings.minutes is None and settings.max_steps is None and settings.epochs is None:
        settings = dataclasses.replace(settings, minutes=suitable_minutes(size))
        say(f"no budget given: {settings.minutes:g} minutes suit {size / 1e6:.2f} MB of text")
    seconds = None if settings.minutes is None else max(1.0, settings.minutes * 60 - (time.time() - began))
    plan = make_plan(settings, size, seconds)
    tokenizer = _tokenizer(settings, plan, corpus)
    save_tokenizer(tokenizer, run.work / "tokenizer")
    plan.vocab_size = len(tokenizer)
    make_config(plan, tokenizer)
    train = write_shards(corpus.train, tokenizer, run.work / "train")
    validation = write_shards(corpus.validation, tokenizer, run.work / "validation")
    _check_length(train, plan, settings)
    _write_baselines(run.work / "baselines.json", corpus, tokenizer, train, validation)
    recipe = {
        "name": corpus.name,
        "verb": "pretrain",
        "settings": {key: _public(key, value) for key, value in dataclasses.asdict(settings).items()},
        "plan": plan.as_dict(),
        "sources": corpus.sources,
        "tokenizer_sha256": fingerprint(tokenizer),
    }
    run.write_recipe(recipe, {key: value for key, value in dataclasses.asdict(settings).items() if key in PUBLIC_PATHS})


def open_prepared(run: RunFolder) -> Prepared:
    """Read back what `prepare_run` left."""
    recipe, private = run.read_recipe()
    baselines = json.loads((run.work / "baselines.json").read_text(encoding="utf-8"))
    return Prepared(
        settings=PretrainSettings(**recipe["settings"] | private),
        plan=Plan(**recipe["plan"]),
        name=recipe["name"],
        tokenizer=load_tokenizer(run.work / "tokenizer"),
        train=TokenStream.open(run.work / "train"),
        validation=TokenStream.open(run.work / "validation"),
        unigram=LanguageScore(**baselines["unigram"]),
        xz=baselines["xz"],
    )


def make_model(prepared: Prepared) -> PreTrainedModel:
    """The model before its first step: fresh weights of the plan's sizes, or the model to go on with."""
    settings, plan = prepared.settings, prepared.plan
    if settings.init_from is not None:
        model, _ = load_model(settings.init_from)
        if context_of(model) < plan.context_length:
            raise InputError(f"--context-length {plan.context_length} is more than {settings.init_from} can look at")
        return model
    return GroundupForCausalLM(make_config(plan, prepared.tokenizer))


def make_config(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> GroundupConfig:
    """The architecture that a plan and a tokenizer make. Raises `InputError` for sizes that do not fit together."""
    fields = {
        "max_position_embeddings": plan.context_length,
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    try:
        return GroundupConfig(**fields | plan.model)
    except Exception as error:
        raise InputError(f"the model's sizes do not fit together: {str(error).splitlines()[-1].strip()}") from error


def with_budget(settings: PretrainSettings) -> PretrainSettings:
    """The settings with one budget, checked; a smoke run has its own. Raises `InputError` for two, or for none left."""
    if settings.smoke:
        return dataclasses.replace(settings, minutes=None, epochs=None, max_steps=SMOKE_STEPS)
    given = {name: getattr(settings, name) for name in ("minutes", "max_steps", "epochs")}
    given = {name: value for name, value in given.items() if value is not None}
    if len(given) > 1:
        raise InputError(f"{' and '.join('--' + name.replace('_', '-') for name in given)}: give one budget, not two")
    for name, value in given.items():
        if value <= 0:
            raise InputError(f"--{name.replace('_', '-')} {value} must be above 0")
    return settings


def _tokenizer(settings: PretrainSettings, plan: Plan, corpus: Corpus) -> PreTrainedTokenizerFast:
    """The tokenizer of the model to go on with, the one that was named, or one trained on the training text."""
    if settings.init_from is not None or settings.tokenizer is not None:
        return load_tokenizer(settings.tokenizer or settings.init_from or "")
    tokenizer = train_bpe(sample_texts(corpus.train, TRAINING_BYTES), plan.vocab_size)
    if settings.vocab_size is not None and len(tokenizer) < settings.vocab_size:
        raise InputError(
            f"--vocab-size {settings.vocab_size}: the text fills only {len(tokenizer)} tokens; "
            f"ask for at most {len(tokenizer)}, or give more text"
        )
    return tokenizer


def _check_length(train: TokenStream, plan: Plan, settings: PretrainSettings) -> None:
    if len(train) - 1 < plan.context_length:
        option = "" if settings.context_length is None else f"--context-length {settings.context_length}: "
        raise InputError(
            f"{option}the training text has {len(train) - 1} tokens, less than one window of {plan.context_length}: "
            "give more text or a shorter --context-length"
        )


def _write_baselines(
    path: Path, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, train: TokenStream, validation: TokenStream
) -> None:
    unigram = unigram_score(train, validation, len(tokenizer), structure_ids(tokenizer), token_byte_lengths(tokenizer))
    baselines = {"unigram": dataclasses.asdict(unigram), "xz": xz_bits_per_byte(corpus.validation.texts())}
    path.write_text(json.dumps(baselines, indent=2) + "\n", encoding="utf-8")


def _public(name: str, value: Any) -> Any:
    """A setting as it may be published: paths on this machine by their last part alone."""
    if name not in PUBLIC_PATHS or value is None:
        return value
    if isinstance(value, list):
        return [_public(name, item) for item in value]
    path = Path(value).expanduser()
    return path.name if path.exists() or path.is_absolute() or name == "out" else value
