"""Files that are whole or not there, told apart by their content; the names of a checkpoint's files.

A file is written beside its place, synced, then renamed. Sizes and times say nothing certain of a content, so every
file is read to tell it: a gigabyte takes a second or two.
"""

import contextlib
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from groundup.common.errors import InputError, user_path

# The files in a checkpoint's folder, named once for all rooms.
CONFIG_FILE, ADAPTER_FILE, OVERRIDES_FILE = "config.json", "adapter_config.json", "config_overrides.json"
GENERATION_FILE = "generation_config.json"
MODEL_WEIGHTS, ADAPTER_WEIGHTS, GGUF_WEIGHTS = "model.safetensors", "adapter_model.safetensors", "model.gguf"
CHAT_TEMPLATE_FILE = "chat_template.jinja"
TOKENIZER_FILE, TOKENIZER_SETTINGS_FILE = "tokenizer.json", "tokenizer_config.json"
MODELFILE = "Modelfile"  # for Ollama, beside a GGUF file
METRICS_FILE, RECIPE_FILE, LOG_FILE = "metrics.json", "recipe.yaml", "log.jsonl"
CARD_FILE, CURVE_FILE, PAGE_FILE = "README.md", "curve.png", "report.html"
CONFUSION_FILE, MISTAKES_FILE = "confusion.png", "mistakes.jsonl"  # of a classifier


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


KEPT_APART = ("checkpoints", "work")  # folders in a run's folder that are needed to go on with it alone
_BASE = "base_model_name_or_path"
_HUB_SECONDS = 10


def digest(value: Any) -> str:
    """Return the sha256 of a value that JSON can write."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def files_of(folder: Path, without: Collection[str] = ()) -> dict[str, str]:
    """Return the sha256 of every file under a folder, links followed, by its path; hidden ones are left out.

    `without` are names of folders right under it to leave out.
    """
    found, seen = {}, set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(root)) in seen:  # a link back up
            folders.clear()
            continue
        seen.add(place)
        apart = without if Path(root) == folder else ()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in apart)
        for path in (Path(root, name) for name in sorted(names) if not name.startswith(".")):
            found[path.relative_to(folder).as_posix()] = _sha256(path)
    return found


def content_of(name: str, kind: str = "file") -> Any:
    """Return what a file, folder, pattern or Hub name holds now, in types that JSON has; None for anything else.

    `kind` is "file" for what lies here alone, "dataset" where the name may be a pattern or a dataset on the Hub, and
    "model" where it may be a model there. A name on the Hub holds a commit: the newest, or offline the one in the
    cache. An adapter's folder holds its base as well, and a YAML file the files that it names.
    """
    if (place := _here(name)) is not None and place.is_dir():
        content: dict[str, Any] = files_of(place, () if kind == "dataset" else KEPT_APART)
        if (base := _base_named(place)) is not None:
            there = _here(base)
            content[_BASE] = _commit_of(base, "model") if there is None else files_of(there, KEPT_APART)
        return content
    if place is not None:
        return [_sha256(place), *_named_in(place)]
    if kind == "dataset":
        found = sorted(glob.glob(str(_path_of(name)), recursive=True))  # noqa: PTH207 (pathlib's takes no absolute pattern)
        if found or "/" not in name:
            return {item: content_of(item, kind) for item in found}
    return None if kind == "file" else _commit_of(name, kind)


def weights_of(name: str) -> Any:
    """Return what `content_of` says of a model's weights alone: a folder whose card or log changed has the same."""
    place = _here(name)
    if place is None or not place.is_dir():
        return _commit_of(name, "model")
    own = {path.name: _sha256(path) for path in sorted(place.glob("*.safetensors"))}
    base = _base_named(place)
    return own if base is None else own | {_BASE: weights_of(base)}


def _sha256(path: Path) -> str:
    """Return the sha256 of a file; of one that cannot be read the reason, which is no sha256."""
    try:
        return sha256_of(path) if path.is_file() else "no file"
    except OSError as error:
        return str(error.strerror)


def _path_of(name: str) -> Path:
    """Return the path that a verb would read by this name, or the name itself where no file can be called so."""
    try:
        return user_path(name)
    except InputError:
        return Path(name)


def _here(name: str) -> Path | None:
    """Return the file or folder of that name, None where there is none, or where no file can be called so."""
    try:
        return place if (place := _path_of(name)).exists() else None
    except (OSError, ValueError):
        return None


def _base_named(folder: Path) -> str | None:
    """Return the base that an adapter's folder names; None for any other folder."""
    try:
        return str(json.loads((folder / ADAPTER_FILE).read_text(encoding="utf-8"))[_BASE])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _named_in(path: Path) -> Iterator[Any]:
    """Yield the content of the files that a YAML file names, from here or its folder, and of programs beside it."""
    if path.suffix.lower() not in (".yaml", ".yml"):
        return
    try:
        events = yaml.parse(path.read_text(encoding="utf-8"))
        scalars = [event for event in events if isinstance(event, yaml.ScalarEvent)]
    except (OSError, ValueError, yaml.YAMLError):
        return
    if any(event.tag == "!function" for event in scalars):  # lm-eval's, of a program in the same folder
        yield {program.name: _sha256(program) for program in sorted(path.parent.glob("*.py"))}
    for name in sorted({event.value for event in scalars} - {""}):
        for place in (_here(name), _here(str(path.parent / name))):
            if place is not None and place.is_file() and not place.samefile(path):
                yield [name, _sha256(place)]


def _commit_of(name: str, kind: str) -> str | None:
    """Return the commit of a name on the Hub, None if neither the Hub nor its cache knows it."""
    from huggingface_hub import HfApi, constants  # a second that a recipe of files alone need not wait for
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.file_download import repo_folder_name

    name = name.split(":")[0]
    try:
        return HfApi().repo_info(name, repo_type=kind, timeout=_HUB_SECONDS).sha
    except HFValidationError:  # no name that anything there can have
        return None
    except Exception:  # unreachable, or nothing there: whoever reads it will say so
        ref = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind) / "refs" / "main"
        return ref.read_text(encoding="utf-8").strip() if ref.is_file() else None
