"""Folders of shards as data to train on: what `prepare` wrote, whole or in parts that join here, or datatrove.

FOLDER/{train,validation,tokenizer}/  recipe.yaml          all of a corpus
FOLDER/part-00001-of-00004/{train,...}  part-00002-...     the same in parts, made on any machines, put together here
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from groundup.common.errors import InputError, user_path
from groundup.common.files import RECIPE_FILE
from groundup.common.settings import read_yaml
from groundup.data.datatrove import DS_FILES, open_datatrove
from groundup.data.documents import Share
from groundup.data.tokens import TokenStream
from groundup.tokenization.folder import fingerprint, load_tokenizer, require_ids_of

TRAIN, VALIDATION, TOKENIZER = "train", "validation", "tokenizer"


@dataclass(frozen=True)
class PreparedData:
    """Text that has been split and tokenised, and the tokenizer that did it."""

    train: TokenStream
    validation: TokenStream
    tokenizer: PreTrainedTokenizerFast
    sources: list[dict[str, Any]]  # name, bytes, sha256 of each file the shards were made from
    name: str  # of the text, short
    overlap: dict[str, Any] | None = None  # of validation with training, as `held_apart` says it; None if unknown


def is_prepared(item: str) -> bool:
    """Whether `item` names a folder that `open_prepared_data` opens, though it may not be whole."""
    folder = user_path(item)
    try:
        if not folder.is_dir():
            return False
        return (folder / TRAIN / "meta.json").is_file() or bool(_parts(folder)) or any(folder.glob(DS_FILES))
    except OSError:  # whoever reads its files says which of them cannot be read
        return False


def open_prepared_data(folder: Path, tokenizer: str | None = None, base: str | None = None) -> PreparedData:
    """Open a folder that `prepare` or datatrove wrote.

    `tokenizer` is a folder or a name on the Hub, and `base` a model to go on with; one is needed where datatrove's own
    cannot be found. Raises `InputError` for shards that are not whole, parts that are missing, another tokenizer than
    the shards were made with, and ids that are not those of `base`.
    """
    data = _open(folder, tokenizer, base)
    if base is not None:
        require_ids_of(base, data.tokenizer, f"what {folder} was prepared with")
    return data


def _open(folder: Path, tokenizer: str | None, base: str | None) -> PreparedData:
    parts = _parts(folder)
    if not parts and not (folder / TRAIN).is_dir():
        return PreparedData(*open_datatrove(folder, tokenizer or base), folder.resolve().name)
    folders = [parts[share] for share in _whole_set(folder, parts)] if parts else [folder]
    recipes = [read_yaml(part / RECIPE_FILE) for part in folders]
    own = load_tokenizer(folders[0] / TOKENIZER)
    if tokenizer is not None and fingerprint(load_tokenizer(tokenizer)) != fingerprint(own):
        raise InputError(f"{folder} was not prepared with the tokenizer of {tokenizer}: prepare the text with that one")
    streams = {name: [TokenStream.open(part / name) for part in folders] for name in (TRAIN, VALIDATION)}
    for part, stream in zip(folders, streams[TRAIN]):
        if stream.meta["tokenizer"] != fingerprint(own):
            raise InputError(f"{part} was prepared with another tokenizer than {folders[0].name}: prepare it again")
    sources = [row for recipe in recipes for row in recipe["sources"]]
    return PreparedData(
        TokenStream.joined(streams[TRAIN]),
        TokenStream.joined(streams[VALIDATION]),
        own,
        [row for number, row in enumerate(sources) if row not in sources[:number]],
        recipes[0]["name"],
        _together([recipe.get("overlap") for recipe in recipes]),
    )


def _together(overlaps: list[dict[str, Any] | None]) -> dict[str, Any] | None:
    """What is known of the overlap of parts, each of which was held apart in itself."""
    if None in overlaps:
        return None
    known = [overlap for overlap in overlaps if overlap is not None]
    sums = {name: sum(overlap[name] for overlap in known) for name in ("count", "copies")}
    return max(known, key=lambda overlap: overlap["copies"]) | sums


def _parts(folder: Path) -> dict[Share, Path]:
    """The folders of parts in a folder, by the share that each is."""
    found = ((Share.of_folder(path.name), path) for path in folder.iterdir() if path.is_dir())
    return {share: path for share, path in found if share is not None}


def _whole_set(folder: Path, parts: dict[Share, Path]) -> list[Share]:
    """The shares in order, if all are there. Raises `InputError` naming the missing ones."""
    counts = sorted({share.count for share in parts})
    if len(counts) > 1:
        raise InputError(f"{folder} holds parts of {' and of '.join(map(str, counts))}: keep one set in a folder")
    wanted = [Share(number, counts[0]) for number in range(1, counts[0] + 1)]
    missing = [f"{share.number}/{share.count}" for share in wanted if share not in parts]
    if missing:
        raise InputError(f"{folder} lacks the parts {', '.join(missing[:8])}: run `groundup prepare --part` for them")
    return wanted
