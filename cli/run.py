"""The verb `run`: run the stages of a recipe in order, each in its own folder, and write a report.

A stage is run again only if its settings, its inputs or this package's version have changed. A stage that was stopped
resumes from its last saved state.
"""

import dataclasses
import os
import time
from pathlib import Path

from rich.table import Table

from groundup.cli.main import VERBS, find
from groundup.cli.recipe import Ledger, Recipe, Stage, find_recipe, is_ledger_in, read_recipe
from groundup.common.console import console, say
from groundup.common.errors import InputError, Interrupted, is_disk_full
from groundup.common.output import claim, given_folder, holds_nothing, next_free, require_unused
from groundup.common.settings import verb
from groundup.common.verbs import RunSettings


@verb(RunSettings)
def run(settings: RunSettings) -> Path:
    """Run a recipe and return the folder of its stages. Raises `InputError` for an invalid recipe."""
    if not settings.recipe:
        raise InputError("run needs a recipe: give a YAML file, for example recipes/python_docs.yaml")
    started = time.monotonic()
    recipe = read_recipe(find_recipe(settings.recipe))
    name = recipe.name + ("-smoke" if settings.smoke else "")
    out = given_folder(settings.out if settings.out is not None else Path("runs") / name)
    if settings.dry_run:
        ledger = Ledger(out, settings.smoke)
        _check_files(recipe, ledger)
        console.print(_overview(recipe, ledger))
        return out
    with claim(out, "run", name, resume=True, is_ours=is_ledger_in):
        _walk(recipe, out, settings, started)
    return out


def _walk(recipe: Recipe, out: Path, settings: RunSettings, started: float) -> None:
    """Run the stages that are not done, and write the report."""
    ledger = Ledger(out, settings.smoke)
    _check_files(recipe, ledger)
    for stage in recipe.stages:
        _check_folder(stage, out, ledger)
    done_now = []
    for number, stage in enumerate(recipe.stages, 1):
        console.quiet = settings.quiet
        place = f"[{number}/{len(recipe.stages)}] {stage.name}"
        if ledger.is_done(stage):
            say(f"{place}: skipped, nothing has changed")
            continue
        gone = ledger.changed(stage)
        say(f"{place}: its file {gone} has changed or is missing: done again" if gone else place)
        _do(stage, recipe, ledger, settings)
        done_now.append(stage.name)
    console.quiet = settings.quiet
    from groundup.cli.chain_report import show

    show(recipe, out, ledger, time.monotonic() - started, done_now)


def _check_files(recipe: Recipe, ledger: Ledger) -> None:
    """Raise `InputError` before the first stage if a stage that is not done reads a missing file."""
    from groundup.data.sources import check_exists  # takes a second, which `groundup --help` need not

    for stage in recipe.stages:
        if not ledger.is_done(stage):
            options = (value or [] for name, value in stage.options.items() if stage.read_as(name) == "dataset")
            items = [item for value in options for item in (value if isinstance(value, list) else [value])]
            try:
                check_exists([item for item in items if not item.startswith("{")])
            except InputError as error:
                raise InputError(f"{recipe.file}, stage {stage.name}: {error}") from error


def _check_folder(stage: Stage, out: Path, ledger: Ledger) -> None:
    """Raise `InputError` for a stage's folder that no stage made, or that another command uses."""
    folder = out / stage.name
    if os.path.lexists(folder) and not ledger.knows(stage):
        raise InputError(f"{folder} exists, but no stage made it: move it away, or choose a new --out")
    require_unused(folder)


def _do(stage: Stage, recipe: Recipe, ledger: Ledger, settings: RunSettings) -> None:
    """Run one stage, or resume it if it was started with the same key; errors name file and stage."""
    out = ledger.out
    _check_folder(stage, out, ledger)  # again: it may have come since
    settings_class = VERBS[stage.verb].settings
    fields = {field.name for field in dataclasses.fields(settings_class)}
    folder, begun, started = out / stage.name, ledger.has_begun(stage), time.monotonic()
    shared = {"out": str(folder), "smoke": settings.smoke, "quiet": settings.quiet, "resume": begun}
    options = stage.filled(out) | {name: value for name, value in shared.items() if name in fields}
    if folder.exists() and not (begun and "resume" in fields) and not holds_nothing(folder):
        aside = next_free(folder)  # nothing that was trained is thrown away
        folder.rename(aside)
        say(f"what it made before is in {aside} now: remove that if you do not need it")
    ledger.begin(stage)
    try:
        find(VERBS[stage.verb].function)(settings_class(**options))  # its minutes count from here
    except BaseException as error:
        if not os.path.lexists(folder):
            ledger.forget(stage)
        # A stage says how to resume it by its own verb, which is not what was given.
        if isinstance(error, Interrupted):
            raise Interrupted(f"stopped in stage {stage.name}: give the command again to resume") from error
        if isinstance(error, InputError) and is_disk_full(error):
            raise InputError(
                f"no space left on the disk of {folder}: make room, then give the command again"
            ) from error
        if isinstance(error, InputError):
            raise InputError(f"{recipe.file}, stage {stage.name}: {error}") from error
        raise
    ledger.finish(stage, time.monotonic() - started)


def _overview(recipe: Recipe, ledger: Ledger) -> Table:
    """Return a table of what `run` would do, with the budget of each stage or its last duration."""
    table = Table(box=None, pad_edge=False)
    for column in ("stage", "verb", "", "time"):
        table.add_column(column)
    changed: set[str] = set()
    for stage in recipe.stages:
        if ledger.is_done(stage) and not changed & set(stage.references()):
            state = "skipped: nothing has changed"
        else:
            state = "resumes" if ledger.has_begun(stage) else "to do"
            changed.add(stage.name)
        minutes, took = stage.options.get("minutes"), ledger.seconds(stage)
        duration = f"{minutes:g} minutes" if minutes else "" if took is None else f"{took:.0f} s last time"
        table.add_row(stage.name, stage.verb, state, duration)
    return table
