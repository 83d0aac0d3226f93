"""The last step, `groundup publish CHECKPOINT REPO_ID`: the gate, the card, one commit to the Hub.

    checkpoint --gate (evaluation/gate.py)--> clean copy with its card --one commit (common/hub.py)--> Hub

Nothing is sent that does not load for strangers; what is sent arrives whole or not at all.
"""

from pathlib import Path

from huggingface_hub import snapshot_download

from groundup import __version__
from groundup.common.console import console, say
from groundup.common.errors import InputError
from groundup.common.hub import Pushed, Target, plain_words, push_folder
from groundup.common.settings import verb
from groundup.evaluation.card import CARD_FILE
from groundup.evaluation.gate import Parcel, is_ours, through_the_gate
from groundup.evaluation.settings import PublishSettings

BASE_FILES = ["*.json", "*.safetensors", "*.py", "*.jinja", "*.txt"]


@verb(PublishSettings)
def publish(settings: PublishSettings) -> Pushed | None:
    """Put a checkpoint on the Hub and return what is there, or None after `--dry-run`.

    Takes a `PublishSettings` or its fields by keyword.

    Raises:
        InputError: for a checkpoint that does not pass the gate, naming each failure with its mend, and for what is
            wrong with the name, the token or its rights.
        Unavailable: where the Hub failed. The repository is as it was or has all of it, never a part.
    """
    console.quiet = settings.quiet
    if not settings.checkpoint or not settings.repo_id:
        raise InputError("publish needs a checkpoint and a name: groundup publish CHECKPOINT OWNER/NAME")
    target = Target(settings.repo_id, settings.private, settings.branch, settings.pull_request, settings.tag)
    additions = {"license": settings.license, "language": settings.language, "base_model": settings.base_model}
    checkpoint = Path(settings.checkpoint).expanduser()
    with through_the_gate(
        checkpoint, additions, fetch_base=fetch_base, trust_remote_code=settings.trust_remote_code
    ) as parcel:
        if settings.dry_run:
            print(_listing(parcel, target), (parcel.folder / CARD_FILE).read_text(encoding="utf-8"), sep="\n\n")
            return None
        say(_listing(parcel, target))
        name = parcel.folder.name
        pushed = push_folder(parcel.folder, target, settings.message or f"{name}, groundup {__version__}", is_ours)
    say(f"{'published' if pushed.is_new else 'nothing had changed'}: {pushed.url}")
    return pushed


def fetch_base(name: str) -> Path:
    """The folder of a model on the Hub, fetched. Raises `InputError` when there is none that the token may see."""
    with plain_words(name):
        return Path(snapshot_download(name, allow_patterns=BASE_FILES))


def _listing(parcel: Parcel, target: Target) -> str:
    """What goes, what stays, and what the stranger said."""
    lines = [f"to {target.repo_id}:", *(f"  {size:>13,} bytes  {name}" for name, size in parcel.files.items())]
    if parcel.left_out:
        lines.append(f"left out: {', '.join(parcel.left_out)}")
    if parcel.proof is not None:
        lines.append(
            "a process without this package loads it: the same ids, the same logits (largest difference "
            f"{parcel.proof.largest_difference:.0e}), the same text"
        )
    return "\n".join(lines)
