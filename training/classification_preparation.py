"""Before the first step of `classify`: rows split, sizes and rates chosen, all kept in the run's folder.

What is prepared is read back from the folder even by the run that made it, so that a resumed run starts from the same.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast

from groundup.common.console import say
from groundup.common.errors import InputError, listed
from groundup.common.settings import Deadline
from groundup.data.encoding import ExampleRows, encode_examples, for_classifying
from groundup.data.examples import Columns, Examples, also_in, label_names, load_examples, sizes_said, stratified
from groundup.data.sources import check_exists
from groundup.evaluation.classification import labels_of
from groundup.inference.folder import AUTO_CLASSES
from groundup.inference.loading import is_adapter, load_adapter, load_network, save_model
from groundup.modeling import GroundupConfig
from groundup.tokenization.folder import load_tokenizer
from groundup.tokenization.training import train_bpe
from groundup.training.checkpoint import RunFolder, pretrained_elsewhere
from groundup.training.forecast import trainable_tokens
from groundup.training.machine import sizes_of
from groundup.training.optim import FINE_TUNING
from groundup.training.plan import ENOUGH_UPDATES, LEAST_DECAY, Given, RowsPlan, make_plan, suitable_minutes, vocabulary
from groundup.training.pretraining_preparation import BASE, SMOKE_ROWS, evenly, row_length, write_rows, write_texts
from groundup.training.settings import ClassifySettings, check_classification, check_head
from groundup.training.verbs import Chosen, preparation

LONGEST_MINUTES = 10.0  # of a run without a budget
ADAPT_SHARE = 0.6  # of a budget, for pretraining on the texts of a model from nothing (docs/classification.md)
ADAPT_EPOCHS = 5.0  # passes over the texts, where the budget is no clock
MOST_ADAPT_EPOCHS = 6.0  # and where it is one
MOST_EPOCHS, MOST_STEPS = 3.0, 300  # under a clock the larger of both is the end: what there is to learn is learnt
LARGEST_VOCABULARY = 8192
BATCH_ROWS, FEWEST_ROWS = 32, 8  # in a step; fewer where there would be few steps
TRAINED_SHARE = 0.7  # of a budget, that a large model trains
LEAST_READ = 64  # tokens of a text, of a model that has little time
PATIENCE = 4  # validations, of ten in a run, without a better one, that end a run without a budget
# Of the rates for language: labels say little, and somebody else's model is moved as its makers move theirs
# (about 5e-5 for AdamW at a width of 768: Devlin et al. 2019, A.3).
LABELS_SHARE = 0.5
DROPOUT, TOKEN_DROPOUT, LANGUAGE_WEIGHT = 0.1, 0.1, 0.5  # for a model of our own
LONGEST_CONTEXT, SHORTEST_CONTEXT = 512, 32  # of a new model, unless it is asked for another [tokens]
WHOLE_TEXTS = 0.98  # share of the texts that a new model's context holds whole
OUR_DROPOUTS = ("embedding_dropout", "residual_dropout", "classifier_dropout")
OTHER_DROPOUTS = (
    "attention_dropout", "attention_probs_dropout_prob", "attn_pdrop", "classifier_dropout", "embd_pdrop",
    "hidden_dropout_prob", "resid_pdrop",
)  # fmt: skip
FOLDED = "folded"  # in work/: the model that an adapter and its base make


@dataclass(kw_only=True)
class ClassifyPlan(RowsPlan):
    """Hold every choice of a run.

    `objective` is that of the pretraining on the texts that comes first, None where there is none, and
    `pretraining_rate` the factor on its learning rates.
    """

    labels: list[str]
    label_counts: list[int]
    model_fields: dict[str, Any]
    token_dropout: float
    language_weight: float
    most_epochs: float | None
    patience: int | None
    objective: Literal["clm", "mlm"] | None
    pretraining_rate: float


@dataclass(frozen=True)
class Start:
    """Hold what the choices depend on: the rows' lengths in tokens, and of `--model` its sizes and what it can do.

    `context_length` is that of the longest row, and `lengths` those of all. `is_ours` says that the network is our own,
    `from_elsewhere` that its weights are somebody else's. `predicts` is "clm" for a model with a head for next tokens,
    "mlm" for one with a head for masked ones, else None; `labels` are those of a classifier, in its order.
    """

    context_length: int
    lengths: Sequence[int] = ()
    sizes: dict[str, Any] = field(default_factory=dict)
    is_ours: bool = True
    from_elsewhere: bool = False
    predicts: Literal["clm", "mlm"] | None = "clm"
    labels: tuple[str, ...] = ()
    dropouts: tuple[str, ...] = OUR_DROPOUTS


@dataclass
class PreparedExamples:
    """Hold a run before (or between) its steps, as it lies in its folder."""

    settings: ClassifySettings
    plan: ClassifyPlan
    columns: Columns
    name: str
    tokenizer: PreTrainedTokenizerFast
    test_rows: int
    work: Path

    @property
    def given(self) -> str | Path | None:
        """Return `--model`, with its adapter folded in where it is one."""
        return self.work / FOLDED if (self.work / FOLDED).is_dir() else self.settings.model

    @property
    def source(self) -> str | Path:
        """Return what the model is made from: what the first pretraining left, else `--model`."""
        return self.work / BASE if self.plan.objective is not None else self.given or ""

    def examples(self, part: str) -> Examples:
        """Read the rows of `train`, `selection` or `test` (the last only where it was split off `--data`)."""
        path = self.work / f"{part}.jsonl"
        lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
        rows = [json.loads(line) for line in lines]
        return Examples([row["text"] for row in rows], [row["label"] for row in rows])

    def encode(self, examples: Examples, what: str | None) -> ExampleRows:
        """Return rows of ids; say how many texts are longer than the context, unless that was said before."""
        plan = self.plan
        rows = encode_examples(examples.texts, examples.labels, plan.labels, self.tokenizer, plan.context_length)
        if rows.cut and what:
            say(f"{what}: {rows.cut:,} of {len(rows):,} texts are longer than {plan.context_length} tokens: truncated")
        return rows


@preparation()
def prepare_classification(settings: ClassifySettings, run: RunFolder, _: Deadline) -> Chosen[ClassifySettings]:
    """Read the rows, split them, train the tokenizer of a new model, plan.

    Raises `InputError` for data or options that will not do.
    """
    check_classification(settings)
    check_exists(settings.eval_data)
    columns = Columns(settings.text_column, settings.label_column)
    examples, sources, columns = load_examples(settings.data, columns)
    tested = _look_at_tests(settings, columns, examples.labels)
    if settings.smoke:
        examples = examples.take(evenly(len(examples), SMOKE_ROWS))
    parts, dropped = _split(examples, settings)
    for part, rows in parts.items():
        pairs = zip(rows.texts, rows.labels)
        write_rows(run.work / f"{part}.jsonl", ({"text": text, "label": label} for text, label in pairs))
    train = parts["train"]
    say(sizes_said(parts))
    order = np.random.default_rng(settings.seed).permutation(len(train))  # its last tenth measures
    write_texts(run.work, train.take(order).texts)
    size = sum(len(text.encode()) for text in train.texts)
    patience = None if settings.has_budget else PATIENCE
    settings = _with_minutes(settings, size)
    source = base_of(settings, run.work)
    tokenizer = _tokenizer(settings, train.texts, size)
    start = start_of(settings, source, tokenizer, train.texts)
    plan = _plan(settings, start, train, tokenizer, size, patience)
    about = {
        "columns": dataclasses.asdict(columns),
        "rows": {part: len(rows) for part, rows in parts.items()} | {"dropped_from_selection": dropped},
        "sources": sources,
    }
    return settings, plan, tokenizer, about | tested


def open_classification(run: RunFolder) -> PreparedExamples:
    """Read back what `prepare_classification` left."""
    recipe, settings, plan = run.read(ClassifySettings, ClassifyPlan)
    return PreparedExamples(
        settings=settings,
        plan=plan,
        columns=Columns(**recipe["columns"]),
        name=recipe["name"],
        tokenizer=for_classifying(load_tokenizer(run.work / "tokenizer"), plan.context_length),
        test_rows=recipe.get("eval_rows", recipe["rows"].get("test", 0)),
        work=run.work,
    )


def _look_at_tests(settings: ClassifySettings, columns: Columns, labels: list[str]) -> dict[str, Any]:
    """Return the sources of `--eval-data` for the recipe; report what is wrong with its rows before training.

    Nothing else of them is looked at now. Raises `InputError` for rows that nothing can be measured on.
    """
    if not settings.eval_data:
        return {}
    named = Columns(settings.text_column, settings.label_column)
    tests, sources, _ = load_examples(settings.eval_data, named, like=columns, held_out=True)
    known, asked = set(labels), set(tests.labels)
    if not known & asked:
        raise InputError(
            f"no label of {', '.join(settings.eval_data)} is one of --data: {listed(sorted(asked), 4)} there, "
            f"{listed(sorted(known), 4)} here"
        )
    return {"eval_sources": sources, "eval_rows": len(tests)}


def _split(examples: Examples, settings: ClassifySettings) -> tuple[dict[str, Examples], int]:
    """Split rows for training, validation and, without `--eval-data`, the test; training texts do not validate."""
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
            raise InputError("every text held out for validation is in the training rows: give more different texts")
        if not len(rows):
            share = "--test-share" if part == "test" else "--selection-share"
            raise InputError(
                f"{count:,} rows of {different:,} labels are too few to hold some out for {part}: "
                f"give more, or a larger {share}"
            )
    return parts, int(known.sum())


def _with_minutes(settings: ClassifySettings, text_bytes: int) -> ClassifySettings:
    """Return the settings with a budget, and the pretraining's part of it."""
    from_nothing = settings.model is None
    if not settings.has_budget:
        minutes = min(LONGEST_MINUTES, 3 * suitable_minutes(text_bytes)) if from_nothing else LONGEST_MINUTES
        say(f"no budget given: training until the validation score stops rising, at most {minutes:g} minutes")
        settings = dataclasses.replace(settings, minutes=minutes)
    if not from_nothing or settings.adapt_minutes is not None or settings.adapt_epochs is not None:
        return settings
    if settings.minutes is not None:
        return dataclasses.replace(settings, adapt_minutes=round(ADAPT_SHARE * settings.minutes, 3))
    return dataclasses.replace(settings, adapt_epochs=ADAPT_EPOCHS)


