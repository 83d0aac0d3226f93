"""Declare the settings of the verbs of this room: those that train, and `plan`.

What several verbs share is declared once, in the groups here and in `common/options.py`. Importing this costs nothing.
"""

import dataclasses
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal, TypeVar

from annotated_types import Interval

from groundup.common.errors import InputError
from groundup.common.options import (
    Amount,
    BatchOptions,
    BudgetOptions,
    Count,
    DataName,
    DataOption,
    EvalDataOption,
    ModelConfigOption,
    ModelName,
    Name,
    Names,
    NotNegative,
    Optimizer,
    OutOption,
    Positive,
    PresetOption,
    QuietOption,
    ResumeOption,
    SeedOption,
    Share,
    SizeOptions,
    SmokeOption,
    TextOptions,
    TokenizerOption,
    TrustOption,
)
from groundup.common.settings import Settings, default_of
from groundup.common.verbs import PushOptions

T = TypeVar("T", bound="TrainingOptions")

SMOKE_STEPS = 20
OF_A_NEW_MODEL = ("vocab_size", "hidden_size", "num_hidden_layers", "preset", "model_config")
# Named in a recipe without their folders.
PUBLIC_PATHS = ("data", "eval_data", "tokenizer", "init_from", "model", "predict", "out")


@dataclass(kw_only=True)
class LoraOptions(Settings):
    """Declare what a low-rank adapter looks like (Hu et al. 2021)."""

    lora: bool = False
    """Freeze the model and train a low-rank adapter beside its matrices; the adapter is saved alone."""
    lora_rank: Annotated[int, Interval(ge=1, le=2**16)] = 16
    """Rank of the adapter's matrices: a higher rank has more weights and can change a matrix further."""
    lora_alpha: Count = 32
    """The adapter's output is multiplied by alpha / rank, so that one learning rate suits every rank."""
    lora_dropout: Share = 0.0
    """Dropout on the adapter's input."""
    lora_targets: Names = field(default_factory=list)
    """Matrices that get an adapter, by the ends of their names (default: all matrices of the blocks)."""
    lora_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023), meant for large ranks."""
    lora_dora: bool = False
    """Also train a magnitude for each output of a matrix (DoRA, Liu et al. 2024); slower."""
    base_precision: Literal["auto", "fp32", "bf16", "int8"] = "auto"
    """Precision in which the frozen matrices are held while the adapter is trained; the last scores and the saved
    adapter are of the model as it was. auto: fp32, or less where memory is short."""


@dataclass(kw_only=True)
class TrainingOptions(
    QuietOption,
    SmokeOption,
    ResumeOption,
    SeedOption,
    PushOptions,
    LoraOptions,
    SizeOptions,
    BudgetOptions,
    EvalDataOption,
    OutOption,
    DataOption,
):
    """Declare the options of every verb that trains."""

    verb: ClassVar[str] = ""
    base_option: ClassVar[str] = "--model"  # which names the model to start from

    epochs: Annotated[float, Interval(gt=0, le=1e6)] | None = None
    """Budget in epochs over the data."""
    learning_rate: Annotated[float, Interval(gt=0, le=1e6)] | None = None
    """Peak learning rate of the adapter with --lora, else of AdamW, or of the matrices with Muon; those of other
    parameters keep their ratio to it (default: by the plan)."""
    learning_rate_scale: Annotated[float, Interval(gt=0, le=1e6)] = 1.0
    """Multiplies every learning rate."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products; auto is bf16 where the processor has instructions for it."""
    save_every: Count | None = None
    """Steps between two saved states (default: ten per run, and at least one per minute)."""
    track: Literal["none", "trackio", "tensorboard", "wandb"] = "none"
    """Where to log in addition to log.jsonl: trackio and tensorboard stay on this machine, wandb uploads."""

    @property
    def base(self) -> str | None:
        """Return the model to start from, None for a new one."""
        return getattr(self, self.base_option.removeprefix("--").replace("-", "_"))

    @property
    def has_budget(self) -> bool:
        """Return whether a budget is given."""
        return not (self.minutes is None and self.max_steps is None and self.epochs is None)


