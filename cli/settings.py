"""The settings of the verbs that show text to a person; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Interval

from groundup.common.options import (
    DryRunOption,
    MaxNewTokens,
    ModelName,
    ModelNameOrNone,
    NameOrNone,
    OutOption,
    QuietOption,
    SamplingOptions,
    SmokeOption,
    Temperature,
    TrustOption,
)
from groundup.common.settings import Settings


@dataclass(kw_only=True)
class WritingOptions(TrustOption, SamplingOptions):
    """A model that writes, and how."""

    model: ModelNameOrNone = ""
    """A model's folder or its name on the Hub: ours, or any that AutoModelForCausalLM loads."""


@dataclass(kw_only=True)
class GenerateSettings(WritingOptions):
    """Write text that goes on from a prompt, token by token."""

    meaning: ClassVar[dict[str, str]] = {"seed": "The same seed writes the same text."}

    prompt: str = ""
    """The text to go on from (default: the beginning of a new text)."""
    as_message: bool = False
    """Give the prompt as a user's message, in the model's chat template, and print the answer alone."""


@dataclass(kw_only=True)
class ChatSettings(WritingOptions):
    """Talk with a model in the terminal. An empty line or Ctrl-D ends the conversation."""

    meaning: ClassVar[dict[str, str]] = {"seed": "The same seed gives the same answers."}

    system: str = ""
    """What the model is told before the conversation, where its chat template has a place for it."""
    max_new_tokens: MaxNewTokens = 300
    """The most tokens of an answer."""
    temperature: Temperature = 0.7
    """Above 1 wilder, below 1 tamer; 0 always takes the likeliest token."""


@dataclass(kw_only=True)
class PlaygroundSettings(TrustOption):
    """A web page on this machine: write and talk with a model and see how it works; two models side by side."""

    model: list[ModelName] = field(default_factory=list)
    """A model's folder or its name on the Hub, or two of them to compare."""
    port: Annotated[int, Interval(ge=1, le=65535)] | None = None
    """The port on 127.0.0.1 (default: the first free one from 7860)."""


@dataclass(kw_only=True)
class DoctorSettings(Settings):
    """Look at versions, devices, compiler, memory and the Hub login, and say what to mend. Nothing is sent."""


@dataclass(kw_only=True)
class CompletionSettings(Settings):
    """Print the script by which a shell completes verbs, options and choices."""

    shell: Literal["bash", "zsh", "fish"] = "bash"
    """bash, zsh or fish."""


@dataclass(kw_only=True)
class RunSettings(QuietOption, SmokeOption, DryRunOption, OutOption):
    """Walk a whole recipe: tokenizer, pretraining, evaluation, text. A stage whose inputs have not changed is kept."""

    meaning: ClassVar[dict[str, str]] = {
        "out": "The folder for all stages (default: runs/ and the recipe's name); what is there is used again.",
        "dry_run": "Only say what would be done, and how long it may take.",
        "smoke": "Walk the same path with tiny models in seconds.",
    }

    recipe: NameOrNone = ""
    """A YAML file, or the name of one of the recipes that come with the package (python_docs)."""
