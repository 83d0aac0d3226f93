"""Tell what a name stands for by its content: the key under which something made from it may be used again.

Sizes and times of files say nothing certain, so every file is read: a gigabyte takes a second or two.
"""

import glob
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

from groundup.common.errors import InputError, user_path
from groundup.common.files import ADAPTER_FILE, sha256_of

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
    return {path.relative_to(folder).as_posix(): _sha256(path) for path in _walk(folder, without)}


def content_of(name: str, kind: str = "file") -> Any:
    """Return what a file, folder, pattern or Hub name holds now, in types that JSON has; None for anything else.

    `kind` is "file" for what lies here alone, "dataset" where the name may be a pattern or a dataset on the Hub, and
    "model" where it may be a model there. A name on the Hub holds a commit: the newest, or offline the one in the
    cache. An adapter's folder holds its base as well, and a YAML file the files that it names.
    """
    if (place := _here(name)) is not None and place.is_dir():
        return files_of(place, () if kind == "dataset" else KEPT_APART) | _base_of(place)
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


def _walk(folder: Path, without: Collection[str]) -> Iterator[Path]:
    seen = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if (place := os.path.realpath(root)) in seen:  # a link back up
            folders.clear()
            continue
        seen.add(place)
        apart = without if Path(root) == folder else ()
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in apart)
        yield from (Path(root, name) for name in sorted(names) if not name.startswith("."))


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


def _base_of(folder: Path) -> dict[str, Any]:
    """Return the content of the base that an adapter's folder names; empty for any other folder."""
    base = _base_named(folder)
    if base is None:
        return {}
    place = _here(base)
    return {_BASE: _commit_of(base, "model") if place is None else files_of(place, KEPT_APART)}


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
    """Return the commit that a name on the Hub stands for, None where neither the Hub nor its cache knows it."""
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
