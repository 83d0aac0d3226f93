"""Before the first step of `classify`: rows split, sizes and rates chosen, all kept in the run's folder.

What is prepared is read back from the folder even by the run that made it, so that a resumed run starts from the same.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from groundup.common.console import say
from groundup.common.errors import InputError, listed
from groundup.common.settings import Deadline, public_settings
from groundup.data.encoding import ExampleRows, encode_examples, for_classifying
from groundup.data.examples import (
    Columns,
    Examples,
    also_in,
    label_names,
    load_examples,
    stratified,
)
from groundup.data.sources import check_exists, short_name
from groundup.tokenization.folder import fingerprint, load_tokenizer, save_tokenizer
from groundup.tokenization.training import suitable_vocab_size, train_bpe
from groundup.training.classifier_base import FOLDED, Start, base_of, start_of
from groundup.training.optim import FINE_TUNING
from groundup.training.plan import LEAST_DECAY, Given, Optimization, make_plan, suitable_minutes
from groundup.training.pretraining_preparation import SMOKE_ROWS, evenly
from groundup.training.run_folder import RunFolder
from groundup.training.settings import (
    PUBLIC_PATHS,
    ClassifySettings,
    check_lora,
    refuse_of_new,
    with_budget,
)

PATHS = (*PUBLIC_PATHS, "model", "predict")
BASE = "base"  # under work/: the model that has learnt the texts
LONGEST_MINUTES = 10.0  # of a run without a budget
ADAPT_SHARE = 0.6  # of a budget, for pretraining on the texts of a model from nothing (docs/classification.md)
ADAPT_EPOCHS = 5.0  # passes over the texts, where the budget is no clock
MOST_ADAPT_EPOCHS = 6.0  # and where it is one
MOST_EPOCHS, MOST_STEPS = 3.0, 300  # under a clock the larger of both is the end: what there is to learn is learnt
LARGEST_VOCABULARY = 8192
BATCH_ROWS = 32
PATIENCE = 4  # validations, of ten in a run, without a better one, that end a run without a budget
# Of the rates for language: labels say little, and somebody else's model is moved as its makers move theirs
# (about 5e-5 for AdamW at a width of 768: Devlin et al. 2019, A.3).
LABELS_SHARE = 0.5
DROPOUT, TOKEN_DROPOUT, LANGUAGE_WEIGHT = 0.1, 0.1, 0.5  # for a model of our own


@dataclass(kw_only=True)
class ClassifyPlan(Optimization):
    """Hold every choice of a run.

    `objective` is that of the pretraining on the texts that comes first, None where there is none, `pretraining_rate`
    the factor on its learning rates, and `model` are the fields of `GroundupConfig` for a new model.
    """

    context_length: int
    batch_rows: int
    micro_batch_tokens: int
    labels: list[str]
    label_counts: list[int]
    model_fields: dict[str, Any]
    token_dropout: float
    language_weight: float
    most_epochs: float | None
    patience: int | None
    model: dict[str, Any]
    objective: Literal["clm", "mlm"] | None
    pretraining_rate: float


@dataclass
class PreparedExamples:
    """A run before (or between) its steps, as it lies in its folder."""

    settings: ClassifySettings
    plan: ClassifyPlan
    columns: Columns
    name: str
    tokenizer: PreTrainedTokenizerFast
    work: Path

    @property
    def given(self) -> str | Path | None:
        """`--model`, with its adapter folded in where it is one."""
        return self.work / FOLDED if (self.work / FOLDED).is_dir() else self.settings.model

    @property
    def source(self) -> str | Path:
        """What the model is made from: what the adaptation left, else `--model`."""
        return self.work / BASE if self.plan.objective is not None else self.given or ""

    def examples(self, part: str) -> Examples:
        """The rows of `train`, `selection` or `test` (the last only where it was split off `--data`)."""
        return read_examples(self.work / f"{part}.jsonl")

    def encode(self, examples: Examples, what: str) -> ExampleRows:
        """Rows of ids; says how many texts were longer than the context."""
        plan = self.plan
        rows = encode_examples(examples.texts, examples.labels, plan.labels, self.tokenizer, plan.context_length)
        if rows.cut:
            say(f"{what}: {rows.cut:,} of {len(rows):,} texts are longer than {plan.context_length} tokens: truncated")
        return rows


def prepare_classification(settings: ClassifySettings, run: RunFolder, _: Deadline) -> None:
    """Read the rows, split them, train the tokenizer of a new model, plan; the recipe is written last.

    Raises `InputError` for data or options that will not do.
    """
    settings = with_budget(settings)
    _check(settings)
    with run.being_prepared():
        _prepare(settings, run)


def open_classification(run: RunFolder) -> PreparedExamples:
    """Read back what `prepare_classification` left."""
    recipe, settings, plan = run.read(ClassifySettings, ClassifyPlan)
    return PreparedExamples(
        settings=settings,
        plan=plan,
        columns=Columns(**recipe["columns"]),
        name=recipe["name"],
        tokenizer=for_classifying(load_tokenizer(run.work / "tokenizer"), plan.context_length),
        work=run.work,
    )


def _check(settings: ClassifySettings) -> None:
    if settings.adapt_minutes is not None and settings.adapt_epochs is not None:
        raise InputError("--adapt-minutes and --adapt-epochs: give one of them")
    minutes, adapt_minutes = settings.minutes, settings.adapt_minutes or 0.0
    if minutes is not None and adapt_minutes >= minutes:
        raise InputError(
            f"--adapt-minutes {adapt_minutes:g} leaves no time for the labels in --minutes {minutes:g}: give less"
        )
    if settings.model is not None:
        refuse_of_new(settings, "--model")
    if settings.model is None and 0 in (settings.adapt_minutes, settings.adapt_epochs):
        raise InputError("a new model is pretrained on the texts first: give --adapt-minutes above 0, or --model")
    check_lora(settings)
    if settings.lora and (settings.model is None or settings.adapt_minutes or settings.adapt_epochs):
        raise InputError(
            "--lora adapts an existing model: give --model, and leave out --adapt-minutes and --adapt-epochs"
        )
    if settings.lora and settings.average > 1:
        raise InputError("--average takes the mean of all weights, --lora trains an adapter: leave one out")
    if settings.lora and settings.train != "all":
        raise InputError(f"--lora chooses the weights that are trained: leave out --train {settings.train}")
    if settings.train == "head" and settings.language_weight:
        raise InputError("--language-weight trains what lies below the head: leave it out, or --train head")
    if settings.eval_data and settings.test_share != ClassifySettings.test_share:
        raise InputError("--test-share and --eval-data both give a test set: leave one out")
    check_exists(settings.eval_data)


def _prepare(settings: ClassifySettings, run: RunFolder) -> None:
    columns = Columns(settings.text_column, settings.label_column)
    examples, sources, columns = load_examples(settings.data, columns)
    tested = _look_at_tests(settings, columns, examples.labels)
    if settings.smoke:
        examples = examples.take(evenly(len(examples), SMOKE_ROWS))
    parts, dropped = _split(examples, settings)
    for part, rows in parts.items():
        write_examples(run.work / f"{part}.jsonl", rows)
    order = np.random.default_rng(settings.seed).permutation(len(parts["train"]))  # its last tenth measures
    write_texts(run.work / "texts.jsonl", parts["train"].take(order).texts)
    size = sum(len(text.encode()) for text in parts["train"].texts)
    patience = None if settings.minutes or settings.max_steps or settings.epochs else PATIENCE
    settings = _with_minutes(settings, size)
    source = base_of(settings, run.work)
    tokenizer = _tokenizer(settings, parts["train"].texts, size)
    save_tokenizer(tokenizer, run.work / "tokenizer")
    start = start_of(settings, source, tokenizer, parts["train"].texts)
    plan = _plan(settings, start, parts["train"], tokenizer, size, patience)
    recipe = {
        "name": short_name(settings.data),
        "verb": "classify",
        "settings": public_settings(settings, PATHS),
        "plan": dataclasses.asdict(plan),
        "columns": dataclasses.asdict(columns),
        "rows": {part: len(rows) for part, rows in parts.items()} | {"dropped_from_selection": dropped},
        "sources": sources,
        **({"eval_sources": tested} if tested else {}),
        "tokenizer_sha256": fingerprint(tokenizer),
    }
    run.write_recipe(recipe, {key: value for key, value in dataclasses.asdict(settings).items() if key in PATHS})


def _look_at_tests(settings: ClassifySettings, columns: Columns, labels: list[str]) -> list[dict[str, Any]]:
    """Where the rows of `--eval-data` come from; what is wrong with them is said before anything is trained.

    Nothing else of them is looked at now. Raises `InputError` for rows that nothing can be measured on.
    """
    if not settings.eval_data:
        return []
    named = Columns(settings.text_column, settings.label_column)
    tests, sources, _ = load_examples(settings.eval_data, named, like=columns, held_out=True)
    known, asked = set(labels), set(tests.labels)
    if not known & asked:
        raise InputError(
            f"no label of {', '.join(settings.eval_data)} is one of --data: {listed(sorted(asked), 4)} there, "
            f"{listed(sorted(known), 4)} here"
        )
    return sources


def _split(examples: Examples, settings: ClassifySettings) -> tuple[dict[str, Examples], int]:
    """Rows for training, selection and, without `--eval-data`, the test; a text of training does not select."""
    count, different = len(examples), len(label_names(examples.labels))
    parts = {}
    if not settings.eval_data and settings.test_share:
        kept, held_back = stratified(examples.labels, settings.test_share, settings.seed)
        examples, parts["test"] = examples.take(kept), examples.take(held_back)
    kept, held_back = stratified(examples.labels, settings.selection_share, settings.seed + 1)
    parts["train"], selection = examples.take(kept), examples.take(held_back)
    known = also_in(selection.texts, parts["train"].texts)
    if known.any():
        say(f"validation: {known.sum():,} of {len(selection):,} texts are in the training rows too: left out")
    parts["selection"] = selection.take(~known)
    for part, rows in parts.items():
        if not len(rows) and part == "selection" and len(selection):
            raise InputError("every text held out for selection is in the training rows too: give more different texts")
        if not len(rows):
            share = "--test-share" if part == "test" else "--selection-share"
            raise InputError(
                f"{count:,} rows of {different:,} labels are too few to hold some out for {part}: "
                f"give more, or a larger {share}"
            )
    return parts, int(known.sum())


def _with_minutes(settings: ClassifySettings, text_bytes: int) -> ClassifySettings:
    """The settings with a budget, and the pretraining's part of it."""
    from_nothing = settings.model is None
    if settings.minutes is None and settings.max_steps is None and settings.epochs is None:
        minutes = min(LONGEST_MINUTES, 3 * suitable_minutes(text_bytes)) if from_nothing else LONGEST_MINUTES
        say(f"no budget given: training until the validation score stops rising, at most {minutes:g} minutes")
        settings = dataclasses.replace(settings, minutes=minutes)
    if not from_nothing or settings.adapt_minutes is not None or settings.adapt_epochs is not None:
        return settings
    if settings.minutes is not None:
        return dataclasses.replace(settings, adapt_minutes=round(ADAPT_SHARE * settings.minutes, 3))
    return dataclasses.replace(settings, adapt_epochs=ADAPT_EPOCHS)


