"""The settings of the verbs in this folder. This module imports nothing slow."""

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
    TrustOption,
)
from groundup.common.settings import Settings


@dataclass(kw_only=True)
class WritingOptions(TrustOption, SamplingOptions):
    """The model that generates, and how it samples."""

    model: ModelNameOrNone = ""
    """A model's folder or Hub name: ours, or any that AutoModelForCausalLM loads."""


@dataclass(kw_only=True)
class GenerateSettings(WritingOptions):
    """Generate text from a prompt, token by token."""

    meaning: ClassVar[dict[str, str]] = {"seed": "The same seed gives the same text."}

    prompt: str = ""
    """The text to continue (default: none; the model starts a new text)."""
    as_message: bool = False
    """Send the prompt as a user message in the model's chat template, and print only the answer."""


@dataclass(kw_only=True)
class ChatSettings(WritingOptions):
    """Chat with a model in the terminal. An empty line or Ctrl-D ends the conversation."""

    meaning: ClassVar[dict[str, str]] = {
        "seed": "The same seed gives the same answers.",
        "temperature": "Divides the logits before sampling; 0: the likeliest token (default: the model's, else 0.7).",
    }

    system: str = ""
    """The system message, if the model's chat template has one."""
    max_new_tokens: MaxNewTokens = 300
    """Most tokens in an answer."""


@dataclass(kw_only=True)
class PlaygroundSettings(TrustOption):
    """Open a web page on this machine to generate text, chat and look inside one or two models."""

    model: list[ModelName] = field(default_factory=list)
    """A model's folder or Hub name; give two to compare them."""
    port: Annotated[int, Interval(ge=1, le=65535)] | None = None
    """The port on 127.0.0.1 (default: the first free one from 7860)."""


@dataclass(kw_only=True)
class DoctorSettings(Settings):
    """Check versions, devices, compiler, memory and the Hub login, and say what to fix. Nothing is sent."""


@dataclass(kw_only=True)
class CompletionSettings(Settings):
    """Print a script that makes a shell complete verbs, options and choices."""

    shell: Literal["bash", "zsh", "fish"] = "bash"
    """bash, zsh or fish."""


@dataclass(kw_only=True)
class RunSettings(QuietOption, SmokeOption, DryRunOption, OutOption):
    """Run all stages of a recipe and write one report. A stage whose inputs have not changed is skipped."""

    meaning: ClassVar[dict[str, str]] = {
        "out": "The folder of all stages (default: runs/NAME, by the recipe's name); finished stages in it are reused.",
        "dry_run": "Only print what would be done, and how long it may take.",
        "smoke": "Run the same stages with tiny models, in seconds.",
    }

    recipe: NameOrNone = ""
    """A YAML file, or the name of a recipe that comes with the package, such as python_docs."""
