"""The verbs `tokenizer` and `prepare`: text to a tokenizer's folder or to folders of shards, and open those again.

    FOLDER/{train,validation,tokenizer}/  recipe.yaml          all of a corpus
    FOLDER/part-00001-of-00004/{train,...}  part-00002-...     the same in parts, made on any machines

datatrove (https://github.com/huggingface/datatrove, `pipeline/tokens/tokenizer.py`, `DocumentTokenizer` or its merger)
writes for each shard

    NAME.ds            ids, little-endian, 2 or 4 bytes each
    NAME.ds.index      where each document ends [tokens], 8 bytes each
    NAME.ds.metadata   "TOKENIZER|BYTES PER ID", the number of tokens, the same for people; a line each
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from huggingface_hub import try_to_load_from_cache
from transformers import PreTrainedTokenizerFast

from groundup.common.console import console, say
from groundup.common.errors import InputError, public_name, user_path
from groundup.common.files import RECIPE_FILE, TOKENIZER_FILE, atomic_folder, sha256_of
from groundup.common.output import OutputFolder, claim, given_folder
from groundup.common.settings import read_yaml, refuse, verb, write_yaml
from groundup.common.verbs import PrepareSettings, TokenizerSettings
from groundup.data.documents import Share
from groundup.data.overlap import held_apart
from groundup.data.sources import Corpus, load_corpus, sample, sample_texts, short_name, text_bytes
from groundup.data.tokens import TokenStream, write_shards
from groundup.tokenization.folder import fingerprint, load_tokenizer, require_ids_of, save_tokenizer, without_length
from groundup.tokenization.report import report_table, tokenizer_report
from groundup.tokenization.training import suitable_vocab_size, train_bpe, train_word_level

TRAIN, VALIDATION, TOKENIZER = "train", "validation", "tokenizer"
DS_FILES = "**/*.ds"
KEPT_BACK = 0.1  # share of datatrove's documents for validation

_CHUNK = 2**24  # ids looked at at once


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
    """Return whether `item` names a folder that `open_prepared_data` opens, though it may not be whole."""
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
    if not _parts(folder) and not (folder / TRAIN).is_dir():
        data = PreparedData(*open_datatrove(folder, tokenizer or base), folder.resolve().name)
    else:
        data = _open(folder, tokenizer)
    if base is not None:
        require_ids_of(base, data.tokenizer, f"what {folder} was prepared with")
    return data


def _open(folder: Path, tokenizer: str | None) -> PreparedData:
    """Open what `prepare` wrote, all parts of it in their order."""
    folders, parts = [folder], _parts(folder)
    if parts:
        counts = sorted({share.count for share in parts})
        if len(counts) > 1:
            raise InputError(f"{folder} holds parts of {' and of '.join(map(str, counts))}: keep one set in a folder")
        wanted = [Share(number, counts[0]) for number in range(1, counts[0] + 1)]
        if missing := [f"{share.number}/{share.count}" for share in wanted if share not in parts]:
            lacking = f"{folder} lacks the parts {', '.join(missing[:8])}"
            raise InputError(f"{lacking}: run `groundup prepare --part` for them")
        folders = [parts[share] for share in wanted]
    recipes = [read_yaml(part / RECIPE_FILE) for part in folders]
    own = load_tokenizer(folders[0] / TOKENIZER)
    if tokenizer is not None and fingerprint(load_tokenizer(tokenizer)) != fingerprint(own):
        raise InputError(f"{folder} was not prepared with the tokenizer of {tokenizer}: prepare the text with that one")
    streams = {name: [TokenStream.open(part / name) for part in folders] for name in (TRAIN, VALIDATION)}
    for part, stream in zip(folders, streams[TRAIN]):
        if stream.meta["tokenizer"] != fingerprint(own):
            raise InputError(f"{part} was prepared with another tokenizer than {folders[0].name}: prepare it again")
    sources = [row for recipe in recipes for row in recipe["sources"]]
    overlap = None
    overlaps: list[Any] = [recipe.get("overlap") for recipe in recipes]  # each part was held apart in itself
    if None not in overlaps:
        sums = {name: sum(each[name] for each in overlaps) for name in ("count", "copies")}
        overlap = max(overlaps, key=lambda each: each["copies"]) | sums
    return PreparedData(
        TokenStream.joined(streams[TRAIN]),
        TokenStream.joined(streams[VALIDATION]),
        own,
        [row for number, row in enumerate(sources) if row not in sources[:number]],
        recipes[0]["name"],
        overlap,
    )


def _parts(folder: Path) -> dict[Share, Path]:
    """Return the folders of parts in a folder, by the share that each holds."""
    found = ((Share.of_folder(path.name), path) for path in folder.iterdir() if path.is_dir())
    return {share: path for share, path in found if share is not None}


def open_datatrove(
    folder: Path, tokenizer: str | None
) -> tuple[TokenStream, TokenStream, PreTrainedTokenizerFast, list[dict[str, Any]]]:
    """Return shards for training, for validation (the last tenth of the documents), the tokenizer, and the files.

    Takes the tokenizer that the files name, unless `tokenizer` says where it is. Raises `InputError` for files that are
    not whole or hold ids that the tokenizer does not have.
    """
    paths = [path for path in sorted(folder.glob(DS_FILES)) if path.stat().st_size]
    if not paths:
        raise InputError(f"{folder} holds no shards of tokens: make them with `groundup prepare`")
    name, id_bytes = _metadata(paths[0])
    if tokenizer is None and name is None:
        raise InputError(f"{folder} does not say which tokenizer made it: give --tokenizer")
    known = load_tokenizer(tokenizer or name or "")
    if tokenizer is not None and name is not None:
        here = Path(name).exists() or isinstance(try_to_load_from_cache(name, TOKENIZER_FILE), str)
        made = f"{folder} was tokenised with {name}"
        if here and load_tokenizer(name).get_vocab() != known.get_vocab():
            raise InputError(f"{made}, whose ids are not those of {tokenizer}: leave {tokenizer} out")
        if not here and name != tokenizer:
            say(f"{made}, which is not on this machine: its ids are taken to be {tokenizer}'s")
    size = id_bytes or (2 if len(known) <= 2**16 else 4)
    shards = [_ids(path, size, len(known)) for path in paths]
    ends = [_document_ends(path, shard) for path, shard in zip(paths, shards)]
    end_of_text: Any = known.eos_token_id
    if not all((shard[last[:1000] - 1] == end_of_text).all() for shard, last in zip(shards, ends)):
        say(f"{folder}: no end-of-text token separates the documents, so they are read as one long text")
    if any(path.with_name(f"{path.name}.loss").exists() for path in paths):
        say(f"{folder}: its loss masks are ignored: every token is trained on")
    rows = [{"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)} for path in paths]
    meta = {
        "sha256": hashlib.sha256("".join(row["sha256"] for row in rows).encode()).hexdigest(),
        "bytes": None,  # of the text: the files do not say
        "dtype": str(shards[0].dtype),
        "tokenizer": fingerprint(known),
        "vocab_size": len(known),
        "end_of_text": end_of_text,
    }
    before, after = _split(shards, ends)
    opening = np.array([end_of_text], shards[0].dtype)  # so that the first document begins like the others
    streams = [TokenStream([opening, *part], meta | {"tokens": 1 + sum(map(len, part))}) for part in (before, after)]
    return streams[0], streams[1], known, rows


def _metadata(path: Path) -> tuple[str | None, int | None]:
    """Return the tokenizer's name and the bytes of an id, each None if unknown."""
    try:
        line = path.with_name(f"{path.name}.metadata").read_text(encoding="utf-8").splitlines()[0]
    except (OSError, IndexError):
        return None, None
    name, _, size = line.rpartition("|")
    if size not in ("2", "4"):
        raise InputError(f"{path.name}.metadata does not begin with TOKENIZER|2 or TOKENIZER|4: it is not datatrove's")
    return (None if name.startswith("Unknown Tokenizer") else name), int(size)


