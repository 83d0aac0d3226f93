"""Check a checkpoint's folder before the Hub: that it is whole, honest and safe; and make a clean copy of it.

Every failure is named with its fix. Only the files of the contract pass; what stays behind is listed. Last comes the
proof (`proof.py`): a process without this package loads the copy, and nothing but the copy.
"""

import contextlib
import json
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from transformers.dynamic_module_utils import get_relative_imports

import groundup
from groundup.common.errors import InputError, one_line
from groundup.common.files import (
    ADAPTER_FILE,
    ADAPTER_WEIGHTS,
    CARD_FILE,
    CONFIG_FILE,
    GGUF_WEIGHTS,
    METRICS_FILE,
    MODEL_WEIGHTS,
    RECIPE_FILE,
    TOKENIZER_FILE,
    TOKENIZER_SETTINGS_FILE,
    sha256_of,
)
from groundup.common.settings import read_yaml, write_yaml
from groundup.inference.folder import BASE_SHA256, auto_class_of, read_json
from groundup.publishing.card import HUB_NAME, write_card
from groundup.publishing.gate_folder import (
    CODE,
    OWN_CODE,
    SETTINGS_FILES,
    WEIGHTS,
    Findings,
    copy_files,
    shown,
    sort_files,
)
from groundup.publishing.gguf import PROVEN
from groundup.publishing.hub_client import SECRET
from groundup.publishing.proof import PROBE, Proof, prove
from groundup.tokenization.folder import load_tokenizer

LARGEST_FILE = 50 * 10**9  # bytes; the Hub asks to cut what is larger (docs/hub/storage-limits)
LARGEST_TEXT = 100 * 10**6  # bytes of a text file that is read whole
LARGEST_SETTINGS = 10 * 10**6  # bytes of a file of settings
LICENSE = r"[a-z0-9][a-z0-9.+-]*"  # how the Hub's identifiers of licences look
_PERSONAL = re.compile(rb"(?<![\w/.])(?:/home/|/Users/|/root/|[A-Za-z]:\\\\?Users\\)[^\s\"',:;)]*")
_CODE_PLACE = re.compile(r"(\w+)\.\w+")


@dataclass(frozen=True)
class Parcel:
    """A folder that may be published, with these files and no other, and what the clean process said of it.

    `files` gives their sizes (bytes), `proven` the sha256 of each, of which nothing else may be sent.
    """

    folder: Path
    files: dict[str, int]
    proven: dict[str, str]
    left_out: list[str]
    proof: Proof | None


@contextlib.contextmanager
def through_the_gate(
    checkpoint: Path,
    additions: dict[str, Any] | None = None,
    *,
    repo_id: str = ".",
    fetch_base: Callable[[str], Path] | None = None,
    trust_remote_code: bool = False,
) -> Iterator[Parcel]:
    """Check a checkpoint and yield a clean copy of it, with its card written anew; the copy is gone afterwards.

    Args:
        checkpoint: the folder of a model, an adapter or a twin.
        additions: keys to put into the published `recipe.yaml`: license, language, base_model.
        repo_id: where the card says that the model is loaded from: its repository, or the folder itself.
        fetch_base: gives the folder of an adapter's base model, by its name on the Hub.
        trust_remote_code: run modeling files that differ from this package's.

    Raises:
        InputError: naming every fault with its fix.
    """
    files, left_out = sort_files(checkpoint)
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / (checkpoint.resolve().name or "checkpoint")
        with _named(checkpoint, copy):
            copy_files(checkpoint, copy, files)
        if (name := (additions or {}).get("base_model")) and (copy / ADAPTER_FILE).is_file():  # as others know it
            settings = read_json(copy / ADAPTER_FILE) | {"base_model_name_or_path": name, "revision": None}
            written = json.dumps(settings, indent=2, sort_keys=True) + "\n"
            (copy / ADAPTER_FILE).write_text(written, encoding="utf-8")
        with _named(checkpoint, copy):
            sha256 = check_content(copy, additions or {}, trust_remote_code)
        base = _base_of(copy, fetch_base, trust_remote_code)
        with _named(checkpoint, copy):
            proof = None if (copy / GGUF_WEIGHTS).is_file() else prove(copy, "Once upon a time", base=base)
        write_card(copy, repo_id, base)
        sizes = {name: (copy / name).stat().st_size for name in sorted({*files, CARD_FILE})}
        yield Parcel(copy, sizes, sums_of(copy) | sha256, left_out, proof)


