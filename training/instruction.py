"""The verb `instruct`: instructions with answers, or conversations, to a model that answers.

rows -> chat template -> ids and loss mask -> loop -> checkpoint -> answers, measured
"""

import dataclasses
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import nn
from transformers import PreTrainedModel

from groundup.common.console import ProgressBar, say
from groundup.common.files import atomic_write
from groundup.common.settings import Deadline, verb
from groundup.data.conversations import Conversation, RowCounts, load_conversations
from groundup.data.encoding import ConversationRows, encode_conversations
from groundup.data.sources import short_name
from groundup.data.windows import BatchOrder, Dealer
from groundup.evaluation.instruction import (
    SAMPLES,
    Answer,
    AnswerLoss,
    answer_loss,
    answer_rows,
    sample_table,
    write_answers,
)
from groundup.inference.loading import load_model, quiet_transformers
from groundup.modeling import GroundupForConditionalGeneration
from groundup.tokenization.chat import INPUT_JOINTS, ChatEncoder
from groundup.tokenization.folder import CHAT_TOKENS
from groundup.training.checkpoint import RunFolder
from groundup.training.instruction_preparation import PreparedInstructions, open_instructions, prepare_instructions
from groundup.training.loop import Position
from groundup.training.lora import add_lora
from groundup.training.objectives import PairLoss, TokenLoss
from groundup.training.pretraining import pretrain_first
from groundup.training.pretraining_preparation import BASE, SMOKE_TEST_ROWS, evenly, make_config
from groundup.training.run import TrainingRun
from groundup.training.settings import InstructSettings
from groundup.training.verbs import carry_out

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
    out = carry_out(settings, deadline, prepare=prepare_instructions, start=_start)
    say(f"written to {out}, with answers before and after in {SAMPLES_FILE}; next: groundup chat {out}")
    return out


def _start(run: RunFolder, deadline: Deadline) -> "InstructionRun":
    """Return the run of a prepared folder; a new decoder is pretrained on the rows' own text before."""
    prepared = open_instructions(run)
    settings, share = prepared.settings, prepared.settings.pretrain_share
    if settings.model is None and settings.architecture == "decoder":
        left = deadline.after(settings.minutes).seconds_left()
        pretrain_first(
            prepared,
            Deadline(),
            minutes=None if left is None else max(SHORTEST_PRETRAINING, share * left) / 60,
            max_steps=None if settings.max_steps is None else max(1, round(share * settings.max_steps)),
            epochs=None if settings.epochs is None else max(0.01, share * settings.epochs),
        )
    return InstructionRun(prepared, run, deadline)


