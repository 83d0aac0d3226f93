"""Gradients to updates: Muon for the matrices inside the blocks, AdamW for the rest.

A matrix is the weight of a linear layer. What else a block may hold (the stacked experts of a mixture, their router, a
convolution, the states of a Mamba) is AdamW's.

Muon (Jordan et al. 2024) replaces a matrix's averaged gradient by the nearest matrix whose singular values are all one,
so that every direction is learned at the same pace. The nearest such matrix is found by a polynomial iteration in
which only multiplications occur; the coefficients are those of Polar Express (Amsel et al. 2025).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from groundup.training.machine import share_like, whole

# Five steps, each its own (a, b, c) of X <- a X + b (X X') X + c (X X')^2 X: optimal for singular values from 1e-3 to 1
# (Amsel et al. 2025, with a safety factor of 2 %). They are tuned as a sequence: none can be left out.
POLAR_EXPRESS = (
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451055316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)

ADAPTER_NAMES = (".lora_", ".trainable_tokens_delta.")  # what peft calls the parameters that it adds
FINE_TUNING = 0.3  # of the rates for training from nothing: a model that can do something already must not forget it
# The same for a model that was pretrained elsewhere, on far more tokens, whose weights are large and exact: one step of
# Muon and AdamW at the rates for training from nothing takes SmolLM2-135M from 3.5 nats a token to 10.
OF_A_LARGE_PRETRAINING = 0.03
NEW_HEAD_RATE = 1e-3  # on a model that was pretrained elsewhere
_KINDS = ("matrix", "embedding", "head", "vector")
_MEANT = 20.0  # times the plan's rate or less of it: beyond, a rate was meant for another optimizer


def orthogonalise(gradients: torch.Tensor) -> torch.Tensor:
    """Bring the singular values of every matrix near one: (N, rows, columns) -> the same shape.

    Tall matrices are turned first, so that X X' is the smaller of the two products.
    """
    tall = gradients.size(-2) > gradients.size(-1)
    x = gradients.mT if tall else gradients
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.02 + 1e-7)
    for a, b, c in POLAR_EXPRESS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Update two-dimensional parameters by orthogonalised momentum (Jordan et al. 2024).

    The step of a matrix has the size `lr * max(1, rows / columns) ** 0.5` in every direction; decay is decoupled and
    spares weights that the step itself moves towards zero (cautious decay, Chen et al. 2025).

    Args:
        params: matrices (rows, columns), or groups of them; in a group with `transposed` they lie as (columns, rows),
            and with `parts` each is that many matrices, one below the other.
        lr: step size, the same for every width.
        momentum: share of the old average kept; a schedule may change it in `param_groups`.
        weight_decay: share of a weight taken away each step, times `lr`.
        dtype: precision in which matrices are orthogonalised; bf16 is enough (Jordan et al. 2024).
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 0.02,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ):
        usual = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "transposed": False, "parts": 1}
        super().__init__(params, usual)
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Update every matrix that has a gradient; matrices of one shape are orthogonalised together."""
        for group in self.param_groups:
            same_shape: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    same_shape[tuple(parameter.shape)].append(parameter)
            for parameters in same_shape.values():
                self._step_together(parameters, group)

    def _step_together(self, parameters: list[torch.Tensor], group: dict) -> None:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        averages = []
        for parameter in parameters:
            state = self.state[parameter]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            averages.append(state["momentum_buffer"])
        torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
        looked_ahead = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov's step
        stacked = torch.stack([whole(ahead) for ahead in looked_ahead]).to(self.dtype)  # (N, rows, columns)
        if group["transposed"]:
            stacked = stacked.mT
        whole_shape, parts = stacked.shape, group["parts"]
        rows, columns = stacked.size(1) // parts, stacked.size(2)
        updates = orthogonalise(stacked.reshape(-1, rows, columns)).reshape(whole_shape).to(parameters[0].dtype)
        if group["transposed"]:
            updates = updates.mT
        step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
        decay = group["lr"] * group["weight_decay"]
        for parameter, whole_update in zip(parameters, updates):
            update = share_like(whole_update, parameter)
            if decay:
                parameter.sub_(parameter * ((update * parameter) > 0), alpha=decay)
            parameter.sub_(update, alpha=step_size)


