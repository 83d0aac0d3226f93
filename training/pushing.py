"""Checkpoints to the Hub while a run goes on: the gate and the one commit of `groundup publish`, after a save."""

from pathlib import Path
from typing import Any

from groundup.common.console import say
from groundup.common.errors import InputError, Unavailable
from groundup.common.hub import Pushed, Target, push_folder
from groundup.evaluation.gate import through_the_gate
from groundup.evaluation.gate_folder import is_ours


def push_checkpoint(folder: Path, target: Target, additions: dict[str, Any], *, step: int) -> Pushed | None:
    """Publish a saved checkpoint as a commit named after its step; None, and a line said, where that fails.

    A run is worth more than a push: what goes wrong on the way is said and the training goes on. Whatever is on the Hub
    is whole. It takes the time of the gate, about ten seconds, and of the upload.

    Args:
        folder: a whole checkpoint, as `RunFolder.save_step` leaves it; its state stays here.
        target: the repository; on a branch of its own, a run leaves the main one to `groundup publish`.
        additions: what the gate puts into the published recipe, the licence at least: {"license": "apache-2.0"}.
        step: of the training.
    """
    try:
        with through_the_gate(folder, additions) as parcel:
            pushed = push_folder(parcel.folder, target, f"step {step}", is_ours)
    except (InputError, Unavailable) as error:
        say(f"step {step} was not published, the training goes on: {error}")
        return None
    say(f"step {step} published: {pushed.url}")
    return pushed
