"""The settings of `classify`; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Literal

from groundup.training.lora_settings import LoraOptions
from groundup.training.pushing_settings import PushOptions


@dataclass(kw_only=True)
class ClassifySettings(LoraOptions, PushOptions):
    """Train a classifier of texts on a table of labelled ones, or label a file with one that was trained.

    Without --model it starts from nothing: a tokenizer and a small language model of the rows' own texts come first.
    Every score stands beside those of two baselines on the same split.
    """

    data: list[str] = field(default_factory=list)
    """Labelled rows: tables, folders, globs, Hub datasets, files of lines `label TAB text`, or library-areas."""
    eval_data: list[str] = field(default_factory=list)
    """Labelled rows to be tested on once, at the end (default: a part of --data, see --test-share)."""
    text_column: str | None = None
    """The column with the text (default: found by its name)."""
    label_column: str | None = None
    """The column with the label (default: found by its name)."""
    model: str | None = None
    """A language model (a folder or a Hub name), decoder or encoder, to start from (default: from nothing); with
    --predict and no --data the trained classifier."""
    predict: str | None = None
    """Label the texts of this table, or the lines of this text file, and write predictions.csv."""
    out: str | None = None
    """A new or empty folder for the checkpoint (default: a new one under runs/)."""
    minutes: float | None = None
    """Budget of the whole command, all seeds together, from its start to its last file [minutes]. Without a budget it
    ends when the score on the rows for selection has stopped rising, in 10 minutes at the latest."""
    max_steps: int | None = None
    """Budget in updates of the weights."""
    epochs: float | None = None
    """Budget in passes over the rows."""
    adapt_minutes: float | None = None
    """Time for pretraining on the rows' own texts first [minutes]; with --model, for going on with it (default: from
    nothing a part of the budget, with --model none)."""
    adapt_epochs: float | None = None
    """The same in passes over the texts, for a run that can be repeated exactly."""
    test_share: float = 0.2
    """Share of --data that is kept for the test where there is no --eval-data."""
    selection_share: float = 0.1
    """Share of the remaining rows that chooses the best step and is not trained on."""
    best_by: Literal["loss", "accuracy", "f1_macro", "mcc"] = "loss"
    """What is measured on the rows for selection to choose the best step; of few rows the loss tells the most."""
    train: Literal["all", "last", "head"] = "all"
    """Weights that are trained: all; the last block, the last norm and the head; or the head alone."""
    pooling: Literal["last", "first", "mean", "max"] | None = None
    """What the head looks at, of tokens that are not padding (default: mean for our own models; others have theirs)."""
    class_weights: bool = False
    """Let every label count the same in the loss, however rare it is."""
    label_smoothing: float = 0.0
    """Share of the probability that the loss wants spread over all labels."""
    dropout: float | None = None
    """Probability of dropping a feature in training (default: 0.1 for our own models, what is set in others)."""
    token_dropout: float | None = None
    """Probability of replacing a token by a random one in training (default: 0.1 where all weights are trained)."""
    language_weight: float | None = None
    """Factor on the loss of predicting each next token, which is kept up beside that of the labels (default: 0.5 for a
    decoder of our own of which all weights are trained, else 0)."""
    vocab_size: int | None = None
    """Tokens in the vocabulary of a tokenizer trained here (default: by the amount of text)."""
    hidden_size: int | None = None
    """Width of a model made here (default: by the plan)."""
    num_hidden_layers: int | None = None
    """Blocks of a model made here (default: by the plan)."""
    context_length: int | None = None
    """Tokens of a text that are looked at, from its beginning; longer ones are cut and counted (default: enough for 98
    in 100 texts, at most 512, and what --model can look at)."""
    batch_rows: int | None = None
    """Rows in one update of the weights (default: 32)."""
    optimizer: Literal["muon", "adamw"] | None = None
    """muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: AdamW for all (default: muon for our own
    models, adamw for others)."""
    learning_rate: float = 1.0
    """Multiplies every learning rate of the plan."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products; auto is bf16 where the processor has instructions for it."""
    trust_remote_code: bool = False
    """Run code that comes with the model, if it is not one of ours."""
    save_every: int | None = None
    """Steps between two saved states (default: ten in a run, and at least one a minute)."""
    seed: int = 0
    """Decides the split, the initial weights, the order of the rows and dropout."""
    seeds: int = 1
    """Repeat the run with so many seeds, from --seed on, each with a split of its own; report mean and spread, and keep
    the one that is best on its rows for selection."""
    average: int = 1
    """Train so many times from one start, each time with the rows in an order of its own, and keep the mean of the
    weights: steadier than any one of them, for so many times the updates. --minutes is for all of them together, and
    pushes, log and curve are of the last one."""
    track: Literal["none", "trackio", "tensorboard", "wandb"] = "none"
    """Where the log goes beside log.jsonl: trackio and tensorboard keep it on this machine, wandb sends it away."""
    resume: bool = False
    """Go on from the newest whole state under --out, with the settings kept there; start if there is none."""
    smoke: bool = False
    """Walk the same path with a tiny model and a few of the rows, in seconds."""
    quiet: bool = False
    """Print nothing but errors."""
