"""Measure a language model on a text: score its tokens, put baselines beside it, make the rows of metrics.json."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import ProgressBar
from groundup.common.errors import InputError, public_name
from groundup.common.files import RECIPE_FILE
from groundup.common.settings import read_yaml
from groundup.data.documents import Documents
from groundup.data.sources import PYTHON_DOCS, load_documents, sample_texts
from groundup.data.tokens import TokenStream, write_shards
from groundup.evaluation.baselines import ngram_score, unigram_score, xz_bits_per_byte
from groundup.evaluation.comparison import UnitSums, draws, interval, language_draws
from groundup.evaluation.likelihood import (
    LanguageScore,
    ScoredBatch,
    Windows,
    bytes_by_id,
    comparable_bytes,
    disjoint,
    document_ends,
    each_document_alone,
    language_rows,
    score_windows,
    strided,
    summed,
)
from groundup.inference.llama_cpp import Engine
from groundup.inference.loading import context_of, device_of, evaluating
from groundup.tokenization.folder import plain_backend, structure_ids
from groundup.tokenization.report import TokenBytes

MOST_UNITS = 10_000  # units of a bootstrap; more are joined with their neighbours
FEWEST_DOCUMENTS = 20  # for an interval by document; a text of fewer is cut into blocks
BLOCKS = 100
FEWEST_BYTES = 64  # of a block: about sixteen tokens
GGUF_PARALLEL = 8  # windows that llama.cpp reads side by side
TOLERANCE = 1e-3  # between logits of the same positions, relative to their spread
HEADLINE, STRIDED, BY_DOCUMENT = "language", "language, strided", "language, each document alone"


@dataclass(frozen=True)
class Text:
    """The text to predict and, where it was given, the text that was trained on; `dataset` is its name in the rows.

    `sources` are rows for the files and datasets that it came from.
    """

    documents: Documents
    training: Documents | None
    dataset: str
    seed: int
    sources: Sequence[Mapping[str, Any]] = ()

    def trained_on_by(self, model: str) -> list[str]:
        """Return which of its sources a model was trained on, by the hashes in the recipe of the model's folder.

        Of `python-docs` only what is held out is ever measured on.
        """
        try:
            known = read_yaml(Path(model).expanduser() / RECIPE_FILE).get("sources")
        except InputError:  # none there, or one of another tool
            return []

        def identity(source: Mapping[str, Any]) -> tuple[Any, ...] | None:  # a file's hash, or a Hub dataset's commit
            if source.get("sha256"):
                return (source["sha256"],)
            return (source.get("name"), source["revision"]) if source.get("revision") else None

        rows = known if isinstance(known, list) else []
        identities = {identity(row) for row in rows if isinstance(row, dict)} - {None}
        held_out = [row for row in self.sources if row["name"].startswith(f"{PYTHON_DOCS} (")]
        return [row["name"] for row in self.sources if row not in held_out and identity(row) in identities]


class TokenScores:
    """Keep the score of each token of a stream on disk: `nats` (N,) float32, `correct` (N,) bool.

    `nats` is NaN where a token has no score yet. Windows that are in there are not done again, so that an evaluation
    which was stopped goes on where it was, and the processes of one machine share the work.
    """

    def __init__(self, folder: Path, stream: TokenStream, special_ids: Collection[int]) -> None:
        """Open the scores in `folder`, or begin them; other scores there, of another stream's length, are dropped."""
        folder.mkdir(parents=True, exist_ok=True)
        self.stream = stream
        self.special_ids = sorted(special_ids)
        self.nats = _memory_map(folder / "nats.npy", np.float32, len(stream), np.nan)
        self.correct = _memory_map(folder / "correct.npy", np.bool_, len(stream), False)

    def score(
        self,
        model: PreTrainedModel,
        windows: Windows,
        *,
        batch_rows: int = 16,
        share: tuple[int, int] = (0, 1),
        progress: Callable[[float, str], None] | None = None,
    ) -> None:
        """Score the windows that are not done. `share` (k, n) takes only every n-th of them, from the k-th."""
        numbers = windows.by_length()[share[0] :: share[1]]
        missing = np.concatenate([[0], np.cumsum(np.isnan(self.nats) & self.is_text)])
        left = numbers[missing[windows.stops[numbers] + 1] > missing[windows.firsts[numbers]]]

        def kept() -> Iterator[ScoredBatch]:
            for batch in score_windows(
                model, self.stream, windows, left, special_ids=self.special_ids, batch_rows=batch_rows
            ):
                self.correct[batch.positions] = batch.correct
                self.nats[batch.positions] = batch.nats
                yield batch

        summed(kept(), len(left), progress)

    @property
    def is_text(self) -> npt.NDArray[np.bool_]:
        """Return which tokens of the stream count, (N,): all but special ones and the first, which nothing predicts."""
        ids = self.stream.read(0, len(self.stream))
        mask = ~np.isin(ids, self.special_ids)
        mask[:1] = False
        return mask

    def total(self, windows: Windows, token_bytes: TokenBytes | None) -> LanguageScore:
        """Return the sums over the whole text."""
        mask = self.is_text
        bytes_, note = comparable_bytes(self.stream, self.special_ids, token_bytes)
        nats = float(self.nats[mask].sum(dtype=np.float64))
        return LanguageScore(nats, int(mask.sum()), int(self.correct[mask].sum()), bytes_, windows.context, note)

    def by_position(self, windows: Windows) -> list[tuple[int, int, float, int]]:
        """Return the loss by the tokens of context that a prediction had: (from, to, nats per token, tokens).

        The steps double: 1, 2, 3 to 4, 5 to 8, ... A model that uses its context gets better with every step.
        """
        seen = np.zeros(len(self.stream), np.int64)  # how many tokens were seen before the target
        for start, stop, first in zip(windows.starts, windows.stops, windows.firsts):
            seen[first : stop + 1] = np.arange(first - start, stop - start + 1)
        mask = self.is_text
        steps = np.ceil(np.log2(np.maximum(seen[mask], 1))).astype(np.int64)
        nats, tokens = np.bincount(steps, self.nats[mask]), np.bincount(steps)
        nats, tokens = nats.tolist(), tokens.tolist()
        return [
            (2 ** (step - 1) + 1 if step else 1, min(2**step, windows.context), nats[step] / tokens[step], tokens[step])
            for step in range(len(tokens))
            if tokens[step]
        ]

    def by_unit(
        self, ends: npt.NDArray[np.int64], document_bytes: Sequence[int], token_bytes: TokenBytes
    ) -> "UnitSums":
        """Return sums over units of the text that a bootstrap can draw: documents, or blocks where documents are few.

        Documents have the bytes that they have, and blocks equal shares of the text's: models with whatever tokenizers
        have the same units. A token belongs to the block that it begins in.
        """
        mask, total = self.is_text, sum(document_bytes)
        if len(document_bytes) >= FEWEST_DOCUMENTS and len(ends) == len(document_bytes) + 1:
            together = -(-len(document_bytes) // MOST_UNITS)
            kind, sizes = "documents", np.add.reduceat(document_bytes, np.arange(0, len(document_bytes), together))
            unit = (np.searchsorted(ends, np.flatnonzero(mask)) - 1) // together
        else:
            count = max(1, min(BLOCKS, total // FEWEST_BYTES))
            kind, sizes = "blocks of the text", np.diff(np.arange(count + 1) * total // count)
            ids = self.stream.read(0, len(self.stream))[mask]
            lengths = bytes_by_id(self.stream, self.special_ids, token_bytes)[ids]
            begins = np.cumsum(lengths) - lengths
            unit = np.minimum(begins * count // max(1, total), count - 1).astype(np.int64)
        nats, tokens, correct = (
            np.bincount(unit, weights, minlength=len(sizes)) for weights in (self.nats[mask], None, self.correct[mask])
        )
        lost = comparable_bytes(self.stream, self.special_ids, token_bytes)[0] is None
        return UnitSums(kind, nats, tokens, correct, None if lost else sizes)


def _memory_map(path: Path, dtype: type, length: int, fill: float) -> npt.NDArray:
    """Return a memory map of `length` values: that of the file if it fits, or a new one filled with `fill`."""
    try:
        known = np.load(path, mmap_mode="r+", allow_pickle=False)
        if known.shape == (length,) and known.dtype == dtype:
            return known
    except (OSError, ValueError):
        pass
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        np.save(file, np.full(length, fill, dtype), allow_pickle=False)
    fresh.replace(path)
    return np.load(path, mmap_mode="r+", allow_pickle=False)


def score_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    text: Text,
    kind: str,
    folder: Path,
    *,
    stride: int | None = None,
    batch_rows: int = 16,
    processes: PartialState | None = None,
) -> tuple[TokenScores, Windows]:
    """Score every token of a text, on disk under `folder`; several processes each do their share of the windows."""
    if processes is None or processes.is_main_process:
        scores = _open(tokenizer, text, kind, folder)
    if processes is not None:
        processes.wait_for_everyone()
        scores = _open(tokenizer, text, kind, folder)
    context, tokens = context_of(model), len(scores.stream)
    if kind == STRIDED and (stride is None or not 1 <= stride <= context):
        raise InputError(f"--stride {stride} must lie between 1 and the model's context of {context} tokens")
    if kind == BY_DOCUMENT:
        windows = each_document_alone(document_ends(scores.stream, scores.stream.meta["end_of_text"]), context)
    else:
        windows = strided(tokens, context, stride) if kind == STRIDED and stride else disjoint(tokens, context)
    check_causal(model)
    share = (0, 1) if processes is None else (processes.process_index, processes.num_processes)
    with ProgressBar(kind, total=1.0) as bar:
        scores.score(model, windows, batch_rows=batch_rows, share=share, progress=bar.update)
    if processes is not None:
        processes.wait_for_everyone()
    return scores, windows


def _open(tokenizer: PreTrainedTokenizerFast, text: Text, kind: str, folder: Path) -> TokenScores:
    stream = write_shards(text.documents, tokenizer, folder / "shards")
    return TokenScores(folder / kind.replace(", ", "-").replace(" ", "-"), stream, structure_ids(tokenizer))


@torch.inference_mode()
def check_causal(model: PreTrainedModel) -> None:
    """Raise `InputError` if the text that follows changes a model's prediction: then it sees the answer.

    Two texts with the same first half are read whole; the logits of that half must be the same.
    """
    length = max(2, min(32, context_of(model)))
    vocab_size = model.config.get_text_config().vocab_size
    ids = torch.randint(vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    half = length // 2
    ids[1, :half] = ids[0, :half]
    with evaluating(model):
        logits = model(input_ids=ids.to(device_of(model)), use_cache=False).logits[:, :half].float()
    difference = (logits[0] - logits[1]).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, logits.std().item()):
        raise InputError(
            f"the model's prediction changes by {difference:.2g} with the text that follows: it sees the token that it "
            "must predict, so its scores would be meaningless: give a causal model"
        )


def language_part(
    scores: TokenScores,
    windows: Windows,
    tokenizer: PreTrainedTokenizerFast,
    text: Text,
    kind: str,
    folder: Path,
    xz: dict[str, float | None],
) -> dict[str, Any]:
    """Return the rows of a kind of windows; of the headline also baselines, loss by position and sums by unit."""
    token_bytes = TokenBytes.of(tokenizer)
    ends = document_ends(scores.stream, scores.stream.meta["end_of_text"])
    units = scores.by_unit(ends, [len(content) for content in text.documents.contents()], token_bytes)
    baselines: dict[str, Any] = {}
    if kind == HEADLINE:
        baselines = dict(xz)
        if text.training is not None:
            train = write_shards(text.training, tokenizer, folder / "train")
            known = (train, scores.stream, len(tokenizer), structure_ids(tokenizer), token_bytes)
            baselines |= {"unigram": unigram_score(*known), "ngram": ngram_score(*known)}
    about = {"dataset": text.dataset, "split": "test", "seed": text.seed}
    rows = language_rows(scores.total(windows, token_bytes), **about, **baselines)
    if len(units.tokens) > 1:
        drawn = language_draws(units, draws(len(units.tokens), text.seed))
        for row in rows:
            is_own = row["baseline"] is None and row["value"] is not None
            if is_own and row["name"] in drawn and (limits := interval(drawn[row["name"]])):
                row |= {"low": limits[0], "high": limits[1], "interval": units.kind}
    if kind != HEADLINE:
        for row in rows:
            row |= {"stride": windows.stride, "windows": windows.label}
        if kind == BY_DOCUMENT:  # words are counted as lm-eval counts them: the same whatever the tokenizer
            words = sum(len(re.split(r"\s+", document)) for document in text.documents.texts())
            like = {key: value for key, value in rows[0].items() if key not in ("low", "high", "interval", "note")}
            value = math.exp(min(scores.total(windows, token_bytes).nats / words, 700)) if words else None
            rows.append(like | {"name": "word_perplexity", "value": value, "count": words})
        return {"rows": rows}
    for first, last, nats, tokens in scores.by_position(windows):
        positions = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        row = {"name": "loss_by_position", "value": nats, **about, "count": tokens, "positions": positions}
        row |= {"context": windows.context, "stride": windows.stride, "baseline": None}
        rows.append(row)
    return {"rows": rows, "units": units.as_dict()}


def score_gguf(
    file: Path,
    tokenizer: PreTrainedTokenizerFast,
    texts: Sequence[str],
    context: int,
    progress: Callable[[float, str], None] | None = None,
) -> tuple[float, int, int]:
    """Return the bits per byte of texts that llama.cpp finds for a GGUF file, and how many tokens and bytes they have.

    Each text stands alone, after the token that begins one, in adjacent windows that fill `context` (tokens).
    """
    plain, begin = plain_backend(tokenizer), tokenizer.bos_token_id
    first: Any = tokenizer.eos_token_id if begin is None else begin
    windows: list[list[int]] = []  # each with the token before it
    for text in texts:
        ids = [first, *plain.encode(text, add_special_tokens=False).ids]
        windows += [ids[start : start + context] for start in range(0, len(ids) - 1, context - 1)]
    nats, bytes_ = 0.0, sum(len(text.encode()) for text in texts)
    with Engine(file, context=context, parallel=GGUF_PARALLEL) as engine, ThreadPoolExecutor(GGUF_PARALLEL) as many:
        for done, value in enumerate(many.map(lambda ids: engine.nats(ids[0], ids[1:], tokenizer), windows), 1):
            nats += value
            if progress:
                progress(done / len(windows), f"{nats / math.log(2) / bytes_ * len(windows) / done:.3f} bits/byte")
    return nats / math.log(2) / bytes_, sum(len(ids) - 1 for ids in windows), bytes_


def held_out_texts(data: Sequence[str], limit: int) -> tuple[list[str], str]:
    """Return pieces of the documents that `data` names, `limit` bytes in all or a little more, and the data's name."""
    return [text for text in sample_texts(load_documents(data)[0], limit) if text], public_name(data[0])


def xz_part(text: Text) -> dict[str, Any]:
    """Return the bits that `xz` needs for the text, alone and after the training text: the same for every model."""
    return {
        "xz": xz_bits_per_byte(text.documents.texts()),
        "xz_primed": None if text.training is None else xz_bits_per_byte(text.documents.texts(), text.training.texts()),
    }
