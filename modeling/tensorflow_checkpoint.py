"""A TensorFlow checkpoint, in which OpenAI published GPT-2, read without TensorFlow.

    model.ckpt.index                  a table (LevelDB's format): tensor name -> where its bytes lie
    model.ckpt.data-00000-of-00001    the bytes of all tensors, one after another

Sources: leveldb/doc/table_format.md; tensorflow/core/protobuf/tensor_bundle.proto.
"""

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_FLOAT = 1  # tensorflow's DT_FLOAT: 32 bits


def read_tensorflow(index: Path) -> dict[str, torch.Tensor]:
    """All tensors of the checkpoint whose index file is `index`, by the names TensorFlow gave them, fp32.

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
    """Key and value of every row: the footer leads to the index block, its values to the data blocks."""
    footer = table[-_FOOTER_BYTES:]
    if struct.unpack("<Q", footer[-8:])[0] != _MAGIC:
        raise IndexError("no table")
    _, place = _block_place(footer, 0)  # of the meta index, which is empty
    (start, size), _ = _block_place(footer, place)
    for _, handle in _read_block(table, start, size):
        (start, size), _ = _block_place(handle, 0)
        yield from _read_block(table, start, size)


def _block_place(content: bytes, place: int) -> tuple[tuple[int, int], int]:
    start, place = _varint(content, place)
    size, place = _varint(content, place)
    return (start, size), place


def _read_block(table: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The rows of a block; a key is written as how much it shares with the one before, and the rest."""
    if table[start + size] != 0:
        raise ValueError("the checkpoint's index is compressed, which TensorFlow never does: it cannot be read")
    block = table[start : start + size]
    (restarts,) = struct.unpack("<I", block[-4:])
    place, end, key = 0, size - 4 - 4 * restarts, b""
    while place < end:
        shared, place = _varint(block, place)
        own, place = _varint(block, place)
        length, place = _varint(block, place)
        key = key[:shared] + block[place : place + own]
        yield key, block[place + own : place + own + length]
        place += own + length


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of 7 bits, the lowest first, and the place after it."""
    value = shift = 0
    while True:
        byte = content[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value, place


def _fields(message: bytes) -> dict[int, list]:
    """A protobuf message: the values of each field by its number."""
    fields: dict[int, list] = {}
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, kind = tag >> 3, tag & 7
        if kind == 0:
            value, place = _varint(message, place)
        else:
            size, place = (8, place) if kind == 1 else (4, place) if kind == 5 else _varint(message, place)
            value, place = message[place : place + size], place + size
        fields.setdefault(number, []).append(value)
    return fields


def _first(fields: dict[int, list], number: int) -> int:
    """The value of a field that occurs once; protobuf leaves out what is 0."""
    return fields.get(number, [0])[0]
