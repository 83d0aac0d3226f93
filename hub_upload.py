"""The last step, `groundup publish CHECKPOINT REPO_ID`: the gate, the card, one commit to the Hub.

    checkpoint --gate (publishing/gate.py)--> clean copy with its card --one commit (publishing/hub.py)--> Hub

Nothing is sent that does not load in a clean process; what is sent arrives whole or not at all.
"""

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from groundup import __version__
from groundup.common.console import console, say
from groundup.common.errors import InputError, user_path
from groundup.common.files import CARD_FILE, GGUF_WEIGHTS, RECIPE_FILE
from groundup.common.settings import read_yaml, verb
from groundup.common.verbs import ExportSettings, PublishSettings
from groundup.inference.folder import auto_class_of
from groundup.publishing.card import HUB_NAME
from groundup.publishing.conversion import export
from groundup.publishing.gate import Parcel, sums_of, through_the_gate
from groundup.publishing.gate_folder import is_ours
from groundup.publishing.hub import Pushed, Target, fetch_model, push_folder, require_token
from groundup.publishing.space import build_space, is_of_a_space, write_app


@verb(PublishSettings)
def publish(settings: PublishSettings) -> Pushed | None:
    """Put a checkpoint on the Hub and return what is there, or None after `--dry-run`.

    Takes a `PublishSettings` or its fields by keyword.

    Raises:
        InputError: for a checkpoint that does not pass the gate, naming each fault with its fix, and for what is
            wrong with the name, the token or its rights.
        Unavailable: where the Hub failed. The repository has all of it or nothing of it, never a part.
    """
    console.quiet = settings.quiet
    if not settings.checkpoint or not settings.repo_id:
        raise InputError("publish needs a checkpoint and a name: groundup publish CHECKPOINT OWNER/NAME")
    target = Target(settings.repo_id, settings.private, settings.branch, settings.pull_request, settings.tag)
    if settings.base_model is not None and not HUB_NAME.fullmatch(settings.base_model):
        raise InputError(f"--base-model {settings.base_model} is no name on the Hub: give OWNER/NAME")
    if settings.space:
        folder = user_path(settings.checkpoint)
        if settings.pull_request:
            raise InputError("--space shows a model that is on the Hub: leave out --pull-request")
        if (folder / GGUF_WEIGHTS).is_file() or auto_class_of(folder) != "AutoModelForCausalLM":
            raise InputError("--space shows a causal language model, this is another: leave it out")
    if not settings.dry_run:
        require_token()  # before the gate takes its time
    with contextlib.ExitStack() as stack:
        # Everything passes its gate before anything is sent.
        parcels = [(target, stack.enter_context(_gate(settings, user_path(settings.checkpoint), target.repo_id)))]
        for kind in settings.with_twin:
            place = dataclasses.replace(target, repo_id=f"{target.repo_id}-{kind}")
            parcels.append((place, stack.enter_context(_twin(settings, parcels[0][1].folder, kind, place.repo_id))))
        if settings.space:
            space = Target(f"{target.repo_id}-space", settings.private, repo_type="space")
            parcels.append((space, stack.enter_context(_space(settings, parcels[0][1]))))
        if settings.dry_run:
            for place, parcel in parcels:
                print(_listing(parcel, place), (parcel.folder / CARD_FILE).read_text(encoding="utf-8"), sep="\n\n")
            say("ready to be published; nothing was sent (--dry-run)")
            return None
        model = _push(parcels[0][1], target, settings.message)
        for place, parcel in parcels[1:]:
            if place.repo_type == "space":
                write_app(parcel.folder, settings.repo_id, model.commit)
                parcel = dataclasses.replace(parcel, proven=sums_of(parcel.folder))
            _push(parcel, place, settings.message)
    return model


def _gate(
    settings: PublishSettings, folder: Path, repo_id: str, **more: Any
) -> contextlib.AbstractContextManager[Parcel]:
    additions = {"license": settings.license, "language": settings.language, "base_model": settings.base_model}
    options: Any = {"fetch_base": fetch_model, "trust_remote_code": settings.trust_remote_code}
    return through_the_gate(folder, additions | more, repo_id=repo_id, **options)


@contextlib.contextmanager
def _twin(settings: PublishSettings, original: Path, kind: Any, repo_id: str) -> Iterator[Parcel]:
    """Export a stock form of the model, which names the original as its base, and take it through the gate."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / f"{original.name}-{kind}"
        export(ExportSettings(checkpoint=str(original), to=kind, out=str(folder), quiet=settings.quiet))
        with _gate(settings, folder, repo_id, base_model=settings.repo_id) as parcel:
            shutil.rmtree(folder)  # the gate has its own copy: not two of them on the disk while others are made
            yield parcel


@contextlib.contextmanager
def _space(settings: PublishSettings, model: Parcel) -> Iterator[Parcel]:
    """Build a Space, the playground for a model that has passed the gate."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        build_space(folder, settings.repo_id, read_yaml(model.folder / RECIPE_FILE).get("license"))
        proven = sums_of(folder)
        yield Parcel(folder, {name: (folder / name).stat().st_size for name in proven}, proven, [], None)


def _push(parcel: Parcel, target: Target, message: str | None) -> Pushed:
    say(_listing(parcel, target))
    known = is_ours if target.repo_type == "model" else is_of_a_space
    message = message or f"{target.repo_id.split('/')[1]}, groundup {__version__}"
    pushed = push_folder(parcel.folder, target, message, known, parcel.proven)
    say(f"{'published' if pushed.is_new else 'nothing had changed'}: {pushed.url}")
    return pushed


def _listing(parcel: Parcel, target: Target) -> str:
    """Return a summary: the files that are sent, those that are left out, and the result of the clean process."""
    lines = [f"to {target.repo_id}:", *(f"  {size:>13,} bytes  {name}" for name, size in parcel.files.items())]
    if parcel.left_out:
        lines.append(f"left out: {', '.join(parcel.left_out)}")
    if parcel.proof is not None:
        lines.append(
            "a process without this package loads it: the same ids, the same logits (largest difference "
            f"{parcel.proof.largest_difference:.0e}), the same text"
        )
    return "\n".join(lines)
