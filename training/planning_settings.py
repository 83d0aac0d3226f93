"""The settings of the verb `plan`; importing them costs nothing."""

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class PlanSettings:
    """Say before a run what it would choose and why, and what it would take, here and on hardware one does not have."""

    data: list[str] = field(default_factory=list)
    """The text that would be learned from: files, folders, globs, Hub datasets, or python-docs."""
    text_bytes: float | None = None
    """Size of the text where it is not at hand [bytes]: 1e9."""
    minutes: float | None = None
    """Budget in time [minutes]."""
    tokens: float | None = None
    """Budget in tokens seen: 2.5e9."""
    max_steps: int | None = None
    """Budget in updates of the weights."""
    hardware: str = "here"
    """here, or a card to choose the sizes for: h200, h100, a100, rtx4090."""
    cards: int = 1
    """How many of that card."""
    dollars_an_hour: float | None = None
    """Price of one such card [US dollars an hour] (default: a median of offers)."""
    preset: str | None = None
    """A named size: gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano, micro or small (default: by the budget)."""
    vocab_size: int | None = None
    """Tokens in the vocabulary (default: by the amount of text)."""
    hidden_size: int | None = None
    """Width of the model (default: by the budget)."""
    num_hidden_layers: int | None = None
    """Blocks of the model (default: by the budget)."""
    context_length: int | None = None
    """Tokens in a training row (default: by the budget)."""
    model_config: dict[str, Any] = field(default_factory=dict)
    """Further fields of GroundupConfig, as a mapping."""
    batch_tokens: int | None = None
    """Tokens in one update of the weights (default: by the width)."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon or adamw, as in pretrain."""
