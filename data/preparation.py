"""The verbs `tokenizer` and `prepare`: text to a tokenizer's folder, text to folders of shards."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from groundup.common.console import console, say
from groundup.common.errors import InputError, public_name
from groundup.common.files import RECIPE_FILE, atomic_folder
from groundup.common.output import OutputFolder, claim, given_folder
from groundup.common.resuming import refuse
from groundup.common.settings import read_yaml, verb, write_yaml
from groundup.data.documents import Share
from groundup.data.overlap import held_apart
from groundup.data.prepared import TOKENIZER, TRAIN, VALIDATION
from groundup.data.settings import PrepareSettings, TokenizerSettings
from groundup.data.sources import Corpus, load_corpus, sample, sample_texts, short_name, text_bytes
from groundup.data.tokens import write_shards
from groundup.tokenization.bpe import suitable_vocab_size, train_bpe
from groundup.tokenization.folder import fingerprint, load_tokenizer, save_tokenizer, without_length
from groundup.tokenization.report import report_table, tokenizer_report
from groundup.tokenization.word_level import train_word_level

TRAINING_BYTES = 2**28  # of a larger text an even sample: the merges no longer change, the time does
REPORT_BYTES = 2**24
SMOKE_BYTES = 2**20


@verb(TokenizerSettings)
def train_tokenizer(settings: TokenizerSettings) -> Path:
    """Train a tokenizer, write its folder with `recipe.yaml` and `tokenizer_report.json`, and return the folder.

    Takes a `TokenizerSettings` or its fields by keyword. Raises `InputError` for data that cannot be read, or too
    little of it for the vocabulary that was asked for.
    """
    console.quiet = settings.quiet
    with claim(settings.out, "tokenizer", short_name(settings.data)) as output:
        corpus = _corpus(settings)
        tokenizer = _train(settings, corpus)
        held_back = sample(corpus.validation, REPORT_BYTES).texts()
        rows = tokenizer_report(tokenizer, sample_texts(corpus.train, TRAINING_BYTES), held_back)
        with output.filled() as folder:
            save_tokenizer(tokenizer, folder)
            (folder / "tokenizer_report.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            recipe = _recipe("tokenizer", settings, corpus) | {"tokenizer_sha256": fingerprint(tokenizer)}
            write_yaml(folder / RECIPE_FILE, recipe)
    console.print(report_table(rows))
    say(f"tokenizer of {len(tokenizer):,} tokens written to {output.path}")
    return output.path


@verb(PrepareSettings)
def prepare(settings: PrepareSettings) -> Path:
    """Tokenise a text into the folders `train` and `validation` of a new folder, or of a part of it, and return that.

    Takes a `PrepareSettings` or its fields by keyword. Raises `InputError` for data or a tokenizer that cannot be
    read, and for a folder that holds something else.
    """
    console.quiet = settings.quiet
    if not settings.tokenizer:
        raise InputError("prepare needs a tokenizer: give --tokenizer a folder or a Hub name")
    for option, given in (("--resume", settings.resume), ("--part", settings.part)):
        if given and settings.out is None:
            raise InputError(f"{option} needs --out: give the folder that all parts share")
    share = Share.read(settings.part) if settings.part else None
    out = given_folder(settings.out) / share.folder if share and settings.out is not None else settings.out
    with claim(out, "prepare", short_name(settings.data), resume=settings.resume) as output:
        out = output.path
        tokenizer = without_length(load_tokenizer(settings.tokenizer))
        corpus, _, overlap = held_apart(_corpus(settings, share))
        recipe = _recipe("prepare", settings, corpus) | {"overlap": overlap}
        recipe |= {"tokenizer_sha256": fingerprint(tokenizer)}
        try:
            _begin(output, recipe, tokenizer)
            train = write_shards(corpus.train, tokenizer, out / TRAIN)
            validation = write_shards(corpus.validation, tokenizer, out / VALIDATION)
        except BaseException:
            if not output.goes_on and not any(out.rglob("*.npy")):  # nothing to go on with
                output.take_back(RECIPE_FILE, TOKENIZER, TRAIN, VALIDATION)
            raise
    say(f"{len(train):,} tokens for training and {len(validation):,} for validation written to {out}")
    return out


def _begin(output: OutputFolder, recipe: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the tokenizer and then the recipe, unless they are there. Raises `InputError` if they are not the same."""
    out = output.path
    if output.goes_on:
        known = read_yaml(out / RECIPE_FILE)
        settings, kept = recipe["settings"], known.get("settings")
        if isinstance(kept, dict):
            others = {name: value for name, value in settings.items() if value != kept.get(name)}
            refuse(others, kept, out, "goes on with the settings that it began with", "choose a new --out")
        differing = [key for key, value in recipe.items() if known.get(key) != value]
        if differing:
            what = " and ".join(differing).replace("_sha256", "")
            raise InputError(f"{out} was started with other {what} (see its {RECIPE_FILE}): choose a new --out")
        return
    with atomic_folder(out / TOKENIZER, out / f".{TOKENIZER}.partial") as folder:
        save_tokenizer(tokenizer, folder)
    write_yaml(out / RECIPE_FILE, recipe)


def _corpus(settings: TokenizerSettings | PrepareSettings, share: Share | None = None) -> Corpus:
    corpus = load_corpus(settings.data, settings.text_column, share=share)
    if not settings.smoke:
        return corpus
    train, validation = sample(corpus.train, SMOKE_BYTES), sample(corpus.validation, SMOKE_BYTES)
    return dataclasses.replace(corpus, train=train, validation=validation)


def _train(settings: TokenizerSettings, corpus: Corpus) -> PreTrainedTokenizerFast:
    size = suitable_vocab_size(text_bytes(corpus.train)) if settings.vocab_size is None else settings.vocab_size
    train = train_bpe if settings.kind == "bpe" else train_word_level
    tokenizer = train(sample_texts(corpus.train, TRAINING_BYTES), size)
    if settings.vocab_size is not None and len(tokenizer) < settings.vocab_size:
        raise InputError(
            f"the text is enough for a vocabulary of {len(tokenizer):,} tokens, not {settings.vocab_size:,}: "
            f"give more --data, or at most --vocab-size {len(tokenizer)}"
        )
    return tokenizer


def _recipe(name: str, settings: TokenizerSettings | PrepareSettings, corpus: Corpus) -> dict[str, Any]:
    """Return what was asked for and from what it was made, with names of files but no folders of this machine."""
    values = dataclasses.asdict(settings) | {"data": [public_name(item) for item in settings.data], "out": None}
    if isinstance(settings, PrepareSettings) and settings.tokenizer:
        values |= {"tokenizer": public_name(settings.tokenizer), "resume": False, "quiet": False}
    return {"name": corpus.name, "verb": name, "settings": values, "sources": corpus.sources}
