"""The verb `classify`: labelled texts to a classifier, its score beside two baselines, and labels for a file.

rows -> split -> (pretraining on their texts) -> loop -> checkpoint -> scores, confusion, worst mistakes

With several seeds the same run is repeated: a mean with its spread, and the run that is kept.
"""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from groundup.common.console import console, say
from groundup.common.errors import InputError, user_path
from groundup.common.files import RECIPE_FILE, atomic_folder
from groundup.common.output import claim, given_folder, is_begun
from groundup.common.processes import agreed, processes
from groundup.common.settings import Deadline, read_yaml, verb, write_yaml
from groundup.data.examples import is_one_text, load_texts
from groundup.data.sources import short_name
from groundup.evaluation.classification import PREDICTIONS_FILE, label_probabilities, label_texts, mean_rows
from groundup.evaluation.metrics_json import read_metrics, write_metrics
from groundup.evaluation.summary import THIS_MODEL, summary
from groundup.publishing.card import write_card
from groundup.training.checkpoint import RunFolder
from groundup.training.classification_preparation import (
    MOST_ADAPT_EPOCHS,
    PreparedExamples,
    open_classification,
    prepare_classification,
)
from groundup.training.classifier import ClassificationRun, averaged_runs, write_predictions
from groundup.training.loop import require_tracker
from groundup.training.plan import LEAST_DECAY
from groundup.training.pretraining import pretrain_first
from groundup.training.settings import ClassifySettings
from groundup.training.verbs import carry_out, claimed, finished_folder, recipe_of, take_changes

SMOKE_SEEDS = 2
OF_LABELLING = {"predict", "threshold", "model", "text_column", "trust_remote_code", "out", "quiet", "resume", "smoke"}


@verb(ClassifySettings)
def classify(settings: ClassifySettings, deadline: Deadline) -> Path:
    """Train a classifier on the rows of `settings.data`, label `settings.predict`, or both; return the folder.

    Takes a `ClassifySettings` or its fields by keyword; the minutes count from the beginning of `deadline`, the call.

    Raises:
        InputError: for data, options or a folder that will not do; nothing that was there is lost.
        Interrupted: after Ctrl-C, with the state saved.
        Diverged: when the loss stops being a number.
    """
    # With a run to go on with, the texts to label are for that.
    goes_on = settings.resume and settings.out is not None and is_begun(given_folder(settings.out), "classify")
    if settings.predict is not None and not settings.data and not goes_on:
        return _label_only(settings)
    if settings.predict is not None:
        load_texts(settings.predict, settings.text_column)  # what is wrong with it is said before anything is trained
    out = repeat(settings, partial(_train, shows=False)) if is_repeated(settings) else _train(settings, deadline)
    if settings.predict is not None and settings.resume and processes().is_main_process:
        write_predictions(out, settings)  # asked for only now
    say(f"written to {out}; next: groundup classify {out} --predict your_texts.csv")
    return out


def _train(settings: ClassifySettings, deadline: Deadline, shows: bool = True) -> Path:
    return carry_out(settings, deadline, prepare=prepare_classification, start=_start, shows=shows)


def _start(run: RunFolder, deadline: Deadline) -> "ClassificationRun":
    """Return the run of a prepared folder, after the pretraining on the texts that comes first."""
    prepared = open_classification(run)
    if run.final.is_dir():
        return ClassificationRun(prepared, run, deadline)
    if prepared.plan.objective is not None:
        adapt(prepared, deadline)
    require_tracker(prepared.settings.track)  # the run that it follows comes last
    others = [_train_in_order(number, prepared, run, deadline) for number in range(1, averaged_runs(prepared.settings))]
    return ClassificationRun(prepared, run, deadline, others=others)


def _train_in_order(number: int, prepared: PreparedExamples, run: RunFolder, deadline: Deadline) -> Path:
    """Train with the rows in another order, in a folder under work/, unless an earlier process has; return it."""
    folder, state = RunFolder(prepared.work / f"order-{number}"), processes()
    say(f"run {number} of {averaged_runs(prepared.settings)}, with the rows in another order")
    if not agreed(state, lambda: folder.is_finished):
        agreed(state, lambda: folder.write_recipe(*run.read_recipe()))
        ClassificationRun(prepared, folder, deadline, order=number).run(resume=True)
    if state.is_main_process:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)  # its best weights lie beside them now
    return folder.out


def adapt(prepared: PreparedExamples, deadline: Deadline) -> None:
    """Pretrain on the training texts into `work/base`: a new model of the plan's sizes, or go on with `--model`."""
    settings, plan = prepared.settings, prepared.plan
    pretrain_first(
        prepared,
        deadline,
        MOST_ADAPT_EPOCHS,
        init_from=None if settings.model is None else str(prepared.given),
        objective=plan.objective or "clm",
        minutes=settings.adapt_minutes,
        epochs=settings.adapt_epochs,
        learning_rate_scale=settings.learning_rate_scale * plan.pretraining_rate,
        weight_decay=LEAST_DECAY,
        smoke=settings.smoke,
    )