def split_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort the trainable parameters by what they are, which decides who updates them and how fast.

    "matrix" is the weight of a linear layer in a block, "stacked" what has three dimensions or more there (experts,
    convolutions) and "loose" what has two and is no layer's weight (a router, the decay rates of a Mamba). A tied head
    is an "embedding". What lies in no block and is no embedding (a classifier's layer) counts as "head". What peft adds
    is "adapter": Muon's step has full rank, which says nothing of a factor of a matrix. All else is a "vector".
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    in_blocks = {id(p) for m in model.modules() if isinstance(m, nn.ModuleList) for p in m.parameters()}
    matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | Conv1D)}
    kinds: dict[str, list[nn.Parameter]] = {
        name: [] for name in ("matrix", "stacked", "loose", "embedding", "head", "vector", "adapter")
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if any(part in name for part in ADAPTER_NAMES):
            kinds["adapter"].append(parameter)
        elif parameter.ndim < 2 or (parameter.squeeze().ndim < 2 and id(parameter) not in matrices | embeddings):
            kinds["vector"].append(parameter)
        elif id(parameter) in embeddings:
            kinds["embedding"].append(parameter)
        elif id(parameter) not in in_blocks:
            kinds["head"].append(parameter)
        elif parameter.ndim > 2:
            kinds["stacked"].append(parameter)
        else:
            kinds["matrix" if id(parameter) in matrices else "loose"].append(parameter)
    return kinds


def _by_layout(model: nn.Module, matrices: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Group matrices that lie alike: as nn.Linear keeps them, or as `Conv1D` of GPT-2 does, which is transposed.

    Its `c_attn` holds queries, keys and values side by side, which are matrices each: an update is the same whether a
    network keeps them in one tensor or in three.
    """
    layouts = {}
    for name, module in model.named_modules():
        if isinstance(module, Conv1D):
            inputs, outputs = module.weight.shape
            layouts[id(module.weight)] = (True, outputs // inputs if name.endswith("c_attn") else 1)
    groups: dict[tuple[bool, int], list[nn.Parameter]] = defaultdict(list)
    for parameter in matrices:
        groups[layouts.get(id(parameter), (False, 1))].append(parameter)
    return [{"params": group, "transposed": layout[0], "parts": layout[1]} for layout, group in groups.items()]


def learning_rates(
    optimizer: str,
    width: int,
    *,
    from_elsewhere: bool = False,
    share: float = 1.0,
    new_head: bool = False,
    main: str = "matrix",
    given: float | None = None,
    scale: float = 1.0,
) -> dict[str, float]:
    """Return the peak learning rate of each kind of parameter (`split_parameters`).

    AdamW's rates fall with the width; those of Muon do not, since its steps are normalised. A model that was pretrained
    elsewhere takes those published for full training of such models and for LoRA (Schulman et al. 2025): both fall
    with the width to the power 0.781. LoRA's are anchored at 128 wide, where 5e-3 was best (docs/domain.md).

    Args:
        width: hidden size.
        from_elsewhere: the model was pretrained by somebody else, on far more tokens than are to come.
        share: the part of these rates that fine-tuning takes, for all but an adapter.
        new_head: the head is new on a model from elsewhere, and learns at a rate of its own.
        main: the kind whose rate `given` is; the others keep their ratio to it.
        given: the rate asked for.
        scale: multiplies all.
    """
    narrow = (width / 256) ** -0.5
    rates = {"adapter": 5e-3 * (128 / width) ** 0.781}
    if optimizer == "adamw" and from_elsewhere:
        rates |= dict.fromkeys(_KINDS, 5e-5 * (2000 / width) ** 0.781 * share)
    elif optimizer == "adamw":
        rates |= dict.fromkeys(_KINDS, 2e-3 * narrow * share)
    else:
        share = OF_A_LARGE_PRETRAINING if from_elsewhere else share
        muon = {"matrix": 0.015, "embedding": 0.04 * narrow, "head": 0.005 * narrow, "vector": 0.01}
        rates |= {kind: rate * share for kind, rate in muon.items()}
    if from_elsewhere and new_head:
        rates["head"] = NEW_HEAD_RATE
    top, asked = rates[main], rates[main] if given is None else given
    return {kind: rate / top * asked * scale for kind, rate in rates.items()}


def question_rate(given: float | None, optimizer: str, main: str, rates: dict[str, float]) -> str | None:
    """Return a warning for a learning rate that cannot be meant, given the usual `rates`; None if it is plausible."""
    if given is None or 1 / _MEANT <= given / rates[main] <= _MEANT:
        return None
    what = {"adapter": "an adapter", "head": "a new head"}.get(main, "Muon" if optimizer == "muon" else "AdamW")
    less = given < rates[main]
    end = "the model will hardly learn" if less else "the loss will probably not fall"
    return (
        f"--learning-rate {given:g} is {'far below' if less else 'far above'} {rates[main]:.2g}, the plan's rate for "
        f"{what} here: {end}; leave it out, or multiply all rates with --learning-rate-scale"
    )


TABLE_DECAY = 0.4  # of the share that a matrix in a block loses in a step, what an embedding and the head lose


def _share_of_decay(kind: str, rates: dict[str, float]) -> float:
    """Return a kind's decay per unit of its own rate, so that its share lost in a step is relative to the matrices'."""
    if kind in ("loose", "vector", "adapter") or rates[kind] <= 0:
        return 0.0
    return (TABLE_DECAY if kind in ("embedding", "head") else 1.0) * rates.get("matrix", 0.0) / rates[kind]


def build_optimizers(
    model: nn.Module, kind: str, rates: dict[str, float], weight_decay: float, precision: str = "fp32"
) -> list[torch.optim.Optimizer]:
    """Make the optimizers of a model: `rates` gives the learning rate of each kind of parameter (`split_parameters`).

    With "muon" the matrices in the blocks get Muon and the rest AdamW (betas of nanochat, read there on 2026-07-03:
    short memory for the gradients of rare tokens); with "adamw" AdamW has them all. Stacked and loose tensors have the
    rate that AdamW has for a matrix. Loose ones, vectors and adapters do not decay. `precision` is that of the run:
    Muon's products are taken in it too.
    """
    kinds = {name: parameters for name, parameters in split_parameters(model).items() if parameters}
    if kinds.keys() & {"stacked", "loose"}:
        rates = rates | dict.fromkeys(("stacked", "loose"), rates["head" if kind == "muon" else "matrix"])
    groups: dict[str, dict[str, Any]] = {
        name: {
            "params": parameters,
            "lr": rates[name],
            "initial_lr": rates[name],
            "weight_decay": weight_decay * _share_of_decay(name, rates),
        }
        for name, parameters in kinds.items()
    }
    if kind == "adamw":
        return [torch.optim.AdamW(list(groups.values()), betas=(0.9, 0.95), fused=True)]
    matrices, dtype = groups.pop("matrix", None), torch.bfloat16 if precision == "bf16" else torch.float32
    optimizers: list[torch.optim.Optimizer] = []
    if matrices is not None:
        optimizers.append(Muon([matrices | group for group in _by_layout(model, matrices["params"])], dtype=dtype))
    if groups:
        optimizers.append(torch.optim.AdamW(list(groups.values()), betas=(0.8, 0.95), eps=1e-10, fused=True))
    return optimizers
