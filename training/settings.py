"""The settings of the verbs that train; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Any, Literal

from groundup.training.lora_settings import LoraOptions
from groundup.training.pushing_settings import PushOptions


@dataclass(kw_only=True)
class PretrainSettings(LoraOptions, PushOptions):
    """Train a language model from scratch, or go on with one, on any text.

    With nothing but --data and a budget it trains its own tokenizer, keeps back the last tenth of the text, and chooses
    every size from the amount of text and the budget.
    """

    data: list[str] = field(default_factory=list)
    """Text to learn from: files, folders, globs, Hub datasets, or python-docs; give it several times for more."""
    eval_data: list[str] = field(default_factory=list)
    """Text to be tested on once, at the end (default: only the tenth kept back from --data)."""
    text_column: str | None = None
    """The column with the text, for rows with several (default: found by its name)."""
    out: str | None = None
    """A new or empty folder for the checkpoint (default: a new one under runs/)."""
    minutes: float | None = None
    """Budget of the whole command, from its start to its last file [minutes]."""
    max_steps: int | None = None
    """Budget in updates of the weights."""
    epochs: float | None = None
    """Budget in passes over the text."""
    objective: Literal["clm", "mlm"] = "clm"
    """clm: predict each next token, a decoder; mlm: predict masked tokens from both sides, an encoder."""
    init_from: str | None = None
    """Go on from this model (a folder or a Hub name) with its tokenizer, instead of starting from nothing."""
    tokenizer: str | None = None
    """A trained tokenizer, as a folder or a Hub name (default: train one on --data)."""
    vocab_size: int | None = None
    """Tokens in the vocabulary of a tokenizer trained here (default: by the plan)."""
    preset: str | None = None
    """A named size: gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano, micro or small (default: by the plan)."""
    hidden_size: int | None = None
    """Width of the model (default: by the plan)."""
    num_hidden_layers: int | None = None
    """Blocks of the model (default: by the plan)."""
    context_length: int | None = None
    """Tokens in a training row, and the longest text the model can look at (default: by the plan)."""
    model_config: dict[str, Any] = field(default_factory=dict)
    """Further fields of GroundupConfig, as a mapping: '{"qk_norm": false}'."""
    packing: Literal["contiguous", "documents"] = "contiguous"
    """contiguous: a row is the next stretch of the text; documents: rows in which every document sees only itself."""
    batch_tokens: int | None = None
    """Tokens in one update of the weights (default: by the plan)."""
    micro_batch_rows: int | None = None
    """Rows that go through the model at once (default: by the plan); changes memory and speed, not the result."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 1.0
    """Multiplies every learning rate of the plan."""
    weight_decay: float | None = None
    """Decay of matrices, per step and unit of learning rate (default: by the plan); tables lose 0.4 as much."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products; auto is bf16 where the processor has instructions for it."""
    compile: Literal["auto", "yes", "no"] = "auto"
    """Compile the blocks by torch.compile; auto: where the minutes given pay for it and there is a compiler."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    save_every: int | None = None
    """Steps between two saved states (default: ten in a run, and at least one a minute)."""
    seed: int = 0
    """Decides the initial weights, the order of the rows and dropout."""
    track: Literal["none", "trackio", "tensorboard", "wandb"] = "none"
    """Where the log goes beside log.jsonl: trackio and tensorboard keep it on this machine, wandb sends it away."""
    resume: bool = False
    """Go on from the newest whole state under --out, with the settings kept there; start if there is none."""
    smoke: bool = False
    """Walk the same path with a tiny model in a few seconds."""
    quiet: bool = False
    """Print nothing but errors."""
