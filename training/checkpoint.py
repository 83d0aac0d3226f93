"""A run on disk: checkpoints that are whole Hub repositories, with the state beside them from which a run goes on.

    OUT/                    the best weights, when the run has ended
    OUT/checkpoints/step-N/ the same at step N, and state/: optimizer, random state, position (safetensors and JSON)

A folder is written under another name, synced and renamed: a crash or a full disk leaves the one before whole.
"""

import contextlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel

from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.files import RECIPE_FILE, remove, sha256_of
from groundup.common.processes import random_state
from groundup.common.settings import read_yaml
from groundup.inference.folder import file_of
from groundup.inference.loading import without_bars
from groundup.training.machine import share_like, to_save

if TYPE_CHECKING:
    from peft import PeftModel

STATE = "state"
MANIFEST = "manifest.json"
TRAINING_VERBS = ("pretrain", "classify", "instruct")


@dataclass
class Position:
    """How far a run is: what must be known, beside weights and optimizer, to go on as if it had never stopped."""

    step: int = 0
    labels: int = 0  # learned from, over all processes
    seconds: float = 0.0
    step_seconds: float = 0.0  # of the last step, with what was due after the one before
    budget_seconds: float | None = None
    budget_minutes: float | None = None  # of the whole command, which `budget_seconds` are a part of
    best_value: float | None = None  # of the step that is kept
    best_step: int = 0
    peak_value: float | None = None  # the best seen
    stale: int = 0
    bad_steps: int = 0
    validation_tokens: int | None = None
    validated_step: int | None = None  # the last one that was measured
    losses: list[float] = field(default_factory=list)  # of the steps since the last row of the log
    logged_labels: int = 0  # `labels` and `seconds` at that row
    logged_seconds: float = 0.0


@torch.no_grad()
def take_mean(model: PreTrainedModel, folders: Sequence[Path]) -> None:
    """Replace a model's weights by their mean with those of models of its kind (Wortsman et al. 2022, section 2)."""
    weights = {name: weight for name, weight in model.state_dict().items() if weight.is_floating_point()}
    total = {name: weight.cpu().double() for name, weight in weights.items()}  # not every device has fp64
    for folder in folders:
        with without_bars():
            other = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
        for name, weight in other.state_dict().items():
            if name in total:
                total[name] += weight
    for name, weight in weights.items():
        weight.copy_(total[name] / (1 + len(folders)))


def load_weights(folder: Path, model: "PreTrainedModel | PeftModel") -> None:
    """Put the weights that `save_model` wrote into a model of the same kind."""
    if isinstance(model, PreTrainedModel):
        with without_bars():
            saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(saved.state_dict())
    else:
        from groundup.training.lora import load_adapter_weights

        load_adapter_weights(folder, model)


def optimizer_state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Every tensor that the optimizers keep, whole, under "parameter's name|entry"; called on every process."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {
        f"{names[id(parameter)]}|{entry}": to_save(value)
        for optimizer in optimizers
        for parameter, entries in optimizer.state.items()
        for entry, value in entries.items()
    }


def load_optimizer_state(
    model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], tensors: dict[str, torch.Tensor]
) -> None:
    """Put back what `optimizer_state` gave, each tensor to the optimizer that has its parameter."""
    parameters = dict(model.named_parameters())
    owners = {id(p): o for o in optimizers for group in o.param_groups for p in group["params"]}
    for key, value in tensors.items():
        name, entry = key.rsplit("|", 1)
        parameter = parameters[name]
        device = parameter.device if value.ndim else value.device  # a step count stays where AdamW keeps it
        value = value.to(device)
        owners[id(parameter)].state[parameter][entry] = share_like(value, parameter) if value.ndim else value


