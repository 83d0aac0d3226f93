"""A model in parts: of weights, gradients and the optimizer's states each process keeps its share (Zhao et al. 2023).

Torch's own `fully_shard` divides them, on a processor too, where Accelerate would train whole copies without a word.
Weights are whole on every process for a moment: before the first step, one block at a time in a step, and when a state
is saved, which is the one that a process alone would save.
"""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import parse_flag_from_env, patch_environment
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from groundup.training.compiling import blocks

ASKED = "ACCELERATE_USE_FSDP"  # what `accelerate launch --use_fsdp` sets

T = TypeVar("T")


def asked_to_shard() -> bool:
    """Whether the launcher was told to shard, and there is more than one process to do it."""
    return parse_flag_from_env(ASKED) and int(os.environ.get("WORLD_SIZE", 1)) > 1


def without_accelerates() -> AbstractContextManager[Any]:
    """A context in which an `Accelerator` is made as if nothing were to be sharded."""
    return patch_environment(**{ASKED: "false"})


def shard(objective: nn.Module, device: torch.device) -> None:
    """Leave of every weight under `objective` this process's share; blocks are gathered one at a time when they run.

    Optimizers are made afterwards: the parameters are others.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in blocks(objective):
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    cast(Any, objective).carry_out = lambda action: action()
    register_fsdp_forward_method(objective, "carry_out")


def run_within(objective: nn.Module, action: Callable[[], T]) -> T:
    """What `action` gives, which runs the model of a sharded objective from outside; on every process alike."""
    sharded = cast(Any, objective)
    try:
        return sharded.carry_out(action)
    finally:
        sharded.reshard()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a sharded model with every tensor whole, as it is saved; called on every process.

    Torch's `get_model_state_dict` makes two tensors of a tied head, and both would be written.
    """
    found: dict[int, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for value in state.values():
        if id(value) not in found:
            found[id(value)] = to_save(value.detach())
    return {name: found[id(value)] for name, value in state.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of which every process has its share, gathered on each of them; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def to_save(tensor: torch.Tensor) -> torch.Tensor:
    """The same for what is saved: gathered in main memory, so that a card holds one whole tensor at a time."""
    return whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor


def share_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Of a tensor that every process has whole, what it keeps where `like` is divided; else the tensor itself."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
