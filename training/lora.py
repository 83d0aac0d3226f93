"""A model to the same model of which only a part is trained: a low-rank adapter, or the weights at its end.

LoRA (Hu et al. 2021) adds to a frozen matrix W the product of two thin ones, W + alpha / rank * B A. B starts at zero,
so that training starts from the model as it was. The adapter and its files are peft's; its learning rate is chosen with
all others, by `learning_rates` in `optim.py`.
"""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from groundup.common.console import say
from groundup.common.errors import InputError, near, user_path
from groundup.common.files import MODEL_WEIGHTS, sha256_of
from groundup.inference.folder import BASE_SHA256
from groundup.inference.loading import new_modules
from groundup.training.settings import LoraOptions

_MATRICES = (nn.Linear, Conv1D, nn.Embedding)


def add_lora(model: PreTrainedModel, options: LoraOptions, trained_tokens: Sequence[int] = ()) -> PeftModel:
    """Freeze `model`, give its matrices an adapter, in place, and print how much of it is trained.

    A classifier's head, and whatever else the base had no weights for, is trained in full and is a part of the adapter:
    frozen at random it would be another at each loading. `get_base_model()` of the result is `model`.

    Args:
        model: one that was loaded from a folder or from the Hub, which the adapter names as its base.
        options: rank, alpha, dropout, targets and the variants.
        trained_tokens: ids whose embeddings are trained too (in an untied model their rows of the head as well): new
            ones, or those that the base never saw.

    Raises:
        InputError: for options that make no sense, for a base that lies nowhere, or that has an adapter already.
    """
    base = _base_name(model)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise InputError(f"{base} already has an adapter: merge it first with groundup merge")
    weights = model.num_parameters()
    has_conv1d = any(isinstance(module, Conv1D) for module in model.modules())
    config = LoraConfig(
        task_type=task_type(model),
        revision=getattr(model.config, "_commit_hash", None),
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=_targets(model, options.lora_targets),
        use_rslora=options.lora_rslora,
        use_dora=options.lora_dora,
        fan_in_fan_out=has_conv1d,
        trainable_token_indices=_token_rows(model, trained_tokens),
        modules_to_save=new_modules(model) or None,
    )
    if not has_conv1d:  # peft's way to give a kind of layer an adapter of one's own
        config._register_custom_module({nn.Linear: LeanLinear})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about tied heads: `merge` unties them where an adapter sets them apart
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    trained, _ = adapted.get_nb_trainable_parameters()
    kinds = ", ".join(sorted({name.rpartition(".")[2] for name in adapted.targeted_module_names}))
    say(f"LoRA of rank {options.lora_rank} on {kinds}: {trained:,} weights are trained, {trained / weights:.2%} of "
        f"the {weights:,} that {Path(base).name} has")  # fmt: skip
    return adapted


class LowRankSum(torch.autograd.Function):
    """Compute x W' + b + scaling (x A') B' with few passes over the features; W and b are frozen.

    peft's adapter writes the wide result of B, multiplies it and adds it, each in a pass of its own over all features,
    and as many again on the way back. Here the product with B is added where the product with W lies. Kept for the way
    back are what A reads and the narrow x A'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        dropped: torch.Tensor | None,
        weight: torch.Tensor,
        scale: torch.Tensor | None,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        """Map x (..., I) by weight (O, I), bias (O,) or None, down (R, I) and up (O, R) -> (..., O).

        `dropped` is what A reads in place of x; `scale` (O, 1) multiplies the rows of an int8 weight.
        """
        rows = x.reshape(-1, x.size(-1))  # (N, I)
        read = rows if dropped is None else dropped.reshape(rows.shape)
        narrow = read @ down.mT  # (N, R)
        result = functional.linear(rows, whole_weight(weight, scale, x.dtype), bias)  # (N, O)
        result.addmm_(narrow, up.mT, alpha=scaling)
        ctx.save_for_backward(read, narrow, weight, scale, down, up)
        ctx.scaling, ctx.shape, ctx.drops = scaling, x.shape, dropped is not None
        return result.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, `dropped`, `down` and `up`."""
        read, narrow, weight, scale, down, up = ctx.saved_tensors
        gradient = gradient.reshape(-1, gradient.size(-1))  # (N, O)
        of_narrow = (gradient @ up).mul_(ctx.scaling)  # (N, R)
        of_x, of_dropped = None, None
        if ctx.needs_input_grad[0]:
            of_x = gradient @ whole_weight(weight, scale, gradient.dtype)  # (N, I)
            if ctx.drops:
                of_dropped = (of_narrow @ down).view(ctx.shape)
            else:
                of_x.addmm_(of_narrow, down)
            of_x = of_x.view(ctx.shape)
        of_down, of_up = of_narrow.mT @ read, (gradient.mT @ narrow).mul_(ctx.scaling)
        return of_x, of_dropped, None, None, None, of_down, of_up, None


