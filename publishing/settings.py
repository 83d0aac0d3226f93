"""Settings of the verbs that turn a checkpoint into another form or publish it, and of a run that pushes."""

from dataclasses import dataclass, field
from typing import ClassVar

from groundup.common.options import (
    CheckpointOption,
    Count,
    DryRunOption,
    ModelName,
    ModelNameOrNone,
    Name,
    NameOrNone,
    Names,
    OutOption,
    QuietOption,
    StockForm,
    TokenizerOption,
    TrustOption,
)
from groundup.common.settings import Settings


@dataclass(kw_only=True)
class MergeSettings(QuietOption, TrustOption, OutOption):
    """Merge a LoRA adapter into its base model: one full checkpoint with the same outputs."""

    adapter: ModelNameOrNone = ""
    """An adapter's folder or Hub name."""
    base: ModelName | None = None
    """The model that the adapter was trained on (default: the one named in the adapter)."""


@dataclass(kw_only=True)
class ImportSettings(QuietOption, OutOption, TokenizerOption):
    """Convert a stock model (GPT-2, Llama, Qwen, Mistral, ...) into a checkpoint of ours with the same outputs."""

    meaning: ClassVar[dict[str, str]] = {
        "tokenizer": "The tokenizer: a folder or a Hub name (default: the files beside the weights)."
    }

    source: ModelNameOrNone = ""
    """A model's folder, its safetensors or GGUF file, or a Hub name; of GPT-2 also pytorch_model.bin and model.ckpt."""


@dataclass(kw_only=True)
class ExportSettings(QuietOption, OutOption, CheckpointOption):
    """Convert a checkpoint of ours into a stock model with exactly the same outputs, which needs no code of ours."""

    meaning: ClassVar[dict[str, str]] = {
        "out": "A new or empty folder, or with --to gguf a new file NAME.gguf (default: a new folder under runs/)."
    }

    to: StockForm | None = None
    """The target: a folder for transformers and every tool that reads its models, or (gguf) a file for llama.cpp."""


@dataclass(kw_only=True)
class PublishSettings(QuietOption, TrustOption, DryRunOption, CheckpointOption):
    """Publish a checkpoint on the Hub: verify that it loads in a clean process, write its card, push one commit."""

    meaning: ClassVar[dict[str, str]] = {
        "checkpoint": "The folder of a checkpoint: a model, an adapter, or an exported twin.",
        "dry_run": "Run every check and print the files, their sizes and the card; send nothing.",
        "trust_remote_code": "Run modeling files that are not this package's own, to verify that they work.",
    }

    repo_id: NameOrNone = ""
    """The repository, OWNER/NAME; it is created if it does not exist."""
    license: Name | None = None
    """The licence shown on the Hub, by its identifier, such as apache-2.0 (default: the recipe's)."""
    language: Names = field(default_factory=list)
    """Languages of the text, as ISO 639 codes such as en; may be given several times (default: the recipe's)."""
    base_model: Name | None = None
    """The Hub name of the base model of an adapter or a fine-tuned model (default: as recorded)."""
    private: bool = False
    """Create the repository as private; an existing public one is refused."""
    branch: Name | None = None
    """The branch to commit to (default: main); it is created if it does not exist."""
    pull_request: bool = False
    """Open a pull request instead of committing to main."""
    tag: Name | None = None
    """A tag for the commit, such as v1.0."""
    message: Name | None = None
    """The commit message (default: names what is published)."""
    with_twin: list[StockForm] = field(default_factory=list)
    """Also publish this stock form of the model, in a repository of its own: OWNER/NAME-qwen3."""
    space: bool = False
    """Also publish the playground for this model, as a Space that the Hub runs: OWNER/NAME-space."""


@dataclass(kw_only=True)
class PushOptions(Settings):
    """Push the checkpoints of a run to the Hub while it trains."""

    push_to: Name | None = None
    """Push the finished checkpoint to this repository on the Hub, OWNER/NAME; it is created if it does not exist."""
    push_base_model: Name | None = None
    """The Hub name of the base model of --lora, if the base is a local folder: an adapter names its base."""
    push_every: Count | None = None
    """Steps between two pushes of the current model; each push saves the state and makes one commit."""
    push_branch: Name | None = None
    """The branch to push to (default: main); it is created if it does not exist."""
    push_private: bool = False
    """Create the repository as private; an existing public one is refused."""
    push_license: Name | None = None
    """The licence shown on the Hub, by its identifier, such as apache-2.0; --push-to requires it."""