def _tokenizer(settings: ClassifySettings, texts: list[str], text_bytes: int) -> PreTrainedTokenizerFast:
    """Return the model's own tokenizer, or one trained on the training texts alone."""
    if settings.model is not None:
        return load_tokenizer(settings.model)
    return train_bpe(texts, vocabulary(Given.of(settings), text_bytes, LARGEST_VOCABULARY))


def _plan(
    settings: ClassifySettings,
    start: Start,
    train: Examples,
    tokenizer: PreTrainedTokenizerFast,
    text_bytes: int,
    patience: int | None,
) -> ClassifyPlan:
    """Choose sizes and rates by the plan of pretraining: gentler rates, the more the model knows already."""
    share = LABELS_SHARE if start.from_elsewhere else FINE_TUNING
    context_length, batch_rows = _within_the_time(settings, start)
    base = make_plan(
        Given.of(
            settings,
            context_length=context_length,
            batch_tokens=batch_rows * context_length,
            vocab_size=len(tokenizer),
            from_elsewhere=start.from_elsewhere,
            share=1.0 if settings.train == "head" else share,
            new_head=not start.labels,
            main="adapter" if settings.lora else "head" if settings.train == "head" else "matrix",
            weight_decay=LEAST_DECAY,
            **start.sizes,
        ),
        text_bytes,
        60 * settings.adapt_minutes if settings.adapt_minutes else None,
    )
    base.require_memory(settings.model, settings.lora)
    names = _in_order(label_names(train.labels), start, settings)
    model = {} if settings.model else base.model | {"embedding_dropout": DROPOUT, "residual_dropout": DROPOUT}
    batch_rows = min(len(train), batch_rows)
    language_weight = LANGUAGE_WEIGHT if start.predicts == "clm" else 0.0
    return ClassifyPlan(
        **base.for_rows() | {"warmup": 0.05, "decay": 0.7, "model": model},
        batch_rows=batch_rows,
        labels=names,
        label_counts=[train.labels.count(name) for name in names],
        model_fields=_model_fields(settings, start),
        token_dropout=_for_ours(settings.token_dropout, TOKEN_DROPOUT, settings, start),
        language_weight=_for_ours(settings.language_weight, language_weight, settings, start),
        most_epochs=None if settings.minutes is None else max(MOST_EPOCHS, MOST_STEPS * batch_rows / len(train)),
        patience=patience,
        objective=start.predicts if not settings.model or settings.adapt_minutes or settings.adapt_epochs else None,
        pretraining_rate=FINE_TUNING if settings.model and not start.from_elsewhere else 1.0,
    )