def whole_weight(weight: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """Return a held weight in the dtype of a product: as it is, or an int8 one times the scale of each row."""
    return (weight if scale is None else weight * scale).to(dtype)


def hold_base(adapted: PeftModel, precision: str) -> None:
    """Hold the frozen matrices that an adapter lies beside in "bf16" or "int8"; leave them as they are for "fp32".

    Raises `InputError` for a network whose matrices are no linear layers.
    """
    layers = [module for module in adapted.modules() if isinstance(module, LeanLinear)]
    if precision != "fp32" and not layers:
        base = adapted.peft_config["default"].base_model_name_or_path
        raise InputError(f"--base-precision {precision}: {base} has no linear layers: groundup import gives it some")
    for layer in layers:
        layer.hold(precision)


class LeanLinear(LoraLinear):
    """Be peft's adapter of a linear layer, computed by `LowRankSum`; its frozen weight may be held in fewer bits."""

    scale: torch.Tensor | None

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("scale", None, persistent=False)

    def hold(self, precision: str) -> None:
        """Hold the frozen weight in "bf16" or "int8"; as it is for "fp32".

        In int8 each row has the scale that takes its largest weight to 127, as torchao's int8 weights have.
        """
        frozen = cast(nn.Linear, self.get_base_layer()).weight
        weight = frozen.detach()
        if precision == "int8":
            scale = (weight.float().abs().amax(1, keepdim=True) / 127).clamp(min=1e-12)
            self.scale, frozen.data = scale, (weight / scale).round().to(torch.int8)
        elif precision == "bf16":
            frozen.data = weight.bfloat16()

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Map (..., I) -> (..., O)."""
        base, names, device = cast(nn.Linear, self.get_base_layer()), self.active_adapters, x.device.type
        in_autocast = torch.is_autocast_enabled(device)
        plain = (
            not (args or kwargs or self.disable_adapters or self.merged or self.lora_variant)
            and len(names) == 1
            and not base.weight.requires_grad
            and (in_autocast or x.dtype == self.lora_A[names[0]].weight.dtype)
        )
        if not plain:
            return super().forward(x, *args, **kwargs)
        name = names[0]
        x = x.to(torch.get_autocast_dtype(device) if in_autocast else x.dtype)
        down, up = self.lora_A[name].weight.to(x.dtype), self.lora_B[name].weight.to(x.dtype)
        bias = None if base.bias is None else base.bias.to(x.dtype)
        dropout = self.lora_dropout[name]
        dropped = dropout(x) if self.training and isinstance(dropout, nn.Dropout) else None
        return LowRankSum.apply(x, dropped, base.weight, self.scale, bias, down, up, self.scaling[name])


def task_type(model: PreTrainedModel) -> TaskType | None:
    """Return what peft calls the kind of a model; None for a kind that it has no loader for."""
    if type(model).__name__.endswith("ForSequenceClassification"):
        return TaskType.SEQ_CLS
    if not model.can_generate():
        return None
    return TaskType.SEQ_2_SEQ_LM if model.config.is_encoder_decoder else TaskType.CAUSAL_LM


def _base_name(model: PreTrainedModel) -> str:
    """Return where the base can be loaded from again: a folder's whole path, or a name on the Hub."""
    name = model.name_or_path
    if not name:
        raise InputError(
            "LoRA adapts a saved model, and this one is new or an adapter merged into its base: first train it without "
            "--lora, or save it with groundup merge"
        )
    folder = user_path(name)
    return str(folder.resolve()) if folder.is_dir() else name


def _targets(model: PreTrainedModel, wanted: Sequence[str]) -> list[str]:
    """Return the names of the matrices to adapt: those wanted, or all that lie in the blocks.

    Raises `InputError` for a name that no matrix ends with, naming the nearest.
    """
    matrices = {name: module for name, module in model.named_modules() if isinstance(module, _MATRICES)}
    ends = sorted({name.rpartition(".")[2] for name in matrices})
    for name in wanted:
        if not any(f".{matrix}".endswith(f".{name}") for matrix in matrices):
            raise InputError(f"--lora-targets {name}{near(name, ends)}: the model has {', '.join(ends)}")
    return list(wanted) or [name for name in matrices if re.search(r"\.\d+\.", name)]  # a block has a number


def _token_rows(model: PreTrainedModel, tokens: Sequence[int]) -> dict[str, list[int]] | None:
    """Return by table (embedding, head of its own weights) the rows that stand for `tokens`; None for no tokens."""
    if not tokens:
        return None
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    tables = [embedding] if head is None or head.weight is embedding.weight else [embedding, head]
    return {name: sorted(tokens) for name, module in model.named_modules() if any(module is table for table in tables)}


def describe_base(adapted: PeftModel) -> dict[str, str]:
    """Return what metrics.json says of an adapter's base: its name, and the sha256 of weights that lie here."""
    base = Path(str(adapted.peft_config["default"].base_model_name_or_path))
    if not base.is_dir():
        return {"base": str(base)}
    weights = base / MODEL_WEIGHTS
    return {"base": base.name} | ({BASE_SHA256: sha256_of(weights)} if weights.is_file() else {})


def load_adapter_weights(folder: Path, adapted: PeftModel) -> None:
    """Put the weights of an adapter that `save_adapter` wrote into a model with one of the same shape."""
    set_peft_model_state_dict(adapted, load_file(folder / SAFETENSORS_WEIGHTS_NAME))


def freeze(model: PreTrainedModel, what: str) -> None:
    """Freeze a classifier's weights except "all"; the "last" block, what follows it and the head; or the "head".

    The head is what lies outside the base model. Raises `InputError` for a base whose blocks cannot be found.
    """
    if what == "all":
        return
    base = model.base_model
    base.requires_grad_(False)
    if what == "head":
        return
    stacks = [module for module in base.modules() if isinstance(module, nn.ModuleList) and len(module) > 0]
    if not stacks:
        raise InputError(f"--train last: {type(base).__name__} has no list of blocks: use --train all or head")
    blocks = max(stacks, key=lambda stack: sum(weight.numel() for weight in stack.parameters()))
    blocks[-1].requires_grad_(True)
    inside = {id(weight) for weight in blocks.parameters()}
    for module in base.children():  # the norm behind the blocks, but no embedding in front of them
        if not isinstance(module, nn.Embedding) and not inside & {id(weight) for weight in module.parameters()}:
            if any(isinstance(part, nn.Embedding) for part in module.modules()):
                continue
            module.requires_grad_(True)
