"""The same run with several seeds: a mean with its spread, and the run that is kept."""

import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from groundup.common import clock
from groundup.common.console import console, say
from groundup.common.errors import InputError
from groundup.common.files import atomic_folder, output_folder, require_new
from groundup.common.processes import processes
from groundup.data.sources import short_name
from groundup.evaluation.card import write_card
from groundup.evaluation.classification import mean_rows
from groundup.evaluation.report import read_metrics, summary_table, write_metrics
from groundup.training.classification_settings import ClassifySettings
from groundup.training.run import agreed

SMOKE_SEEDS = 2


def repeat(settings: ClassifySettings, train: Callable[[ClassifySettings], Path]) -> Path:
    """Train with `settings.seeds` seeds, one after the other, each in a folder `seed-N` of its own; return the folder.

    The folder itself becomes a copy of the run that is best on its own rows for selection (never on the test), with
    the mean and the standard deviation of every score over the seeds before its own in `metrics.json`. A budget in
    minutes is for all seeds together. Raises what `train` does.
    """
    began = clock.began()
    if settings.resume and settings.out is None:
        raise InputError("--resume needs --out: the folder of the run to go on with")
    state = processes()
    out = agreed(state, lambda: _folder(settings))
    folders = []
    seeds = min(settings.seeds, SMOKE_SEEDS) if settings.smoke else settings.seeds
    for number in range(seeds):
        console.quiet = settings.quiet
        say(f"seed {number + 1} of {seeds}")
        one = dataclasses.replace(
            settings, seeds=1, seed=settings.seed + number, out=str(out / f"seed-{number}"), predict=None
        )
        left = seeds - number
        if settings.minutes is not None:
            minutes = (settings.minutes - (time.time() - began) / 60) / left
            one = dataclasses.replace(one, minutes=max(0.1, minutes))
        with clock.counting_from_now():
            folders.append(train(one))
    if state.is_main_process and not (settings.resume and (out / "metrics.json").is_file()):
        _combine(out, folders)
    state.wait_for_everyone()
    return out


def _folder(settings: ClassifySettings) -> Path:
    """The folder of all runs. Raises `InputError` where something lies in it that is not to be gone on with."""
    out = output_folder(settings.out, "classify", short_name(settings.data))
    if not settings.resume:
        require_new(out, ", or add --resume to go on with it")
    return out


def _combine(out: Path, folders: Sequence[Path]) -> None:
    """Copy the best run into `out`, and write the mean of all beside its own scores."""
    metrics = [read_metrics(folder) for folder in folders]
    means = mean_rows([one["metrics"] for one in metrics])
    best = max(range(len(folders)), key=lambda number: metrics[number]["training"]["selection"])
    own = [row | {"dataset": f"{row['dataset']} (this model)"} for row in metrics[best]["metrics"]]
    with atomic_folder(out / "final") as final:
        for path in folders[best].iterdir():
            if path.is_file():
                shutil.copyfile(path, final / path.name)
        about = metrics[best]["training"] | {"seeds": len(folders), "kept": folders[best].name}
        write_metrics(final, [*means, *own], about, metrics[best]["weights_sha256"])
        write_card(final)
    for path in sorted((out / "final").iterdir(), key=lambda path: path.name == "metrics.json"):
        path.replace(out / path.name)
    (out / "final").rmdir()
    console.print(summary_table(read_metrics(out)))
    say(f"kept: {folders[best].name}, the best of {len(folders)} on its own rows for selection")
