"""Files that are whole or not there: written beside their place, synced, then renamed; a checkpoint's file names."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# The files in a checkpoint's folder, named once for all rooms.
CONFIG_FILE, ADAPTER_FILE, OVERRIDES_FILE = "config.json", "adapter_config.json", "config_overrides.json"
MODEL_WEIGHTS, ADAPTER_WEIGHTS, GGUF_WEIGHTS = "model.safetensors", "adapter_model.safetensors", "model.gguf"
TOKENIZER_FILE = "tokenizer.json"
METRICS_FILE, RECIPE_FILE, LOG_FILE = "metrics.json", "recipe.yaml", "log.jsonl"
CARD_FILE, CURVE_FILE, PAGE_FILE = "README.md", "curve.png", "report.html"


@contextlib.contextmanager
def atomic_folder(target: Path, temporary: Path | None = None) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on leaving, sync it and put it in `target`'s place.

    An error inside leaves what was at `target` untouched and removes the temporary folder. `temporary` is its path
    where one process alone writes there: what a killed one left in it is then removed by the next.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    if temporary is None:
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        temporary.chmod(0o755)
    else:
        remove(temporary)
        temporary.mkdir(parents=True)
    try:
        yield temporary
        replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if temporary.parent != target.parent:
            with contextlib.suppress(OSError):  # something else is being written there
                temporary.parent.rmdir()


def replace_folder(temporary: Path, target: Path) -> None:
    """Sync the folder `temporary`, which lies beside `target`, and put it in `target`'s place."""
    sync_tree(temporary)
    if target.exists():
        old = temporary.with_name(temporary.name + ".old")
        remove(old)
        target.rename(old)
        temporary.rename(target)
        shutil.rmtree(old)
    else:
        temporary.rename(target)
    sync_folder(target.parent)


def atomic_write(target: Path, content: bytes) -> None:
    """Write a small file so that a crash leaves the old content or the new, never a part.

    What a killed process left of it is overwritten by the next that writes the file: one at a time may.
    """
    temporary = target.with_name(f".{target.name}.partial")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_tree(folder: Path) -> None:
    """Flush every file under `folder`, and the folders themselves, to the disk; make files world-readable."""
    for path in [*folder.rglob("*"), folder]:
        if path.is_dir():
            sync_folder(path)
        else:
            path.chmod(0o644)
            sync_file(path)


def sync_file(path: Path) -> None:
    """Flush a file to the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk where the system can (Windows cannot open a folder)."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove(path: Path) -> None:
    """Remove a file, a link or a folder, as far as that can be done."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()
