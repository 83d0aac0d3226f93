"""One file to text or to a table of rows: what kinds there are, how they are unpacked, what is wrong with them.

What is unpacked lands in the cache of `datasets`, named by content, so that a changed file is never mistaken for its
old self and nothing is written into the user's folder. No file is given to `datasets` to load: its cache goes by path
and time, it takes a name with brackets or `::` for a pattern or an address, and it decides on the types of a column.
"""

import bz2
import codecs
import contextlib
import errno
import gzip
import hashlib
import lzma
import shutil
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import IO

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub.utils import logging as hub_logging

from groundup.common.console import say
from groundup.common.errors import InputError, printable
from groundup.common.files import atomic_folder, sha256_of
from groundup.data.csv_rows import find_form, read_csv
from groundup.data.json_rows import read_json
from groundup.data.tables import ArrowTable, FileTable, Table
from groundup.data.values import listed

TEXT_KINDS = (".txt", ".text", ".md", ".rst")
ROW_KINDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKINGS = (".gz", ".bz2", ".xz", ".zst", ".zip")

_BLOCK_BYTES = 1 << 20
_PARQUET_ROWS = 256


def kind_of(path: Path) -> str | None:
    """The kind of a file by its name (`.jsonl` for `rows.jsonl.gz`, `.zip` for an archive), None if unknown."""
    suffix = path.suffix.lower()
    if suffix == ".zip":
        return ".zip"
    if suffix in PACKINGS:
        suffix = Path(path.stem).suffix.lower() or ".txt"
    return suffix if suffix in TEXT_KINDS + ROW_KINDS else None


def unpack(path: Path, sha256: str) -> Path:
    """The file's content without compression: the file itself, or a file or folder in the cache named by `sha256`.

    Raises `InputError` for a damaged archive or a compression that this Python cannot read.
    """
    packing = path.suffix.lower()
    if packing not in PACKINGS:
        return path
    folder = Path(datasets.config.HF_DATASETS_CACHE) / "groundup-unpacked" / sha256
    if not folder.is_dir():
        try:
            with atomic_folder(folder) as temporary:
                if packing == ".zip":
                    _extract(path, temporary)
                else:
                    with _opener(packing)(path) as packed, (temporary / "content").open("wb") as plain:
                        shutil.copyfileobj(packed, plain, _BLOCK_BYTES)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, zipfile.BadZipFile, ValueError) as error:
            raise InputError(f"{path} is damaged or no {packing} file: {error}") from error
        except RuntimeError as error:  # zipfile's way to say that a password is needed
            raise InputError(f"{path} cannot be unpacked: {error}") from error
    return folder if packing == ".zip" else folder / "content"


def _extract(path: Path, folder: Path) -> None:
    """The members of an archive as files, but for links. Raises `ValueError` where two would be the same file."""
    with zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if not member.is_dir()]
        links = [member for member in members if stat.S_ISLNK(member.external_attr >> 16)]
        if links:
            names = listed((printable(link.filename) for link in links), 4)
            say(f"{printable(path.name)}: skipped {len(links)} links ({names})")
        places = [archive.extract(member, folder) for member in members if member not in links]
        if len(set(places)) < len(places):
            raise ValueError("two of its files have the same name")


def _opener(packing: str) -> Callable[[Path], IO[bytes]]:
    if packing != ".zst":
        return {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}[packing]  # type: ignore[return-value]
    try:
        import zstandard  # pyright: ignore[reportMissingImports] (optional)
    except ImportError as error:
        raise InputError(".zst files need the package zstandard: `pip install zstandard`, or unpack them") from error
    return lambda path: zstandard.open(path, "rb")


def check_text(path: Path, name: str) -> None:
    """Raise `InputError` unless the file is UTF-8 text; `name` stands in the message."""
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            if offset == 0 and b"\0" in block[:8192]:
                wide = block.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or any(
                    half.count(0) > 0.9 * len(half) > 0 and 0 not in other
                    for half, other in ((block[::2], block[1::2]), (block[1::2], block[::2]))
                )
                what = (
                    "UTF-16 text: convert it to UTF-8"
                    if wide
                    else f"a binary file (byte {block.index(0):,} is 0): give text, JSONL, CSV or Parquet"
                )
                raise InputError(f"{name} is {what}")
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                place = offset - pending + error.start
                raise InputError(f"{name} is not UTF-8 text (byte {place:,}): convert it to UTF-8 first") from error
            offset += len(block)
    if decoder.getstate()[0]:
        raise InputError(f"{name} ends within a character (byte {offset:,}): it is not complete UTF-8 text")


