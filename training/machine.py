"""How a model runs on the machine there is: within its memory, in parts over processes, compiled, attention in blocks.

In parts, every process keeps its share of weights, gradients and the optimizer's states (Zhao et al. 2023). Torch's own
`fully_shard` divides them, on a processor too, where Accelerate would train whole copies without a word. Weights are
whole on every process for a moment: before the first step, one block at a time in a step, and when a state is saved,
which is the one that a process alone would save.
"""

import itertools
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import psutil
import torch
from accelerate.utils import parse_flag_from_env, patch_environment
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AttentionInterface, AttentionMaskInterface, AutoConfig, AutoModel, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from groundup.common.errors import InputError, user_path
from groundup.modeling import GroundupConfig, GroundupModel
from groundup.modeling.modeling_groundup import GroundupPreTrainedModel, repeat_kv

ASKED = "ACCELERATE_USE_FSDP"  # what `accelerate launch --use_fsdp` sets
NAME = "groundup_blocks"  # under which transformers knows it
BLOCK = 128  # queries that look at the same keys together
LONGEST = 512  # tokens of a row; torch's kernel is as fast from 1,024 on
LARGEST_WEIGHTS = 2**23  # of a layer, B H T T: at most 17 MB are kept of so many; with more, memory counts for more

T = TypeVar("T")

PROCESS = 5e8  # bytes of a process that has torch and transformers
HELD_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}  # of a frozen weight
# For the way back a token keeps two features for each that comes out of a matrix in a block (10,000 of 10,400 counted
# in a layer of SmolLM2), and a process holds a third more than what is kept (docs/performance.md).
KEPT = 2 * 1.4
IN_PIECES = 2 * 4 * 2**24  # bytes of logits and their gradients where the loss makes them in pieces


