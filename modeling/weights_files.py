"""Read a stock model in every form in which it lies on a disk: its config, and its tensors by their plain names.

Safetensors (one file or shards with an index), GGUF, and of GPT-2, which is older than these, transformers' pickles and
OpenAI's TensorFlow checkpoint. A pickle is read by torch's `weights_only` loader, which makes tensors and runs no code.
"""

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, GPT2Config, PreTrainedConfig

from .gpt2_files import infer_config, openai_names, read_tensorflow
from .stock import groundup_config, plain_names

WEIGHTS_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_PICKLES = (".bin", ".pt", ".pth")


def find_weights(place: Path) -> Path:
    """Return the file with the weights: `place` itself, or the one in that folder, safetensors before a pickle.

    For shards and for a TensorFlow checkpoint it is the index. Raises `ValueError` when there is none, or several.
    """
    if place.is_file():
        return place
    found = [place / name for name in WEIGHTS_FILES if (place / name).is_file()]
    found = found[:1] or sorted(place.glob("*.index")) or sorted(place.glob("*.gguf"))
    if not found:
        if (place / "adapter_config.json").is_file():
            raise ValueError(f"{place} holds an adapter: fold it into its base by groundup merge")
        raise ValueError(f"{place} holds none of {', '.join(WEIGHTS_FILES)}, model.ckpt.index, *.gguf: give the folder")
    if len(found) > 1:
        raise ValueError(f"{place} holds several checkpoints, {', '.join(p.name for p in found)}: give one of them")
    return found[0]


def read_weights(weights: Path) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Return config and tensors, by plain names, of the file that `find_weights` found.

    The config comes from config.json or OpenAI's hparams.json beside it, or from the GGUF file; that of a GPT-2 without
    one is inferred from the shapes. Raises `ValueError` for a file that is broken, that holds more than tensors, or
    whose architecture cannot be held.
    """
    if weights.suffix.lower() == ".gguf":
        return _read_gguf(weights)
    config = read_config(weights.parent)
    kind = "gpt2" if config is None else config.model_type
    if weights.suffix == ".index":
        tensors = openai_names(read_tensorflow(weights))
    elif weights.suffix == ".json":
        tensors = _read_shards(weights, kind)
    else:
        tensors = _read_tensors(weights, kind)
    tensors = plain_names(tensors, kind)
    return config or infer_config(tensors), tensors


def weights_files(weights: Path) -> list[Path]:
    """Return all files that `read_weights` takes tensors from, for the record."""
    if weights.suffix == ".index":
        return [weights, *sorted(weights.parent.glob(f"{weights.stem}.data-*"))]
    if weights.suffix == ".json":
        return [weights, *(weights.parent / name for name in _shard_names(weights))]
    return [weights]


def read_config(folder: Path) -> PreTrainedConfig | None:
    """Return the config of the model in a folder, None where there is none. Raises `ValueError` as `read_weights`."""
    if (path := folder / "config.json").is_file():
        values = _read_json(path)
        kind = values.get("model_type", "gpt2")
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"{path.name} says model_type {kind!r}, which transformers does not know")
        if how := values.get("quantization_config"):
            method = how.get("quant_method", how) if isinstance(how, dict) else how
            raise ValueError(f"its weights are quantized ({method}): give the model as it was before, or its GGUF file")
        config = CONFIG_MAPPING[kind].from_dict(values)
        groundup_config(config)  # refuses what cannot be held before the weights are read
        return config
    if (path := folder / "hparams.json").is_file():
        values = _read_json(path)
        ours = {"vocab_size": "n_vocab", "n_positions": "n_ctx"} | {n: n for n in ("n_embd", "n_layer", "n_head")}
        if missing := [name for name in ours.values() if name not in values]:
            raise ValueError(f"{path} has no {', '.join(missing)}")
        end = values["n_vocab"] - 1  # OpenAI's vocabulary ends with <|endoftext|>
        return GPT2Config(**{name: values[n] for name, n in ours.items()}, bos_token_id=end, eos_token_id=end)
    return None


def _read_gguf(path: Path) -> tuple[PreTrainedConfig, dict[str, torch.Tensor]]:
    """Return what transformers reads from a GGUF file, its matrices turned back into fp32."""
    place: dict[str, Any] = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
    try:
        config = AutoConfig.from_pretrained(**place)
        groundup_config(config)
        model = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32)
    except (RuntimeError, KeyError, IndexError, struct.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{path.name} is cut short or no GGUF file that transformers reads ({reason})") from error
    values = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    return type(model.config).from_dict(values), plain_names(model.state_dict(), model.config.model_type)


def _read_tensors(path: Path, kind: str) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path.name} is cut short or is no safetensors file ({error}): fetch it again") from error
    if path.suffix not in _PICKLES:
        raise ValueError(f"{path.name} is no file of weights: give .safetensors, .gguf, or GPT-2's .bin or .index")
    if kind != "gpt2":
        raise ValueError(f"{path.name} is a pickle, which is read of GPT-2 alone: give {kind} as safetensors")
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle may fail anywhere
        raise ValueError(f"{path.name} is broken or holds more than tensors, and is not opened: convert it") from error
    if not isinstance(values, dict) or not all(isinstance(value, torch.Tensor) for value in values.values()):
        raise ValueError(f"{path.name} holds something else than a dictionary of tensors: give GPT-2's own file")
    return values


def _read_shards(index: Path, kind: str) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {}
    for name in _shard_names(index):
        if not (index.parent / name).is_file():
            raise ValueError(f"{name} is missing beside {index.name}: fetch it too")
        tensors |= _read_tensors(index.parent / name, kind)
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


__all__ = ["WEIGHTS_FILES", "find_weights", "read_config", "read_weights", "weights_files"]
