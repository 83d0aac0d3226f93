"""Declare the settings that several verbs share, each once: type, choices, range, default and help.

A verb's settings inherit the groups they need. Importing this costs nothing.
"""

import os
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Interval, Predicate

from groundup.common.settings import Settings, parts_of

MOST = 2**31 - 1  # of whatever is counted: every library takes so many


def is_name(text: str) -> bool:
    """Return whether text can name a file: any bytes without a NUL, be they UTF-8 or not."""
    try:
        return b"\0" not in os.fsencode(text) and text != ""
    except UnicodeEncodeError:  # half a character
        return False


def is_name_or_empty(text: str) -> bool:
    """Return whether text can name a file, or says that there is none."""
    return text == "" or is_name(text)


Name = Annotated[str, Predicate(is_name)]  # of a file, a folder, a column, or on the Hub
NameOrNone = Annotated[str, Predicate(is_name_or_empty)]
Names = list[Name]


@dataclass(frozen=True)
class Reads:
    """Marks a setting that names what is read: a file or folder, and perhaps a dataset or a model on the Hub.

    What is read decides what a stage of a recipe gives; other text is just text, whatever lies on the disk.
    """

    kind: Literal["file", "dataset", "model"]


DataName = Annotated[Name, Reads("dataset")]
ModelName = Annotated[Name, Reads("model")]
ModelNameOrNone = Annotated[NameOrNone, Reads("model")]
FileName = Annotated[Name, Reads("file")]
Count = Annotated[int, Interval(ge=1, le=MOST)]
CountOrNone = Annotated[int, Interval(ge=0, le=MOST)]
Positive = Annotated[float, Interval(gt=0, le=1e9)]
NotNegative = Annotated[float, Interval(ge=0, le=1e9)]
Share = Annotated[float, Interval(ge=0, lt=1)]
Amount = Annotated[float, Interval(gt=0, le=1e18)]
Optimizer = Literal["muon", "adamw"]
StockForm = Literal["gpt2", "llama", "qwen2", "qwen3", "mistral", "ministral", "arcee", "starcoder2", "gguf"]
Quantization = Literal["f16", "q8_0", "q6_k", "q5_k_m", "q4_k_m"]
MaxNewTokens = Count
Temperature = NotNegative


def what_is_read(hint: Any) -> str | None:
    """Return the kind of what a setting of this type names; None for one that names nothing to read."""
    kind, inner, marks = parts_of(hint)
    return what_is_read(inner) if kind is list else next((mark.kind for mark in marks if isinstance(mark, Reads)), None)


@dataclass(kw_only=True)
class QuietOption(Settings):
    """The option that silences messages."""

    quiet: bool = False
    """Print nothing but errors."""


@dataclass(kw_only=True)
class SmokeOption(Settings):
    """The option for a short trial run."""

    smoke: bool = False
    """Run the same steps with a tiny model and a little of the data, in seconds."""


@dataclass(kw_only=True)
class OutOption(Settings):
    """The output folder."""

    out: Name | None = None
    """Output folder, new or empty (default: a new one under runs/)."""


@dataclass(kw_only=True)
class DryRunOption(Settings):
    """The option that only prints what would be done."""

    dry_run: bool = False
    """Only print what would be done."""


@dataclass(kw_only=True)
class CheckpointOption(Settings):
    """The checkpoint to convert or publish."""

    checkpoint: ModelNameOrNone = ""
    """A checkpoint of ours, as a folder or a Hub name."""


@dataclass(kw_only=True)
class ResumeOption(Settings):
    """The option that resumes a run."""

    resume: bool = False
    """Resume from the newest complete state under --out, with the settings saved there; start if there is none."""


@dataclass(kw_only=True)
class SeedOption(Settings):
    """The seed."""

    seed: Annotated[int, Interval(ge=0, le=MOST)] = 0
    """Seed of all random choices: the same seed gives the same result."""


@dataclass(kw_only=True)
class TrustOption(Settings):
    """The option that allows custom code."""

    trust_remote_code: bool = False
    """Run the code that comes with a model, if the model is not one of ours."""


