"""The settings of the verbs that show text to a person; importing them costs nothing."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class GenerateSettings:
    """Write text that goes on from a prompt, token by token."""

    model: str = ""
    """A model's folder or its name on the Hub: ours, or any that AutoModelForCausalLM loads."""
    prompt: str = ""
    """The text to go on from (default: the beginning of a new text)."""
    as_message: bool = False
    """Give the prompt as a user's message, in the model's chat template, and print the answer alone."""
    max_new_tokens: int = 200
    """The most tokens to write."""
    temperature: float = 0.8
    """Above 1 wilder, below 1 tamer; 0 always takes the likeliest token."""
    top_k: int = 50
    """Draw from so many of the likeliest tokens; 0: from all."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that together have this probability; 1: from all."""
    seed: int = 0
    """The same seed writes the same text."""
    trust_remote_code: bool = False
    """Run code that comes with the model, if it is not one of ours."""


@dataclass(kw_only=True)
class ChatSettings:
    """Talk with a model in the terminal. An empty line or Ctrl-D ends the conversation."""

    model: str = ""
    """A model's folder or its name on the Hub."""
    system: str = ""
    """What the model is told before the conversation, where its chat template has a place for it."""
    max_new_tokens: int = 300
    """The most tokens of an answer."""
    temperature: float = 0.7
    """Above 1 wilder, below 1 tamer; 0 always takes the likeliest token."""
    top_k: int = 50
    """Draw from so many of the likeliest tokens; 0: from all."""
    top_p: float = 0.95
    """Draw from the likeliest tokens that together have this probability; 1: from all."""
    seed: int = 0
    """The same seed gives the same answers."""
    trust_remote_code: bool = False
    """Run code that comes with the model, if it is not one of ours."""


@dataclass(kw_only=True)
class PlaygroundSettings:
    """A web page on this machine: write and talk with a model and see how it works; two models side by side."""

    model: list[str] = field(default_factory=list)
    """A model's folder or its name on the Hub, or two of them to compare."""
    port: int | None = None
    """The port on 127.0.0.1 (default: the first free one from 7860)."""
    trust_remote_code: bool = False
    """Run code that comes with the model, if it is not one of ours."""


@dataclass(kw_only=True)
class DoctorSettings:
    """Look at versions, devices, compiler, memory and the Hub login, and say what to mend. Nothing is sent."""


@dataclass(kw_only=True)
class CompletionSettings:
    """Print the script by which a shell completes verbs, options and choices."""

    shell: str = "bash"
    """bash, zsh or fish."""


@dataclass(kw_only=True)
class RunSettings:
    """Walk a whole recipe: tokenizer, pretraining, evaluation, text. A stage whose inputs have not changed is kept."""

    recipe: str = ""
    """A YAML file, or the name of one of the recipes that come with the package (python_docs)."""
    out: str | None = None
    """The folder for all stages (default: runs/ and the recipe's name); what is there is used again."""
    dry_run: bool = False
    """Only say what would be done, and how long it may take."""
    smoke: bool = False
    """Walk the same path with tiny models in seconds."""
    quiet: bool = False
    """Print nothing but errors."""
