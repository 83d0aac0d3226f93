"""Gradients to updates: Muon for the matrices inside the blocks, AdamW for the rest.

Muon (Jordan et al. 2024) replaces a matrix's averaged gradient by the nearest matrix whose singular values are all one,
so that every direction is learned at the same pace. The nearest such matrix is found by a polynomial iteration in
which only multiplications occur; the coefficients are those of Polar Express (Amsel et al. 2025).
"""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import nn

from groundup.training.sharding import share_like, whole

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


def orthogonalise(gradients: torch.Tensor) -> torch.Tensor:
    """(N, rows, columns) -> the same shape, every matrix with singular values near one.

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
    """Momentum, orthogonalised (Jordan et al. 2024), for two-dimensional parameters.

    The step of a matrix has the size `lr * max(1, rows / columns) ** 0.5` in every direction; decay is decoupled and
    spares weights that the step itself moves towards zero (cautious decay, Chen et al. 2025).

    Args:
        params: matrices (rows, columns), or groups of them.
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
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
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
        updates = orthogonalise(torch.stack([whole(ahead) for ahead in looked_ahead]).to(self.dtype))
        updates = updates.to(parameters[0].dtype)
        rows, columns = parameters[0].shape
        step_size = group["lr"] * max(1.0, rows / columns) ** 0.5
        decay = group["lr"] * group["weight_decay"]
        for parameter, whole_update in zip(parameters, updates):
            update = share_like(whole_update, parameter)
            if decay:
                parameter.sub_(parameter * ((update * parameter) > 0), alpha=decay)
            parameter.sub_(update, alpha=step_size)


def split_parameters(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """Sort the trainable parameters: "matrix" (inside blocks), "embedding", "head", "vector", "adapter".

    A tied head is an embedding. What lies in no block and is no embedding (a classifier's layer) counts as "head". What
    peft adds is "adapter": Muon's step has full rank, which says nothing of a factor of a matrix.
    """
    embeddings = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    in_blocks = {id(p) for m in model.modules() if isinstance(m, nn.ModuleList) for p in m.parameters()}
    kinds: dict[str, list[nn.Parameter]] = {"matrix": [], "embedding": [], "head": [], "vector": [], "adapter": []}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if any(part in name for part in ADAPTER_NAMES):
            kinds["adapter"].append(parameter)
        elif parameter.ndim < 2:
            kinds["vector"].append(parameter)
        elif id(parameter) in embeddings:
            kinds["embedding"].append(parameter)
        else:
            kinds["matrix" if id(parameter) in in_blocks else "head"].append(parameter)
    return kinds


TABLE_DECAY = 0.4  # of the share that a matrix in a block loses in a step, what an embedding and the head lose


def _share_of_decay(kind: str, rates: dict[str, float]) -> float:
    """A kind's decay per unit of its own rate, relative to the matrices': what counts is the share lost in a step."""
    if kind in ("embedding", "head") and rates[kind] > 0:
        return TABLE_DECAY * rates.get("matrix", 0.0) / rates[kind]
    return 1.0 if kind == "matrix" else 0.0


def build_optimizers(
    model: nn.Module, kind: str, rates: dict[str, float], weight_decay: float, precision: str = "fp32"
) -> list[torch.optim.Optimizer]:
    """The optimizers of a model: `rates` gives the learning rate of each kind of parameter (`split_parameters`).

    With "muon" the matrices in the blocks get Muon and the rest AdamW (betas of nanochat, read there on 2026-07-03:
    short memory for the gradients of rare tokens); with "adamw" AdamW has them all. Vectors and adapters do not decay.
    `precision` is that of the run: Muon's products are taken in it too.
    """
    kinds = {name: parameters for name, parameters in split_parameters(model).items() if parameters}
    groups = {
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
    optimizers: list[torch.optim.Optimizer] = [Muon([matrices], dtype=dtype)] if matrices else []
    return [*optimizers, torch.optim.AdamW(list(groups.values()), betas=(0.8, 0.95), eps=1e-10, fused=True)]