class InstructionRun(TrainingRun):
    """Carry out a prepared run of `instruct`."""

    finish_share, finish_seconds = FINISH_SHARE, FINISH_SECONDS

    def __init__(self, prepared: PreparedInstructions, folder: RunFolder, deadline: Deadline):
        self.prepared = prepared
        settings = prepared.settings
        self.patience = settings.patience
        self.rows, self.batch_rows = len(prepared.train), prepared.plan.batch_rows
        self.pairs = settings.architecture == "encoder-decoder"
        pad = prepared.tokenizer.pad_token_id
        self.pad_id = pad if isinstance(pad, int) else 0  # never looked at
        mean, held_out = float(prepared.train.lengths.mean()), len(prepared.validation)
        self.step_tokens = mean * self.batch_rows
        self.validation_tokens = int(mean * min(VALIDATION_ROWS, held_out))
        self.last_tokens = 2 * mean * (min(LAST_ROWS, held_out) + prepared.test_rows)  # before training and after
        super().__init__(prepared, folder, deadline)

    def make_model(self) -> PreTrainedModel:
        """Return the model to teach, with the end tokens of its answers in its generation config."""
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
        """Return the model as it is before the first step, with an embedding for each token of the tokenizer."""
        prepared = self.prepared
        if self.pairs:  # a new encoder and decoder
            fields = {"is_encoder_decoder": True, "decoder_start_token_id": prepared.tokenizer.bos_token_id}
            whole: Any = dataclasses.replace(prepared.plan, model=prepared.plan.model | fields)
            return GroundupForConditionalGeneration(make_config(whole, prepared.tokenizer))
        source = prepared.settings.model or prepared.work / BASE
        model, _ = load_model(source, trust_remote_code=prepared.settings.trust_remote_code)
        if len(prepared.tokenizer) > cast(nn.Embedding, model.get_input_embeddings()).num_embeddings:
            with quiet_transformers():
                model.resize_token_embeddings(len(prepared.tokenizer))
        return model

    def make_objective(self) -> nn.Module:
        """Return the summed loss on the answers."""
        return PairLoss(self.model) if self.pairs else TokenLoss(self.model)

    def make_batches(self, order: BatchOrder, rank: int, processes: int) -> Dealer:
        """Return the batches, each of rows of similar length."""
        tokens = self.plan.micro_batch_tokens
        return self.prepared.train.deal(order, self.pad_id, tokens, rank, processes, as_pairs=self.pairs)

    def score_some(self, tokens: int) -> int:
        """Score the answers of held-out rows with about so many tokens; return how many they were."""
        rows = self.prepared.validation
        chosen = evenly(len(rows), max(1, round(tokens / float(rows.lengths.mean()))))
        answer_loss(self.model, rows, chosen, self.pad_id)
        return int(rows.lengths[chosen].sum())

    def validate(self, position: Position) -> dict[str, float]:
        """Return the loss on answers of held-out rows."""
        rows, tokens = self.prepared.validation, position.validation_tokens or self.validation_tokens
        count = min(VALIDATION_ROWS, max(1, round(tokens / float(self.prepared.train.lengths.mean()))))
        with self.accelerator.autocast():
            score = answer_loss(self.model, rows, evenly(len(rows), count), self.pad_id)
        return {"validation_loss": round(score.mean, 6)}

    def describe(self, position: Position) -> dict[str, Any]:
        """Return what every run records about itself, and how often the rows were seen."""
        rows = position.step * self.prepared.plan.batch_rows
        return super().describe(position) | {"epochs": round(rows / len(self.prepared.train), 3)}

    def score(self) -> list[dict[str, Any]]:
        """Score the loss on answers and the answers themselves, of all test rows, else of some held-out ones."""
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
        """Return the rows to test on, read only now, and what became of the others."""
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
        """Return the loss on answers, after training and before."""

        def row(score: AnswerLoss, baseline: str | None) -> dict[str, Any]:
            return {"name": "answer_loss", "value": score.mean, **about, "count": score.tokens, "baseline": baseline}

        most, split = (LAST_ROWS if about["split"] == "validation" else len(rows)), about["split"]
        tokens = 2 * float(rows.lengths.mean()) * min(most, len(rows))
        part = self.affordable(tokens, tokens / max(tokens, self.last_tokens))
        count = max(1, int(part * min(most, len(rows))))
        if part < 1.0:
            say(f"{split}: the loss is that of {count:,} of {len(rows):,} rows, spread over them: time is short")
        chosen = evenly(len(rows), count)
        both = ((self.model, None), (base, "before training"))
        return [row(answer_loss(model, rows, chosen, self.pad_id), name) for model, name in both]

    def _answered(
        self, conversations: list[Conversation], base: PreTrainedModel, about: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Measure generated answers, once more without prompts that are in training, and write the table of samples."""
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
        """Return how many answers may be written: all, unless under a clock that would take more than its share."""
        minutes = self.deadline.minutes
        if minutes is None or len(conversations) <= FEW_ANSWERS[0]:
            return len(conversations)
        affordable = 0
        for few in FEW_ANSWERS:
            some = conversations[:: max(1, len(conversations) // few)][:few]
            started = time.monotonic()
            self._write(self.model, some)
            each = (time.monotonic() - started) / len(some)
            seconds = min(FINISH_SHARE * 60 * minutes, self.deadline.seconds_left(FINISH_SECONDS) or 0.0)
            both = seconds / each  # the base writes samples too
            affordable = max(len(some), int(both / 2 if both < 2 * SAMPLES else both - SAMPLES))
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