def sums_of(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file under a folder, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): sha256_of(path) for path in paths}


@contextlib.contextmanager
def _named(checkpoint: Path, copy: Path) -> Iterator[None]:
    """Name the folder that was given in every error, not its copy."""
    try:
        yield
    except InputError as error:
        raise InputError(shown(str(error).replace(str(copy), str(checkpoint)))) from error


# ---------------------------------------------------------------------------------------------------------------------
# The content


def check_content(folder: Path, additions: dict[str, Any], trust_remote_code: bool = False) -> dict[str, str]:
    """Check every file of a clean copy, put `additions` into its recipe, and return the sha256 of its weights.

    Raises `InputError` with everything that is wrong.
    """
    findings = Findings(folder)
    weights = [name for name in WEIGHTS if (folder / name).is_file()]
    if len(weights) != 1:
        what = f"there are {len(weights)} files of weights" if weights else "there is no file of weights"
        findings.add(what, f"a repository holds one of {', '.join(WEIGHTS)}, whole and in one file")
    _check_sizes(folder, findings)
    findings.stop()
    values = {name: _json(folder / name, findings) for name in SETTINGS_FILES if (folder / name).is_file()}
    sha256 = {weights[0]: sha256_of(folder / weights[0])}
    if weights[0] != GGUF_WEIGHTS:
        _check_weights(folder / weights[0], findings)
        _check_config(folder, weights[0], values, findings)
        _check_tokenizer(folder, values, findings)
    _check_code(folder, values.get(CONFIG_FILE) or {}, findings, trust_remote_code)
    _check_metrics(folder, sha256[weights[0]], findings)
    _check_recipe(folder, additions, findings)
    _check_paths(folder, findings)
    findings.stop()
    return sha256


def _check_sizes(folder: Path, findings: Findings) -> None:
    for path in sorted(folder.iterdir()):
        size = path.stat().st_size
        limit = LARGEST_FILE if path.suffix in (".safetensors", ".gguf", ".jsonl") else LARGEST_TEXT
        limit = LARGEST_SETTINGS if path.name in (*SETTINGS_FILES, RECIPE_FILE, METRICS_FILE) else limit
        if size > limit:
            findings.add(f"{path.name} has {size:,} bytes", f"at most {limit:,} are taken")


def _json(path: Path, findings: Findings) -> dict[str, Any] | None:
    """Return the mapping in a JSON file, or None and note a finding where it is something else."""
    reason = "no mapping"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return values
    except (ValueError, RecursionError) as error:
        reason = f"no JSON ({one_line(error)})"
    findings.add(f"{path.name} is {reason}", "save the model again")
    return None