@dataclass(kw_only=True)
class DataOption(Settings):
    """The data to read."""

    data: list[DataName] = field(default_factory=list)
    """Training text: files, folders, globs, Hub datasets, or python-docs; may be given several times."""


@dataclass(kw_only=True)
class TextOptions(DataOption):
    """The data to read, and the column with its text."""

    text_column: Name | None = None
    """The column that holds the text, where a table has several (default: found by its name)."""


@dataclass(kw_only=True)
class TokenizerOption(Settings):
    """An existing tokenizer."""

    tokenizer: ModelName | None = None
    """A trained tokenizer: a folder (from `groundup tokenizer`, or a model's) or a name on the Hub."""


@dataclass(kw_only=True)
class VocabularyOption(Settings):
    """The vocabulary size of a new tokenizer."""

    vocab_size: Annotated[int, Interval(ge=1, le=2**24)] | None = None
    """Tokens in the vocabulary of a tokenizer trained here, special ones included (default: by the amount of text)."""


@dataclass(kw_only=True)
class ContextOption(Settings):
    """Tokens that are read at once."""

    context_length: Annotated[int, Interval(ge=1, le=2**24)] | None = None
    """Tokens in a training row, which is the context length of a new model (default: by the plan)."""


@dataclass(kw_only=True)
class EvalDataOption(Settings):
    """Data to measure on."""

    eval_data: list[DataName] = field(default_factory=list)
    """Test set, text or rows, scored once, at the end (default: only the validation set held out from --data)."""


@dataclass(kw_only=True)
class SizeOptions(ContextOption, VocabularyOption):
    """The sizes of a new model."""

    hidden_size: Annotated[int, Interval(ge=1, le=2**16)] | None = None
    """Width of a new model (default: by the plan)."""
    num_hidden_layers: Annotated[int, Interval(ge=1, le=2**12)] | None = None
    """Blocks of a new model (default: by the plan)."""


@dataclass(kw_only=True)
class ModelConfigOption(Settings):
    """Other fields of the architecture."""

    model_config: dict[str, Any] = field(default_factory=dict)
    """Further fields of GroundupConfig for a new model, as a mapping: '{"qk_norm": false}'."""


@dataclass(kw_only=True)
class PresetOption(Settings):
    """A named set of sizes."""

    preset: Literal["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "nano", "micro", "small"] | None = None
    """A named size (default: by the plan)."""


@dataclass(kw_only=True)
class BudgetOptions(Settings):
    """The budget of a run; at most one of these may be given."""

    minutes: Positive | None = None
    """Budget of the whole command, from its start until its last file is written [minutes]."""
    max_steps: Count | None = None
    """Budget in steps."""


@dataclass(kw_only=True)
class BatchOptions(Settings):
    """The batch and the optimizer of a language model."""

    batch_tokens: Count | None = None
    """Tokens in one step, approximately (default: by the plan)."""
    optimizer: Optimizer | None = None
    """muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: AdamW for all (default: adamw for a model
    that was pretrained elsewhere, muon for all others)."""


@dataclass(kw_only=True)
class SamplingOptions(SeedOption):
    """The sampling settings."""

    max_new_tokens: Count = 200
    """Most tokens to generate."""
    temperature: Temperature | None = None
    """Divides the logits before sampling; 0 always takes the likeliest token (default: the model's own, else 0.8)."""
    top_k: CountOrNone | None = None
    """Sample from this many of the likeliest tokens; 0: from all (default: the model's own, else 50)."""
    top_p: Annotated[float, Interval(gt=0, le=1)] | None = None
    """Sample from the likeliest tokens whose probabilities add up to this; 1: all (default: the model's, else 0.95)."""
    min_p: Share | None = None
    """Leave out tokens less likely than this share of the likeliest one's probability; 0: none (default: the model's
    own, else 0)."""
    repetition_penalty: Annotated[float, Interval(gt=0, le=100)] | None = None
    """Make tokens that the prompt or the text has already less likely; 1: no less (default: the model's own, else
    1)."""
    stop: Names = field(default_factory=list)
    """Stop sequences: the generated text ends where one would begin."""
