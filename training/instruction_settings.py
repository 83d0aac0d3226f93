"""The settings of the verb `instruct`; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Any, Literal

from groundup.training.lora_settings import LoraOptions
from groundup.training.pushing_settings import PushOptions


@dataclass(kw_only=True)
class InstructSettings(LoraOptions, PushOptions):
    """Teach a language model to answer: fine-tune it on instructions with answers, or on conversations.

    Without --model it starts from nothing: a tokenizer and a little pretraining on the rows' own text first. A tenth of
    the rows is kept back to choose the best weights; --eval-data is read once, after training.
    """

    data: list[str] = field(default_factory=list)
    """Rows of instruction/input/output, prompt/completion or messages: files, folders, globs, Hub datasets, or
    instruction-tasks (perhaps with :family,family behind it); give it several times for more."""
    eval_data: list[str] = field(default_factory=list)
    """Rows to be tested on once, at the end; of instruction-tasks the ones held out."""
    split: list[float] = field(default_factory=list)
    """Shares of --data, in its order, for training, testing and validation: [0.85, 0.1, 0.05] is the book's split
    (default: a tenth for validation, by chance)."""
    model: str | None = None
    """The causal language model to teach: a folder or a Hub name (default: a new one)."""
    architecture: Literal["decoder", "encoder-decoder"] = "decoder"
    """What a new model is: decoder, a causal language model; encoder-decoder, which reads first and then writes."""
    layout: Literal["chat", "alpaca"] | None = None
    """How a conversation is written: chat, with special tokens; alpaca, in words, as in the book (default: the model's
    own chat template; without one, alpaca; for a new model, chat)."""
    out: str | None = None
    """A new or empty folder for the checkpoint (default: a new one under runs/)."""
    minutes: float | None = None
    """Budget of the whole command, from its start to its last file [minutes]."""
    max_steps: int | None = None
    """Budget in updates of the weights."""
    epochs: float | None = None
    """Budget in passes over the rows."""
    pretrain_share: float = 0.1
    """Part of the budget that a new model pretrains on the rows' own text, before it is taught to answer."""
    patience: int = 3
    """Validations in a row, at least 1, without a better one that end the run before its budget does; there are ten in
    a budget."""
    vocab_size: int | None = None
    """Tokens in the vocabulary of a new model (default: by the amount of text)."""
    hidden_size: int | None = None
    """Width of a new model (default: by the plan)."""
    num_hidden_layers: int | None = None
    """Blocks of a new model (default: by the plan)."""
    context_length: int | None = None
    """Tokens of the longest row; longer ones are cut (default: what the model can look at, at most 1,024; for a new
    one, by the rows)."""
    model_config: dict[str, Any] = field(default_factory=dict)
    """Further fields of GroundupConfig for a new model, as a mapping: '{"tie_word_embeddings": true}'."""
    batch_tokens: int | None = None
    """Tokens in one update of the weights, about, prompts included (default: by the plan)."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: Muon for the matrices in the blocks, AdamW for the rest; adamw: AdamW for all."""
    learning_rate: float = 1.0
    """Multiplies every learning rate of the plan."""
    weight_decay: float | None = None
    """Decay of matrices, per step and unit of learning rate (default: by the plan); tables lose 0.4 as much."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Precision of the matrix products; auto is bf16 where the processor has instructions for it."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: less memory, a third more time."""
    save_every: int | None = None
    """Steps between two saved states (default: ten in a run, and at least one a minute)."""
    trust_remote_code: bool = False
    """Run code that comes with the model, if it is not one of ours."""
    seed: int = 0
    """Decides the initial weights, the rows kept back, the order of the others and dropout."""
    track: Literal["none", "trackio", "tensorboard", "wandb"] = "none"
    """Where the log goes beside log.jsonl: trackio and tensorboard keep it on this machine, wandb sends it away."""
    resume: bool = False
    """Go on from the newest whole state under --out, with the settings kept there; start if there is none."""
    smoke: bool = False
    """Walk the same path with a tiny model and a few of the rows, in seconds."""
    quiet: bool = False
    """Print nothing but errors."""
