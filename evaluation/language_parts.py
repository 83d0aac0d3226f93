"""The parts of an evaluation that are about a text: the scores of its tokens, and the rows of metrics.json of them."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import ProgressBar
from groundup.common.errors import InputError
from groundup.common.files import RECIPE_FILE
from groundup.common.settings import read_yaml
from groundup.data.documents import Documents
from groundup.data.sources import PYTHON_DOCS
from groundup.data.tokens import write_shards
from groundup.evaluation.causality import check_causal
from groundup.evaluation.intervals import draws, interval, language_draws
from groundup.evaluation.ngram import ngram_score
from groundup.evaluation.scoring import language_rows, unigram_score, xz_bits_per_byte
from groundup.evaluation.token_scores import TokenScores, UnitSums
from groundup.evaluation.windows import Windows, disjoint, document_ends, each_document_alone, strided
from groundup.inference.loading import context_of
from groundup.tokenization.folder import structure_ids
from groundup.tokenization.token_bytes import TokenBytes

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
        """Which of its sources a model was trained on, by the hashes in the recipe of the model's folder.

        Of `python-docs` only what is held out is ever measured on.
        """
        try:
            known = read_yaml(Path(model).expanduser() / RECIPE_FILE).get("sources")
        except InputError:  # none there, or one of another tool
            return []
        rows = known if isinstance(known, list) else []
        identities = {_identity(row) for row in rows if isinstance(row, dict)} - {None}
        held_out = [row for row in self.sources if row["name"].startswith(f"{PYTHON_DOCS} (")]
        return [row["name"] for row in self.sources if row not in held_out and _identity(row) in identities]


def _identity(source: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """What tells a source from any other: a file's hash, a Hub dataset's name and revision."""
    if source.get("sha256"):
        return (source["sha256"],)
    return (source.get("name"), source["revision"]) if source.get("revision") else None


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
    windows = _windows(kind, scores, context_of(model), stride)
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


def _windows(kind: str, scores: TokenScores, context: int, stride: int | None) -> Windows:
    if kind == BY_DOCUMENT:
        return each_document_alone(document_ends(scores.stream, scores.stream.meta["end_of_text"]), context)
    if kind == STRIDED:
        if stride is None or not 1 <= stride <= context:
            raise InputError(f"--stride {stride} must lie between 1 and the model's context of {context} tokens")
        return strided(len(scores.stream), context, stride)
    return disjoint(len(scores.stream), context)


def language_part(
    scores: TokenScores,
    windows: Windows,
    tokenizer: PreTrainedTokenizerFast,
    text: Text,
    kind: str,
    folder: Path,
    xz: dict[str, float | None],
) -> dict[str, Any]:
    """The rows of a kind of windows; of the headline also the baselines, the curve by place and the sums by unit."""
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
    _add_intervals(rows, units, text.seed)
    if kind != HEADLINE:
        for row in rows:
            row |= {"stride": windows.stride, "windows": windows.label}
        if kind == BY_DOCUMENT:
            rows.append(_word_perplexity(rows[0], scores.total(windows, token_bytes).nats, text))
        return {"rows": rows}
    for first, last, nats, tokens in scores.by_place(windows):
        place = f"{first:,}" if first == last else f"{first:,} to {last:,}"
        row = {"name": "loss_by_position", "value": nats, **about, "count": tokens, "positions": place}
        row |= {"context": windows.context, "stride": windows.stride, "baseline": None}
        rows.append(row)
    return {"rows": rows, "units": units.as_dict()}


def _word_perplexity(like: dict[str, Any], nats: float, text: Text) -> dict[str, Any]:
    """The perplexity by the words of the text, whatever the tokenizer; words are counted as lm-eval counts them."""
    words = sum(len(re.split(r"\s+", document)) for document in text.documents.texts())
    row = {key: value for key, value in like.items() if key not in ("low", "high", "interval", "note")}
    return row | {
        "name": "word_perplexity",
        "value": math.exp(min(nats / words, 700)) if words else None,
        "count": words,
    }


def _add_intervals(rows: list[dict[str, Any]], units: UnitSums, seed: int) -> None:
    """Put `low`, `high` and what was drawn beside the model's own numbers."""
    if len(units.tokens) < 2:
        return
    drawn = language_draws(units, draws(len(units.tokens), seed))
    for row in rows:
        is_own = row["baseline"] is None and row["value"] is not None
        if is_own and row["name"] in drawn and (limits := interval(drawn[row["name"]])):
            row |= {"low": limits[0], "high": limits[1], "interval": units.kind}


def xz_part(text: Text) -> dict[str, Any]:
    """What `xz` needs for the text, alone and after the training text: the same for every model."""
    return {
        "xz": xz_bits_per_byte(text.documents.texts()),
        "xz_primed": None if text.training is None else xz_bits_per_byte(text.documents.texts(), text.training.texts()),
    }
