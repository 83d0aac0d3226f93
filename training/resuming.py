"""What a run that is gone on with takes of the settings given beside `--resume`: a longer budget, saves, pushes, track.

All else is the run's own, from its recipe; a setting that says otherwise is refused by name.
"""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from groundup.common.contents import files_of, weights_of
from groundup.common.errors import InputError, printable, user_path
from groundup.common.files import RECIPE_FILE, atomic_write, sha256_of
from groundup.common.resuming import differing, is_longer, refuse
from groundup.common.settings import read_yaml, settings_from
from groundup.training.run_folder import RunFolder
from groundup.training.settings import TrainingOptions
from groundup.training.starting import with_budget

CHANGEABLE = ("save_every", "track")
PUSHING = "push_"
BASE_NOTE = "base.json"  # in work/: what the weights were that the run began with
FROM = {"pretrain": "--init-from", "classify": "--model", "instruct": "--model"}


def refuse_for_finished(settings: TrainingOptions, folder: Path, verb: str) -> None:
    """Raise `InputError` if anything is asked of a run that has ended, which cannot change."""
    recipe = read_yaml(folder / RECIPE_FILE)
    kept = _kept(settings, folder, recipe, {})
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
    asked = _asked(settings, kept, public=False)
    fixed = fixed or kept.get("average", 1) > 1 or run.final.is_dir()
    others = {name: value for name, value in asked.items() if fixed or not _can_take(name, value, kept)}
    refuse(others, kept, run.out, "goes on with the settings that it began with", "choose a new --out")
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


def _asked(settings: TrainingOptions, kept: Mapping[str, Any], *, public: bool) -> dict[str, Any]:
    """The settings given that the run does not have; what is to be labelled when it ends is no matter of the run."""
    given = settings.given() - {"predict"}
    if getattr(settings, "predict", None) is not None:
        given -= {"text_column"}
    return differing(with_budget(cast(Any, settings)), given, kept, public=public)


def _refuse_other_content(settings: TrainingOptions, recipe: Mapping[str, Any], out: Path) -> None:
    """Raise `InputError` for a file that has the name of one that the run has read, and holds something else."""
    for option, part in (("data", "sources"), ("eval_data", "eval_sources")):
        rows = [row for row in recipe.get(part) or [] if isinstance(row, dict) and row.get("sha256")]
        for item in getattr(settings, option) if option in settings.given() else []:
            found = [(printable(name.rsplit("/", 1)[-1]), content) for name, content in _files_here(item)]
            for name, content in found:
                known = {row["sha256"] for row in rows if str(row.get("name")).rsplit("/", 1)[-1] == name}
                if known and content not in known:
                    raise InputError(
                        f"{out} was made from another {name} than --{option.replace('_', '-')} {item} has: leave that "
                        "out to go on, or choose a new --out"
                    )


def _files_here(item: str) -> list[tuple[str, str]]:
    """Name and sha256 of the file that an item of data names, or of those in its folder."""
    path = user_path(item)
    if path.is_dir():
        return list(files_of(path).items())
    return [(path.resolve().name, sha256_of(path))] if path.is_file() else []


def _can_take(name: str, value: Any, kept: Mapping[str, Any]) -> bool:
    return name in CHANGEABLE or name.startswith(PUSHING) or is_longer(name, value, kept)
