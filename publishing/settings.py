"""Settings of the verbs that turn a checkpoint into another form or publish it."""

from dataclasses import dataclass, field
from typing import ClassVar

from groundup.common.options import (
    CheckpointOption,
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


@dataclass(kw_only=True)
class MergeSettings(QuietOption, TrustOption, OutOption):
    """Fold a LoRA adapter into its base: one full checkpoint that computes the same."""

    adapter: ModelNameOrNone = ""
    """An adapter's folder or its name on the Hub."""
    base: ModelName | None = None
    """The model that the adapter was trained on (default: the one that the adapter names)."""


@dataclass(kw_only=True)
class ImportGpt2Settings(QuietOption, OutOption, TokenizerOption):
    """Turn a GPT-2 checkpoint into one of ours that computes exactly the same."""

    meaning: ClassVar[dict[str, str]] = {
        "tokenizer": "The tokenizer, as a folder or a Hub name (default: the files that lie beside the weights)."
    }

    source: ModelNameOrNone = ""
    """A folder or file with GPT-2's weights (safetensors, pytorch_model.bin, OpenAI's model.ckpt), or a Hub name."""


@dataclass(kw_only=True)
class ExportSettings(QuietOption, OutOption, CheckpointOption):
    """Turn a checkpoint of ours into a stock model that computes exactly the same and needs no code of ours."""

    meaning: ClassVar[dict[str, str]] = {
        "out": "A new or empty folder, or with --to gguf a new file NAME.gguf (default: a new folder under runs/)."
    }

    to: StockForm | None = None
    """The stock model to become: a folder for transformers and whoever reads its models, or one file for llama.cpp."""


@dataclass(kw_only=True)
class PublishSettings(QuietOption, TrustOption, DryRunOption, CheckpointOption):
    """Publish a checkpoint on the Hub: prove that it loads in a clean process, write its card, push one commit."""

    meaning: ClassVar[dict[str, str]] = {
        "checkpoint": "The folder of a checkpoint: a model, an adapter, or an exported twin.",
        "dry_run": "Go through the gate and show the files, their sizes and the card; send nothing.",
        "trust_remote_code": "Run modeling files that are not this package's own, to prove that they work.",
    }

    repo_id: NameOrNone = ""
    """The repository, as OWNER/NAME; it is made if it does not exist."""
    license: Name | None = None
    """The licence that the Hub shows, by its identifier there, such as apache-2.0 (default: the recipe's)."""
    language: Names = field(default_factory=list)
    """Languages of the text, as ISO 639 codes such as en; give it several times for more (default: the recipe's)."""
    base_model: Name | None = None
    """The name on the Hub of the model that an adapter or a fine-tuned model was made from (default: as recorded)."""
    private: bool = False
    """Make a new repository private; an existing public one is refused."""
    branch: Name | None = None
    """The branch to commit to (default: main); it is made if it does not exist."""
    pull_request: bool = False
    """Open a pull request instead of committing to main."""
    tag: Name | None = None
    """A name for this version, such as v1.0, put on the commit."""
    message: Name | None = None
    """The commit's message (default: says what is published)."""
    with_twin: list[StockForm] = field(default_factory=list)
    """Publish this stock form of the model too, in a repository beside it: OWNER/NAME-qwen3."""
    space: bool = False
    """Publish the playground for this model too, as a Space that the Hub runs: OWNER/NAME-space."""
