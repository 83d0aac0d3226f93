"""Sort the files of a checkpoint's folder: those of the contract, those that stay behind and those that are refused."""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import get_token
from transformers.dynamic_module_utils import get_relative_import_files

import groundup
from groundup.common.errors import InputError, is_disk_full
from groundup.common.files import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CARD_FILE,
    CHAT_TEMPLATE_FILE,
    CONFIG_FILE,
    CURVE_FILE,
    GENERATION_FILE,
    GGUF_WEIGHTS,
    LOG_FILE,
    METRICS_FILE,
    MODEL_WEIGHTS,
    MODELFILE,
    OVERRIDES_FILE,
    RECIPE_FILE,
    TOKENIZER_FILE,
    TOKENIZER_SETTINGS_FILE,
)
from groundup.common.output import STATE
from groundup.publishing.hub_client import SECRET

WEIGHTS = (MODEL_WEIGHTS, ADAPTER_WEIGHTS, GGUF_WEIGHTS)
OWN_CODE = Path(groundup.__file__).parent / "modeling"
# The network's file and those that it imports from its folder: the code that travels.
_NETWORK = OWN_CODE / "modeling_groundup.py"
CODE = tuple(sorted(Path(path).name for path in [_NETWORK, *get_relative_import_files(_NETWORK)]))
SETTINGS_FILES = (CONFIG_FILE, ADAPTER_FILE, OVERRIDES_FILE, GENERATION_FILE, TOKENIZER_SETTINGS_FILE)
# The files of the contract: what a checkpoint's repository holds, and nothing else.
CONTRACT = (
    *WEIGHTS,
    *CODE,
    *SETTINGS_FILES,
    *(TOKENIZER_FILE, "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt"),
    *(CHAT_TEMPLATE_FILE, LOG_FILE, CURVE_FILE),
    *(METRICS_FILE, RECIPE_FILE, CARD_FILE),
    MODELFILE,
)
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
TOKEN_FILES = ("token", "stored_tokens", ".env", ".netrc", ".git-credentials", ".pypirc", "id_rsa", "id_ed25519")
_SCAN = 2**22  # bytes read at once


@dataclass
class Findings:
    """The faults of a folder; each entry says what is wrong, and what to do."""

    folder: Path
    found: list[str] = field(default_factory=list)

    def add(self, what: str, mend: str) -> None:
        """Note a fault and its fix."""
        self.found.append(f"{what}: {mend}")

    def stop(self) -> None:
        """Raise `InputError` with everything that was found, if anything was."""
        if self.found:
            raise InputError(shown(f"{self.folder} is not fit to be published: " + "; ".join(self.found)))


def sort_files(checkpoint: Path) -> tuple[list[str], list[str]]:
    """Return the files of a folder that belong to the contract, and what else lies there.

    Raises `InputError` for what must not lie beside a checkpoint at all: names that no repository can have, links out
    of the folder, pickles, tokens.
    """
    if not checkpoint.is_dir():
        raise InputError(f"{shown(str(checkpoint))} is no folder: give the folder of a checkpoint")
    findings, chosen, left_out = Findings(checkpoint), [], []
    for path in sorted(checkpoint.iterdir()):
        name = path.name
        # One that means the same file in git, in a URL, on any system and on a terminal.
        is_plain = len(name) <= 200 and re.fullmatch(r"[\w.][\w. +()=@,-]*", name, re.ASCII) and ".." not in name
        if not is_plain:
            findings.add(f"the file name {shown(name)} is not a plain one", "remove or rename it")
        elif path.is_symlink() and not path.resolve().is_relative_to(checkpoint.resolve()):
            findings.add(f"{name} is a link out of the folder", "put the file itself there")
        elif name in CONTRACT and not stat.S_ISREG(path.stat().st_mode):
            findings.add(f"{name} is no regular file", "remove it")
        elif name in CONTRACT:
            chosen.append(name)
        elif name != STATE:  # that is there only while the run goes on
            left_out.append(name + "/" * path.is_dir())
    for path in _everything(checkpoint):
        _look_for_dangers(path, findings)
    findings.stop()
    return chosen, left_out


def _everything(folder: Path) -> Iterator[Path]:
    """Yield every regular file under a folder, without following links to folders."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path


def _look_for_dangers(path: Path, findings: Findings) -> None:
    """Note pickles, by name and by content, and tokens."""
    name = shown(path.relative_to(findings.folder).as_posix())
    with path.open("rb") as file:
        start = file.read(4096)
    # A safetensors header of some lengths begins as a pickle does.
    is_pickle = re.match(rb"\x80[\x02-\x05]", start) is not None and start[3:9] != b"\0\0\0\0\0{"
    is_torch_archive = start.startswith(b"PK\x03\x04") and b"data.pkl" in start
    if path.suffix.lower() in PICKLES or is_pickle or is_torch_archive:
        findings.add(f"{name} is or may be a pickle, which can run code", "remove it")
    if path.name.lower() in TOKEN_FILES:
        findings.add(f"{name} is a file for secrets", "remove it")
    elif path.suffix not in (".safetensors", ".gguf", ".png") and _holds_a_token(path):
        findings.add(f"{name} holds something like a token", "take it out, and make the token invalid")


def _holds_a_token(path: Path) -> bool:
    """Return whether a file holds what looks like a token, or the one in use, read in pieces that overlap."""
    token = (get_token() or "").encode()
    with path.open("rb") as file:
        tail = b""
        while piece := file.read(_SCAN):
            text = tail + piece
            if SECRET.search(text) or (token and token in text):
                return True
            tail = text[-256:]
    return False


def copy_files(checkpoint: Path, copy: Path, files: list[str]) -> None:
    """Copy the files, large ones too, so that later changes to the checkpoint cannot reach what is sent.

    Raises `InputError` for a file that changes meanwhile, one that cannot be read, and a disk without room.
    """
    copy.mkdir()
    for name in files:
        try:
            source = (checkpoint / name).resolve(strict=True)
            before = source.stat()
            shutil.copyfile(source, copy / name)
            after = source.stat()
        except FileNotFoundError as error:
            raise InputError(f"{name} was removed while it was looked at: publish when the run has ended") from error
        except OSError as error:
            if is_disk_full(error):
                size = sum((checkpoint / name).stat().st_size for name in files)
                raise InputError(
                    f"no room in {copy.parent} for a copy of what is to be published ({size / 1e6:,.0f} MB): "
                    "make room, or let TMPDIR name a folder that has more"
                ) from error
            raise InputError(f"{name} cannot be copied ({error.strerror}): fix that, then publish again") from error
        if (before.st_ino, before.st_size, before.st_mtime_ns) != (after.st_ino, after.st_size, after.st_mtime_ns):
            raise InputError(f"{name} changed while it was copied: publish when the run has ended")
    findings = Findings(copy)
    for path in _everything(copy):  # what was looked at before may have been another
        _look_for_dangers(path, findings)
    findings.stop()


def shown(text: str) -> str:
    """Return a name as it can be printed: control characters and broken bytes become escapes."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def is_ours(name: str) -> bool:
    """Return whether a file of a repository is one that a push may replace or delete."""
    return name in CONTRACT
