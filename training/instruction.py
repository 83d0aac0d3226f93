"""The verb `instruct`: instructions with answers, or conversations, to a model that answers.

rows -> chat template -> ids and loss mask -> loop -> checkpoint -> answers, measured
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from accelerate.state import PartialState
from torch import nn
from transformers import PreTrainedModel

from groundup.common.console import ProgressBar, say
from groundup.common.files import atomic_write
from groundup.common.settings import Deadline, verb
from groundup.data.conversations import Conversation, RowCounts, load_conversations
from groundup.data.encoding import ConversationRows, encode_conversations
from groundup.data.sources import short_name
from groundup.data.windows import IGNORED, BatchOrder
from groundup.evaluation.instruction import (
    SAMPLES,
    Answer,
    AnswerLoss,
    answer_loss,
    answer_rows,
    by_size,
    sample_table,
    write_answers,
)
from groundup.inference.loading import load_model, quiet_transformers
from groundup.modeling import GroundupForConditionalGeneration
from groundup.tokenization.chat import INPUT_JOINTS, ChatEncoder
from groundup.tokenization.folder import CHAT_TOKENS
from groundup.training.checkpoint import Position
from groundup.training.instruction_preparation import (
    TEXTS_FILE,
    PreparedInstructions,
    open_instructions,
    prepare_instructions,
)
from groundup.training.loop import Batch, Batches
from groundup.training.lora import add_lora
from groundup.training.objectives import NextTokenLoss, PairLoss
from groundup.training.pretraining import pretrain_first
from groundup.training.pretraining_preparation import SMOKE_TEST_ROWS, evenly, make_config
from groundup.training.run import TrainingRun, carry_out
from groundup.training.run_folder import RunFolder
from groundup.training.settings import InstructSettings, PretrainSettings

BASE = "base"  # under work/: the new model after its first pretraining
SAMPLES_FILE = "samples.md"
VALIDATION_ROWS = 500  # measured at each validation
LAST_ROWS = 2000  # of those kept back, measured at the end
VALIDATION_ANSWERS = 200  # written at the end where no rows to test on are given
SHORTEST_PRETRAINING = 3.0  # seconds
FINISH_SHARE = 0.15  # of the time, what the last answers may take; beyond it fewer are written
FINISH_SECONDS = 10.0  # to load the base again and to write the last files
FEW_ANSWERS = 4, 64  # written to learn how long an answer takes; the more the more exactly, where time allows it
LONGEST_ANSWER = 2  # times the longest right answer: what does not stop by then does not stop


@verb(InstructSettings)
def instruct(settings: InstructSettings, deadline: Deadline) -> Path:
    """Teach a model on the rows of `settings.data` and return the folder of the checkpoint.

    Takes an `InstructSettings` or its fields by keyword; the minutes count from the beginning of `deadline`, the call.

    Raises:
        InputError: for data, options or a folder that will not do; nothing that was there is lost.
        Interrupted: after Ctrl-C, with the state saved.
        Diverged: when the loss stops being a number.
    """
    out = carry_out(
        settings,
        deadline,
        verb="instruct",
        name=short_name(settings.data),
        prepare=prepare_instructions,
        start=_start,
    )
    say(f"written to {out}, with answers before and after in {SAMPLES_FILE}; try: groundup chat --model {out}")
    return out


def _start(run: RunFolder, deadline: Deadline) -> "InstructionRun":
    """Return the run of a prepared folder; a new decoder has been pretrained on the rows' own text before."""
    prepared = open_instructions(run)
    settings = prepared.settings
    if settings.model is None and settings.architecture == "decoder":
        left = deadline.after(settings.minutes).seconds_left()
        minutes = None if left is None else max(SHORTEST_PRETRAINING, settings.pretrain_share * left) / 60
        pretrain_first(_pretrain_settings(prepared, minutes), Deadline())
    return InstructionRun(prepared, run, deadline)


