"""The folder of a run: what is in it before the first step, at every save, and at the end.

OUT/recipe.yaml     every setting and choice, before the first step
OUT/log.jsonl       a row for each logging step
OUT/work/           what a resumed run needs and nobody else: paths, tokenizer, shards; gone at the end
OUT/checkpoints/    whole repositories with a state beside them
OUT/                the best of them, at the end

A run that is gone on with takes of the settings given beside `--resume` a longer budget, saves, pushes and tracking.
All else is its own, from its recipe; a setting that says otherwise is refused by name.
"""

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

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
    weights_of,
)
from groundup.common.output import STATE, move_up, tidy
from groundup.common.settings import (
    Settings,
    check_names,
    differing,
    is_longer,
    read_yaml,
    refuse,
    settings_from,
    write_yaml,
)
from groundup.data.files import refuse_other_content
from groundup.evaluation.metrics_json import write_metrics
from groundup.evaluation.report import log_rows, plot_curve
from groundup.inference.saving import save_model
from groundup.publishing.card import write_card
from groundup.training.checkpoint import newest_whole, remove_old, scratch_of, write_manifest
from groundup.training.settings import TrainingOptions, with_budget

if TYPE_CHECKING:
    from peft import PeftModel

S = TypeVar("S", bound=Settings)
P = TypeVar("P")

PRIVATE_FILE = "private.yaml"  # in work/
PUSHED_NOTE = "pushed"  # in work/: the newest step of which it is settled whether it goes to the Hub
KEPT = 2  # newest states, beside the best


class RunFolder:
    """A run's folder and the order in which things appear in it."""

    def __init__(self, out: Path):
        self.out = out
        self.work = out / "work"
        self.final = self.work / "final"  # the last checkpoint, whole, before it is moved up
        self.log_path = out / LOG_FILE

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended: the scores are the last file it writes."""
        return (self.out / METRICS_FILE).is_file()

    @property
    def has_begun(self) -> bool:
        """Whether there is a run to go on with."""
        return (self.out / RECIPE_FILE).is_file()

    def write_recipe(self, recipe: dict[str, Any], private: dict[str, Any]) -> None:
        """Keep the recipe, and beside it in work/ what must not be published (paths)."""
        self.work.mkdir(parents=True, exist_ok=True)
        write_yaml(self.work / PRIVATE_FILE, private)
        write_yaml(self.out / RECIPE_FILE, recipe)

    def read_recipe(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """What `write_recipe` kept. Raises `InputError` where the private part is gone."""
        if not (self.work / PRIVATE_FILE).is_file():
            raise InputError(f"{self.out} holds no run to resume: its work/ is missing: choose a new --out")
        return read_yaml(self.out / RECIPE_FILE), read_yaml(self.work / PRIVATE_FILE)

    def read(self, settings_class: type[S], plan_class: type[P]) -> tuple[dict[str, Any], S, P]:
        """The recipe, and the settings and the plan in it. Raises `InputError` for one that is damaged."""
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
        with atomic_folder(self.out / "checkpoints" / f"step-{step}", scratch_of(self.out) / "new") as folder:
            save_model(folder, model, tokenizer, weights)
            self._describe(folder, [], training)
            save_state(folder)
            write_manifest(folder)
        self.remove_old_steps(best_step)

    def remove_old_steps(self, best_step: int) -> None:
        """Leave the newest states and the best one: after each save, and at the end of a run killed before this."""
        remove_old(self.out, KEPT, best_step)
        remove(scratch_of(self.out))

    def newest_state(self) -> Path | None:
        """The newest step folder that is undamaged."""
        return newest_whole(self.out)

    @property
    def pushed_step(self) -> int | None:
        """The newest step whose push is done, or was not asked for; None before the first."""
        note = self.work / PUSHED_NOTE
        return int(note.read_text(encoding="utf-8")) if note.is_file() else None

    @pushed_step.setter
    def pushed_step(self, step: int) -> None:
        atomic_write(self.work / PUSHED_NOTE, str(step).encode())

    def cut_log(self, step: int) -> None:
        """Leave of the log what was written up to `step`: a run that goes on from there writes the rest again."""
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
        remove(scratch_of(self.out))
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
        """Recipe, log, scores, curve and card of the weights in `folder`."""
        shutil.copyfile(self.out / RECIPE_FILE, folder / RECIPE_FILE)
        if self.log_path.is_file():
            shutil.copyfile(self.log_path, folder / LOG_FILE)
            plot_curve(folder / LOG_FILE, folder / CURVE_FILE)
        weights = next(folder / name for name in (MODEL_WEIGHTS, ADAPTER_WEIGHTS) if (folder / name).is_file())
        write_metrics(folder, rows, training, sha256_of(weights))
        write_card(folder)


CHANGEABLE = ("save_every", "track")
PUSHING = "push_"
BASE_NOTE = "base.json"  # in work/: what the weights were that the run began with
FROM = {"pretrain": "--init-from", "classify": "--model", "instruct": "--model"}


def refuse_for_finished(settings: TrainingOptions, folder: Path, verb: str) -> None:
    """Raise `InputError` if anything is asked of a run that has ended, which cannot change."""
    recipe = read_yaml(folder / RECIPE_FILE)
    kept = _kept(settings, folder, recipe, {})
    kept = _as_planned(kept, recipe)
    others = _asked(settings, kept, public=True)
    instead = f"start from its weights: {FROM[verb]} {folder} and a new --out"
    if any(name.startswith(PUSHING) for name in others):
        instead = f"publish it: groundup publish {folder} OWNER/NAME"
    refuse(others, kept, folder, "is finished", instead)
    _refuse_other_content(settings, recipe, folder)


def take_changes(settings: TrainingOptions, run: RunFolder, *, fixed: bool = False) -> TrainingOptions | None:
    """Return the run's settings with what it can still take of those given, None where nothing is asked of it.

    With `fixed` it can take nothing. Raises `InputError` naming those that it cannot take.
    """
    recipe, private = run.read_recipe()
    kept = _kept(settings, run.out, recipe, private)
    planned = _as_planned(kept, recipe)
    asked = _asked(settings, planned, public=False)
    fixed = fixed or kept.get("average", 1) > 1 or run.final.is_dir()
    others = {name: value for name, value in asked.items() if fixed or not _can_take(name, value, kept)}
    refuse(others, planned, run.out, "goes on with the settings that it began with", "choose a new --out")
    _refuse_other_content(settings, recipe, run.out)
    return settings_from(run.out / RECIPE_FILE, kept | asked, type(settings)) if asked else None


def keep_changes(run: RunFolder, changed: TrainingOptions) -> None:
    """Write changed settings into the run's recipe, from where everything in a run has them."""
    recipe, private = run.read_recipe()
    mine = {name: getattr(changed, name) for name in recipe["settings"] if name not in private}
    run.write_recipe(recipe | {"settings": recipe["settings"] | mine}, private)


