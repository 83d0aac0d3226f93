"""Carry out a run that starts, resumes after a stop, and ends in a checkpoint, as every kind of training does.

A kind of training says what it learns from (rows, dealt out in batches), what it minimises (an objective), for how
long, and how it is measured; everything else is the same for all kinds, and stands here.
"""

import abc
import functools
import math
import time
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import set_seed
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.processes import agreed, processes, set_random_state
from groundup.common.settings import Deadline
from groundup.common.verbs import PushOptions
from groundup.data.windows import BatchOrder, Dealer
from groundup.training.checkpoint import (
    Position,
    RunFolder,
    load_state,
    load_weights,
    optimizer_state,
    random_states_of_all,
    save_state,
)
from groundup.training.loop import SAVES, Budget, Loop, Schedule, start_tracking
from groundup.training.machine import (
    asked_to_shard,
    attending_in_blocks,
    compile_blocks,
    run_within,
    shard,
    uncompiled,
    whole_weights,
    without_accelerates,
)
from groundup.training.optim import build_optimizers
from groundup.training.settings import TrainingOptions

if TYPE_CHECKING:
    from peft import PeftModel

    from groundup.publishing.pushing import Pusher


FEW_UPDATES = 20  # fewer teach a model next to nothing
# Of a budget in minutes: what all validations take together where more teaches nothing, the most that they may take,
# and the most that the last scores may take; beyond it they are taken on a part.
VALIDATION_SHARE, LARGEST_VALIDATION_SHARE, LARGEST_SCORING_SHARE = 0.02, 0.1, 0.2
TIMED_TOKENS = 128, 512, 4096  # scored to learn how fast that is: the more the more exactly, until it takes too long
LONGEST_TIMING = 4.0  # seconds
STEP_COST = 3.0  # a step takes as long as scoring its tokens so many times (Chowdhery et al. 2022, appendix B)


def pusher_of(settings: TrainingOptions) -> "Pusher | None":
    """Return what sends a run's checkpoints to the Hub, None where they stay here. Raises `InputError`."""
    if not any(getattr(settings, option.name) for option in fields(PushOptions)):
        return None
    from groundup.publishing.pushing import Pusher  # the gate takes a while to import

    trusts = getattr(settings, "trust_remote_code", False)  # pretrain, which starts from models of ours, does not ask
    return Pusher(settings, settings.save_every, settings.base if settings.lora else None, trusts)


class Prepared(Protocol):
    """Hold what every preparation leaves in a run's folder."""

    settings: Any  # of the verb: a `TrainingOptions`
    plan: Any  # an `Optimization`
    tokenizer: PreTrainedTokenizerFast


