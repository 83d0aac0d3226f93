"""The verb `pretrain`: text to a language model, from scratch or from another model.

documents -> tokenizer -> shards -> plan -> loop -> checkpoint -> scores
"""

import functools
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from torch import nn
from transformers import PreTrainedModel

from groundup.common.console import ProgressBar, say
from groundup.common.settings import Deadline, verb
from groundup.data.documents import Documents
from groundup.data.sources import load_documents, short_name
from groundup.data.tokens import TokenStream, write_shards
from groundup.data.windows import Batch, BatchOrder, Dealer, Masking, PackedRows, SlidingWindow
from groundup.evaluation.baselines import unigram_score, xz_bits_per_byte
from groundup.evaluation.likelihood import LanguageScore, language_rows, score_masked, score_stream
from groundup.tokenization.folder import structure_ids
from groundup.tokenization.report import TokenBytes
from groundup.training.checkpoint import RunFolder
from groundup.training.loop import Position
from groundup.training.objectives import TokenLoss
from groundup.training.pretraining_preparation import BASE, TEXTS_FILE, Prepared, make_model, open_prepared, prepare_run
from groundup.training.run import TrainingRun
from groundup.training.settings import PretrainSettings
from groundup.training.verbs import carry_out

VALIDATION_TOKENS = 2**16  # scored at each validation of a run whose budget is no clock
ENOUGH_TOKENS = 2**12  # and of one whose budget is one
SMOKE_TOKENS = 2**12  # scored at each validation of a short try; its last scores are on VALIDATION_TOKENS
FINISH_SECONDS = 5.0  # to write the last files


@verb(PretrainSettings)
def pretrain(settings: PretrainSettings, deadline: Deadline) -> Path:
    """Train a language model on `settings.data` and return the folder of the checkpoint.

    Takes a `PretrainSettings` or its fields by keyword; the minutes count from the beginning of `deadline`, the call.

    Raises:
        InputError: for data, options or a folder that will not do; nothing that was there is lost.
        Interrupted: after Ctrl-C, with the state saved.
        Diverged: when the loss stops being a number.
    """
    out = carry_out(
        settings,
        deadline,
        prepare=prepare_run,
        start=lambda run, deadline: Pretraining(open_prepared(run), run, deadline),
    )
    say(f"written to {out}" + (f"; next: groundup generate {out}" if settings.objective == "clm" else ""))
    return out


def pretrain_first(prepared: Any, deadline: Deadline, most_epochs: float | None = None, **options: Any) -> None:
    """Pretrain on the texts of a prepared run's rows, into its `work/base`, unless an earlier process has done it.

    Options that are not given are those of the run. Under a clock it ends after `most_epochs` at the latest: a few
    thousand short texts are learnt by heart within a few, and what comes after makes the model worse
    (docs/classification.md).
    """
    settings, plan, work = prepared.settings, prepared.plan, prepared.work
    usual = {
        "tokenizer": str(work / "tokenizer") if settings.model is None else None,
        "context_length": plan.context_length,
        "hidden_size": plan.model.get("hidden_size"),
        "num_hidden_layers": plan.model.get("num_hidden_layers"),
        "model_config": plan.model,
        "optimizer": settings.optimizer,
        "learning_rate_scale": settings.learning_rate_scale,
        "precision": settings.precision,
        "seed": settings.seed,
        "quiet": settings.quiet,
    }
    say("pretraining on the texts of the rows first:")
    carry_out(
        PretrainSettings(data=[str(work / TEXTS_FILE)], out=str(work / BASE), resume=True, **usual | options),
        deadline,
        prepare=prepare_run,
        start=lambda run, deadline: Pretraining(open_prepared(run), run, deadline, most_epochs),
        inner=True,
    )


