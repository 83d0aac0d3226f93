"""Ask a loaded model for its context, its device or its head, and run it as a measurement needs it."""

import contextlib
from collections.abc import Iterator

import torch
from torch import nn
from transformers import PreTrainedModel

from groundup.common.errors import InputError

DEFAULT_CONTEXT = 1024  # tokens, for a model whose config names no limit


def context_of(model: PreTrainedModel) -> int:
    """The number of positions a model was made for (tokens): from its config, or 1,024 where that names none."""
    return stated_context(model) or DEFAULT_CONTEXT


def stated_context(model: PreTrainedModel) -> int | None:
    """The number of positions that a model's config names (tokens), None where it names none."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions"):
        if isinstance(limit := getattr(config, name, None), int) and limit > 0:
            return limit
    return None


@torch.no_grad()
def plain_head(model: PreTrainedModel) -> nn.Linear | None:
    """The output embeddings, if their weight times the last hidden states is all the logits are: tried on a few ids.

    None for a head with a bias or an adapter, and for a model that scales or caps its logits.
    """
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or head.bias is not None:
        return None
    ids = torch.arange(min(8, context_of(model)), device=device_of(model))[None]  # (1, T)
    with evaluating(model):
        hidden = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
        logits = model(input_ids=ids, use_cache=False).logits
    return head if hidden is not None and torch.equal(head(hidden), logits) else None


def require_known(model: PreTrainedModel, largest: int) -> None:
    """Raise `InputError` where a model has no embedding for an id that is to be read."""
    known = model.config.get_text_config().vocab_size
    if largest >= known:
        raise InputError(
            f"the tokenizer gives the text a token {largest}, and the model knows only {known:,} tokens, from 0 on: "
            "put the tokenizer that the model was trained with into its folder"
        )


def device_of(model: PreTrainedModel) -> torch.device:
    """Where a model takes its ids: weights that lie on the disk, or elsewhere until they are called, are nowhere."""
    return torch.device("cpu") if model.device.type == "meta" else model.device


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside, and afterwards put every module back into the mode it was in."""
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
