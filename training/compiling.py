"""When blocks go through `torch.compile`, and when not."""

from contextlib import AbstractContextManager

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def blocks(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model, transformers' or ours: they have a class in common."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def compile_blocks(model: nn.Module) -> None:
    """Let every block of a model be compiled at its first call: all share one compilation, which takes seconds.

    The whole network in one piece took twice as long to compile and gained little more (docs/performance.md). Where
    compiling fails (a compiler without its headers), torch says so and the blocks run as they are.
    """
    torch._dynamo.config.suppress_errors = True
    for block in blocks(model):
        block.compile()


def uncompiled() -> AbstractContextManager[None]:
    """A context in which nothing is compiled: scores see other shapes, each of which would be compiled for one use."""
    return torch.compiler.set_stance("force_eager")


def compiler_found() -> bool:
    """Whether there is a C++ compiler for torch.compile."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes a while to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True
