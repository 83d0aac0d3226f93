"""Read a stock model in every form in which it lies on a disk: its config, and its tensors by their plain names.

Safetensors (one file or shards with an index), GGUF, and of GPT-2, which is older than these, transformers' pickles and
OpenAI's TensorFlow checkpoint. A pickle is read by torch's `weights_only` loader, which makes tensors and runs no code.
"""

import json
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForCausalLM, GPT2Config, PreTrainedConfig

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


# ---------------------------------------------------------------------------------------------------------------------
# What only GPT-2 has: weights without a config, and OpenAI's names


def infer_config(tensors: dict[str, torch.Tensor]) -> GPT2Config:
    """Infer the settings of a checkpoint that comes without them from the shapes of its tensors (plain names).

    All of OpenAI's sizes have heads of width 64. Which token ends a text is not known from shapes. Raises `ValueError`
    when embeddings or blocks are missing, or the width does not divide by 64.
    """
    blocks = {int(name.split(".")[1]) for name in tensors if re.match(r"h\.\d+\.", name)}
    if 0 not in blocks or any(name not in tensors or tensors[name].ndim != 2 for name in ("wte.weight", "wpe.weight")):
        raise ValueError("no wte.weight, wpe.weight and h.0 among the tensors: these are not GPT-2's weights")
    vocab_size, width = tensors["wte.weight"].shape
    if width % 64:
        raise ValueError(f"a width of {width} does not divide into heads of 64: put its config.json beside the weights")
    inner = len(tensors["h.0.mlp.c_fc.bias"]) if "h.0.mlp.c_fc.bias" in tensors else 4 * width
    head = tensors.get("lm_head.weight")
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=tensors["wpe.weight"].shape[0],
        n_embd=width,
        n_layer=max(blocks) + 1,
        n_head=width // 64,
        n_inner=None if inner == 4 * width else inner,
        tie_word_embeddings=head is None or torch.equal(head, tensors["wte.weight"]),
        bos_token_id=None,
        eos_token_id=None,
    )


def openai_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the same for OpenAI's TensorFlow names, `model/h0/ln_1/g`, whose matrices have a first axis of 1."""
    leaves = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    plain = {}
    for name, tensor in tensors.items():
        *path, leaf = re.sub(r"^h(\d+)/", r"h/\1/", name.removeprefix("model/")).split("/")
        is_matrix = leaf == "w" and tensor.ndim == 3 and len(tensor) == 1
        plain[".".join([*path, leaves.get(leaf, leaf)])] = tensor[0] if is_matrix else tensor
    return plain


# ---------------------------------------------------------------------------------------------------------------------
# A TensorFlow checkpoint, in which OpenAI published GPT-2, read without TensorFlow:
#
#     model.ckpt.index                  a table (LevelDB's format): tensor name -> where its bytes lie
#     model.ckpt.data-00000-of-00001    the bytes of all tensors, one after another
#
# Sources: leveldb/doc/table_format.md; tensorflow/core/protobuf/tensor_bundle.proto.

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_FLOAT = 1  # tensorflow's DT_FLOAT: 32 bits


def read_tensorflow(index: Path) -> dict[str, torch.Tensor]:
    """Return all tensors of the checkpoint whose index file is `index`, in fp32, by the names TensorFlow gave them.

    Raises `ValueError` for a file that is cut short or no such checkpoint, and for a tensor that is not fp32.
    """
    try:
        rows = dict(_read_table(index.read_bytes()))
        shards = _first(_fields(rows.pop(b"")), 1)
        entries = {key.decode(): _fields(value) for key, value in rows.items()}
    except (struct.error, IndexError, KeyError, UnicodeDecodeError) as error:
        raise ValueError(f"{index.name} is cut short or is no TensorFlow checkpoint: fetch it again") from error
    return {name: _read_tensor(index, shards, name, entry) for name, entry in entries.items()}


def _read_tensor(index: Path, shards: int, name: str, entry: dict[int, list]) -> torch.Tensor:
    if _first(entry, 1) != _FLOAT or 7 in entry:  # 7: the tensor is kept in slices
        raise ValueError(f"{name} in {index.name} is not one whole tensor of 32-bit floats: it cannot be read")
    dimensions = _fields(entry[2][0]).get(2, []) if 2 in entry else []
    shape = [_first(_fields(dimension), 1) for dimension in dimensions]
    data = index.with_name(f"{index.stem}.data-{_first(entry, 3):05d}-of-{shards:05d}")
    if not data.is_file():
        raise ValueError(f"{data.name} is missing beside {index.name}: fetch it too")
    values = np.fromfile(data, "<f4", count=_first(entry, 5) // 4, offset=_first(entry, 4))
    if values.nbytes != _first(entry, 5) or values.size != np.prod(shape, dtype=int):
        raise ValueError(f"{data.name} is cut short at {name}: fetch it again")
    return torch.from_numpy(values.reshape(shape))


def _read_table(table: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield key and value of every row: the footer leads to the index block, its values to the data blocks."""
    footer = table[-_FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise IndexError("no table")
    _, position = _block_place(footer, 0)  # of the meta index, which is empty
    (start, size), _ = _block_place(footer, position)
    for _, handle in _read_block(table, start, size):
        (start, size), _ = _block_place(handle, 0)
        yield from _read_block(table, start, size)


def _block_place(content: bytes, position: int) -> tuple[tuple[int, int], int]:
    start, position = _varint(content, position)
    size, position = _varint(content, position)
    return (start, size), position


def _read_block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the rows of a block; a key is stored as how much it shares with the one before, and the rest."""
    if table[start + size] != 0:
        raise ValueError("the checkpoint's index is compressed, which TensorFlow never does: it cannot be read")
    block = table[start : start + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    position, end, key = 0, size - 4 - 4 * restarts, b""
    while position < end:
        shared, position = _varint(block, position)
        own, position = _varint(block, position)
        length, position = _varint(block, position)
        key = key[:shared] + block[position : position + own]
        yield key, block[position + own : position + own + length]
        position += own + length


def _varint(content: bytes, position: int) -> tuple[int, int]:
    """Read a whole number in groups of 7 bits, the lowest first; return it and the position after it."""
    value = shift = 0
    while True:
        byte = content[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _fields(message: bytes) -> dict[int, list]:
    """Split a protobuf message into the values of each field, by its number."""
    fields: dict[int, list] = {}
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, position = _varint(message, position)
        else:
            size, position = (8, position) if kind == 1 else (4, position) if kind == 5 else _varint(message, position)
            value, position = message[position : position + size], position + size
        fields.setdefault(number, []).append(value)
    return fields


def _first(fields: dict[int, list], number: int) -> int:
    """Return the value of a field that occurs once; protobuf leaves out what is 0."""
    return fields.get(number, [0])[0]