def random_states_of_all(accelerator: Accelerator) -> list[dict[str, torch.Tensor]]:
    """The random states of every process, in the order of their ranks; called on all of them."""
    gathered = {
        name: cast(torch.Tensor, accelerator.gather(state.to(accelerator.device)[None])).cpu()
        for name, state in random_state().items()
    }
    return [{name: states[rank] for name, states in gathered.items()} for rank in range(accelerator.num_processes)]


def save_state(
    folder: Path,
    optimizer: dict[str, torch.Tensor],
    position: Position,
    random_states: Sequence[dict[str, torch.Tensor]],
) -> None:
    """Write `folder/state/`: what processes, one for each of `random_states`, need to go on bit for bit.

    `optimizer` is what `optimizer_state` gave.
    """
    state = folder / STATE
    state.mkdir(exist_ok=True)
    tensors = {key: value.contiguous() for key, value in optimizer.items()}
    save_file(tensors, state / "optimizer.safetensors")
    for rank, states in enumerate(random_states):
        save_file({name: value.contiguous() for name, value in states.items()}, state / f"rank-{rank}.safetensors")
    (state / "position.json").write_text(json.dumps(asdict(position), indent=2) + "\n", encoding="utf-8")


def load_state(
    folder: Path, model: nn.Module, optimizers: Sequence[torch.optim.Optimizer], rank: int = 0
) -> tuple[Position, dict[str, torch.Tensor] | None]:
    """Put the optimizers back from `folder/state/`.

    Returns the position in the run and the random states of the process of that rank, None if it had no part in it.
    """
    state = folder / STATE
    load_optimizer_state(model, optimizers, load_file(state / "optimizer.safetensors"))
    own = state / f"rank-{rank}.safetensors"
    position = Position(**json.loads((state / "position.json").read_text(encoding="utf-8")))
    return position, load_file(own) if own.is_file() else None


def pretrained_elsewhere(source: str | Path) -> bool:
    """Say whether a model was pretrained by somebody else: it has no recipe of ours, or one that began from such.

    Args:
        source: the folder or the Hub name of a model or an adapter.
    """
    path, recipe = file_of(source, RECIPE_FILE), {}
    if path is not None:
        with contextlib.suppress(InputError):  # what cannot be read is no recipe of ours
            recipe = read_yaml(path)
    plan = recipe.get("plan")
    return recipe.get("verb") not in TRAINING_VERBS or not isinstance(plan, dict) or bool(plan.get("from_elsewhere"))


def write_manifest(folder: Path) -> None:
    """Write the sha256 of every file in `folder` into its state, by which `is_whole` knows a damaged one."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    (folder / STATE / MANIFEST).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """What is wrong with a saved folder, in a few words, or None if every file is as it was written."""
    try:
        sums = json.loads((folder / STATE / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{STATE}/{MANIFEST} is missing or broken"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != expected:
            return f"{name} is damaged"
    return None


def saved_steps(out: Path) -> list[Path]:
    """The step folders under `out`, newest first."""
    folders = [path for path in (out / "checkpoints").glob("step-*") if path.name[5:].isdigit()]
    return sorted(folders, key=lambda path: int(path.name[5:]), reverse=True)


def scratch_of(out: Path) -> Path:
    """Return the folder beside the step folders for what is not whole: one that is being written, or removed."""
    return out / "checkpoints" / ".partial"


def newest_whole(out: Path) -> Path | None:
    """The newest step folder that is as it was written; damaged ones are named and passed over."""
    for folder in saved_steps(out):
        if (found := damage(folder)) is None:
            return folder
        say(f"{folder}: {found}; resuming from the state before it")
    return None


def remove_old(out: Path, keep: int, best_step: int) -> None:
    """Remove all step folders but the newest `keep` and the best one."""
    for folder in saved_steps(out)[keep:]:
        if int(folder.name[5:]) != best_step:
            going = scratch_of(out) / folder.name
            remove(going)
            going.parent.mkdir(exist_ok=True)
            folder.rename(going)  # at once: half a folder must not have the name of a whole one
            remove(going)