def _check_weights(path: Path, findings: Findings) -> None:
    """Check that the Hub can read the header, the tensors fill the file, and every number is finite."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > constants.SAFETENSORS_MAX_HEADER_LENGTH:
            most = constants.SAFETENSORS_MAX_HEADER_LENGTH
            findings.add(f"the header of {path.name} claims {length:,} bytes, the Hub reads {most:,}", "save it again")
            return
        header = file.read(length)
    if SECRET.search(header) or _PERSONAL.search(header):
        findings.add(f"the header of {path.name} holds a token or a path of your machine", "save it without metadata")
    try:
        with safe_open(path, "pt") as tensors:
            if not (names := list(tensors.keys())):
                findings.add(f"{path.name} holds no tensor", "save the model again")
            for name in names:
                tensor = tensors.get_tensor(name)
                parts = tensor.flatten().split(2**24) if tensor.is_floating_point() else ()
                if not all(bool(torch.isfinite(part.float()).all()) for part in parts):
                    findings.add(f"{shown(name)} in {path.name} has numbers that are not finite", "train it again")
    except (SafetensorError, OSError, ValueError, RuntimeError, TypeError, KeyError, UnicodeError) as error:
        findings.add(f"{path.name} is not a complete safetensors file ({one_line(error)})", "save the model again")


def _check_config(folder: Path, weights: str, values: dict[str, dict[str, Any] | None], findings: Findings) -> None:
    """Check that the config names a known class, and no more layers than there are tensors."""
    name = ADAPTER_FILE if weights == ADAPTER_WEIGHTS else CONFIG_FILE
    if name not in values:
        findings.add(f"{name} is missing", "save the model again")
    elif (config := values[name]) is not None:
        try:
            auto_class_of(folder)
        except InputError as error:
            findings.found.append(str(error))
        layers = config.get("num_hidden_layers", 0)
        if not findings.found and isinstance(layers, int):
            with safe_open(folder / weights, "pt") as tensors:
                count = len(list(tensors.keys()))
            if layers > count:
                findings.add(f"{name} claims {layers:,} layers, more than there are tensors", "save the model again")


def _check_code(folder: Path, config: dict[str, Any], findings: Findings, trust_remote_code: bool) -> None:
    """Check that code comes from this folder alone, and is this package's own unless the user trusts it.

    The code is what `auto_map` names, and what that imports from the folder.
    """
    auto_map, again = config.get("auto_map") or {}, "save the model again"
    named_by: dict[str, str] = {}  # what names each file
    for place in auto_map.values() if isinstance(auto_map, dict) else [auto_map]:
        if match := _CODE_PLACE.fullmatch(place) if isinstance(place, str) else None:
            named_by[f"{match[1]}.py"] = "which auto_map names"
        else:
            findings.add(f"auto_map names {shown(str(place)[:80])}, no class in this folder", again)
    waiting = [*named_by]
    while waiting:
        name = waiting.pop(0)
        if not (folder / name).is_file():
            findings.add(f"{name}, {named_by[name]}, is missing", again)
            continue
        with contextlib.suppress(UnicodeDecodeError):  # Python cannot read it either: it is none of ours
            for module in get_relative_imports(folder / name):
                if not module.isidentifier():
                    findings.add(f"{name} imports .{module[:80]}, no file of this folder", again)
                elif f"{module}.py" not in named_by:
                    named_by[f"{module}.py"] = f"which {name} imports"
                    waiting.append(f"{module}.py")
    for name in sorted({*CODE, *named_by}):
        path, own = folder / name, OWN_CODE / name
        if path.is_file() and not trust_remote_code and not (own.is_file() and path.read_bytes() == own.read_bytes()):
            findings.add(
                f"{name} is not the one of groundup {groundup.__version__}",
                "load the model with this version and save it again, or add --trust-remote-code",
            )


def _check_tokenizer(folder: Path, values: dict[str, Any], findings: Findings) -> None:
    """Check that the tokenizer loads, gives back the text it was given, and has no code of its own."""
    if (values.get(TOKENIZER_SETTINGS_FILE) or {}).get("auto_map"):
        findings.add("tokenizer_config.json names code", "save a tokenizer that needs none")
        return
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        if not (folder / ADAPTER_FILE).is_file():  # an adapter may leave the tokenizer to its base
            findings.add("tokenizer.json is missing", "save the tokenizer into the folder")
        return
    try:
        backend = Tokenizer.from_file(str(path))
        ids = backend.encode(PROBE, add_special_tokens=False).ids
        text = backend.decode(ids, skip_special_tokens=False)
        again = backend.encode(text, add_special_tokens=False).ids
        load_tokenizer(folder)
    except InputError as error:
        findings.add(one_line(error), "save the tokenizer again")
    except BaseException as error:  # the library is written in Rust, and what panics there is no Exception here
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        findings.add(f"tokenizer.json cannot be used ({one_line(error)})", "save the tokenizer again")
    else:
        # A byte-level tokenizer must give the text back; one of words loses some, but must agree with itself.
        if ids != again or ("ByteLevel" in str(backend.decoder) and text != PROBE):
            findings.add("the tokenizer does not decode to the text it encoded", "train it again")


def _check_metrics(folder: Path, sha256: str, findings: Findings) -> None:
    """Check that the scores are there, are numbers, and belong to these very weights."""
    mend = "score these weights with groundup evaluate and put its metrics.json into the folder"
    path = folder / METRICS_FILE
    if not path.is_file():
        findings.add(f"{METRICS_FILE} is missing", mend)
        return
    if (metrics := _json(path, findings)) is None:
        return
    rows = metrics.get("metrics")

    def is_row(row: Any) -> bool:
        if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("name", "dataset", "split")):
            return False
        value = row.get("value")
        return value is None or (isinstance(value, int | float) and math.isfinite(value))

    if not isinstance(rows, list) or not all(map(is_row, rows)):
        findings.add(f"{METRICS_FILE} has no list of rows with name, value, dataset and split", mend)
    if not all(isinstance(metrics.get(name), dict) for name in ("training", "versions")):
        findings.add(f"{METRICS_FILE} does not say how and with which versions it was made", mend)
    if metrics.get("weights_sha256") != sha256:
        findings.add(f"{METRICS_FILE} was not made from these weights", mend)
    if (path.parent / GGUF_WEIGHTS).is_file() and not (metrics.get("training") or {}).get(PROVEN):
        findings.add(
            f"{GGUF_WEIGHTS} was never opened in llama.cpp", "pip install 'groundup[serve]', then export it again"
        )


def _check_recipe(folder: Path, additions: dict[str, Any], findings: Findings) -> None:
    """Check that the recipe can be read and names a licence; put into it what was given with the command."""
    path = folder / RECIPE_FILE
    if not path.is_file():
        findings.add(f"{RECIPE_FILE} is missing", "write one, with a line such as name: my-model")
        return
    try:
        recipe = read_yaml(path) | {name: value for name, value in additions.items() if value}
    except (InputError, RecursionError, ValueError, TypeError, AttributeError) as error:
        findings.add(f"{RECIPE_FILE} cannot be used ({one_line(error)})", "train again, or write one")
        return
    if not re.fullmatch(LICENSE, str(recipe.get("license") or "")):
        findings.add("no licence is set", "add --license, for example --license apache-2.0")
    try:
        write_yaml(path, recipe)
        write_card(folder)
    except (InputError, ValueError, TypeError, KeyError, AttributeError, RecursionError, UnicodeError) as error:
        if not findings.found:
            made = f"no card can be made of {RECIPE_FILE} and {METRICS_FILE}"
            findings.add(f"{made} ({one_line(error)})", "train it again")


def _check_paths(folder: Path, findings: Findings) -> None:
    """Check that no text file names a path on this machine or the user's home folder."""
    home = os.fsencode(Path.home())
    for path in sorted(folder.iterdir()):
        if path.suffix in (".safetensors", ".gguf", ".png", ".py"):
            continue
        text = path.read_bytes()
        # A tokenizer's vocabulary, or a sample of text, may well hold somebody's path.
        generic = None if path.name in (TOKENIZER_FILE, "vocab.json", CARD_FILE) else _PERSONAL.search(text)
        if (len(home) > len("/root") and home in text) or generic:
            place = generic[0].decode("utf-8", "replace") if generic else "your home folder"
            findings.add(f"{path.name} names a place on your machine ({shown(place[:80])})", "put a name in its stead")


