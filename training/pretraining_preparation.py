"""Before the first step of pretraining: text to shards, sizes and baselines, all kept in the run's folder.

What is prepared is read back from the folder even by the run that made it, so that a resumed run starts from the same.
"""

import dataclasses
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import say
from groundup.common.errors import InputError, user_path
from groundup.common.settings import Deadline
from groundup.data.overlap import KnownText, held_apart
from groundup.data.preparation import TRAINING_BYTES, PreparedData, is_prepared, open_prepared_data
from groundup.data.sources import Corpus, load_corpus, load_documents, sample_texts, text_bytes
from groundup.data.tokens import TokenStream, write_shards
from groundup.evaluation.baselines import unigram_score, xz_bits_per_byte
from groundup.evaluation.likelihood import LanguageScore
from groundup.inference.folder import auto_class_of
from groundup.inference.loading import context_of, load_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM, GroundupForMaskedLM
from groundup.tokenization.folder import MASK, load_tokenizer, require_ids_of, structure_ids, without_length
from groundup.tokenization.report import TokenBytes
from groundup.tokenization.training import train_bpe
from groundup.training.checkpoint import RunFolder, pretrained_elsewhere
from groundup.training.machine import sizes_of
from groundup.training.plan import Given, Plan, make_plan, suitable_minutes
from groundup.training.settings import PlanSettings, PretrainSettings, TrainingOptions
from groundup.training.verbs import Chosen, preparation

if TYPE_CHECKING:
    from peft import PeftModel

SMOKE_ROWS, SMOKE_TEST_ROWS = 1000, 100  # of tables, spread evenly over them
USUAL_TOKEN_BYTES = 4  # of text that is known only by its tokens
SHARDS_ELSEWHERE = "shards.json"  # in work/, where the shards are not in it themselves
SHARDS = ("train", "validation", ".train.partial", ".validation.partial")  # in work/: kept if they are of this text
KNOWN = "known.safetensors"  # in work/: hashes of the training text
TEXTS_FILE, BASE = "texts.jsonl", "base"  # in work/: what a new model pretrains on, and what comes of it
LONGEST_ROW = 1024  # tokens: of a model that can look at more, unless --context-length says so


@dataclass
class Prepared:
    """Hold a run before (or between) its steps, as it lies in its folder."""

    settings: PretrainSettings
    plan: Plan
    name: str
    tokenizer: PreTrainedTokenizerFast
    train: TokenStream
    validation: TokenStream
    unigram: LanguageScore
    xz: float | None
    overlap: dict[str, Any] | None  # of the validation with the training text, as the recipe has it
    known: KnownText | None  # the training text, where there is a text to be tested on


@preparation(kept=SHARDS)
def prepare_run(settings: PretrainSettings, run: RunFolder, deadline: Deadline) -> Chosen[PretrainSettings]:
    """Read the text, plan, train the tokenizer, write shards and baselines into the run's folder.

    Raises `InputError` for data or options that will not do.
    """
    if settings.init_from is None and settings.tokenizer is not None and settings.vocab_size is not None:
        raise InputError("--vocab-size is for a new tokenizer: leave it out, or --tokenizer")
    # What is wrong with it is said now; nothing else of it is looked at before the end.
    tested = load_documents(settings.eval_data, settings.text_column)[1] if settings.eval_data else []
    corpus, overlap = _held_apart(_corpus(settings), settings, run)
    size = _text_bytes(corpus)
    if not settings.has_budget:
        settings = dataclasses.replace(settings, minutes=suitable_minutes(size))
        say(f"no budget given: {settings.minutes:g} minutes suit {size / 1e6:.2f} MB of text")
    seconds = deadline.after(settings.minutes).seconds_left()
    plan = make_plan(Given.of(settings, **_sizes_of_the_model(settings)), size, seconds)
    plan.require_memory(settings.init_from, settings.lora)
    tokenizer = _tokenizer(settings, plan, corpus)
    if settings.objective == "mlm" and tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    plan.vocab_size = len(tokenizer)
    if settings.init_from is None:
        make_config(plan, tokenizer)  # sizes that do not fit are said before the text is tokenised
    train, validation = _streams(corpus, tokenizer, settings, run)
    _check_length(train, plan, settings)
    _write_baselines(run.work / "baselines.json", corpus, tokenizer, train, validation)
    about = {"name": corpus.name, "sources": corpus.sources} | ({"eval_sources": tested} if tested else {})
    return settings, plan, tokenizer, about | {"overlap": overlap}