def _within_the_time(settings: ClassifySettings, start: Start) -> tuple[int, int]:
    """Return the tokens read of a text and the rows of a step: fewer of a large model that has little time.

    Texts are cut before one is left out: most of what a label needs stands at the beginning.
    """
    context_length, rows = start.context_length, settings.batch_rows or BATCH_ROWS
    if settings.minutes is None or not start.sizes:
        return context_length, rows
    given = Given.of(settings, **start.sizes)
    minutes = (settings.minutes - (settings.adapt_minutes or 0.0)) / settings.average
    tokens = trainable_tokens(given, context_length, TRAINED_SHARE * 60 * minutes)
    lengths = np.asarray(start.lengths)
    if settings.context_length is None:
        while context_length > LEAST_READ and np.minimum(lengths, context_length).sum() > tokens:
            context_length = max(LEAST_READ, context_length - 32)
    if settings.batch_rows is None:
        updates = tokens / (rows * np.minimum(lengths, context_length).mean())
        while updates < ENOUGH_UPDATES and rows > FEWEST_ROWS:
            rows, updates = rows // 2, 2 * updates
    return context_length, rows


def _in_order(names: list[str], start: Start, settings: ClassifySettings) -> list[str]:
    """Return the labels in a classifier's own order; print which are new to it, and which it loses.

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
    """Return what the settings change in the model's config: pooling and dropout."""
    pooling = settings.pooling or (None if start.labels else "mean")  # a classifier has one already
    fields: dict[str, Any] = {"classifier_pooling": pooling} if start.is_ours and pooling else {}
    dropout = DROPOUT if settings.dropout is None and start.is_ours else settings.dropout
    return fields if dropout is None else fields | dict.fromkeys(start.dropouts, dropout)