class Pretraining(TrainingRun):
    """Carry out a prepared run of `pretrain`."""

    finish_seconds = FINISH_SECONDS

    def __init__(self, prepared: Prepared, folder: RunFolder, deadline: Deadline, most_epochs: float | None = None):
        self.prepared, self.most_epochs = prepared, most_epochs
        settings = prepared.settings
        super().__init__(prepared, folder, deadline)
        self.special_ids = structure_ids(prepared.tokenizer)
        self.token_bytes = TokenBytes.of(prepared.tokenizer)
        self.test_overlap: dict[str, Any] | None = None
        self.masking = None
        if settings.objective == "mlm":
            self.masking = Masking(cast(int, self.tokenizer.mask_token_id), self.special_ids, settings.seed)
        rows = PackedRows if settings.packing == "documents" else SlidingWindow
        self.windows = rows(prepared.train, prepared.plan.context_length)
        self.rows = len(self.windows)
        self.batch_rows = prepared.plan.batch_tokens // prepared.plan.context_length
        self.step_tokens = prepared.plan.batch_tokens
        usual = VALIDATION_TOKENS if settings.minutes is None else ENOUGH_TOKENS
        self.validation_tokens = SMOKE_TOKENS if settings.smoke else usual
        self.last_tokens = math.inf if settings.eval_data else len(prepared.validation)  # that is not tokenized yet

    def make_model(self) -> PreTrainedModel:
        """Return fresh weights of the plan's sizes, or the model whose training is continued."""
        return cast(PreTrainedModel, make_model(self.prepared))  # or an adapter around it, which passes all on

    def make_objective(self) -> nn.Module:
        """Return the summed loss of predicting each next token, or the masked ones."""
        return TokenLoss(self.model, compiled=self.plan.compiled)

    def make_batches(self, order: BatchOrder, rank: int, processes: int) -> Dealer:
        """Return windows of the training text, with tokens masked for an encoder."""
        context_length, at_once = self.plan.context_length, self.plan.micro_batch_rows

        def make(rows: npt.NDArray[np.int64], samples: npt.NDArray[np.int64]) -> Batch:
            batch = self.windows.batch(rows)
            return batch if self.masking is None else batch | self.masking.apply(batch["input_ids"], samples)

        lengths = functools.partial(np.full_like, fill_value=context_length)
        return Dealer(order, lengths, at_once * context_length, make, rank, processes)

    def score_some(self, tokens: int) -> int:
        """Score about so many tokens of the held-out text; return how many they were."""
        return self._score(self.prepared.validation, tokens).tokens

    def validate(self, position: Position) -> dict[str, float]:
        """Return loss and bits per byte on a part of the held-out text."""
        with self.accelerator.autocast():
            score = self._score(self.prepared.validation, position.validation_tokens)
        values = {"validation_loss": score.loss, "validation_bits_per_byte": score.bits_per_byte}
        return {name: round(value, 6) for name, value in values.items() if value is not None}

    def describe(self, position: Position) -> dict[str, Any]:
        """Return what every run records about itself, and how often the text was seen."""
        epochs = position.labels / max(1, len(self.prepared.train) - 1)
        overlap = {"validation": self.prepared.overlap, "test": self.test_overlap}
        found = {split: counts for split, counts in overlap.items() if counts is not None}
        return super().describe(position) | {"epochs": round(epochs, 3)} | ({"overlap": found} if found else {})

    def score(self) -> list[dict[str, Any]]:
        """Score the held-out text, all of it where that is affordable, and `--eval-data`."""
        prepared = self.prepared
        seed, share = prepared.settings.seed, 0.5 if prepared.settings.eval_data else 1.0
        limit = self._affordable_tokens(prepared.validation, "validation", share)
        with ProgressBar("scoring", total=1.0) as bar:
            score = self._score(prepared.validation, limit, bar.update)
        rows = language_rows(
            score, dataset=prepared.name, split="validation", seed=seed, unigram=prepared.unigram, xz=prepared.xz
        )
        return rows + self._test_rows() if prepared.settings.eval_data else rows

    def _test_rows(self) -> list[dict[str, Any]]:
        """Score `--eval-data`, used only now, without what the training text has too, and its baselines."""
        prepared, settings = self.prepared, self.prepared.settings
        documents, sources = load_documents(settings.eval_data, settings.text_column)
        self.folder.add_to_recipe({"eval_sources": sources})
        documents = self._unseen(documents)
        test = write_shards(documents, prepared.tokenizer, self.folder.work / "test")
        score = self._score(test, self._affordable_tokens(test, "test", 1.0))
        unigram = unigram_score(prepared.train, test, len(prepared.tokenizer), self.special_ids, self.token_bytes)
        about = {"dataset": short_name(settings.eval_data), "split": "test", "seed": settings.seed}
        return language_rows(score, **about, unigram=unigram, xz=xz_bits_per_byte(documents.texts()))

    def _unseen(self, documents: Documents) -> Documents:
        """Return the test documents that are not in the training text, or all if there are none; say how many are."""
        if self.prepared.known is None:
            say("test: shards do not hold their text, so overlap of the training text with --eval-data was not checked")
            return documents
        found = self.prepared.known.apart(documents)
        self.test_overlap = {"count": found.count, "unit": found.unit, "copies": found.copies}
        if found.copies:
            left = "not scored" if len(found.fresh) else "all are scored, since none would be left"
            say(f"test: {found.said} are in the training text too, verbatim or nearly so: {left}")
        return found.fresh if len(found.fresh) else documents

    def _score(self, stream: TokenStream, limit_tokens: int | None = None, progress: Any = None) -> LanguageScore:
        context_length = self.prepared.plan.context_length
        if self.masking is not None:
            return score_masked(
                self.model, stream, context_length, self.masking, limit_tokens=limit_tokens, progress=progress
            )
        return score_stream(
            self.model,
            stream,
            context_length,
            special_ids=self.special_ids,
            token_bytes=self.token_bytes,
            limit_tokens=limit_tokens,
            progress=progress,
        )

    def _affordable_tokens(self, stream: TokenStream, split: str, share: float) -> int | None:
        """Return how many tokens of `stream` can be scored in `share` of the time left, and print it; None for all."""
        if self.prepared.settings.smoke:
            return VALIDATION_TOKENS
        part = self.affordable(len(stream), share)
        if part == 1.0:
            return None
        tokens = max(1, int(part * len(stream)))
        say(f"{split}: about {tokens:,} of {len(stream):,} tokens are scored, spread over the text: time is short")
        return tokens