def _pretrain_settings(prepared: PreparedInstructions, minutes: float | None) -> PretrainSettings:
    """Return what pretrains a new model in `work/base` with a share of the budget."""
    settings, plan, share = prepared.settings, prepared.plan, prepared.settings.pretrain_share
    return PretrainSettings(
        data=[str(prepared.work / TEXTS_FILE)],
        tokenizer=str(prepared.work / "tokenizer"),
        out=str(prepared.work / BASE),
        minutes=minutes,
        max_steps=None if settings.max_steps is None else max(1, round(share * settings.max_steps)),
        epochs=None if settings.epochs is None else max(0.01, share * settings.epochs),
        context_length=plan.context_length,
        model_config=plan.model,
        hidden_size=plan.model["hidden_size"],
        num_hidden_layers=plan.model["num_hidden_layers"],
        optimizer=settings.optimizer,
        learning_rate_scale=settings.learning_rate_scale,
        precision=settings.precision,
        seed=settings.seed,
        resume=True,
        quiet=settings.quiet,
    )


class ConversationBatches:
    """The rows of each step, those of like length together in a micro-batch, of which this process reads its part."""

    def __init__(
        self,
        rows: ConversationRows,
        order: BatchOrder,
        micro_batch_tokens: int,
        state: PartialState,
        pad_id: int,
        pairs: bool,
    ):
        self.rows, self.order, self.micro_batch_tokens, self.pad_id = rows, order, micro_batch_tokens, pad_id
        self.rank, self.processes, self.pairs = state.process_index, state.num_processes, pairs

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, as many on every process: a missing row is filled by one that counts nothing.

        Rows are sorted by length and dealt out, so that neighbours on all processes are of a length; where a
        micro-batch ends follows from the longest of them.
        """
        chosen = self.order.indices(step)
        if not len(chosen):
            return []
        chosen = chosen[np.argsort(self.rows.lengths[chosen], kind="stable")]
        missing = -len(chosen) % self.processes
        dealt = np.concatenate([chosen, np.repeat(chosen[-1:], missing)]).reshape(-1, self.processes)
        cuts = by_size(np.arange(len(dealt)), self.rows.lengths[dealt[:, -1]], self.micro_batch_tokens)
        make = self.rows.pairs if self.pairs else self.rows.batch
        batches = [make(dealt[part, self.rank], self.pad_id) for part in cuts]
        if missing and self.rank >= self.processes - missing:
            batches[-1]["labels" if self.pairs else "shift_labels"][-1] = IGNORED
        return batches


class InstructionRun(TrainingRun):
    """A prepared run of `instruct`."""

    finish_share, finish_seconds = FINISH_SHARE, FINISH_SECONDS

    def __init__(self, prepared: PreparedInstructions, folder: RunFolder, deadline: Deadline):
        self.prepared = prepared
        settings = prepared.settings
        self.patience = settings.patience
        self.rows, self.batch_rows = len(prepared.train), prepared.plan.batch_rows
        self.pairs = settings.architecture == "encoder-decoder"
        pad = prepared.tokenizer.pad_token_id
        self.pad_id = pad if isinstance(pad, int) else 0  # never looked at
        super().__init__(prepared, folder, deadline)

    def make_model(self) -> PreTrainedModel:
        """The model to teach, with the end tokens of its answers in its generation config."""
        model = self._base()
        known = model.generation_config.eos_token_id
        ends = {*self.prepared.plan.stop_ids, *(known if isinstance(known, list) else [known])} - {None}
        model.generation_config.eos_token_id = sorted(ends)
        model.generation_config.pad_token_id = self.prepared.tokenizer.pad_token_id
        if self.prepared.settings.lora:
            # The base may never have seen the tokens that mark turns, and an adapter of the blocks cannot learn them.
            vocabulary = self.prepared.tokenizer.get_vocab()
            turns = [vocabulary[token] for token in CHAT_TOKENS if token in vocabulary]
            return add_lora(model, self.prepared.settings, turns)  # type: ignore[return-value]
        return model

    def _base(self) -> PreTrainedModel:
        """The model as it is before the first step, with an embedding for each token of the tokenizer."""
        prepared = self.prepared
        if self.pairs:
            return self._new_pair()
        source = prepared.settings.model or prepared.work / BASE
        model, _ = load_model(source, trust_remote_code=prepared.settings.trust_remote_code)
        if len(prepared.tokenizer) > cast(nn.Embedding, model.get_input_embeddings()).num_embeddings:
            with quiet_transformers():
                model.resize_token_embeddings(len(prepared.tokenizer))
        return model

    def _new_pair(self) -> PreTrainedModel:
        """An encoder and a decoder with fresh weights, of the plan's sizes."""
        plan, tokenizer = self.prepared.plan, self.prepared.tokenizer
        fields = {"is_encoder_decoder": True, "decoder_start_token_id": tokenizer.bos_token_id}
        whole: Any = dataclasses.replace(plan, model=plan.model | fields)
        return GroundupForConditionalGeneration(make_config(whole, tokenizer))

    def make_objective(self) -> nn.Module:
        """The summed loss on the answers."""
        return PairLoss(self.model) if self.pairs else NextTokenLoss(self.model)

    def make_batches(self) -> Batches:
        """Rows in the order that the seed decides."""
        plan, seed = self.prepared.plan, self.prepared.settings.seed
        order = BatchOrder(self.rows, self.batch_rows, seed, self.row_limit())
        return ConversationBatches(
            self.prepared.train, order, plan.micro_batch_tokens, PartialState(), self.pad_id, self.pairs
        )

    def validate(self, position: Position) -> dict[str, float]:
        """The loss on the answers of rows that were kept back."""
        with self.accelerator.autocast():
            rows = self.prepared.validation
            score = answer_loss(self.model, rows, evenly(len(rows), VALIDATION_ROWS), self.pad_id)
        return {"validation_loss": round(score.mean, 6)}

    def describe(self, position: Position) -> dict[str, Any]:
        """What every run says of itself, and how often the rows were seen."""
        rows = position.step * self.prepared.plan.batch_rows
        return super().describe(position) | {"epochs": round(rows / len(self.prepared.train), 3)}

    def score(self) -> list[dict[str, Any]]:
        """The loss on answers and the answers themselves, of all rows to test on, else of some that were kept back."""
        settings, prepared = self.prepared.settings, self.prepared
        base = self._base().to(self.accelerator.device)
        about = {"dataset": prepared.name, "seed": settings.seed}
        validation = prepared.conversations("validation")
        tests, counts = self._tests()
        rows = self._loss_rows(prepared.validation, base, about | {"split": "validation"})
        if tests:
            context = prepared.plan.context_length
            encoded, places, _ = encode_conversations(tests, self.tokenizer, context, counts)
            for line in counts.warnings(context):
                say(f"test: {line}")
            about |= {
                "split": "test",
                "dataset": short_name(settings.eval_data) if settings.eval_data else prepared.name,
            }
            rows += self._loss_rows(encoded, base, about)
            return rows + self._answered([tests[place] for place in places], base, about)
        chosen = [validation[place] for place in evenly(len(validation), VALIDATION_ANSWERS)]
        return rows + self._answered(chosen, base, about | {"split": "validation"})

    def _tests(self) -> tuple[list[Conversation], RowCounts]:
        """The rows to test on, read only now, and what became of the others."""
        settings = self.prepared.settings
        if settings.eval_data:
            joint = INPUT_JOINTS.get(str(self.tokenizer.chat_template), "\n")
            tests, counts, sources = load_conversations(settings.eval_data, joint, held_out=True)
            self.folder.add_to_recipe({"eval_sources": sources})
            chosen = evenly(len(tests), SMOKE_TEST_ROWS if settings.smoke else len(tests))
            return [tests[place] for place in chosen], counts
        tests = self.prepared.conversations("test")
        return tests, RowCounts(rows=len(tests))

    def _loss_rows(self, rows: ConversationRows, base: PreTrainedModel, about: dict[str, Any]) -> list[dict[str, Any]]:
        """The loss on answers, after training and before."""

        def row(score: AnswerLoss, baseline: str | None) -> dict[str, Any]:
            return {"name": "answer_loss", "value": score.mean, **about, "count": score.tokens, "baseline": baseline}

        chosen = evenly(len(rows), LAST_ROWS) if about["split"] == "validation" else None
        scores = [(answer_loss(model, rows, chosen, self.pad_id), name) for model, name in self._both(base)]
        return [row(*score) for score in scores]

    def _both(self, base: PreTrainedModel) -> list[tuple[PreTrainedModel, str | None]]:
        return [(self.model, None), (base, "before training")]

    def _answered(
        self, conversations: list[Conversation], base: PreTrainedModel, about: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Measures of written answers, and the table of samples; rows that were trained on are left out of a second."""
        train = self.prepared.conversations("train")
        order = np.random.default_rng(self.prepared.settings.seed).permutation(len(conversations))
        conversations = [conversations[place] for place in order]
        conversations = conversations[: self._affordable(conversations)]
        answers = self._write(self.model, conversations)
        before = self._write(base, conversations[:SAMPLES])
        table = sample_table(conversations[:SAMPLES], before, answers)
        atomic_write(self.folder.out / SAMPLES_FILE, table.encode())
        trained_answers = {row.answer for row in train}
        rows = answer_rows(conversations, answers, trained_answers, about)
        asked = {row.key for row in train}
        fresh = [place for place, row in enumerate(conversations) if row.key not in asked]
        if len(fresh) < len(conversations):
            seen = len(conversations) - len(fresh)
            none_left = "" if fresh else ": all are scored, since none would be left"
            say(f"{seen:,} of {len(conversations):,} test rows have prompts that are in training too{none_left}")
        if 0 < len(fresh) < len(conversations):
            kept = [conversations[place] for place in fresh], [answers[place] for place in fresh]
            rows += answer_rows(*kept, trained_answers, about | {"split": f"{about['split']} without them"})
        return rows

    def _affordable(self, conversations: list[Conversation]) -> int:
        """How many answers may be written: all, unless under a clock that would take more than its share."""
        minutes = self.prepared.settings.minutes
        if minutes is None or len(conversations) <= FEW_ANSWERS[0]:
            return len(conversations)
        affordable = 0
        for few in FEW_ANSWERS:
            some = conversations[:: max(1, len(conversations) // few)][:few]
            started = time.monotonic()
            self._write(self.model, some)
            each = (time.monotonic() - started) / len(some)
            affordable = max(len(some), int(FINISH_SHARE * 60 * minutes / each))
            if affordable < FEW_ANSWERS[-1]:
                break
        if affordable < len(conversations):
            say(f"only {affordable:,} of {len(conversations):,} rows are answered: the time allows no more")
        return min(affordable, len(conversations))

    def _write(self, model: PreTrainedModel, conversations: list[Conversation]) -> list[Answer]:
        encoder = ChatEncoder(self.tokenizer)
        prompts = [encoder.prompt_ids(row.prompt) for row in conversations]
        lengths = [len(ids) for ids in encoder.encode([row.answer for row in conversations])]
        order = np.argsort(lengths, kind="stable")  # answers written together should end together
        with ProgressBar("answering", total=1.0) as bar:
            written = write_answers(
                model,
                self.tokenizer,
                [prompts[place] for place in order],
                self.prepared.plan.stop_ids,
                LONGEST_ANSWER * max(lengths),
                bar.update,
            )
        return [written[place] for place in np.argsort(order)]