def _label_only(settings: ClassifySettings) -> Path:
    """Label a file with a trained classifier, into a new folder; one text is labelled on standard output."""
    console.quiet = settings.quiet
    if settings.model is None:
        raise InputError("--predict needs a classifier: give --model, the folder that classify wrote, or --data")
    if others := sorted(settings.given() - OF_LABELLING):
        raise InputError(f"--{others[0].replace('_', '-')} is for training: leave it out, or give --data")
    if settings.out is None and settings.threshold is None and is_one_text(settings.predict or ""):
        names, chances = label_probabilities(settings.model, [settings.predict or ""], settings.trust_remote_code)
        for chance, name in sorted(zip(chances[0], names), reverse=True):
            print(f"{chance:7.2%}  {name}")
        return user_path(settings.model)
    with claim(settings.out, "classify", short_name([settings.predict or ""])) as output:
        content = label_texts(
            settings.model,
            settings.predict or "",
            settings.text_column,
            settings.trust_remote_code,
            settings.threshold,
        )
        with output.filled() as folder:
            write_yaml(folder / RECIPE_FILE, recipe_of(settings)[0])
            (folder / PREDICTIONS_FILE).write_bytes(content.encode())
    say(f"labels and their probabilities are in {output.path / PREDICTIONS_FILE}")
    return output.path


def is_repeated(settings: ClassifySettings) -> bool:
    """Return whether a run has several seeds; of one that goes on, its folder says so."""
    if settings.resume and settings.out is not None:
        folder = given_folder(settings.out)
        if is_begun(folder, "classify"):
            return read_yaml(folder / RECIPE_FILE).get("settings", {}).get("seeds", 1) > 1
    return settings.seeds > 1


def repeat(settings: ClassifySettings, train: Callable[[ClassifySettings, Deadline], Path]) -> Path:
    """Train with `settings.seeds` seeds, one after the other, each in a folder `seed-N` of its own; return the folder.

    The folder itself becomes a copy of the run that is best on its own validation rows (never on the test), with
    the mean and the standard deviation of every score over the seeds before its own in `metrics.json`, and the settings
    of all in `recipe.yaml`. Of a budget in minutes every seed has an equal part, so that what is averaged was made
    alike. Raises what `train` does.
    """
    if settings.push_to is not None:
        raise InputError(f"--push-to takes one run, not {settings.seeds}: publish the one that is kept afterwards")
    console.quiet = settings.quiet
    state = processes()
    if finished := agreed(state, lambda: finished_folder(settings)):
        say(f"{finished} is finished: nothing to do")
        return finished
    with claimed(settings) as (run, goes_on):
        if goes_on:
            settings = agreed(state, lambda: _kept(settings, run))
        else:
            agreed(state, lambda: run.write_recipe(*recipe_of(settings)))
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
    """Yield the settings of each run, with a seed and a folder of its own."""
    for number in range(_seeds(settings)):
        yield dataclasses.replace(
            settings,
            seeds=1,
            seed=settings.seed + number,
            minutes=settings.minutes and settings.minutes / _seeds(settings),
            out=str(run.out / f"seed-{number}"),
            predict=None,
        )


def _kept(settings: ClassifySettings, run: RunFolder) -> ClassifySettings:
    """Return the settings that the folder has, for this process."""
    take_changes(settings, run, fixed=True)
    recipe, private = run.read_recipe()
    now = {"out": settings.out, "resume": True, "quiet": settings.quiet}
    return ClassifySettings(**recipe["settings"] | private | now)


def _combine(run: RunFolder, folders: Sequence[Path], settings: ClassifySettings) -> None:
    """Copy the best run into the folder, the mean of all beside its own scores, and the settings of all."""
    metrics = [read_metrics(folder) for folder in folders]
    means = mean_rows([one["metrics"] for one in metrics])
    best = max(range(len(folders)), key=lambda number: metrics[number]["training"]["selection"])
    own = [row | {"dataset": row["dataset"] + THIS_MODEL} for row in metrics[best]["metrics"]]
    if not run.final.is_dir():  # whole already where a kill came between
        with atomic_folder(run.final) as final:
            for path in folders[best].iterdir():
                if path.is_file():
                    shutil.copyfile(path, final / path.name)
            write_yaml(final / RECIPE_FILE, read_yaml(final / RECIPE_FILE) | recipe_of(settings)[0])
            about = metrics[best]["training"] | {"seeds": len(folders), "kept": folders[best].name}
            write_metrics(final, [*means, *own], about, metrics[best]["weights_sha256"])
            write_card(final)
            if settings.predict is not None:
                write_predictions(final, settings)
    run.promote()
    console.print(summary(read_metrics(run.out)))
    say(f"kept {folders[best].name}, which has the best validation score of {len(folders)} runs")