def open_prepared(run: RunFolder) -> Prepared:
    """Read back what `prepare_run` left."""
    recipe, settings, plan = run.read(PretrainSettings, Plan)
    baselines = json.loads((run.work / "baselines.json").read_text(encoding="utf-8"))
    train, validation = _kept_streams(run)
    return Prepared(
        settings=settings,
        plan=plan,
        name=recipe["name"],
        tokenizer=load_tokenizer(run.work / "tokenizer"),
        train=train,
        validation=validation,
        unigram=LanguageScore(**baselines["unigram"]),
        xz=baselines["xz"],
        overlap=recipe.get("overlap"),
        known=KnownText.open(run.work / KNOWN) if (run.work / KNOWN).is_file() else None,
    )


def _corpus(settings: PretrainSettings) -> Corpus | PreparedData:
    """Read the text that `--data` names, or the shards of it where `--data` is a folder of those."""
    if not any(map(is_prepared, settings.data)):
        return load_corpus(settings.data, settings.text_column)
    if len(settings.data) > 1:
        raise InputError(f"--data {' '.join(settings.data)}: a folder of shards must be the only data")
    return open_prepared_data(user_path(settings.data[0]), settings.tokenizer, settings.init_from)


def _held_apart(
    corpus: Corpus | PreparedData, settings: PretrainSettings, run: RunFolder
) -> tuple[Corpus | PreparedData, dict[str, Any] | None]:
    """Return the corpus without validation text that the training text has too, and how much of it that was.

    The training text's hashes are kept for the text to be tested on. Of shards `prepare` has done it.
    """
    if isinstance(corpus, PreparedData):
        return corpus, corpus.overlap
    corpus, known, overlap = held_apart(corpus)
    if settings.eval_data:
        known.save(run.work / KNOWN)
    return corpus, overlap


def _text_bytes(corpus: Corpus | PreparedData) -> int:
    if isinstance(corpus, Corpus):
        return text_bytes(corpus.train)
    return corpus.train.meta["bytes"] or USUAL_TOKEN_BYTES * len(corpus.train)


def _streams(
    corpus: Corpus | PreparedData, tokenizer: PreTrainedTokenizerFast, settings: PretrainSettings, run: RunFolder
) -> tuple[TokenStream, TokenStream]:
    """Return the ids for training and for validation; write them into the run's folder, unless they are shards."""
    if isinstance(corpus, Corpus):
        parts = (("train", corpus.train), ("validation", corpus.validation))
        train, validation = (write_shards(documents, tokenizer, run.work / name) for name, documents in parts)
        return train, validation
    note = {
        "folder": _from_anywhere(settings.data[0]),
        "tokenizer": _from_anywhere(settings.tokenizer),
        "base": _from_anywhere(settings.init_from),
        "content": _content_of_shards(corpus),
    }
    (run.work / SHARDS_ELSEWHERE).write_text(json.dumps(note), encoding="utf-8")
    return corpus.train, corpus.validation


def _kept_streams(run: RunFolder) -> tuple[TokenStream, TokenStream]:
    """Open what `_streams` returned again. Raises `InputError` if shards elsewhere are gone or others."""
    path = run.work / SHARDS_ELSEWHERE
    if not path.is_file():
        return TokenStream.open(run.work / "train"), TokenStream.open(run.work / "validation")
    note = json.loads(path.read_text(encoding="utf-8"))
    if not is_prepared(note["folder"]):
        raise InputError(f"{note['folder']}, on which {run.out} was trained, is missing: restore it")
    data = open_prepared_data(Path(note["folder"]), note["tokenizer"], note.get("base"))
    if _content_of_shards(data) != note["content"]:
        raise InputError(
            f"{note['folder']} does not hold the shards that {run.out} was started with: choose a new --out"
        )
    return data.train, data.validation


def _content_of_shards(data: PreparedData) -> list[list[Any]]:
    """Return what tells shards from others, for both parts: the text, and the tokenizer that made ids of it."""
    return [
        [stream.meta[name] for name in ("sha256", "tokens", "tokenizer")] for stream in (data.train, data.validation)
    ]


def _from_anywhere(name: str | None) -> str | None:
    """Return a path that holds in any folder; a name on the Hub and None stay as they are."""
    path = user_path(name or "")
    return str(path.resolve()) if name and path.exists() else name


def make_model(prepared: Prepared) -> "PreTrainedModel | PeftModel":
    """Return the model before its first step: a new one of the plan's sizes, or the one to continue or to adapt."""
    settings, plan = prepared.settings, prepared.plan
    if settings.init_from is not None:
        model = _load_base(settings)
        known = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
        if known < len(prepared.tokenizer):
            model.resize_token_embeddings(len(prepared.tokenizer))
        if settings.lora:
            from groundup.training.lora import add_lora  # peft takes a while to import

            return add_lora(model, settings, trained_tokens=range(known, len(prepared.tokenizer)))
        return model
    config = make_config(plan, prepared.tokenizer)
    return GroundupForMaskedLM(config) if settings.objective == "mlm" else GroundupForCausalLM(config)