def _base_of(copy: Path, fetch_base: Callable[[str], Path] | None, trust_remote_code: bool) -> Path | None:
    """Return the folder of an adapter's base model; what the adapter says of it must hold for everybody."""
    if not (copy / ADAPTER_FILE).is_file():
        return None
    settings = read_json(copy / ADAPTER_FILE)
    name = settings.get("base_model_name_or_path")
    if not isinstance(name, str) or not HUB_NAME.fullmatch(name) or fetch_base is None:
        raise InputError(
            f"{ADAPTER_FILE} names {shown(str(name))} as its base, which nobody else has: publish the base first, "
            "then add --base-model OWNER/NAME"
        )
    base = fetch_base(name)
    findings = Findings(base)
    values = _json(base / CONFIG_FILE, findings) if (base / CONFIG_FILE).is_file() else None
    if values is None:
        findings.add(f"{name} has no {CONFIG_FILE}", "give another --base-model")
    else:
        _check_code(base, values, findings, trust_remote_code)
    known = read_json(copy / METRICS_FILE)["training"].get(BASE_SHA256)
    weights = base / MODEL_WEIGHTS
    if known and weights.is_file() and sha256_of(weights) != known:
        findings.add(f"{name} has other weights than the base this adapter was trained on", "publish that one first")
    findings.stop()
    return base
