"""Know the processes of a run: those that `torchrun` or `accelerate launch` started, or this one alone."""

import atexit
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from accelerate.state import PartialState
from accelerate.utils import broadcast_object_list

from groundup.common.errors import InputError

T = TypeVar("T")


def processes() -> PartialState:
    """Return all processes that the launcher started, or this one alone; they part when the program ends.

    Not before: a second meeting of the same processes may find the addresses of the first in the launcher's store.
    """
    is_first = not torch.distributed.is_initialized()
    # Said outright: under torchrun without an accelerator Accelerate would start as many lone processes.
    state = PartialState(cpu=torch.accelerator.current_accelerator() is None)
    if is_first and torch.distributed.is_initialized():
        atexit.register(state.destroy_process_group)
    return state


def agreed(state: PartialState, action: Callable[[], T]) -> T:
    """Do something on the first process while the others wait; all of them get its result, or its `InputError`."""
    found: list[Any] = [None, None]
    if state.is_main_process:
        try:
            found[0] = action()
        except InputError as error:
            found[1] = str(error)
    broadcast_object_list(found)
    if found[1] is not None:
        raise InputError(found[1])
    return found[0]


def random_state() -> dict[str, torch.Tensor]:
    """Return the random states of this process: the CPU's and the current accelerator's."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    elif torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(states: dict[str, torch.Tensor]) -> None:
    """Put back what `random_state` gave, as far as this machine has the device."""
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
