"""The settings of the verbs that bring weights in and out; importing them costs nothing."""

from dataclasses import dataclass
from typing import Literal


@dataclass(kw_only=True)
class ImportGpt2Settings:
    """Turn a GPT-2 checkpoint into one of ours that computes exactly the same."""

    source: str = ""
    """A folder or file with GPT-2's weights (safetensors, pytorch_model.bin, OpenAI's model.ckpt), or a Hub name."""
    out: str | None = None
    """A new or empty folder for the checkpoint (default: a new one under runs/)."""
    tokenizer: str | None = None
    """The tokenizer, as a folder or a Hub name (default: the files that lie beside the weights)."""
    quiet: bool = False
    """Print nothing but errors."""


@dataclass(kw_only=True)
class ExportSettings:
    """Turn a checkpoint of ours into a stock model that computes exactly the same and needs no code of ours."""

    checkpoint: str = ""
    """A checkpoint of ours, as a folder or a Hub name."""
    to: Literal["gpt2", "llama", "qwen3", "arcee", "gguf"] | None = None
    """The stock model to become: a folder for transformers and whoever reads its models, or one file for llama.cpp."""
    out: str | None = None
    """A new or empty folder for the model (default: a new one under runs/)."""
    quiet: bool = False
    """Print nothing but errors."""