class TrainingRun(abc.ABC):
    """Carry out a prepared run, from its first step, or the newest saved one, to its last file.

    Attributes for the kinds of training: `accelerator`, `model`, `tokenizer`, `folder`, `plan`, `deadline`. The best
    weights are those with the least (or, where `higher_is_better`, the greatest) `best_by` of `validate`, or
    the latest that its standard error cannot tell from those; `patience` validations in a row without a better one end
    the run.
    """

    unit: Literal["tokens", "rows"] = "tokens"
    best_by = "validation_loss"
    higher_is_better = False
    patience: int | None = None
    most_epochs: float | None = None  # under a clock: no more are of use
    is_kept = True  # else only its weights are used: nothing of it is pushed or tracked
    finish_share, finish_seconds = 0.0, 0.0  # of the time and beside that, for what follows the last scores
    rows: int  # that are learned from in an epoch
    batch_rows: int  # in one step
    step_tokens: float  # in one step, on average
    validation_tokens: int  # at each validation, where the time allows it
    last_tokens: float  # scored at the end, where the time allows it

    def __init__(self, prepared: Prepared, folder: RunFolder, deadline: Deadline):
        settings, plan = prepared.settings, prepared.plan
        self.folder, self.tokenizer, self.plan = folder, prepared.tokenizer, plan
        self.deadline = deadline.after(settings.minutes)
        self.max_steps, self.order_seed = settings.max_steps, settings.seed
        self.epochs = settings.epochs or (None if settings.minutes is None else self.most_epochs)
        self.pusher = pusher_of(settings) if self.is_kept else None
        self.save_every = settings.save_every or (None if self.pusher is None else self.pusher.every)
        track = settings.track if self.is_kept else "none"
        AcceleratorState._reset_state()  # an earlier run in this process may have had another precision
        precision = {"fp32": "no"}.get(plan.precision, plan.precision)
        self.sharded = asked_to_shard()
        if self.sharded and plan.base_precision != "fp32":
            raise InputError(f"--base-precision {plan.base_precision}: a sharded run keeps its base as it is")
        with without_accelerates():
            self.accelerator = Accelerator(
                mixed_precision=precision,
                cpu=torch.accelerator.current_accelerator() is None,
                log_with=None if track == "none" else track,
                project_dir=folder.out / "tracking",
            )
        if track != "none":
            start_tracking(self.accelerator, track, folder.out.name)
        set_seed(settings.seed)
        self._take(self.make_model(), plan.base_precision)
        set_seed(settings.seed + self.accelerator.process_index)  # equal weights everywhere, but dropout of its own
        if plan.checkpointed:
            # The second is what older transformers call it.
            new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"
            getattr(self.model, new if hasattr(self.model, new) else old)()
        if plan.compiled:
            compile_blocks(self.model)

    def _take(self, model: "PreTrainedModel | PeftModel", base_precision: str = "fp32") -> None:
        made = model.to(self.accelerator.device)
        # With an adapter beside its matrices the model trains and measures as it would without, and is saved otherwise.
        self.model = made if isinstance(made, PreTrainedModel) else cast(PreTrainedModel, made.get_base_model())
        self.saved_model = made
        self.base: dict[str, str] = {}
        if not isinstance(made, PreTrainedModel):
            from groundup.training.lora import describe_base, hold_base  # peft takes a while to import

            self.base = describe_base(made)
            hold_base(made, base_precision)

    @abc.abstractmethod
    def make_model(self) -> "PreTrainedModel | PeftModel":
        """Return the model before its first step, perhaps with an adapter (`add_lora`)."""

    @abc.abstractmethod
    def make_objective(self) -> nn.Module:
        """Return what is minimised: a micro-batch's tensors by name -> the summed loss over the labels that count."""

    @abc.abstractmethod
    def make_batches(self, order: BatchOrder, rank: int, processes: int) -> Dealer:
        """Return the micro-batches of each step, of the rows that `order` gives, for this one of the processes."""

    @abc.abstractmethod
    def score_some(self, tokens: int) -> int:
        """Score about so many tokens as the last scores do; return how many they were."""

    def first_position(self) -> Position:
        """Return the position before the first step: under a clock, with the time that the end leaves for training.

        Raises `InputError` where that is too short for a step.
        """
        minutes = self.deadline.minutes
        if minutes is None:
            return Position(validation_tokens=self.validation_tokens)
        in_all = self._scored_per_second * 60 * minutes
        enough = min(self.validation_tokens, LARGEST_VALIDATION_SHARE / SAVES * in_all)
        seconds = self.deadline.seconds_left(self.reserved())
        self._require_a_step(seconds or 0.0)
        tokens = max(1, int(max(enough, VALIDATION_SHARE / SAVES * in_all)))
        return Position(budget_seconds=seconds, validation_tokens=tokens)

    def reserved(self) -> float:
        """Return the seconds that the last scores and files are to have of the minutes given."""
        total = 60 * (self.deadline.minutes or 0.0)
        scoring = min(LARGEST_SCORING_SHARE * total, self.last_tokens / self._scored_per_second)
        return self.finish_share * total + self.finish_seconds + scoring

    def affordable(self, tokens: float, share: float = 1.0) -> float:
        """Return the share of so many tokens that a `share` of the time for the last scores allows: at most 1."""
        minutes = self.deadline.minutes
        if minutes is None:
            return 1.0
        left = self.deadline.seconds_left(self.finish_share * 60 * minutes + self.finish_seconds) or 0.0
        seconds = share * min(LARGEST_SCORING_SHARE * 60 * minutes, left)
        return min(1.0, seconds * self._scored_per_second / max(1.0, tokens))

    @functools.cached_property
    def _scored_per_second(self) -> float:
        """Return how many tokens are scored in a second, which is tried."""
        self._timed(1)  # the first pass of all finds its memory and kernels, which takes time
        rate = math.inf
        for tokens in TIMED_TOKENS:
            rate = self._timed(tokens) if LONGEST_TIMING * rate > tokens else rate
        return rate

    def _timed(self, tokens: int) -> float:
        started = time.perf_counter()
        with uncompiled():
            return max(1, self.score_some(tokens)) / (time.perf_counter() - started)

    def _require_a_step(self, seconds: float) -> None:
        """Raise `InputError` where a step does not fit into the seconds that are left for training."""
        step = STEP_COST * self.step_tokens / self._scored_per_second
        minutes = self.deadline.minutes
        if step <= seconds or minutes is None:
            return
        shares = self.finish_share + LARGEST_SCORING_SHARE + LARGEST_VALIDATION_SHARE
        spent = 60 * minutes - cast(float, self.deadline.seconds_left()) + self.finish_seconds
        least = math.ceil(10 * (spent + 2 * step) / (1 - shares) / 60) / 10
        raise InputError(
            f"--minutes {minutes:g}: a step of {self.step_tokens:,.0f} tokens takes about {step:,.0f} s here, and "
            f"{seconds:,.0f} s are left for training: give at least --minutes {least:g}, or smaller steps"
        )

    def row_limit(self) -> int | None:
        """Return the rows after which a budget in epochs ends, None where that is not the budget."""
        return None if self.epochs is None else max(1, round(self.epochs * self.rows))

    def budget(self, position: Position) -> Budget:
        """Return when to stop: the steps given or made of epochs, or the seconds that are left for training."""
        limit = self.row_limit()
        steps = self.max_steps if limit is None else -(-limit // self.batch_rows)
        return Budget(steps=steps, seconds=position.budget_seconds)

    @abc.abstractmethod
    def validate(self, position: Position) -> dict[str, float]:
        """Measure the model as it is: values by name, among them `best_by`; called on every process."""

    @abc.abstractmethod
    def score(self) -> list[dict[str, Any]]:
        """Return rows for metrics.json on the best weights; called once, at the end, on the first process."""

    def finish_model(self) -> float | None:
        """Change the best weights before they are scored, on the first process; return their new value, or None."""
        return None

    def complete(self, folder: Path) -> None:  # noqa: B027 (a kind of run may add something, and need not)
        """Add to the finished checkpoint in `folder` what else was asked for; nothing, unless a kind of run does."""

    def describe(self, position: Position) -> dict[str, Any]:
        """Return what metrics.json says of how the model came to be."""
        return {
            "steps": position.step,
            self.unit: position.labels,
            "seconds": round(position.seconds, 1),
            "parameters": self.model.num_parameters(),
            "trained_parameters": self.model.num_parameters(only_trainable=True),
            "device": self.accelerator.device.type,
            "processes": self.accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "precision": self.plan.precision,
            **({"sharded": True} if self.sharded else {}),
            **self.base,
        }

    def run(self, resume: bool) -> None:
        """Train until the budget is used, take the best weights, score them and write the checkpoint."""
        if agreed(processes(), self.folder.final.is_dir):
            self.accelerator.wait_for_everyone()  # until each has seen it
            if self.accelerator.is_main_process:
                self._end()
            return
        order = BatchOrder(self.rows, self.batch_rows, self.order_seed, self.row_limit())
        batches = self.make_batches(order, self.accelerator.process_index, self.accelerator.num_processes)
        # DDP around it, unless it is sharded below.
        self.objective = self.accelerator.prepare_model(self.make_objective(), evaluation_mode=self.sharded)
        with uncompiled():
            position = self._begin(self.folder.newest_state() if resume else None)
        if self.accelerator.is_main_process:
            self.folder.cut_log(position.step)
            if position.step:
                self._push(position.step)
        loop = self._loop(self.objective, batches, position)
        if position.step:
            loop.write_log({"event": "resume", "step": position.step})
        with attending_in_blocks(self.model):
            position = loop.run()
        if position.step < FEW_UPDATES and loop.budget.share_used(0, position.seconds) > 0.8:
            steps = "one step" if position.step == 1 else f"{position.step} steps"
            say(f"only {steps} fitted into the time: give more --minutes")
        if self.accelerator.is_main_process:
            with uncompiled():
                self._finish(position)
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _begin(self, newest: Path | None) -> Position:
        """Make the optimizers; weights, states and position are those of the newest saved folder, if there is one."""
        if newest is None:
            # Late, since it knows what is left of the time; the same on all processes, however fast each of them is.
            position = Position(**agreed(processes(), lambda: asdict(self.first_position())))
            position.budget_minutes = self.deadline.minutes
        else:
            say(f"resuming from {newest.name}")
            load_weights(newest, self.saved_model)
        if self.sharded:
            shard(self.objective, self.accelerator.device)
        plan = self.plan
        self.optimizers = build_optimizers(self.model, plan.optimizer, plan.rates, plan.weight_decay, plan.precision)
        if newest is None:
            return position
        position, states = load_state(newest, self.model, self.optimizers, self.accelerator.process_index)
        if states is None:
            say("this process is new to the run: its dropout starts from a new random state")
        else:
            set_random_state(states)
        minutes = self.deadline.minutes
        if position.budget_seconds and position.budget_minutes and minutes:  # it may have been given more since
            position.budget_seconds += 60 * (minutes - position.budget_minutes)
            position.budget_minutes = minutes
        return position

    def _loop(self, objective: nn.Module, batches: Dealer, position: Position) -> Loop:
        return Loop(
            accelerator=self.accelerator,
            objective=objective,
            optimizers=self.optimizers,
            batches=batches,
            budget=self.budget(position),
            schedule=Schedule(warmup=self.plan.warmup, decay=self.plan.decay, clip=self.plan.clip),
            validate=lambda: self._validate(position),
            save=self._save,
            unit=self.unit,
            log_path=self.folder.log_path if self.accelerator.is_main_process else None,
            save_every=self.save_every,
            best_by=self.best_by,
            higher_is_better=self.higher_is_better,
            patience=self.patience,
            position=position,
        )

    def _save(self, position: Position) -> None:
        states = random_states_of_all(self.accelerator)
        optimizer = optimizer_state(self.model, self.optimizers)
        weights = whole_weights(self.saved_model) if self.sharded else None
        if self.accelerator.is_main_process:
            self.folder.save_step(
                position.step,
                self.saved_model,
                self.tokenizer,
                lambda folder: save_state(folder, optimizer, position, states),
                self.describe(position),
                position.best_step,
                weights,
            )
            self._push(position.step)
        self.accelerator.wait_for_everyone()

    def _push(self, step: int) -> None:
        """Push the state saved at a step, unless that was done before the run was stopped."""
        if self.pusher is not None and self.folder.pushed_step != step:
            self.pusher.after_save(self.folder.step_folder(step), step)
            self.folder.pushed_step = step

    def _validate(self, position: Position) -> dict[str, float]:
        with uncompiled():
            if self.sharded:
                return run_within(self.objective, lambda: self.validate(position))
            return self.validate(position)

    def _finish(self, position: Position) -> None:
        """Score the best weights and write the checkpoint."""
        changed = self.sharded or self.plan.base_precision != "fp32"
        if changed:
            self._take(self.make_model())  # whole again, on this process alone
        if changed or position.best_step != position.step:
            load_weights(self.folder.step_folder(position.best_step), self.saved_model)
        if position.best_step != position.step:
            say(f"kept the weights of step {position.best_step}, which has the best validation score")
        if (value := self.finish_model()) is not None:
            position.best_value = value
        rows = self.score()
        training = self.describe(position) | {"best_step": position.best_step}
        self.folder.finish(self.saved_model, self.tokenizer, rows, training, self.complete)
        self._end()

    def _end(self) -> None:
        """Push the whole last checkpoint and put it in its place; a run that is killed meanwhile does both again."""
        try:
            if self.pusher is not None:
                self.pusher.after_the_end(self.folder.final)
        finally:
            self.folder.promote()
