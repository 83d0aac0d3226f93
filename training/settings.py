"""The settings of the verbs of this room: those that train, `plan`, `merge`, `import-gpt2` and `export`.

What several verbs share is declared once, in the groups here and in `common/options.py`. Importing this costs nothing.
"""

from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from groundup.common.errors import InputError
from groundup.common.options import (
    Amount,
    BatchOptions,
    BudgetOptions,
    Count,
    DataName,
    DataOption,
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


@dataclass(kw_only=True)
class LoraOptions(Settings):
    """What a low-rank adapter looks like (Hu et al. 2021)."""

    lora: bool = False
    """Freeze the model and train a low-rank adapter beside its matrices; the adapter is saved alone."""
    lora_rank: Annotated[int, Interval(ge=1, le=2**16)] = 16
    """Rows of the adapter's smaller matrices: its size, and how far a matrix can move."""
    lora_alpha: Count = 32
    """The adapter's part is multiplied by alpha / rank, so that one learning rate suits every rank."""
    lora_dropout: Share = 0.0
    """Probability of dropping an input of the adapter in training."""
    lora_targets: Names = field(default_factory=list)
    """Matrices that get an adapter, by the ends of their names (default: all matrices of the blocks)."""
    lora_rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead (rsLoRA, Kalajdzievski 2023), meant for large ranks."""
    lora_dora: bool = False
    """Train a length for each output of a matrix too (DoRA, Liu et al. 2024); slower."""


def check_lora(options: LoraOptions) -> None:
    """Raise `InputError` for options of an adapter without `lora`, which nothing would heed."""
    for option in fields(LoraOptions):
        if not options.lora and getattr(options, option.name) != default_of(option):
            raise InputError(f"--{option.name.replace('_', '-')} says what an adapter is like: add --lora")


@dataclass(kw_only=True)
class PushOptions(Settings):
    """What of a run goes to the Hub while it trains, and where."""

    push_to: Name | None = None
    """A repository on the Hub, as OWNER/NAME, that gets the finished checkpoint; it is made if it does not exist."""
    push_base_model: Name | None = None
    """The name on the Hub of the model that --lora adapts, where that is a folder here: an adapter names its base."""
    push_every: Count | None = None
    """Steps between two pushes of the model as it is; each is a saved state, and one commit."""
    push_branch: Name | None = None
    """The branch that the pushes go to (default: main); it is made if it does not exist."""
    push_private: bool = False
    """Make a new repository private; an existing public one is refused."""
    push_license: Name | None = None
    """The licence that the Hub shows, by its identifier there, such as apache-2.0; --push-to needs it."""


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
    OutOption,
    DataOption,
):
    """What every verb that trains can be told."""

    eval_data: list[DataName] = field(default_factory=list)
    """Text or rows to be tested on once, at the end (default: only what is kept back from --data)."""
    epochs: Annotated[float, Interval(gt=0, le=1e6)] | None = None
    """Budget in passes over the data."""
    learning_rate: Annotated[float, Interval(gt=0, le=1e6)] = 1.0
    """Multiplies every learning rate of the plan."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products; auto is bf16 where the processor has instructions for it."""
    save_every: Count | None = None
    """Steps between two saved states (default: ten in a run, and at least one a minute)."""
    track: Literal["none", "trackio", "tensorboard", "wandb"] = "none"
    """Where the log goes beside log.jsonl: trackio and tensorboard keep it on this machine, wandb sends it away."""


@dataclass(kw_only=True)
class LanguageOptions(BatchOptions, ModelConfigOption, TrainingOptions):
    """What every verb that trains a language model can be told beside that."""

    weight_decay: NotNegative | None = None
    """Decay of matrices, per step and unit of learning rate (default: by the plan); tables lose 0.4 as much."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""


@dataclass(kw_only=True)
class PretrainSettings(PresetOption, TokenizerOption, LanguageOptions, TextOptions):
    """Train a language model from scratch, or go on with one, on any text.

    With nothing but --data and a budget it trains its own tokenizer, keeps back the last tenth of the text, and chooses
    every size from the amount of text and the budget.
    """

    objective: Literal["clm", "mlm"] = "clm"
    """clm: predict each next token, a decoder; mlm: predict masked tokens from both sides, an encoder."""
    init_from: ModelName | None = None
    """Go on from this model (a folder or a Hub name) with its tokenizer, instead of starting from nothing."""
    packing: Literal["contiguous", "documents"] = "contiguous"
    """contiguous: a row is the next stretch of the text; documents: rows in which every document sees only itself."""
    micro_batch_rows: Count | None = None
    """Rows that go through the model at once (default: by the plan); changes memory and speed, not the result."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the blocks by torch.compile; auto: where the minutes given pay for it and there is a compiler."""


@dataclass(kw_only=True)
class ClassifySettings(TrustOption, TrainingOptions, TextOptions):
    """Train a classifier of texts on a table of labelled ones, or label a file with one that was trained.

    Without --model it starts from nothing: a tokenizer and a small language model of the rows' own texts come first.
    Every score stands beside those of two baselines on the same split.
    """

    meaning: ClassVar[dict[str, str]] = {
        "data": "Labelled rows: tables, folders, globs, Hub datasets, files of lines `label TAB text`, or "
        "library-areas; give it several times for more.",
        "eval_data": "Labelled rows to be tested on once, at the end (default: a part of --data, see --test-share).",
        "minutes": "Budget of the whole command, all seeds together, from its start to its last file [minutes]. "
        "Without a budget it ends when the score on the rows for selection has stopped rising, in 10 minutes at the "
        "latest.",
        "context_length": "Tokens of a text that are looked at, from its beginning; longer ones are cut and counted "
        "(default: enough for 98 in 100 texts, at most 512, and what --model can look at).",
        "seed": "Decides the split, the initial weights, the order of the rows and dropout.",
    }

    label_column: Name | None = None
    """The column with the label (default: found by its name)."""
    model: ModelName | None = None
    """A language model (a folder or a Hub name), decoder or encoder, to start from (default: from nothing); with
    --predict and no --data the trained classifier."""
    predict: DataName | None = None
    """Label the texts of this table, or the lines of this text file, and write predictions.csv."""
    adapt_minutes: NotNegative | None = None
    """Time for pretraining on the rows' own texts first [minutes]; with --model, for going on with it (default: from
    nothing a part of the budget, with --model none)."""
    adapt_epochs: Annotated[float, Interval(ge=0, le=1e6)] | None = None
    """The same in passes over the texts, for a run that can be repeated exactly."""
    test_share: Share = 0.2
    """Share of --data that is kept for the test where there is no --eval-data."""
    selection_share: Share = 0.1
    """Share of the remaining rows that chooses the best step and is not trained on."""
    best_by: Literal["loss", "accuracy", "f1_macro", "mcc"] = "loss"
    """What is measured on the rows for selection to choose the best step; of few rows the loss tells the most."""
    train: Literal["all", "last", "head"] = "all"
    """Weights that are trained: all; the last block, the last norm and the head; or the head alone."""
    pooling: Literal["last", "first", "mean", "max"] | None = None
    """What the head looks at, of tokens that are not padding (default: mean for our own models; others have theirs)."""
    class_weights: bool = False
    """Let every label count the same in the loss, however rare it is."""
    label_smoothing: Share = 0.0
    """Share of the probability that the loss wants spread over all labels."""
    dropout: Share | None = None
    """Probability of dropping a feature in training (default: 0.1 for our own models, what is set in others)."""
    token_dropout: Share | None = None
    """Probability of replacing a token by a random one in training (default: 0.1 where all weights are trained)."""
    language_weight: NotNegative | None = None
    """Factor on the loss of predicting each next token, which is kept up beside that of the labels (default: 0.5 for a
    decoder of our own of which all weights are trained, else 0)."""
    batch_rows: Count | None = None
    """Rows in one update of the weights (default: 32)."""
    optimizer: Optimizer | None = None
    """muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: AdamW for all (default: muon for our own
    models, adamw for others)."""
    seeds: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Repeat the run with so many seeds, from --seed on, each with a split of its own; report mean and spread, and keep
    the one that is best on its rows for selection."""
    average: Annotated[int, Interval(ge=1, le=10_000)] = 1
    """Train so many times from one start, each time with the rows in an order of its own, and keep the mean of the
    weights: steadier than any one of them, for so many times the updates. --minutes is for all of them together, and
    pushes, log and curve are of the last one."""


@dataclass(kw_only=True)
class InstructSettings(TrustOption, LanguageOptions):
    """Teach a language model to answer: fine-tune it on instructions with answers, or on conversations.

    Without --model it starts from nothing: a tokenizer and a little pretraining on the rows' own text first. A tenth of
    the rows is kept back to choose the best weights; --eval-data is read once, after training.
    """

    meaning: ClassVar[dict[str, str]] = {
        "data": "Rows of instruction/input/output, prompt/completion or messages: files, folders, globs, Hub datasets, "
        "or instruction-tasks (perhaps with :family,family behind it); give it several times for more.",
        "eval_data": "Rows to be tested on once, at the end; of instruction-tasks the ones held out.",
        "context_length": "Tokens of the longest row; longer ones are cut (default: what the model can look at, at "
        "most 1,024; for a new one, by the rows).",
        "batch_tokens": "Tokens in one update of the weights, about, prompts included (default: by the plan).",
        "seed": "Decides the initial weights, the rows kept back, the order of the others and dropout.",
    }

    split: list[Annotated[float, Interval(ge=0, le=1)]] = field(default_factory=list)
    """Shares of --data, in its order, for training, testing and validation: [0.85, 0.1, 0.05] is the book's split
    (default: a tenth for validation, by chance)."""
    model: ModelName | None = None
    """The causal language model to teach: a folder or a Hub name (default: a new one)."""
    architecture: Literal["decoder", "encoder-decoder"] = "decoder"
    """What a new model is: decoder, a causal language model; encoder-decoder, which reads first and then writes."""
    layout: Literal["chat", "alpaca"] | None = None
    """How a conversation is written: chat, with special tokens; alpaca, in words, as in the book (default: the model's
    own chat template; without one, alpaca; for a new model, chat)."""
    pretrain_share: Share = 0.1
    """Part of the budget that a new model pretrains on the rows' own text, before it is taught to answer."""
    patience: Count = 3
    """Validations in a row, at least 1, without a better one that end the run before its budget does; there are ten in
    a budget."""


@dataclass(kw_only=True)
class PlanSettings(BatchOptions, ModelConfigOption, SizeOptions, PresetOption, BudgetOptions, DataOption):
    """Say before a run what it would choose and why, and what it would take, here and on hardware one does not have."""

    meaning: ClassVar[dict[str, str]] = {
        "data": "The text that would be learned from: files, folders, globs, Hub datasets, or python-docs.",
        "minutes": "Budget in time [minutes].",
    }

    text_bytes: Amount | None = None
    """Size of the text where it is not at hand [bytes]: 1e9."""
    tokens: Amount | None = None
    """Budget in tokens seen: 2.5e9."""
    hardware: Name = "here"
    """here, or a card to choose the sizes for: h200, h100, a100, rtx4090."""
    cards: Annotated[int, Interval(ge=1, le=10**6)] = 1
    """How many of that card."""
    dollars_an_hour: Positive | None = None
    """Price of one such card [US dollars an hour] (default: a median of offers)."""