def check_options(settings: "TrainingOptions | PlanSettings") -> None:
    """Raise `InputError` for options that nothing would heed: of an adapter that is not wanted, or of a new model."""
    for option in fields(LoraOptions):
        if not settings.lora and getattr(settings, option.name) != default_of(option):
            raise InputError(f"--{option.name.replace('_', '-')} is an option of LoRA: add --lora")
    if settings.lora_dora and settings.base_precision in ("bf16", "int8"):
        raise InputError(f"--lora-dora needs the base as it is: leave out --base-precision {settings.base_precision}")
    if settings.lora and settings.base is None:
        raise InputError(f"--lora adapts an existing model: give {settings.base_option}")
    for name in OF_A_NEW_MODEL:
        if settings.base is not None and getattr(settings, name, None) not in (None, {}):
            raise InputError(f"--{name.replace('_', '-')} is for a new model: leave it out, or {settings.base_option}")


def with_budget(settings: T) -> T:
    """Return the settings with at most one budget; a smoke run has its own. Raises `InputError` for two."""
    if settings.smoke:
        return dataclasses.replace(settings, minutes=None, epochs=None, max_steps=SMOKE_STEPS)
    given = [name for name in ("minutes", "max_steps", "epochs") if getattr(settings, name) is not None]
    if len(given) > 1:
        raise InputError(f"{' and '.join('--' + name.replace('_', '-') for name in given)}: give one budget, not two")
    return settings


@dataclass(kw_only=True)
class LanguageOptions(BatchOptions, ModelConfigOption, TrainingOptions):
    """Declare the further options of every verb that trains a language model."""

    weight_decay: NotNegative | None = None
    """Weight decay of matrices, per step and unit of learning rate (default: by the plan); that of embeddings is 0.4
    times as large."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, a third more time."""


@dataclass(kw_only=True)
class InitFromOption(Settings):
    """Declare the model to go on with."""

    base_option: ClassVar[str] = "--init-from"

    init_from: ModelName | None = None
    """Continue training this model (a folder or a Hub name) with its tokenizer (default: train from scratch)."""

    @property
    def base(self) -> str | None:
        """Return the model to start from, None for a new one."""
        return self.init_from


@dataclass(kw_only=True)
class PretrainSettings(InitFromOption, PresetOption, TokenizerOption, LanguageOptions, TextOptions):
    """Train a language model on any text, from scratch or from an existing model.

    Given only --data and a budget, it trains its own tokenizer, holds out the last tenth of the text for validation,
    and chooses every size from the amount of text and the budget.
    """

    verb: ClassVar[str] = "pretrain"

    objective: Literal["clm", "mlm"] = "clm"
    """clm: predict each next token, a decoder; mlm: predict masked tokens from both sides, an encoder."""
    packing: Literal["contiguous", "documents"] = "contiguous"
    """contiguous: each row is the next stretch of the text; documents: tokens attend only within their document."""
    micro_batch_rows: Count | None = None
    """Rows in one forward pass (default: by the plan); changes memory and speed, not the result."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the blocks with torch.compile; auto: if --minutes is long enough to gain from it and a C++ compiler is
    found."""


