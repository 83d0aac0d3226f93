"""The verb `pretrain`: text to a language model, from scratch or from another model.

documents -> tokenizer -> shards -> plan -> loop -> checkpoint -> scores
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import broadcast_object_list, set_seed

from groundup.common import clock
from groundup.common.console import ProgressBar, console, say
from groundup.common.errors import InputError
from groundup.common.files import output_folder
from groundup.common.settings import verb
from groundup.data.sources import load_documents, short_name
from groundup.data.tokens import TokenStream, write_shards
from groundup.data.windows import IGNORED, BatchOrder, SlidingWindow
from groundup.evaluation.language import (
    LanguageScore,
    language_rows,
    score_stream,
    structure_ids,
    token_byte_lengths,
)
from groundup.evaluation.loading import load_model
from groundup.evaluation.report import read_metrics, summary_table
from groundup.training.checkpoint import Position, disk_error, load_state, save_state
from groundup.training.loop import SAVES, Batch, Loop, Schedule
from groundup.training.objectives import NextTokenLoss
from groundup.training.optim import build_optimizers
from groundup.training.run_folder import RunFolder
from groundup.training.schedule import Budget
from groundup.training.settings import PretrainSettings
from groundup.training.starting import Prepared, make_model, open_prepared, prepare_run

VALIDATION_TOKENS = 2**16  # scored at each validation of a run whose budget is no clock
TIMED_TOKENS = 2**12  # scored to learn how fast that is
VALIDATION_SHARE = 0.02  # of the time, what all validations of a run under a clock may take together
FINISH_SHARE = 0.2  # of the time, the most that the last scores may take; beyond it they are taken on a part
FINISH_SECONDS = 5.0  # to write the last files


@verb(PretrainSettings)
def pretrain(settings: PretrainSettings) -> Path:
    """Train a language model on `settings.data` and return the folder of the checkpoint.

    Takes a `PretrainSettings` or its fields by keyword.

    Raises:
        InputError: for data, options or a folder that will not do; nothing that was there is lost.
        Interrupted: after Ctrl-C, with the state saved.
        Diverged: when the loss stops being a number.
    """
    began = clock.began()
    # Said outright: under torchrun without an accelerator Accelerate would start as many lone processes.
    state = PartialState(cpu=torch.accelerator.current_accelerator() is None)
    console.quiet = settings.quiet or not state.is_main_process
    if settings.resume and settings.out is None:
        raise InputError("--resume needs --out: the folder of the run to go on with")
    run = RunFolder(output_folder(settings.out, "pretrain", short_name(settings.data)))
    if settings.resume and run.is_finished:
        say(f"{run.out} is finished: nothing to do")
        return run.out
    try:
        if not (settings.resume and run.has_begun):
            _once(state, lambda: prepare_run(settings, run, began))
        Pretraining(open_prepared(run), run, began).run(resume=settings.resume)
    except Exception as error:
        raise disk_error(error, run.out) or error from error
    if state.is_main_process:
        console.print(summary_table(read_metrics(run.out)))
        say(f"written to {run.out}; try: groundup generate --model {run.out}")
    return run.out


def _once(state: PartialState, action: Callable[[], None]) -> None:
    """Do something on the first process while the others wait; what the user got wrong is an error on all of them."""
    wrong: list[str | None] = [None]
    if state.is_main_process:
        try:
            action()
        except InputError as error:
            wrong = [str(error)]
    broadcast_object_list(wrong)
    if wrong[0] is not None:
        raise InputError(wrong[0])


class WindowBatches:
    """The rows of each step, cut into micro-batches, of which this process reads only its part."""

    def __init__(self, windows: SlidingWindow, order: BatchOrder, micro_batch_rows: int, state: PartialState):
        self.windows, self.order, self.micro_batch_rows = windows, order, micro_batch_rows
        self.rank, self.processes = state.process_index, state.num_processes

    def micro_batches(self, step: int) -> list[Batch]:
        """The micro-batches of a step, as many on every process: a missing row is filled by one that counts nothing."""
        rows = self.order.indices(step)
        mine = rows[self.rank :: self.processes]
        missing = -(-len(rows) // self.processes) - len(mine)
        batch = self.windows.batch([*mine, *rows[:missing]])
        batch["shift_labels"][len(mine) :] = IGNORED
        parts = range(0, len(mine) + missing, self.micro_batch_rows)
        return [{name: part[at : at + self.micro_batch_rows] for name, part in batch.items()} for at in parts]


class Pretraining:
    """A prepared run of pretraining, from its first step, or the newest saved one, to its last file."""

    def __init__(self, prepared: Prepared, run: RunFolder, began: float):
        self.prepared, self.folder, self.began = prepared, run, began
        AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
        precision = {"fp32": "no"}.get(prepared.plan.precision, prepared.plan.precision)
        self.accelerator = Accelerator(mixed_precision=precision, cpu=torch.accelerator.current_accelerator() is None)
        set_seed(prepared.settings.seed)
        self.model = make_model(prepared).to(self.accelerator.device)
        if prepared.settings.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        plan = prepared.plan
        self.optimizers = build_optimizers(self.model, plan.optimizer, plan.rates, plan.weight_decay)
        self.special_ids = structure_ids(prepared.tokenizer)
        self.token_bytes = token_byte_lengths(prepared.tokenizer)

    def run(self, resume: bool) -> None:
        """Train until the budget is used, take the best weights, score them and write the checkpoint."""
        final = self.folder.out / "final"
        if final.is_dir():
            self.folder.promote()
            return
        position = self._position(resume)
        loop = self._loop(position)
        if position.step:
            loop.write_log({"event": "resume", "step": position.step})
        position = loop.run()
        if self.accelerator.is_main_process:
            self._finish(position)
        self.accelerator.wait_for_everyone()

    def _position(self, resume: bool) -> Position:
        newest = self.folder.newest_state() if resume else None
        if newest is not None:
            say(f"going on from {newest.name}")
            self._load_weights(newest)
            return load_state(newest, self.model, self.optimizers)
        rate = self._scored_tokens_per_second()
        minutes = self.prepared.settings.minutes
        if minutes is None:
            return Position(validation_tokens=VALIDATION_TOKENS)
        total = minutes * 60
        finish = min(FINISH_SHARE * total, len(self.prepared.validation) / rate) + FINISH_SECONDS
        left = self.began + total - time.time() - finish
        tokens = int(max(TIMED_TOKENS, VALIDATION_SHARE / SAVES * total * rate))
        return Position(budget_seconds=max(1.0, left), validation_tokens=tokens)

    def _loop(self, position: Position) -> Loop:
        settings, plan = self.prepared.settings, self.prepared.plan
        windows = SlidingWindow(self.prepared.train, plan.context_length)
        batch_rows = plan.batch_tokens // plan.context_length
        limit = None if settings.epochs is None else max(1, round(settings.epochs * len(windows)))
        steps = settings.max_steps if limit is None else -(-limit // batch_rows)
        order = BatchOrder(len(windows), batch_rows, settings.seed, limit)
        objective = NextTokenLoss(self.model)
        return Loop(
            accelerator=self.accelerator,
            objective=self.accelerator.prepare(objective),
            optimizers=self.optimizers,
            batches=WindowBatches(windows, order, plan.micro_batch_rows, PartialState()),
            budget=Budget(steps=steps, seconds=position.budget_seconds),
            schedule=Schedule(warmup=plan.warmup, decay=plan.decay, clip=1.0 if plan.optimizer == "adamw" else None),
            validate=lambda: self._validate(position.validation_tokens),
            save=self._save,
            log_path=self.folder.log_path if self.accelerator.is_main_process else None,
            save_every=settings.save_every,
            position=position,
        )

    def _score(self, stream: TokenStream, limit_tokens: int | None = None, progress: Any = None) -> LanguageScore:
        return score_stream(
            self.model,
            stream,
            self.prepared.plan.context_length,
            special_ids=self.special_ids,
            token_bytes=self.token_bytes,
            limit_tokens=limit_tokens,
            progress=progress,
        )

    def _scored_tokens_per_second(self) -> float:
        started = time.perf_counter()
        tokens = self._score(self.prepared.validation, TIMED_TOKENS).tokens
        return max(1, tokens) / (time.perf_counter() - started)

    def _validate(self, limit_tokens: int | None) -> dict[str, float]:
        with self.accelerator.autocast():
            score = self._score(self.prepared.validation, limit_tokens)
        values = {"validation_loss": score.loss, "validation_bits_per_byte": score.bits_per_byte}
        return {name: round(value, 6) for name, value in values.items() if value is not None}

    def _save(self, position: Position) -> None:
        if self.accelerator.is_main_process:
            self.folder.save_step(
                position.step,
                self.model,
                self.prepared.tokenizer,
                lambda folder: save_state(folder, self.model, self.optimizers, position),
                self._training(position),
                position.best_step,
            )
        self.accelerator.wait_for_everyone()

    def _training(self, position: Position) -> dict[str, Any]:
        """What metrics.json says of how the model came to be."""
        return {
            "steps": position.step,
            "tokens": position.tokens,
            "epochs": round(position.tokens / max(1, len(self.prepared.train) - 1), 3),
            "seconds": round(position.seconds, 1),
            "parameters": self.model.num_parameters(),
            "device": self.accelerator.device.type,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "precision": self.prepared.plan.precision,
        }

    def _finish(self, position: Position) -> None:
        """Score the best weights on all that was kept back and write the checkpoint."""
        training = self._training(position)
        if position.best_step != position.step:
            self._load_weights(self.folder.out / "checkpoints" / f"step-{position.best_step}")
            say(f"the best weights are those of step {position.best_step}")
        training["best_step"] = position.best_step
        rows = self._rows()
        self.folder.finish(self.model, self.prepared.tokenizer, rows, training)

    def _rows(self) -> list[dict[str, Any]]:
        prepared = self.prepared
        seed = prepared.settings.seed
        with ProgressBar("scoring", total=1.0) as bar:
            score = self._score(prepared.validation, self._affordable_tokens(), bar.update)
        rows = language_rows(
            score, dataset=prepared.name, split="validation", seed=seed, unigram=prepared.unigram, xz=prepared.xz
        )
        if prepared.settings.eval_data:
            documents = load_documents(prepared.settings.eval_data, prepared.settings.text_column)
            test = write_shards(documents, prepared.tokenizer, self.folder.work / "test")
            rows += language_rows(self._score(test), dataset=prepared.name, split="test", seed=seed)
        return rows

    def _affordable_tokens(self) -> int | None:
        """How many tokens the last scores may take under a clock: all, unless that would eat into the training."""
        minutes = self.prepared.settings.minutes
        if minutes is None:
            return None
        return int(max(VALIDATION_TOKENS, FINISH_SHARE * minutes * 60 * self._scored_tokens_per_second()))

    def _load_weights(self, folder: Path) -> None:
        saved, _ = load_model(folder)
        self.model.load_state_dict(saved.state_dict())