def open_table(path: Path, kind: str, name: str, sha256: str) -> Table:
    """A JSON, CSV, TSV or Parquet file (`kind`) as a table; `name` is for messages, `sha256` that of the content.

    Raises `InputError` for a file that is empty or not what its name says.
    """
    if path.stat().st_size == 0:
        raise InputError(f"{name} is empty: it has no rows")
    if kind == ".parquet":
        return _parquet_table(path, name, sha256)
    check_text(path, name)
    if kind in (".csv", ".tsv"):
        form = find_form(path, kind, name)
        return FileTable(name, partial(read_csv, path, form), f"{sha256}{kind}", form.doubt)
    table = FileTable(name, partial(read_json, path, kind, name), f"{sha256}{kind}")
    if not len(table):
        raise InputError(f"{name} is empty: it has no rows")
    return table


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of `datasets` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (
        (folder / "dataset_info.json").is_file() and (folder / "state.json").is_file()
    )


def open_saved_dataset(folder: Path, name: str, aloud: bool = False) -> tuple[ArrowTable, list[Path]]:
    """What `save_to_disk` of `datasets` wrote as a table, and its files. Of several splits it is `train`.

    With `aloud` the splits that are not read are said.

    Raises `InputError` for a folder that is not whole, and for splits none of which is `train`.
    """
    try:
        with quiet_datasets():
            saved = datasets.load_from_disk(str(folder))
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"cannot read the saved dataset {name}: {reason}") from error
    if isinstance(saved, datasets.DatasetDict):
        splits = [str(split) for split in saved]
        if "train" not in splits and len(splits) != 1:
            raise InputError(f"{name} has the splits {', '.join(splits)}: give the folder of one of them")
        split = "train" if "train" in splits else splits[0]
        if aloud and (others := [other for other in splits if other != split]):
            say(f"{name}: the split {split} is read, not {', '.join(others)}")
        saved = saved[split]
    files = [Path(entry["filename"]) for entry in saved.cache_files]
    sha256 = hashlib.sha256("".join(map(sha256_of, files)).encode()).hexdigest()
    return ArrowTable.stored(saved, name, sha256), files


def _parquet_table(path: Path, name: str, sha256: str) -> ArrowTable:
    try:
        with pq.ParquetFile(path) as file:
            schema, length = file.schema_arrow, file.metadata.num_rows
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {name} as .parquet: {str(error).splitlines()[0]}") from error
    return ArrowTable(name, schema, length, partial(read_parquet_batches, path, name), sha256)


def read_parquet_batches(path: Path, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file, a few at a time, with all columns or some; `name` is for messages.

    `datasets` would decode a row group at once, which may be all of the file. Raises `InputError` for a damaged file.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, buffer_size=_BLOCK_BYTES) as file:
            yield from file.iter_batches(_PARQUET_ROWS, columns=columns, use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"cannot read {name} as .parquet: {str(error).splitlines()[0]}") from error


@contextlib.contextmanager
def quiet_datasets() -> Iterator[None]:
    """Keep `datasets` and the Hub client from drawing bars and printing warnings of their own.

    Raises `InputError` where their cache cannot be written.
    """
    library = datasets.utils.logging
    bars = not datasets.are_progress_bars_disabled()
    levels = library.get_verbosity(), hub_logging.get_verbosity()
    datasets.disable_progress_bars()
    library.set_verbosity(library.CRITICAL)
    hub_logging.set_verbosity(hub_logging.CRITICAL)
    try:
        yield
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            cache = datasets.config.HF_DATASETS_CACHE
            raise InputError(
                f"cannot write to the cache {cache}: set HF_HOME to a folder that can be written"
            ) from error
        raise
    finally:
        library.set_verbosity(levels[0])
        hub_logging.set_verbosity(levels[1])
        if bars:
            datasets.enable_progress_bars()