@dataclass(kw_only=True)
class ClassifySettings(TrustOption, TrainingOptions, TextOptions):
    """Train a text classifier on labelled rows, or label texts with a trained classifier.

    Without --model it starts from scratch: it first trains a tokenizer and a small language model on the texts of the
    rows. Every score is shown beside those of two baselines on the same split.
    """

    meaning: ClassVar[dict[str, str]] = {
        "data": "Labelled rows: tables, folders, globs, Hub datasets, files of lines `label TAB text`, or "
        "library-areas; may be given several times.",
        "eval_data": "Test set of labelled rows, scored once, at the end (default: a share of --data, --test-share).",
        "minutes": "Budget of the whole command, all seeds together, until its last file is written [minutes]. "
        "Without a budget, training ends when the validation score stops rising, after 10 minutes at the latest.",
        "context_length": "Tokens read from the beginning of a text; longer texts are truncated and counted (default: "
        "enough for 98 in 100 texts, at most 512, and at most the context length of --model).",
        "seed": "Seed of the split, the initial weights, the order of the rows and dropout.",
    }

    verb: ClassVar[str] = "classify"

    label_column: Name | None = None
    """The column with the label (default: found by its name)."""
    model: ModelName | None = None
    """The language model to start from, decoder or encoder: a folder or a Hub name (default: train from scratch); with
    --predict and without --data, the trained classifier."""
    predict: DataName | None = None
    """Label the texts of this table or the lines of this text file, and write predictions.csv with the table's other
    columns; one text, such as "win a prize", is labelled in the terminal."""
    threshold: Annotated[float, Interval(ge=0, le=1)] | None = None
    """With --predict: leave out texts whose best label has a lower probability, and print how many they are."""
    adapt_minutes: NotNegative | None = None
    """Time for pretraining on the texts of the rows first [minutes] (default: a share of the budget from scratch, none
    with --model)."""
    adapt_epochs: Annotated[float, Interval(ge=0, le=1e6)] | None = None
    """The same in epochs over the texts, so that a run can be repeated exactly."""
    test_share: Share = 0.2
    """Share of --data held out as the test set, if there is no --eval-data."""
    selection_share: Share = 0.1
    """Share of the remaining rows held out as the validation set, which chooses the best step."""
    best_by: Literal["loss", "accuracy", "f1_macro", "mcc"] = "loss"
    """The validation measure that chooses the best step; on few rows the loss is the most reliable."""
    train: Literal["all", "last", "head"] = "all"
    """Weights to train: all; last: the last block, the final norm and the head; head: the head alone."""
    pooling: Literal["last", "first", "mean", "max"] | None = None
    """How the head pools the tokens that are not padding (default: mean for our own models; others keep theirs)."""
    bag: bool = True
    """At the end, add a linear part on the bag of tokens, pairs of tokens and words to a network of our own, so that it
    is not below a linear model; both are weighed on the validation set."""
    class_weights: bool = False
    """Give every label the same weight in the loss, however rare it is."""
    label_smoothing: Share = 0.0
    """Share of the target probability that is spread over all labels."""
    dropout: Share | None = None
    """Dropout on features (default: 0.1 for our own models; others keep theirs)."""
    token_dropout: Share | None = None
    """Probability of replacing a token by a random one in training (default: 0.1 where all weights are trained)."""
    language_weight: NotNegative | None = None
    """Weight of the next-token loss that is added to the label loss (default: 0.5 for our own decoder with --train all,
    otherwise 0)."""
    batch_rows: Count | None = None
    """Rows in one step (default: 32)."""
    optimizer: Optimizer | None = None
    """muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: AdamW for all (default: adamw for a model
    that was pretrained elsewhere, muon for all others)."""
    seeds: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Repeat the run with this many seeds, counting from --seed, each with its own split; report mean and standard
    deviation, and keep the run with the best validation score."""
    average: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Train this many times from the same initial weights, each time with the rows in another order, and keep the mean
    of the weights: more stable than one run, at this many times the steps. --minutes covers all of them together;
    pushes, log and curve are those of the last run."""


@dataclass(kw_only=True)
class InstructSettings(TrustOption, LanguageOptions):
    """Fine-tune a language model on instructions with answers, or on conversations.

    Without --model it starts from scratch: it first trains a tokenizer and pretrains briefly on the text of the rows. A
    tenth of the rows is held out to choose the best weights; --eval-data is scored once, after training.
    """

    meaning: ClassVar[dict[str, str]] = {
        "data": "Rows of instruction/input/output, prompt/completion or messages: files, folders, globs, Hub datasets, "
        "or instruction-tasks (or some of its families: instruction-tasks:NAME,NAME); may be given several times.",
        "eval_data": "Test set of rows, scored once, at the end; instruction-tasks gives its held-out instances.",
        "context_length": "Tokens of the longest row; longer rows are truncated (default: the model's context length, "
        "at most 1,024; for a new model, by the rows).",
        "batch_tokens": "Tokens in one step, approximately, prompts included (default: by the plan).",
        "seed": "Seed of the initial weights, the held-out rows, the order of the others and dropout.",
    }

    verb: ClassVar[str] = "instruct"

    split: list[Annotated[float, Interval(ge=0, le=1)]] = field(default_factory=list)
    """Shares of --data, in its order, for training, test and validation: [0.85, 0.1, 0.05] is the book's split
    (default: a random tenth for validation)."""
    model: ModelName | None = None
    """The causal language model to fine-tune: a folder or a Hub name (default: a new one)."""
    architecture: Literal["decoder", "encoder-decoder"] = "decoder"
    """Architecture of a new model. decoder: a causal language model; encoder-decoder: a sequence-to-sequence model."""
    layout: Literal["chat", "alpaca"] | None = None
    """Chat template. chat: special tokens mark the turns; alpaca: words mark them, as in the book (default: the model's
    own template; alpaca if it has none; chat for a new model)."""
    pretrain_share: Share = 0.1
    """Share of the budget for which a new model is pretrained on the text of the rows before it is fine-tuned."""
    patience: Count = 3
    """Early stopping: end the run after this many validations without improvement; there are ten in a budget."""