def _ids(path: Path, size: int, vocab_size: int) -> npt.NDArray[Any]:
    if path.stat().st_size % size:
        raise InputError(f"{path} is incomplete: its {path.stat().st_size:,} bytes are not a multiple of {size}")
    ids = np.memmap(path, f"<u{size}", "r")
    largest = max(int(ids[start : start + _CHUNK].max()) for start in range(0, len(ids), _CHUNK))
    if largest >= vocab_size:
        raise InputError(
            f"{path} holds the id {largest}, the tokenizer has {vocab_size}: give --tokenizer the one that made it"
        )
    return ids


def _document_ends(path: Path, ids: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return where the documents of a file end; without an index it is one document."""
    index = path.with_name(f"{path.name}.index")
    ends = np.fromfile(index, "<u8").astype(np.int64) if index.is_file() else np.array([len(ids)])
    if not len(ends) or ends[-1] != len(ids):
        raise InputError(f"{path} has {len(ids):,} tokens, which is not what its index says: it is incomplete")
    return ends


def _split(
    shards: list[npt.NDArray[Any]], ends: list[npt.NDArray[np.int64]]
) -> tuple[list[npt.NDArray[Any]], list[npt.NDArray[Any]]]:
    """Cut the tokens before the last tenth of the documents, or of the tokens of a single document."""
    begins = np.cumsum([0, *map(len, shards)])
    every = np.concatenate([last + begin for last, begin in zip(ends, begins)])
    kept_back = max(1, int(len(every) * KEPT_BACK))
    border = int(every[-1 - kept_back]) if len(every) > 1 else int(every[-1] * (1 - KEPT_BACK))
    cuts = [min(max(border - int(begin), 0), len(shard)) for shard, begin in zip(shards, begins)]
    before = [shard[:cut] for shard, cut in zip(shards, cuts) if cut]
    return before, [shard[cut:] for shard, cut in zip(shards, cuts) if cut < len(shard)]


TRAINING_BYTES = 2**28  # of a larger text an even sample: the merges no longer change, the time does
REPORT_BYTES = 2**24
SMOKE_BYTES = 2**20
MOSTLY_UNKNOWN = 0.2


@verb(TokenizerSettings)
def train_tokenizer(settings: TokenizerSettings) -> Path:
    """Train a tokenizer, write its folder with `recipe.yaml` and `tokenizer_report.json`, and return the folder.

    Takes a `TokenizerSettings` or its fields by keyword. Raises `InputError` for data that cannot be read, or too
    little of it for the vocabulary that was asked for.
    """
    console.quiet = settings.quiet
    with claim(settings.out, "tokenizer", short_name(settings.data)) as output:
        corpus, wanted = _corpus(settings), settings.vocab_size
        train = train_bpe if settings.kind == "bpe" else train_word_level
        size = suitable_vocab_size(text_bytes(corpus.train)) if wanted is None else wanted
        tokenizer = train(sample_texts(corpus.train, TRAINING_BYTES), size)
        if wanted is not None and len(tokenizer) < wanted:
            raise InputError(
                f"the text is enough for a vocabulary of {len(tokenizer):,} tokens, not {wanted:,}: "
                f"give more --data, or at most --vocab-size {len(tokenizer)}"
            )
        held_back = sample(corpus.validation, REPORT_BYTES).texts()
        rows = tokenizer_report(tokenizer, sample_texts(corpus.train, TRAINING_BYTES), held_back)
        with output.filled() as folder:
            save_tokenizer(tokenizer, folder)
            (folder / "tokenizer_report.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            recipe = _recipe("tokenizer", settings, corpus) | {"tokenizer_sha256": fingerprint(tokenizer)}
            write_yaml(folder / RECIPE_FILE, recipe)
    console.print(report_table(rows))
    if (unknown := rows[0]["unknown_rate"]) > MOSTLY_UNKNOWN:  # as of a language without blanks between words
        say(f"{unknown:.0%} of the held-out tokens are unknown to it: use --kind bpe, or give a larger --vocab-size")
    following = f"next: groundup pretrain --data ... --tokenizer {output.path}"
    say(f"tokenizer of {len(tokenizer):,} tokens written to {output.path}; {following}")
    return output.path


@verb(PrepareSettings)
def prepare(settings: PrepareSettings) -> Path:
    """Tokenise a text into the folders `train` and `validation` of a new folder, or of a part of it, and return that.

    Takes a `PrepareSettings` or its fields by keyword. Raises `InputError` for data or a tokenizer that cannot be
    read, and for a folder that holds something else.
    """
    console.quiet = settings.quiet
    if not settings.tokenizer:
        raise InputError("prepare needs a tokenizer: give --tokenizer a folder or a Hub name")
    for option, given in (("--resume", settings.resume), ("--part", settings.part)):
        if given and settings.out is None:
            raise InputError(f"{option} needs --out: give the folder that all parts share")
    share = Share.read(settings.part) if settings.part else None
    out = given_folder(settings.out) / share.folder if share and settings.out is not None else settings.out
    with claim(out, "prepare", short_name(settings.data), resume=settings.resume) as output:
        out = output.path
        tokenizer = without_length(load_tokenizer(settings.tokenizer))
        corpus, _, overlap = held_apart(_corpus(settings, share))
        recipe = _recipe("prepare", settings, corpus) | {"overlap": overlap}
        recipe |= {"tokenizer_sha256": fingerprint(tokenizer)}
        try:
            _begin(output, recipe, tokenizer)
            train = write_shards(corpus.train, tokenizer, out / TRAIN)
            validation = write_shards(corpus.validation, tokenizer, out / VALIDATION)
        except BaseException:
            if not output.goes_on and not any(out.rglob("*.npy")):  # nothing to go on with
                output.take_back(RECIPE_FILE, TOKENIZER, TRAIN, VALIDATION)
            raise
    said = f"{len(train):,} tokens for training and {len(validation):,} for validation written to {out}"
    say(f"{said}; next: groundup pretrain --data {out}")
    return out


def _begin(output: OutputFolder, recipe: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the tokenizer and then the recipe, unless they are there. Raises `InputError` if they are not the same."""
    out = output.path
    if output.goes_on:
        known = read_yaml(out / RECIPE_FILE)
        settings, kept = recipe["settings"], known.get("settings")
        if isinstance(kept, dict):
            others = {name: value for name, value in settings.items() if value != kept.get(name)}
            refuse(others, kept, out, "goes on with the settings that it began with", "choose a new --out")
        differing = [key for key, value in recipe.items() if known.get(key) != value]
        if differing:
            what = " and ".join(differing).replace("_sha256", "")
            raise InputError(f"{out} was started with other {what} (see its {RECIPE_FILE}): choose a new --out")
        return
    with atomic_folder(out / TOKENIZER, out / f".{TOKENIZER}.partial") as folder:
        save_tokenizer(tokenizer, folder)
    write_yaml(out / RECIPE_FILE, recipe)


def _corpus(settings: TokenizerSettings | PrepareSettings, share: Share | None = None) -> Corpus:
    corpus = load_corpus(settings.data, settings.text_column, share=share)
    if not settings.smoke:
        return corpus
    train, validation = sample(corpus.train, SMOKE_BYTES), sample(corpus.validation, SMOKE_BYTES)
    return dataclasses.replace(corpus, train=train, validation=validation)


def _recipe(name: str, settings: TokenizerSettings | PrepareSettings, corpus: Corpus) -> dict[str, Any]:
    """Return the settings and the sources, with names of files but no folders of this machine."""
    values = dataclasses.asdict(settings) | {"data": [public_name(item) for item in settings.data], "out": None}
    if isinstance(settings, PrepareSettings) and settings.tokenizer:
        values |= {"tokenizer": public_name(settings.tokenizer), "resume": False, "quiet": False}
    return {"name": corpus.name, "verb": name, "settings": values, "sources": corpus.sources}
