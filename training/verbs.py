"""Run a verb that trains: claim its folder, prepare or resume a run, train, and undo what failed.

A run that is gone on with takes of the settings given beside `--resume` a longer budget, saves, pushes and tracking.
All else is its own, from its recipe; a setting that says otherwise is refused by name.
"""

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from accelerate.utils.memory import should_reduce_batch_size
from transformers import PreTrainedTokenizerFast

from groundup.common.console import console, say
from groundup.common.errors import InputError
from groundup.common.files import RECIPE_FILE, atomic_write, weights_of
from groundup.common.output import claim, given_folder, is_begun, nothing_to_resume
from groundup.common.processes import agreed, processes
from groundup.common.settings import Deadline, differing, is_longer, public_settings, read_yaml, refuse, settings_from
from groundup.data.files import refuse_other_content
from groundup.data.sources import short_name
from groundup.evaluation.metrics_json import read_metrics
from groundup.evaluation.summary import summary
from groundup.tokenization.folder import fingerprint, save_tokenizer
from groundup.training.checkpoint import RunFolder
from groundup.training.loop import require_tracker
from groundup.training.plan import Optimization
from groundup.training.run import TrainingRun, pusher_of
from groundup.training.settings import PUBLIC_PATHS, TrainingOptions, check_options, with_budget

S = TypeVar("S", bound=TrainingOptions)
Chosen = tuple[S, Optimization, PreTrainedTokenizerFast, dict[str, Any]]
Fill = Callable[[S, RunFolder, Deadline], Chosen[S]]

CHANGEABLE = ("save_every", "track")
PUSHING = "push_"
BASE_NOTE = "base.json"  # in work/: what the weights were that the run began with


def preparation(kept: Collection[str] = ()) -> Callable[[Fill[S]], Callable[[S, RunFolder, Deadline], None]]:
    """Make the preparation of a run of a function that fills its `work/`: check the options, write the recipe last.

    The function gets settings with at most one budget, and returns them with one, the plan, the tokenizer, and what
    else the recipe says. If it fails, nothing is left but `kept` names in `work/` when the next one begins.
    """

    def decorate(fill: Fill[S]) -> Callable[[S, RunFolder, Deadline], None]:
        @functools.wraps(fill)
        def prepare(settings: S, run: RunFolder, deadline: Deadline) -> None:
            settings = with_budget(settings)
            check_options(settings)
            with run.being_prepared(kept):
                settings, plan, tokenizer, entries = fill(settings, run, deadline)
                save_tokenizer(tokenizer, run.work / "tokenizer")
                recipe, private = recipe_of(settings)
                recipe = {"name": short_name(settings.data)} | recipe | {"plan": dataclasses.asdict(plan)} | entries
                run.write_recipe(recipe | {"tokenizer_sha256": fingerprint(tokenizer)}, private)

        return prepare

    return decorate


