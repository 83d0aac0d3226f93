"""What a run that is gone on with takes of the settings given beside `--resume`: a longer budget, saves, pushes, track.

All else is the run's own, from its recipe; a setting that says otherwise is refused by name.
"""

import dataclasses
import glob
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from groundup.common.contents import weights_of
from groundup.common.errors import InputError, printable, user_path
from groundup.common.files import RECIPE_FILE, atomic_write, sha256_of
from groundup.common.resuming import differing, is_longer, refuse
from groundup.common.settings import read_yaml, settings_from
from groundup.data.listing import list_files
from groundup.data.readers import kind_of
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
    """Raise `InputError` where the data given is not what the run has read: a file of it changed, came or is gone."""
    for option, part in (("data", "sources"), ("eval_data", "eval_sources")):
        rows = [row for row in recipe.get(part) or [] if isinstance(row, dict) and row.get("sha256")]
        if rows and option in settings.given():
            read = [(_last_part(str(row.get("name"))), str(row["sha256"])) for row in rows]
            items = getattr(settings, option)
            if change := _change(read, items):
                given = f"--{option.replace('_', '-')} {' '.join(map(printable, items))}"
                raise InputError(f"{out} {change.format(given=given)}: leave that out to go on, or choose a new --out")


def _change(read: list[tuple[str, str]], items: list[str]) -> str | None:
    """Return what tells the files that items of data name now from those read, each by name and sha256; None if none.

    A file that came is known by its kind, since files of other kinds than those read may have lain there unread, and
    by its content, since of copies one is read.
    """
    here = [item for item in items if os.path.lexists(user_path(item)) or glob.has_magic(item)]
    files = [path for item in here for path, _ in list_files(item) if path.is_file()]
    found = [(_last_part(path.name), sha256_of(path)) for path in files]
    names, contents = {name for name, _ in read}, {content for _, content in read}
    kinds = {kind_of(Path(name)) for name in names}
    for name, content in found:
        if name in names and (name, content) not in read:
            return f"was made from another {name} than {{given}} has"
        if name not in names and content not in contents and kind_of(Path(name)) in kinds:
            return f"was made without {name}, which {{given}} has now"
    gone = sorted(names - {name for name, _ in found}) if here == items else []
    return f"was made with {gone[0]}, which {{given}} has no more" if gone else None


def _last_part(name: str) -> str:
    return printable(name.rsplit("/", 1)[-1])


def _can_take(name: str, value: Any, kept: Mapping[str, Any]) -> bool:
    return name in CHANGEABLE or name.startswith(PUSHING) or is_longer(name, value, kept)