def _tokenizer(settings: ClassifySettings, texts: list[str], text_bytes: int) -> PreTrainedTokenizerFast:
    """The model's own, or one trained on the training texts alone."""
    if settings.model is not None:
        return load_tokenizer(settings.model)
    size = settings.vocab_size or (512 if settings.smoke else min(suitable_vocab_size(text_bytes), LARGEST_VOCABULARY))
    return train_bpe(texts, size)


def _plan(
    settings: ClassifySettings,
    start: Start,
    train: Examples,
    tokenizer: PreTrainedTokenizerFast,
    text_bytes: int,
    patience: int | None,
) -> ClassifyPlan:
    """Sizes and rates, by the plan of pretraining; gentler, the more the model knows already."""
    share = LABELS_SHARE if start.from_elsewhere else FINE_TUNING
    base = make_plan(
        Given.of(
            settings,
            hidden_size=settings.hidden_size or start.width,
            context_length=start.context_length,
            vocab_size=len(tokenizer),
            from_scratch=settings.model is None,
            from_elsewhere=start.from_elsewhere,
            share=1.0 if settings.train == "head" else share,
            new_head=not start.labels,
            main="adapter" if settings.lora else "head" if settings.train == "head" else "matrix",
            weight_decay=LEAST_DECAY,
        ),
        text_bytes,
        60 * settings.adapt_minutes if settings.adapt_minutes else None,
    )
    if settings.model is None:
        base.require_memory()
    names = _in_order(label_names(train.labels), start, settings)
    batch_rows = min(len(train), settings.batch_rows or BATCH_ROWS)
    return ClassifyPlan(
        precision=base.precision,
        optimizer=base.optimizer,
        from_elsewhere=base.from_elsewhere,
        rates=base.rates,
        weight_decay=base.weight_decay,
        warmup=0.05,
        decay=0.7,
        clip=base.clip,
        context_length=base.context_length,
        batch_rows=batch_rows,
        micro_batch_tokens=base.micro_batch_rows * base.context_length,
        labels=names,
        label_counts=[train.labels.count(name) for name in names],
        model_fields=_model_fields(settings, start),
        token_dropout=_for_ours(settings.token_dropout, TOKEN_DROPOUT, settings, start),
        language_weight=0.0
        if start.predicts != "clm"
        else _for_ours(settings.language_weight, LANGUAGE_WEIGHT, settings, start),
        most_epochs=None if settings.minutes is None else max(MOST_EPOCHS, MOST_STEPS * batch_rows / len(train)),
        patience=patience,
        model={} if settings.model else base.model | {"embedding_dropout": DROPOUT, "residual_dropout": DROPOUT},
        objective=start.predicts if not settings.model or settings.adapt_minutes or settings.adapt_epochs else None,
        pretraining_rate=FINE_TUNING if settings.model and not start.from_elsewhere else 1.0,
    )