@dataclass(frozen=True)
class BaseSize:
    """Hold what a model weighs, counted without its weights.

    `matrices` are the weights of the linear layers in its blocks, `outputs` the features that come out of these and
    `features` those that go in or out: an adapter has its rank of weights for each.
    """

    parameters: int
    layers: int
    width: int
    matrices: int
    outputs: int
    features: int
    weight_bytes: int = 4  # on a processor weights are fp32, elsewhere as they were stored

    @classmethod
    def of(cls, base: str) -> "BaseSize | None":
        """Count a model by its config, that of a folder or of a name on the Hub; None where transformers knows none."""
        try:
            config = AutoConfig.from_pretrained(str(user_path(base)), trust_remote_code=False).get_text_config()
        except (OSError, ValueError):
            return None
        with torch.device("meta"):
            model = AutoModel.from_config(config)
        inner = [module for name, module in model.named_modules() if re.search(r"\.\d+\.", name)]
        layers = [module for module in inner if isinstance(module, nn.Linear | Conv1D)]
        head = 0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size
        return cls(
            parameters=model.num_parameters() + head,
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            matrices=sum(layer.weight.numel() for layer in layers),
            outputs=sum(layer.weight.size(1 if isinstance(layer, Conv1D) else 0) for layer in layers),
            features=sum(sum(layer.weight.shape) for layer in layers),
            weight_bytes=4
            if torch.accelerator.current_accelerator() is None
            else (config.dtype or torch.float).itemsize,
        )

    def trained(self, lora_rank: int | None) -> int:
        """Return the weights that are trained: those of an adapter on all matrices, or all."""
        return self.parameters if lora_rank is None else lora_rank * self.features

    def memory(self, lora_rank: int | None, rows: int, held: str, again: bool, how: dict[str, Any]) -> float:
        """Return the bytes that training takes at its peak with micro-batches of so many rows.

        `again` says that activations are computed again on the way back; `how` is what the plan chose: `optimizer`,
        `precision` and `context_length`.
        """
        frozen = 0 if lora_rank is None else self.matrices
        each = self.weight_bytes
        weights = each * (self.parameters - frozen) + min(each, HELD_BYTES[held]) * frozen
        if lora_rank is not None:  # with AdamW, in fp32
            states = 3 * 4 * self.trained(lora_rank)
        else:  # gradients, averages of them
            states = each * self.parameters * (3 if how["optimizer"] == "adamw" else 2)
        kept = KEPT * self.outputs
        if again:
            kept = kept / self.layers + self.layers * self.width
        activations = rows * how["context_length"] * kept * (2 if how["precision"] == "bf16" else 4)
        return PROCESS + weights + states + activations + IN_PIECES

    def within(
        self,
        *,
        lora_rank: int | None,
        rows: list[int],
        held: list[str],
        checkpointed: list[bool],
        how: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the first of the choices that the free memory has room for, or else the last, with its memory.

        What costs least is tried first: fewer rows at a time, then activations computed again, then a base of fewer
        bits.
        """
        free = free_memory()
        for base_precision, again, at_once in itertools.product(held, checkpointed, rows):
            memory = self.memory(lora_rank, at_once, base_precision, again, how)
            if memory <= free:
                break
        chosen = {"base_precision": base_precision, "checkpointed": again, "micro_batch_rows": at_once}
        return chosen | {"memory": memory}


def free_memory() -> int:
    """Return the memory that is free on all GPUs, or else in main memory and swap [bytes]."""
    if torch.cuda.is_available():
        return sum(torch.cuda.mem_get_info(card)[0] for card in range(torch.cuda.device_count()))
    return psutil.virtual_memory().available + psutil.swap_memory().free


def require_memory(needed: float, what: str, cure: str) -> None:
    """Raise `InputError` where less than `needed` bytes are free, saying what needs them and what to do."""
    if needed > (free := free_memory()):
        have = f"{needed / 1e9:,.1f} GB of memory, and {free / 1e9:,.1f} GB are free"
        raise InputError(f"{what} needs at least {have}: {cure}")


def bf16_is_native() -> bool:
    """Return whether the device multiplies bf16 in hardware; emulated, it is several times slower than fp32."""
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is None:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return accelerator.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def measure_flops(precision: str, seconds: float = 0.5) -> float:
    """Measure the matrix-multiply speed of this machine [FLOP/s], at the sizes of a small model."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = torch.randn(2048, 512, device=device, dtype=dtype), torch.randn(512, 512, device=device, dtype=dtype)
    best, end = math.inf, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        (a @ b).sum().item()
        best = min(best, time.perf_counter() - start)
    return 2 * 2048 * 512 * 512 / best


def suitable_micro_batch(width: int, lora: bool, base_precision: str = "auto") -> int:
    """Return the tokens of a micro-batch: on a processor as many as suit its cache.

    A wide model keeps much for each. Where all weights are trained each micro-batch adds up gradients as large as the
    model, so that there few large ones are better; an adapter's are small. With 512 tokens two threads wait for each
    other longer (docs/performance.md): that is for whoever saves memory by a base of fewer bits.
    """
    if torch.accelerator.current_accelerator() is not None:
        return 2**16
    if not lora or width <= 256:
        return 2048
    return 512 if base_precision in ("bf16", "int8") else 1024


def sizes_of(model: PreTrainedModel) -> dict[str, Any]:
    """Return the fields of `Given` that a model that there is has already."""
    head, config = model.get_output_embeddings(), model.config.get_text_config()
    tables = {id(m.weight): m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding)}
    tables.pop(id(head.weight) if isinstance(head, nn.Linear) else 0, None)  # a tied head is multiplied
    return {
        "from_scratch": False,
        "hidden_size": cast(nn.Embedding, model.get_input_embeddings()).embedding_dim,
        "num_hidden_layers": config.num_hidden_layers,
        "weights": model.num_parameters() - sum(tables.values()),
    }


def cost_of(model: dict[str, Any], vocab_size: int, context_length: int) -> tuple[int, float]:
    """Return a model's parameters, and the FLOPs of training it on one token (Chowdhery et al. 2022, appendix B).

    Raises `InputError` for sizes that do not fit together.
    """
    try:
        fields: dict[str, Any] = {"max_position_embeddings": context_length, "vocab_size": vocab_size}
        config = GroundupConfig(**fields | model)
    except Exception as error:
        raise InputError(f"the model's sizes do not fit together: {str(error).splitlines()[-1].strip()}") from error
    with torch.device("meta"):
        parameters = GroundupModel(config).num_parameters()
    table = vocab_size * config.hidden_size
    attended = cast(int, config.head_dim) * cast(int, config.num_attention_heads)  # features of all heads together
    attention = 6 * config.num_hidden_layers * attended * context_length
    whole = parameters if config.tie_word_embeddings else parameters + table
    return whole, 6 * parameters + attention  # one table is looked up, the other multiplied