def recipe_of(settings: TrainingOptions) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the settings as a recipe has them, and those of them that must not be published (paths)."""
    private = {name: value for name, value in dataclasses.asdict(settings).items() if name in PUBLIC_PATHS}
    return {"verb": settings.verb, "settings": public_settings(settings, PUBLIC_PATHS)}, private


def carry_out(
    settings: S,
    deadline: Deadline,
    *,
    prepare: Callable[[S, RunFolder, Deadline], None],
    start: Callable[[RunFolder, Deadline], "TrainingRun"],
    inner: bool = False,
    shows: bool = True,
) -> Path:
    """Run a verb that trains, from its first step or, with `--resume`, from the newest saved one; return its folder.

    Args:
        deadline: from where the minutes of the settings count.
        prepare: writes all that the run needs into its folder, the recipe last; on the first process alone.
        start: reads that back and makes the run.
        inner: whether it is a run within a run, which goes on with what it has, whatever is asked of the outer one.
        shows: whether the scores are printed at its end; those of an inner run are not.

    Raises:
        InputError: for data, options or a folder that will not do; nothing that was there is lost.
        Interrupted: after Ctrl-C, with the state saved.
        Diverged: when the loss stops being a number.
    """
    state = processes()
    console.quiet = settings.quiet or not state.is_main_process
    if finished := agreed(state, lambda: finished_folder(settings, inner=inner)):
        say(f"{finished} is finished: nothing to do")
        return finished
    with claimed(settings) as (run, goes_on):

        def begin() -> None:
            if not goes_on:
                pusher_of(settings)  # options that will not do are said before anything is done
                prepare(settings, run, deadline)
            elif not inner:
                _take_changes(settings, run)

        agreed(state, begin)
        with _taken_back(run, state.is_main_process and not goes_on, InputError):
            if not inner:
                agreed(state, lambda: require_same_base(run))
            training = start(run, deadline)
        with _taken_back(run, state.is_main_process and not goes_on, InputError):
            training.run(resume=settings.resume)
    if state.is_main_process and shows and not inner:
        console.print(summary(read_metrics(run.out)))
    return run.out


@contextlib.contextmanager
def claimed(settings: TrainingOptions) -> Iterator[tuple[RunFolder, bool]]:
    """Hold the folder of a run; yield it, and whether there is a run in it to resume. Raises `InputError`.

    What the first process sees counts: another one may look when the recipe has just been written.
    """
    with contextlib.ExitStack() as held:  # on the first process alone

        def begin() -> tuple[Path, bool]:
            name = short_name(settings.data)
            output = held.enter_context(claim(settings.out, settings.verb, name, resume=settings.resume))
            if settings.resume and not output.goes_on and not settings.data:
                raise nothing_to_resume(output.path)
            return output.path, output.goes_on

        out, goes_on = agreed(processes(), begin)
        yield RunFolder(out), goes_on


class OutOfMemoryError(InputError):
    """Say that a step does not fit into the memory."""


@contextlib.contextmanager
def _taken_back(run: RunFolder, is_new: bool, kind: type[InputError]) -> Iterator[None]:
    """Undo a new run that fails with an error of this kind; running out of memory becomes one."""
    try:
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            raise OutOfMemoryError(
                "the memory does not hold this model and its rows: give a shorter --context-length, fewer rows at a "
                "time or a smaller model, and a new --out if this one holds something"
            ) from error
    except kind:
        if is_new:
            run.take_back()
        raise


def finished_folder(settings: TrainingOptions, *, inner: bool = False) -> Path | None:
    """Return the folder of `--resume` if its run has ended, else None.

    Raises `InputError` for a name that is none, and, but for an `inner` run, for settings that ask it to change.
    """
    if not settings.resume:
        return None
    if settings.out is None:
        raise InputError("--resume needs --out: give the folder of the run")
    folder = given_folder(settings.out)
    if not is_begun(folder, settings.verb) or not RunFolder(folder).is_finished:
        return None
    if not inner:
        refuse_for_finished(settings, folder)
    RunFolder(folder).tidy()
    return folder


def _take_changes(settings: TrainingOptions, run: RunFolder) -> None:
    """Give the resumed run a longer budget, other saves, pushes or tracking, where they are given."""
    if (changed := take_changes(settings, run)) is None:
        return
    pusher_of(changed)
    require_tracker(changed.track)
    recipe, private = run.read_recipe()  # from where everything in a run has its settings
    mine = {name: getattr(changed, name) for name in recipe["settings"] if name not in private}
    run.write_recipe(recipe | {"settings": recipe["settings"] | mine}, private)


def refuse_for_finished(settings: TrainingOptions, folder: Path) -> None:
    """Raise `InputError` if anything is asked of a run that has ended, which cannot change."""
    recipe = read_yaml(folder / RECIPE_FILE)
    kept = _as_planned(_kept(settings, folder, recipe, {}), recipe)
    others = _asked(settings, kept, public=True)
    instead = f"start from its weights: {settings.base_option} {folder} and a new --out"
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
    can_take = {
        name for name in asked if name in CHANGEABLE or name.startswith(PUSHING) or is_longer(name, asked[name], kept)
    }
    others = {name: value for name, value in asked.items() if fixed or name not in can_take}
    refuse(others, planned, run.out, "goes on with the settings that it began with", "choose a new --out")
    _refuse_other_content(settings, recipe, run.out)
    return settings_from(run.out / RECIPE_FILE, kept | asked, type(settings)) if asked else None


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
    """Return the settings that a run has, as they are kept in its folder."""
    kept = recipe.get("settings")
    known = {**kept, **private} if isinstance(kept, dict) else kept
    return dataclasses.asdict(settings_from(folder / RECIPE_FILE, known, type(settings)))


def _as_planned(kept: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings, with the plan's choices for those that were left to it."""
    plan = recipe.get("plan") or {}
    return {name: plan.get(name) if value is None else value for name, value in kept.items()}


def _asked(settings: TrainingOptions, kept: Mapping[str, Any], *, public: bool) -> dict[str, Any]:
    """Return the settings given that the run does not have; what to label when it ends is no matter of the run."""
    given = settings.given() - {"predict"}
    if getattr(settings, "predict", None) is not None:
        given -= {"text_column"}
    return differing(with_budget(settings), given, kept, public=public)


def _refuse_other_content(settings: TrainingOptions, recipe: Mapping[str, Any], out: Path) -> None:
    """Raise `InputError` where the data given is not what the run has read: a file of it changed, came or is gone."""
    for option, part in (("data", "sources"), ("eval_data", "eval_sources")):
        if option in settings.given():
            refuse_other_content(recipe.get(part), getattr(settings, option), option, out)
