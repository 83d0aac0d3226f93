"""A run on disk: its folder, and checkpoints that are whole Hub repositories.

OUT/recipe.yaml          every setting and choice, before the first step
OUT/log.jsonl            a row for each logging step
OUT/work/                what a resumed run needs and nobody else: paths, tokenizer, shards; gone at the end
OUT/checkpoints/step-N/  whole repositories, with state/ beside them: optimizer, random state, position
OUT/                     the best of them, at the end

A folder is written under another name, synced and renamed: a crash or a full disk leaves the one before whole.
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.files import (
    ADAPTER_WEIGHTS,
    CURVE_FILE,
    LOG_FILE,
    METRICS_FILE,
    MODEL_WEIGHTS,
    RECIPE_FILE,
    atomic_folder,
    atomic_write,
    remove,
    sha256_of,
)
from groundup.common.output import STATE, move_up, tidy
from groundup.common.processes import random_state
from groundup.common.settings import Settings, check_names, read_yaml, write_yaml
from groundup.evaluation.curves import log_rows, plot_curve
from groundup.evaluation.metrics_json import write_metrics
from groundup.inference.folder import file_of
from groundup.inference.loading import save_model, without_bars
from groundup.publishing.card import write_card
from groundup.training.loop import Position
from groundup.training.machine import share_like, to_save

if TYPE_CHECKING:
    from peft import PeftModel

S = TypeVar("S", bound=Settings)
P = TypeVar("P")

PRIVATE_FILE = "private.yaml"  # in work/
PUSHED_NOTE = "pushed"  # in work/: the newest step of which it is settled whether it goes to the Hub
KEPT = 2  # newest states, beside the best
STATE_FOLDER, MANIFEST = "state", "manifest.json"  # in step-N/, and in that
TRAINING_VERBS = ("pretrain", "classify", "instruct")


class RunFolder:
    """Hold a run's folder, and the order in which things appear in it."""

    def __init__(self, out: Path):
        self.out, self.work, self.log_path = out, out / "work", out / LOG_FILE
        self.final = self.work / "final"  # the last checkpoint, whole, before it is moved up
        self.checkpoints = out / "checkpoints"
        self.scratch = self.checkpoints / ".partial"  # for what is not whole: being written, or removed

    @property
    def is_finished(self) -> bool:
        """Return whether the run has ended: the scores are the last file it writes."""
        return (self.out / METRICS_FILE).is_file()

    @property
    def has_begun(self) -> bool:
        """Return whether there is a run to resume."""
        return (self.out / RECIPE_FILE).is_file()

    def write_recipe(self, recipe: dict[str, Any], private: dict[str, Any]) -> None:
        """Keep the recipe, and beside it in work/ what must not be published (paths)."""
        self.work.mkdir(parents=True, exist_ok=True)
        write_yaml(self.work / PRIVATE_FILE, private)
        write_yaml(self.out / RECIPE_FILE, recipe)

    def read_recipe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read what `write_recipe` kept. Raises `InputError` where the private part is gone."""
        if not (self.work / PRIVATE_FILE).is_file():
            raise InputError(f"{self.out} holds no run to resume: its work/ is missing: choose a new --out")
        return read_yaml(self.out / RECIPE_FILE), read_yaml(self.work / PRIVATE_FILE)

    def read(self, settings_class: type[S], plan_class: type[P]) -> tuple[dict[str, Any], S, P]:
        """Read the recipe, and the settings and the plan in it. Raises `InputError` for one that is damaged."""
        from pydantic import TypeAdapter

        recipe, private = self.read_recipe()
        try:
            settings = settings_class(**check_names({**recipe["settings"], **private}, settings_class))
            plan = TypeAdapter(plan_class).validate_python(check_names(recipe["plan"], plan_class))
            return recipe | {"name": str(recipe["name"])}, settings, plan
        except (InputError, KeyError, TypeError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error).replace("\n", " ")
            raise InputError(
                f"{self.out / RECIPE_FILE} is damaged, or another version of this package wrote it ({reason}): choose "
                "a new --out"
            ) from error

    @contextlib.contextmanager
    def being_prepared(self, kept: Collection[str] = ()) -> Iterator[None]:
        """Make `work/`, and remove it again if preparing fails: the command can be mended and given again.

        Of what a command that was killed while preparing left there only the names in `kept` stay: another command may
        have other settings, and take the rest for its own.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        for path in self.work.iterdir():
            if path.name not in kept:
                remove(path)
        try:
            yield
        except BaseException:
            self.take_back()
            raise

    def add_to_recipe(self, entries: dict[str, Any]) -> None:
        """Add to the recipe what is known only at the end of a run."""
        write_yaml(self.out / RECIPE_FILE, read_yaml(self.out / RECIPE_FILE) | entries)

    def take_back(self) -> None:
        """Remove what preparing wrote, unless something was trained since, so that the command can be given again."""
        if not any(self.out.rglob(LOG_FILE)):
            remove(self.work)
            remove(self.out / RECIPE_FILE)

    def save_step(
        self,
        step: int,
        model: "PreTrainedModel | PeftModel",
        tokenizer: PreTrainedTokenizerFast,
        save_state: Callable[[Path], None],
        training: dict[str, Any],
        best_step: int,
        weights: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Write `checkpoints/step-N` whole, then remove the states that are no longer kept.

        `weights` are the model's where it holds only a share of them.
        """
        with atomic_folder(self.step_folder(step), self.scratch / "new") as folder:
            save_model(folder, model, tokenizer, weights)
            self._describe(folder, [], training)
            save_state(folder)
            write_manifest(folder)
        self.remove_old_steps(best_step)

    def step_folder(self, step: int) -> Path:
        """Return the folder of the checkpoint that was saved at a step."""
        return self.checkpoints / f"step-{step}"

    def saved_steps(self) -> list[int]:
        """Return the steps at which a checkpoint was saved, newest first."""
        names = [path.name[5:] for path in self.checkpoints.glob("step-*")]
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)

    def remove_old_steps(self, best_step: int) -> None:
        """Leave the newest states and the best one: after each save, and at the end of a run killed before this."""
        for step in self.saved_steps()[KEPT:]:
            if step != best_step:
                going = self.scratch / f"step-{step}"
                remove(going)
                going.parent.mkdir(exist_ok=True)
                self.step_folder(step).rename(going)  # at once: half a folder must not have the name of a whole one
        remove(self.scratch)

    def newest_state(self) -> Path | None:
        """Return the newest step folder that is as it was written; name and pass over damaged ones."""
        for folder in map(self.step_folder, self.saved_steps()):
            if (found := damage(folder)) is None:
                return folder
            say(f"{folder}: {found}; resuming from the state before it")
        return None

    @property
    def pushed_step(self) -> int | None:
        """Return the newest step whose push is done, or was not asked for; None before the first."""
        note = self.work / PUSHED_NOTE
        return int(note.read_text(encoding="utf-8")) if note.is_file() else None

    @pushed_step.setter
    def pushed_step(self, step: int) -> None:
        atomic_write(self.work / PUSHED_NOTE, str(step).encode())

    def cut_log(self, step: int) -> None:
        """Cut the log after `step`: a run that resumes there writes the rest again."""
        if self.log_path.is_file():
            kept = [row for row in log_rows(self.log_path) if row["step"] <= step]
            atomic_write(self.log_path, "".join(json.dumps(row) + "\n" for row in kept).encode())

    def finish(
        self,
        model: "PreTrainedModel | PeftModel",
        tokenizer: PreTrainedTokenizerFast,
        rows: list[dict[str, Any]],
        training: dict[str, Any],
        complete: Callable[[Path], None],
    ) -> None:
        """Write the final checkpoint whole; `promote` puts it in its place. `complete` adds what else was asked for."""
        self.remove_old_steps(training["best_step"])
        with atomic_folder(self.final) as folder:
            save_model(folder, model, tokenizer)
            self._describe(folder, rows, training)
            complete(folder)

    def promote(self) -> None:
        """Move the whole last checkpoint up into the folder; a run that was stopped in between does it again."""
        remove(self.scratch)
        move_up(self.final, self.out, replaced=(RECIPE_FILE, LOG_FILE))
        self._remove_work()

    def tidy(self) -> None:
        """Remove from a finished run what a command that was killed at its very end could not."""
        if (self.work / PRIVATE_FILE).is_file():
            self._remove_work()
        tidy(self.out)

    def _remove_work(self) -> None:
        """Remove `work/`, at once where the folder is held: half of it would look like a folder of somebody's."""
        going = self.out / STATE / "work"
        if going.parent.is_dir():
            self.work.rename(going)
            remove(going)
        remove(self.work)

    def _describe(self, folder: Path, rows: list[dict[str, Any]], training: dict[str, Any]) -> None:
        """Add recipe, log, scores, curve and card to the weights in `folder`."""
        shutil.copyfile(self.out / RECIPE_FILE, folder / RECIPE_FILE)
        if self.log_path.is_file():
            shutil.copyfile(self.log_path, folder / LOG_FILE)
            plot_curve(folder / LOG_FILE, folder / CURVE_FILE)
        weights = next(folder / name for name in (MODEL_WEIGHTS, ADAPTER_WEIGHTS) if (folder / name).is_file())
        write_metrics(folder, rows, training, sha256_of(weights))
        write_card(folder)


@torch.no_grad()
def take_mean(model: PreTrainedModel, folders: Sequence[Path]) -> None:
    """Replace a model's weights by their mean with those of models of its kind (Wortsman et al. 2022, section 2)."""
    weights = {name: weight for name, weight in model.state_dict().items() if weight.is_floating_point()}
    total = {name: weight.cpu().double() for name, weight in weights.items()}  # not every device has fp64
    for folder in folders:
        for name, weight in _saved_weights(folder, model).items():
            if name in total:
                total[name] += weight
    for name, weight in weights.items():
        weight.copy_(total[name] / (1 + len(folders)))


def load_weights(folder: Path, model: "PreTrainedModel | PeftModel") -> None:
    """Put the weights that `save_model` wrote into a model of the same kind."""
    if isinstance(model, PreTrainedModel):
        model.load_state_dict(_saved_weights(folder, model))
    else:
        from groundup.training.lora import load_adapter_weights

        load_adapter_weights(folder, model)


def _saved_weights(folder: Path, like: PreTrainedModel) -> dict[str, torch.Tensor]:
    with without_bars():
        return type(like).from_pretrained(folder, dtype=like.dtype, use_safetensors=True).state_dict()


def optimizer_state(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    """Return every tensor that the optimizers keep, whole, under "parameter's name|entry"; call it on every process."""
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
    """Return the random states of every process, in the order of their ranks; call it on all of them."""
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
    """Write `folder/state/`: what processes, one for each of `random_states`, need to go on bit for bit."""
    state = folder / STATE_FOLDER
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
    state = folder / STATE_FOLDER
    load_optimizer_state(model, optimizers, load_file(state / "optimizer.safetensors"))
    own = state / f"rank-{rank}.safetensors"
    position = Position(**json.loads((state / "position.json").read_text(encoding="utf-8")))
    return position, load_file(own) if own.is_file() else None


def pretrained_elsewhere(source: str | Path) -> bool:
    """Return whether a model was pretrained elsewhere: it has no recipe of ours, or one that started from such a model.

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
    """Write the sha256 of every file in `folder` into its state, so that `damage` finds damaged files."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sums = {path.relative_to(folder).as_posix(): sha256_of(path) for path in files}
    (folder / STATE_FOLDER / MANIFEST).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def damage(folder: Path) -> str | None:
    """Return in a few words what is wrong with a saved folder, None if every file is as it was written."""
    try:
        sums = json.loads((folder / STATE_FOLDER / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{STATE_FOLDER}/{MANIFEST} is missing or broken"
    for name, expected in sums.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if sha256_of(folder / name) != expected:
            return f"{name} is damaged"
    return None