def asked_to_shard() -> bool:
    """Return whether the launcher was told to shard, and there is more than one process to do it."""
    return parse_flag_from_env(ASKED) and int(os.environ.get("WORLD_SIZE", 1)) > 1


def without_accelerates() -> AbstractContextManager[Any]:
    """Return a context in which an `Accelerator` is made as if nothing were to be sharded."""
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
    """Return what `action` gives, which runs the model of a sharded objective from outside; on every process alike."""
    sharded = cast(Any, objective)
    try:
        return sharded.carry_out(action)
    finally:
        sharded.reshard()


def whole_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the state dict of a sharded model with every tensor whole, as it is saved; call it on every process.

    Torch's `get_model_state_dict` makes two tensors of a tied head, and both would be written.
    """
    found: dict[int, torch.Tensor] = {}
    state = model.state_dict(keep_vars=True)
    for value in state.values():
        if id(value) not in found:
            found[id(value)] = to_save(value.detach())
    return {name: found[id(value)] for name, value in state.items()}


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor gathered, on every process; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def to_save(tensor: torch.Tensor) -> torch.Tensor:
    """Return a sharded tensor gathered in main memory, so that a card holds one whole tensor at a time."""
    return whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor


def share_like(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this process's share of a whole tensor, sharded as `like` is; the tensor itself where that is whole."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model, transformers' or ours: they have a class in common."""
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
    """Return a context in which nothing is compiled: scores see other shapes, each of which would be compiled once."""
    return torch.compiler.set_stance("force_eager")


def compiler_found() -> bool:
    """Return whether there is a C++ compiler for torch.compile."""
    from torch._inductor.cpp_builder import get_cpp_compiler  # takes a while to import
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        return False
    return True


def causal_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Mix for every query the values up to its own (Vaswani et al. 2017): (B, H, T, D) three times -> (B, H, T, D).

    torch's kernel for it is made for long texts; its way back is slow for short ones. Written out as products of
    matrices, which a processor with bf16 does several times as fast as anything else, it takes half to four fifths of
    the time up to `LONGEST` tokens (docs/performance.md). Keys after a block's last query are left out; those within it
    are masked. Scores are rounded to bf16, which torch's kernel does not do, and what the softmax gives is kept for the
    way back.
    """
    mixed = []
    for start in range(0, query.size(2), BLOCK):
        end = min(start + BLOCK, query.size(2))
        asking, asked, given = query[:, :, start:end], key[:, :, :end], value[:, :, :end]
        future = torch.full((end - start, end), -torch.inf, dtype=query.dtype, device=query.device).triu(start + 1)
        scores = torch.baddbmm(future, asking.flatten(0, 1), asked.flatten(0, 1).mT, alpha=scaling)  # (B H, t, S)
        mixed.append((scores.softmax(dim=-1) @ given.flatten(0, 1)).view_as(asking))
    return torch.cat(mixed, dim=2)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float = 1.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Do what a kernel of transformers does, (B, H, T, D) -> (B, T, H, D); in blocks where that is faster."""
    as_expected = module.training and torch.is_autocast_enabled("cpu") and attention_mask is None and not dropout
    rows, heads, length, _ = query.shape
    causal = module.is_causal and kwargs.get("is_causal", True) and length == key.size(2)
    small = length <= LONGEST and rows * heads * length**2 <= LARGEST_WEIGHTS
    if not (as_expected and causal and small):
        kwargs |= {"dropout": dropout, "scaling": scaling}
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    query = query.bfloat16()  # autocast leaves what a norm gives in fp32
    key, value = (repeat_kv(x.bfloat16(), heads // x.size(1)) for x in (key, value))
    return causal_attention(query, key, value, scaling).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


@contextmanager
def attending_in_blocks(model: PreTrainedModel) -> Iterator[None]:
    """Let a model of ours whose attention is torch's attend in blocks within this context; leave others as they are."""
    ours = isinstance(model, GroundupPreTrainedModel) and model.config._attn_implementation == "sdpa"
    if ours:
        model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        if ours:
            model.set_attn_implementation("sdpa")