@dataclass(kw_only=True)
class PlanSettings(
    InitFromOption, BatchOptions, ModelConfigOption, LoraOptions, SizeOptions, PresetOption, BudgetOptions, DataOption
):
    """Show what a run would choose and why, and what it would cost, here and on other hardware."""

    meaning: ClassVar[dict[str, str]] = {
        "data": "The training text: files, folders, globs, Hub datasets, or python-docs.",
        "minutes": "Budget in time [minutes].",
        "init_from": "Plan to go on with this model (a folder or a Hub name), whose weights are not read (default: a "
        "new model).",
    }

    text_bytes: Amount | None = None
    """Size of the text, instead of --data [bytes]: 1e9."""
    tokens: Amount | None = None
    """Budget in training tokens: 2.5e9."""
    hardware: Name = "here"
    """The hardware to plan for: here, or a GPU: h200, h100, a100, rtx4090."""
    cards: Annotated[int, Interval(ge=1, le=10**6)] = 1
    """Number of GPUs."""
    dollars_an_hour: Positive | None = None
    """Price of one GPU [US dollars an hour] (default: the median of several offers)."""


def check_classification(settings: ClassifySettings) -> None:
    """Raise `InputError` for options of `classify` that contradict each other."""
    if settings.threshold is not None and settings.predict is None:
        raise InputError("--threshold chooses among the texts of --predict: give both, or leave it out")
    if settings.adapt_minutes is not None and settings.adapt_epochs is not None:
        raise InputError("--adapt-minutes and --adapt-epochs: give one of them")
    minutes, adapt_minutes = settings.minutes, settings.adapt_minutes or 0.0
    if minutes is not None and adapt_minutes >= minutes:
        raise InputError(
            f"--adapt-minutes {adapt_minutes:g} leaves no time for the labels in --minutes {minutes:g}: give less"
        )
    if settings.model is None and 0 in (settings.adapt_minutes, settings.adapt_epochs):
        raise InputError("a new model is pretrained on the texts first: give --adapt-minutes above 0, or --model")
    if settings.lora and (settings.adapt_minutes or settings.adapt_epochs):
        raise InputError("--lora adapts a model as it is: leave out --adapt-minutes and --adapt-epochs")
    if settings.lora and settings.average > 1:
        raise InputError("--average takes the mean of all weights, --lora trains an adapter: leave one out")
    if settings.lora and settings.train != "all":
        raise InputError(f"--lora chooses the weights that are trained: leave out --train {settings.train}")
    if settings.train == "head" and settings.language_weight:
        raise InputError("--language-weight trains what lies below the head: leave it out, or --train head")
    if settings.eval_data and settings.test_share != ClassifySettings.test_share:
        raise InputError("--test-share and --eval-data both give a test set: leave one out")


def check_head(settings: ClassifySettings, predicts: str | None) -> None:
    """Raise `InputError` for what needs a head that `--model` has not."""
    if settings.language_weight and predicts != "clm":
        raise InputError(f"--language-weight: {settings.model} has no head that predicts the next token: leave it out")
    if predicts is None and (settings.adapt_minutes or settings.adapt_epochs):
        option = "--adapt-minutes" if settings.adapt_minutes else "--adapt-epochs"
        raise InputError(f"{option}: {settings.model} has no language-model head to pretrain with: leave it out")