def _load_base(settings: PretrainSettings) -> PreTrainedModel:
    source = settings.init_from or ""
    wanted, other = AutoModelForCausalLM, AutoModelForMaskedLM
    does, cure = "predicts masked tokens", "add --objective mlm"
    if settings.objective == "mlm":
        wanted, other, does, cure = other, wanted, "predicts the next token", "leave out --objective mlm"
    try:
        is_other = auto_class_of(user_path(source)) == other.__name__
    except InputError:  # a name on the Hub, or a folder that only loading can judge
        is_other = False
    if is_other:
        raise InputError(f"{source} {does}: {cure}")
    return load_model(source, kind=wanted)[0]


def _sizes_of_the_model(settings: PretrainSettings) -> dict[str, Any]:
    """Return the sizes of the model to continue, from which the plan takes rates and batch; none for a new one."""
    if settings.init_from is None:
        return {}
    model = _load_base(settings)
    return {
        "from_elsewhere": pretrained_elsewhere(settings.init_from),
        "main": "adapter" if settings.lora else "matrix",
        "context_length": row_length(settings, model, LONGEST_ROW),
    } | sizes_of(model)


def row_length(settings: TrainingOptions | PlanSettings, model: PreTrainedModel, usual: int) -> int:
    """Return the length of a row for a model [tokens]: as asked for, else the usual one or the model's context length.

    Raises `InputError` for one that is longer than the model's context length.
    """
    limit = context_of(model)
    if settings.context_length is not None and settings.context_length > limit:
        raise InputError(
            f"--context-length {settings.context_length}: {settings.base} has a context of {limit:,}: give no more"
        )
    return settings.context_length or min(limit, usual)


def write_rows(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_texts(work: Path, texts: Iterable[str]) -> None:
    """Write into `work` what a new model pretrains on: rows with the one column `text`."""
    write_rows(work / TEXTS_FILE, ({"text": text} for text in texts))


def make_config(plan: Plan, tokenizer: PreTrainedTokenizerFast) -> GroundupConfig:
    """Return the config that a plan and a tokenizer make. Raises `InputError` for sizes that do not fit together."""
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


def evenly(rows: int, at_most: int) -> np.ndarray:
    """Return the indices of all rows, or of `at_most` that are spread evenly over them."""
    count = min(rows, at_most)
    return np.arange(count) * rows // max(1, count)


def _tokenizer(settings: PretrainSettings, plan: Plan, corpus: Corpus | PreparedData) -> PreTrainedTokenizerFast:
    """Return the tokenizer of the shards, the one named or that of the model to continue, or train a new one."""
    if isinstance(corpus, PreparedData):
        if settings.vocab_size not in (None, len(corpus.tokenizer)):
            known = len(corpus.tokenizer)
            raise InputError(f"--vocab-size {settings.vocab_size}: the shards hold {known} tokens: leave it out")
        return without_length(corpus.tokenizer)
    if settings.tokenizer is not None:
        tokenizer = load_tokenizer(settings.tokenizer)
        if settings.init_from is not None:
            require_ids_of(settings.init_from, tokenizer, f"--tokenizer {settings.tokenizer}")
        return without_length(tokenizer)
    if settings.init_from is not None:
        return load_tokenizer(settings.init_from)
    tokenizer = train_bpe(sample_texts(corpus.train, TRAINING_BYTES), plan.vocab_size)
    if settings.vocab_size is not None and len(tokenizer) < settings.vocab_size:
        raise InputError(
            f"--vocab-size {settings.vocab_size}: the text is enough for only {len(tokenizer)} tokens: "
            f"give at most {len(tokenizer)}, or more text"
        )
    return tokenizer


def _check_length(train: TokenStream, plan: Plan, settings: PretrainSettings) -> None:
    if len(train) - 1 < plan.context_length:
        option = "" if settings.context_length is None else f"--context-length {settings.context_length}: "
        raise InputError(
            f"{option}the training text has {len(train) - 1} tokens, fewer than one row of {plan.context_length}: "
            "give more text or a shorter --context-length"
        )


def _write_baselines(
    path: Path,
    corpus: Corpus | PreparedData,
    tokenizer: PreTrainedTokenizerFast,
    train: TokenStream,
    validation: TokenStream,
) -> None:
    unigram = unigram_score(train, validation, len(tokenizer), structure_ids(tokenizer), TokenBytes.of(tokenizer))
    xz = xz_bits_per_byte(corpus.validation.texts()) if isinstance(corpus, Corpus) else None
    baselines = {"unigram": dataclasses.asdict(unigram), "xz": xz}
    path.write_text(json.dumps(baselines, indent=2) + "\n", encoding="utf-8")