def require_same_base(run: RunFolder) -> None:
    """Note what the weights are that a run starts from, or raise `InputError` if they are no more what was noted.

    An adapter is nothing without its base, and scores "before training" are the base's.
    """
    recipe, private = run.read_recipe()
    settings = {**recipe["settings"], **private}
    source, note = settings.get("init_from") or settings.get("model"), run.work / BASE_NOTE
    weights = weights_of(source) if source else None
    # A new model needs none, one that has ended no more, and one that is not there is missed by whoever loads it.
    if not weights or run.final.is_dir():
        return
    if not note.is_file():
        atomic_write(note, json.dumps(weights, sort_keys=True).encode())
    elif json.loads(note.read_text(encoding="utf-8")) != weights:
        raise InputError(
            f"{source} has changed since {run.out} was started: restore its weights, or choose a new --out"
        )


def _kept(
    settings: TrainingOptions, folder: Path, recipe: Mapping[str, Any], private: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings that a run has, as they are kept in its folder."""
    kept = recipe.get("settings")
    known = {**kept, **private} if isinstance(kept, dict) else kept
    return dataclasses.asdict(settings_from(folder / RECIPE_FILE, known, type(settings)))


def _as_planned(kept: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with what the plan chose in place of those that were left to it."""
    plan = recipe.get("plan") or {}
    return {name: plan.get(name) if value is None else value for name, value in kept.items()}


def _asked(settings: TrainingOptions, kept: Mapping[str, Any], *, public: bool) -> dict[str, Any]:
    """The settings given that the run does not have; what is to be labelled when it ends is no matter of the run."""
    given = settings.given() - {"predict"}
    if getattr(settings, "predict", None) is not None:
        given -= {"text_column"}
    return differing(with_budget(settings), given, kept, public=public)


def _refuse_other_content(settings: TrainingOptions, recipe: Mapping[str, Any], out: Path) -> None:
    """Raise `InputError` where the data given is not what the run has read: a file of it changed, came or is gone."""
    for option, part in (("data", "sources"), ("eval_data", "eval_sources")):
        if option in settings.given():
            refuse_other_content(recipe.get(part), getattr(settings, option), option, out)


def _can_take(name: str, value: Any, kept: Mapping[str, Any]) -> bool:
    return name in CHANGEABLE or name.startswith(PUSHING) or is_longer(name, value, kept)
