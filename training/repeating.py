"""The same run with several seeds: a mean with its spread, and the run that is kept."""

import contextlib
import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from groundup.common.console import console, say
from groundup.common.errors import InputError
from groundup.common.files import RECIPE_FILE, atomic_folder, atomic_write
from groundup.common.output import claim, given_folder, is_begun, nothing_to_resume
from groundup.common.processes import agreed, processes
from groundup.common.settings import Deadline, public_settings, read_yaml, write_yaml
from groundup.data.sources import short_name
from groundup.evaluation.classification import PREDICTIONS_FILE, label_texts, mean_rows
from groundup.evaluation.metrics_json import read_metrics, summary_table, write_metrics
from groundup.publishing.card import write_card
from groundup.training.classification_preparation import PATHS
from groundup.training.run import finished_folder
from groundup.training.run_folder import RunFolder, take_changes
from groundup.training.settings import ClassifySettings

SMOKE_SEEDS = 2


def is_repeated(settings: ClassifySettings) -> bool:
    """Whether a run has several seeds; of one that goes on, its folder says so."""
    if settings.resume and settings.out is not None:
        folder = given_folder(settings.out)
        if is_begun(folder, "classify"):
            return read_yaml(folder / RECIPE_FILE).get("settings", {}).get("seeds", 1) > 1
    return settings.seeds > 1


def repeat(settings: ClassifySettings, train: Callable[[ClassifySettings, Deadline], Path]) -> Path:
    """Train with `settings.seeds` seeds, one after the other, each in a folder `seed-N` of its own; return the folder.

    The folder itself becomes a copy of the run that is best on its own rows for selection (never on the test), with
    the mean and the standard deviation of every score over the seeds before its own in `metrics.json`, and the settings
    of all in `recipe.yaml`. Of a budget in minutes every seed has an equal part, so that what is averaged was made
    alike. Raises what `train` does.
    """
    if settings.resume and settings.out is None:
        raise InputError("--resume needs --out: give the folder of the run")
    if settings.push_to is not None:
        raise InputError(f"--push-to takes one run, not {settings.seeds}: publish the one that is kept afterwards")
    console.quiet = settings.quiet
    state = processes()
    if finished := agreed(state, lambda: finished_folder(settings, "classify")):
        say(f"{finished} is finished: nothing to do")
        return finished
    with contextlib.ExitStack() as held:  # on the first process alone

        def begin() -> tuple[Path, bool]:
            output = held.enter_context(
                claim(settings.out, "classify", short_name(settings.data), resume=settings.resume)
            )
            if settings.resume and not output.goes_on and not settings.data:
                raise nothing_to_resume(output.path)
            return output.path, output.goes_on

        out, goes_on = agreed(state, begin)
        run = RunFolder(out)
        settings = agreed(state, lambda: _kept(settings, run) if goes_on else _begin(settings, run))
        folders = []
        for one in _each(settings, run):
            console.quiet = settings.quiet
            say(f"seed {len(folders) + 1} of {_seeds(settings)}")
            try:
                folders.append(train(one, Deadline()))
            except InputError:
                if state.is_main_process and not goes_on:
                    run.take_back()
                raise
        if state.is_main_process:
            _combine(run, folders, settings)
        state.wait_for_everyone()
    return run.out


def _seeds(settings: ClassifySettings) -> int:
    return min(settings.seeds, SMOKE_SEEDS) if settings.smoke else settings.seeds


def _each(settings: ClassifySettings, run: RunFolder) -> Iterator[ClassifySettings]:
    """The settings of each run, with a seed and a folder of its own."""
    for number in range(_seeds(settings)):
        yield dataclasses.replace(
            settings,
            seeds=1,
            seed=settings.seed + number,
            minutes=settings.minutes and settings.minutes / _seeds(settings),
            out=str(run.out / f"seed-{number}"),
            predict=None,
        )


def write_predictions(folder: Path, settings: ClassifySettings) -> None:
    """Label the texts of `settings.predict` by the classifier in `folder`, into a file beside it.

    Texts that cannot be read any more take nothing from a model that is trained: that is said, and what to do.
    """
    try:
        content = label_texts(str(folder), settings.predict or "", settings.text_column, settings.trust_remote_code)
    except InputError as error:
        say(f"no {PREDICTIONS_FILE}: {error}; fix it, then give --predict and the trained folder as --model")
        return
    atomic_write(folder / PREDICTIONS_FILE, content.encode())


def _begin(settings: ClassifySettings, run: RunFolder) -> ClassifySettings:
    """Keep the settings in the folder."""
    private = {key: value for key, value in dataclasses.asdict(settings).items() if key in PATHS}
    run.write_recipe({"verb": "classify", "settings": public_settings(settings, PATHS)}, private)
    return settings


def _kept(settings: ClassifySettings, run: RunFolder) -> ClassifySettings:
    """The settings that the folder has, for this process."""
    take_changes(settings, run, fixed=True)
    recipe, private = run.read_recipe()
    now = {"out": settings.out, "resume": True, "quiet": settings.quiet}
    return ClassifySettings(**recipe["settings"] | private | now)


def _combine(run: RunFolder, folders: Sequence[Path], settings: ClassifySettings) -> None:
    """Copy the best run into the folder, the mean of all beside its own scores, and the settings of all."""
    metrics = [read_metrics(folder) for folder in folders]
    means = mean_rows([one["metrics"] for one in metrics])
    best = max(range(len(folders)), key=lambda number: metrics[number]["training"]["selection"])
    own = [row | {"dataset": f"{row['dataset']} (this model)"} for row in metrics[best]["metrics"]]
    if not run.final.is_dir():  # whole already where a kill came between
        with atomic_folder(run.final) as final:
            for path in folders[best].iterdir():
                if path.is_file():
                    shutil.copyfile(path, final / path.name)
            whole = {"settings": public_settings(settings, PATHS)}
            write_yaml(final / RECIPE_FILE, read_yaml(final / RECIPE_FILE) | whole)
            about = metrics[best]["training"] | {"seeds": len(folders), "kept": folders[best].name}
            write_metrics(final, [*means, *own], about, metrics[best]["weights_sha256"])
            write_card(final)
            if settings.predict is not None:
                write_predictions(final, settings)
    run.promote()
    console.print(summary_table(read_metrics(run.out)))
    say(f"kept {folders[best].name}, which has the best validation score of {len(folders)} runs")
