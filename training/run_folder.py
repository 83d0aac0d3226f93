"""The folder of a run: what is in it before the first step, at every save, and at the end.

OUT/recipe.yaml     every setting and choice, before the first step
OUT/log.jsonl       a row for each logging step
OUT/work/           what a resumed run needs and nobody else: paths, tokenizer, shards; gone at the end
OUT/checkpoints/    whole repositories with a state beside them
OUT/                the best of them, at the end
"""

import contextlib
import json
import shutil
from collections.abc import Callable, Collection, Iterator
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
)
from groundup.common.output import STATE, move_up, tidy
from groundup.common.settings import Settings, check_names, read_yaml, write_yaml
from groundup.evaluation.curve import log_rows, plot_curve
from groundup.evaluation.metrics_file import write_metrics
from groundup.inference.saving import save_model
from groundup.publishing.card import write_card
from groundup.training.checkpoint import newest_whole, remove_old, scratch_of, write_manifest

if TYPE_CHECKING:
    from peft import PeftModel

S = TypeVar("S", bound=Settings)
P = TypeVar("P")

PRIVATE_FILE = "private.yaml"  # in work/
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
        remove_old(self.out, KEPT, best_step)
        remove(scratch_of(self.out))

    def newest_state(self) -> Path | None:
        """The newest step folder that is undamaged."""
        return newest_whole(self.out)

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
        """Put the final checkpoint into the folder, the scores last, and remove what only a running run needs.

        `complete` adds what else was asked for to the whole checkpoint, before it takes its place.
        """
        with atomic_folder(self.final) as folder:
            save_model(folder, model, tokenizer)
            self._describe(folder, rows, training)
            complete(folder)
        self.promote()

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
