"""The processes of a run: those that `torchrun` or `accelerate launch` started, or this one alone."""

import atexit

import torch
from accelerate.state import PartialState


def processes() -> PartialState:
    """All processes that the launcher started, or this one alone; they part when the program ends.

    Not before: a second meeting of the same processes may find the addresses of the first in the launcher's store.
    """
    is_first = not torch.distributed.is_initialized()
    # Said outright: under torchrun without an accelerator Accelerate would start as many lone processes.
    state = PartialState(cpu=torch.accelerator.current_accelerator() is None)
    if is_first and torch.distributed.is_initialized():
        atexit.register(state.destroy_process_group)
    return state
