"""Push checkpoints to the Hub while a run goes on: the gate and the one commit of `groundup publish`, after a save."""

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

from groundup.common.console import say
from groundup.common.errors import InputError, Unavailable
from groundup.common.processes import random_state, set_random_state
from groundup.common.verbs import PushOptions
from groundup.publishing.card import HUB_NAME
from groundup.publishing.gate import LICENSE, through_the_gate
from groundup.publishing.gate_folder import is_ours
from groundup.publishing.hub import Pushed, Target, fetch_model, push_folder, require_token


def push_target(options: PushOptions, save_every: int | None = None, adapted: str | None = None) -> Target | None:
    """Return where the checkpoints of a run go; None where they stay. `adapted` is the model that `--lora` adapts.

    Raises `InputError` for options that do not go together, a name that no repository can have, and a missing token:
    before the first step, not after the last.
    """
    every = options.push_every
    if options.push_to is None:
        if every is not None:
            raise InputError(f"--push-every {every} has no repository to push to: add --push-to OWNER/NAME")
        if given := [one.name for one in fields(PushOptions) if getattr(options, one.name) not in (None, False)]:
            raise InputError(f"--{given[0].replace('_', '-')} has no repository to push to: add --push-to OWNER/NAME")
        return None
    if every is not None and every % (save_every or every):
        raise InputError(f"--push-every {every}: each push is of a saved state: give a multiple of --save-every")
    if not re.fullmatch(LICENSE, options.push_license or ""):
        raise InputError("--push-to needs a licence: add --push-license, for example --push-license apache-2.0")
    if adapted is not None and options.push_base_model is None and Path(adapted).exists():
        raise InputError(
            f"--push-to: the adapter would name its base, the local folder {adapted}, which nobody else has: publish "
            "that first, then add --push-base-model OWNER/NAME"
        )
    name = options.push_base_model
    if name is not None and not HUB_NAME.fullmatch(name):
        raise InputError(f"--push-base-model {name} is no name on the Hub: give OWNER/NAME")
    require_token()
    return Target(options.push_to, options.push_private, options.push_branch)


class Pusher:
    """Push the checkpoints of one run where its options say.

    A run is worth more than a push: a failure is printed and the training continues, as it would have
    gone without the push, bit for bit. Whatever is on the Hub is whole. A push takes the time of the gate, some ten
    seconds, and of the upload.
    """

    def __init__(
        self,
        options: PushOptions,
        save_every: int | None = None,
        adapted: str | None = None,
        trust_remote_code: bool = False,
    ):
        self.target, self.every = push_target(options, save_every, adapted), options.push_every
        self.trust_remote_code = trust_remote_code
        self.additions = {"license": options.push_license}
        if options.push_base_model is not None:
            self.additions["base_model"] = options.push_base_model

    def after_save(self, folder: Path, step: int) -> None:
        """Push a saved state if its step is one of `--push-every`; its optimizer and random state stay here."""
        if self.every is not None and step % self.every == 0:
            self._push(folder, f"step {step}")

    def after_the_end(self, folder: Path) -> None:
        """Push the finished checkpoint, with its scores."""
        self._push(folder, "the finished run")

    def _push(self, folder: Path, name: str) -> Pushed | None:
        if self.target is None:
            return None
        states = random_state()
        try:
            options: Any = {"fetch_base": fetch_model, "trust_remote_code": self.trust_remote_code}
            with through_the_gate(folder, self.additions, repo_id=self.target.repo_id, **options) as parcel:
                pushed = push_folder(parcel.folder, self.target, name, is_ours, parcel.proven)
        except (InputError, Unavailable, OSError) as error:
            say(f"{name} was not published, and the run continues: {error}")
            return None
        except KeyboardInterrupt:
            say(f"{name} was not published: stopped")
            raise
        finally:
            set_random_state(states)
        say(f"{name} is published: {pushed.url}")
        return pushed