def _in_order(names: list[str], start: Start, settings: ClassifySettings) -> list[str]:
    """The labels in the order that a classifier has them in; what is new to it, and what it loses, is said.

    Raises `InputError` for other labels where an adapter is to be trained: its base would keep a head of another shape.
    """
    if not start.labels:
        return names
    if set(names) == set(start.labels):
        return list(start.labels)
    if settings.lora:
        raise InputError(f"--lora: {settings.model} has other labels than the rows: leave --lora out")
    known, lost = set(names) & set(start.labels), set(start.labels) - set(names)
    dropped = f"; {len(lost):,} of its labels are in no row and are dropped" if lost else ""
    say(f"{settings.model} already has {len(known):,} of the {len(names):,} labels of the rows{dropped}")
    return names


def _model_fields(settings: ClassifySettings, start: Start) -> dict[str, Any]:
    """What the settings change in the model's config: pooling and dropout."""
    pooling = settings.pooling or (None if start.labels else "mean")  # a classifier has one already
    fields: dict[str, Any] = {"classifier_pooling": pooling} if start.is_ours and pooling else {}
    dropout = DROPOUT if settings.dropout is None and start.is_ours else settings.dropout
    return fields if dropout is None else fields | dict.fromkeys(start.dropouts, dropout)


def _for_ours(given: float | None, usual: float, settings: ClassifySettings, start: Start) -> float:
    """Return what was given, else what is usual where all of a model of our own training is trained, else 0."""
    if given is not None:
        return given
    return 0.0 if start.from_elsewhere or settings.train != "all" or settings.lora else usual


def write_examples(path: Path, examples: Examples) -> None:
    """Write rows as JSONL with the columns `text` and `label`."""
    rows = zip(examples.texts, examples.labels)
    _write_lines(path, [{"text": text, "label": label} for text, label in rows])


def read_examples(path: Path) -> Examples:
    """What `write_examples` wrote; nothing where there is no such file."""
    if not path.is_file():
        return Examples()
    with path.open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return Examples([row["text"] for row in rows], [row["label"] for row in rows])


def write_texts(path: Path, texts: list[str]) -> None:
    """Write texts as JSONL with the one column `text`: what a language model learns from."""
    _write_lines(path, [{"text": text} for text in texts])


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