def _for_ours(given: float | None, usual: float, settings: ClassifySettings, start: Start) -> float:
    """Return what was given, else what is usual where all of a model of our own training is trained, else 0."""
    if given is not None:
        return given
    return 0.0 if start.from_elsewhere or settings.train != "all" or settings.lora else usual


def base_of(settings: ClassifySettings, work: Path) -> str | Path | None:
    """Return `--model`; for an adapter, merge it into its base in `work`, once, and return that folder.

    Raises `InputError` for an adapter that another one is wanted on.
    """
    if settings.model is None or not is_adapter(settings.model):
        return settings.model
    if settings.lora:
        raise InputError(f"--lora: {settings.model} is an adapter: merge it into its base first with groundup merge")
    folder = work / FOLDED
    if not folder.is_dir():
        from groundup.inference.folder import fold  # peft takes a while to import

        model = fold(load_adapter(settings.model, trust_remote_code=settings.trust_remote_code))
        save_model(folder, model, load_tokenizer(settings.model))
    return folder


def start_of(
    settings: ClassifySettings, source: str | Path | None, tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> Start:
    """Return what the model at `source` (that of `base_of`) is and how long its rows are. Raises `InputError`."""
    lengths = [len(ids) for ids in for_classifying(tokenizer, LONGEST_CONTEXT)(texts, truncation=True)["input_ids"]]
    enough = min(LONGEST_CONTEXT, max(SHORTEST_CONTEXT, -(-int(np.quantile(lengths, WHOLE_TEXTS)) // 32) * 32))
    if source is None:
        return Start(settings.context_length or enough)
    model = load_network(
        source, AutoModelForSequenceClassification, trust_remote_code=settings.trust_remote_code, new_head=True
    )
    config, length = model.config.get_text_config(), row_length(settings, model, enough)
    is_ours = config.model_type == GroundupConfig.model_type
    if settings.pooling is not None and not is_ours:
        raise InputError(
            f"--pooling is for our own models, and {settings.model} is a {config.model_type}: leave it out"
        )
    names = model.config.architectures or []
    classes = {AUTO_CLASSES[end] for name in names for end in AUTO_CLASSES if name.endswith(end)}
    predicts = "clm" if "AutoModelForCausalLM" in classes else "mlm" if "AutoModelForMaskedLM" in classes else None
    check_head(settings, predicts)
    return Start(
        context_length=length,
        lengths=lengths,
        sizes=sizes_of(model),
        is_ours=is_ours,
        from_elsewhere=pretrained_elsewhere(settings.model or source),  # an adapter has a recipe of its own
        predicts=predicts,
        labels=tuple(labels_of(model)) if "AutoModelForSequenceClassification" in classes else (),
        dropouts=OUR_DROPOUTS if is_ours else tuple(name for name in OTHER_DROPOUTS if hasattr(config, name)),
    )
