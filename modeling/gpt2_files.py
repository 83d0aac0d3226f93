"""Every form in which GPT-2's weights lie on a disk -> its settings and its tensors by their plain names.

Safetensors (one file or shards with an index), transformers' old pickles, OpenAI's TensorFlow checkpoint. A pickle is
read by torch's `weights_only` loader, which makes tensors and runs no code.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import GPT2Config

from .gpt2 import infer_config, openai_names, plain_names
from .tensorflow_checkpoint import read_tensorflow

WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def find_weights(place: Path) -> Path:
    """The file with the weights: `place` itself, or the one that its folder holds, safetensors before a pickle.

    For shards and for a TensorFlow checkpoint it is the index. Raises `ValueError` when there is none, or several.
    """
    if place.is_file():
        return place
    found = [place / name for name in WEIGHTS_FILES if (place / name).is_file()] or sorted(place.glob("*.index"))
    if not found:
        raise ValueError(f"{place} holds none of {', '.join(WEIGHTS_FILES)}, model.ckpt.index: give GPT-2's folder")
    if found[0].suffix == ".index" and len(found) > 1:
        raise ValueError(
            f"{place} holds several checkpoints, {', '.join(p.name for p in found)}: give one of the files"
        )
    return found[0]


def read_gpt2(weights: Path) -> tuple[GPT2Config, dict[str, torch.Tensor]]:
    """Settings and tensors, by plain names, of the file that `find_weights` found.

    The settings come from config.json or OpenAI's hparams.json beside it, else from the shapes. Raises `ValueError` for
    a file that is broken, holds more than tensors, or belongs to another kind of model.
    """
    if weights.suffix == ".index":
        tensors = openai_names(read_tensorflow(weights))
    elif weights.suffix == ".json":
        tensors = plain_names(_read_shards(weights))
    else:
        tensors = plain_names(_read_tensors(weights))
    return _read_config(weights.parent) or infer_config(tensors), tensors


def weights_files(weights: Path) -> list[Path]:
    """All files that `read_gpt2` takes tensors from, for the record."""
    if weights.suffix == ".index":
        return [weights, *sorted(weights.parent.glob(f"{weights.stem}.data-*"))]
    if weights.suffix == ".json":
        return [weights, *(weights.parent / name for name in _shard_names(weights))]
    return [weights]


def _read_config(folder: Path) -> GPT2Config | None:
    if (path := folder / "config.json").is_file():
        values = _read_json(path)
        if values.get("model_type", "gpt2") != "gpt2":
            raise ValueError(f"{path} says model_type {values['model_type']!r}: only GPT-2 can be imported")
        return GPT2Config.from_dict(values)
    if (path := folder / "hparams.json").is_file():
        values = _read_json(path)
        ours = {"vocab_size": "n_vocab", "n_positions": "n_ctx"} | {n: n for n in ("n_embd", "n_layer", "n_head")}
        if missing := [name for name in ours.values() if name not in values]:
            raise ValueError(f"{path} has no {', '.join(missing)}")
        end = values["n_vocab"] - 1  # OpenAI's vocabulary ends with <|endoftext|>
        return GPT2Config(**{name: values[n] for name, n in ours.items()}, bos_token_id=end, eos_token_id=end)
    return None


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path.name} is cut short or is no safetensors file ({error}): fetch it again") from error
    if path.suffix not in (".bin", ".pt", ".pth"):
        raise ValueError(f"{path.name} is no file of weights: give .safetensors, .bin, or a TensorFlow .index")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle may fail anywhere
        raise ValueError(f"{path.name} is broken or holds more than tensors, and is not opened: convert it") from error
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise ValueError(f"{path.name} holds something else than a dictionary of tensors: give GPT-2's own file")
    return values


def _read_shards(index: Path) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name in _shard_names(index):
        if not (index.parent / name).is_file():
            raise ValueError(f"{name} is missing beside {index.name}: fetch it too")
        tensors |= _read_tensors(index.parent / name)
    return tensors


def _shard_names(index: Path) -> list[str]:
    names = _read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ValueError(f"{index.name} has no weight_map: fetch it again")
    return sorted({Path(name).name for name in names.values()})


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON ({error}): fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold names and values: fetch it again")
    return values


__all__ = ["WEIGHTS_FILES", "find_weights", "read_gpt2", "weights_files"]
