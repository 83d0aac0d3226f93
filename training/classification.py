"""The verb `classify`: labelled texts to a classifier, its score beside two baselines, and labels for a file.

rows -> split -> (pretraining on their texts) -> loop -> checkpoint -> scores, confusion, worst mistakes
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate.state import PartialState
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from groundup.common.console import ProgressBar, console, say
from groundup.common.errors import InputError
from groundup.common.files import RECIPE_FILE
from groundup.common.output import claim, given_folder, is_begun
from groundup.common.processes import agreed, processes
from groundup.common.settings import Deadline, public_settings, verb, write_yaml
from groundup.data.encoding import ExampleBatches
from groundup.data.examples import Columns, Examples, also_in, load_examples, load_texts
from groundup.data.sources import short_name
from groundup.data.windows import IGNORED, BatchOrder
from groundup.evaluation.classification import (
    PREDICTIONS_FILE,
    Measured,
    baselines,
    classification_rows,
    draw_confusion,
    label_texts,
    log_loss,
    predict,
    scores,
    standard_error,
    write_mistakes,
)
from groundup.inference.loading import load_network, quiet_transformers
from groundup.tokenization.folder import structure_ids
from groundup.training.checkpoint import Position
from groundup.training.classification_preparation import (
    BASE,
    MOST_ADAPT_EPOCHS,
    PATHS,
    PreparedExamples,
    open_classification,
    prepare_classification,
)
from groundup.training.classifier_base import freeze, load_base
from groundup.training.loop import Batches
from groundup.training.lora import add_lora
from groundup.training.objectives import LabelLoss
from groundup.training.plan import LEAST_DECAY
from groundup.training.pretraining import pretrain_first
from groundup.training.pretraining_preparation import SMOKE_TEST_ROWS, evenly
from groundup.training.repeating import is_repeated, repeat, write_predictions
from groundup.training.run import TrainingRun, carry_out, require_tracker
from groundup.training.run_folder import RunFolder
from groundup.training.settings import ClassifySettings, PretrainSettings

OF_LABELLING = {"predict", "model", "text_column", "trust_remote_code", "out", "quiet", "resume", "smoke"}
CONFUSION_FILE, MISTAKES_FILE = "confusion.png", "mistakes.jsonl"
FINISH_SHARE = 0.08  # of the time, for the baselines and the last scores
FINISH_SECONDS = 8.0  # and for the last files
SMOKE_RUNS = 2  # at most averaged in a short try
TIE = 1e-6  # of the loss, that decides between two steps with the same score


@verb(ClassifySettings)
def classify(settings: ClassifySettings, deadline: Deadline) -> Path:
    """Train a classifier on the rows of `settings.data`, label `settings.predict`, or both; return the folder.

    Takes a `ClassifySettings` or its fields by keyword; the minutes count from the beginning of `deadline`, the call.

    Raises:
        InputError: for data, options or a folder that will not do; nothing that was there is lost.
        Interrupted: after Ctrl-C, with the state saved.
        Diverged: when the loss stops being a number.
    """
    if settings.predict is not None and not settings.data and not _goes_on(settings):
        return _label_only(settings)
    if settings.predict is not None:
        load_texts(settings.predict, settings.text_column)  # what is wrong with it is said before anything is trained
    out = repeat(settings, _train) if is_repeated(settings) else _train(settings, deadline)
    if settings.predict is not None and settings.resume and processes().is_main_process:
        write_predictions(out, settings)  # asked for only now
    say(f"written to {out}; try: groundup classify --model {out} --predict your_texts.txt")
    return out


def _goes_on(settings: ClassifySettings) -> bool:
    """Return whether there is a run to go on with, which the texts to label are then for."""
    return settings.resume and settings.out is not None and is_begun(given_folder(settings.out), "classify")


def _train(settings: ClassifySettings, deadline: Deadline) -> Path:
    return carry_out(
        settings,
        deadline,
        verb="classify",
        name=short_name(settings.data),
        prepare=prepare_classification,
        start=_start,
    )


def _start(run: RunFolder, deadline: Deadline) -> "ClassificationRun":
    """The run of a prepared folder; the model has gone through its pretraining on the texts before."""
    prepared = open_classification(run)
    if run.final.is_dir():
        return ClassificationRun(prepared, run, deadline)
    if prepared.plan.objective is not None:
        adapt(prepared, deadline)
    require_tracker(prepared.settings.track)  # the run that it follows comes last
    others = [_train_in_order(number, prepared, run, deadline) for number in range(1, _runs(prepared.settings))]
    return ClassificationRun(prepared, run, deadline, others=others)


def _runs(settings: ClassifySettings) -> int:
    """Runs whose weights are averaged."""
    return min(settings.average, SMOKE_RUNS) if settings.smoke else settings.average


def _train_in_order(number: int, prepared: PreparedExamples, run: RunFolder, deadline: Deadline) -> Path:
    """Train with the rows in another order, in a folder under work/, unless an earlier process has; return it."""
    folder, state = RunFolder(prepared.work / f"order-{number}"), processes()
    say(f"run {number} of {_runs(prepared.settings)}, with the rows in another order")
    if not agreed(state, lambda: folder.is_finished):
        agreed(state, lambda: folder.write_recipe(*run.read_recipe()))
        ClassificationRun(prepared, folder, deadline, order=number).run(resume=True)
    if state.is_main_process:
        shutil.rmtree(folder.out / "checkpoints", ignore_errors=True)  # its best weights lie beside them now
    return folder.out


def adapt(prepared: PreparedExamples, deadline: Deadline) -> None:
    """Pretrain on the training texts into `work/base`: a new model of the plan's sizes, or go on with `--model`."""
    settings, plan = prepared.settings, prepared.plan
    wanted = PretrainSettings(
        data=[str(prepared.work / "texts.jsonl")],
        tokenizer=str(prepared.work / "tokenizer") if settings.model is None else None,
        init_from=None if settings.model is None else str(prepared.given),
        objective=plan.objective or "clm",
        out=str(prepared.work / BASE),
        minutes=settings.adapt_minutes,
        epochs=settings.adapt_epochs,
        context_length=plan.context_length,
        hidden_size=plan.model.get("hidden_size"),
        num_hidden_layers=plan.model.get("num_hidden_layers"),
        model_config=plan.model,
        optimizer=settings.optimizer,
        learning_rate_scale=settings.learning_rate_scale * plan.pretraining_rate,
        weight_decay=LEAST_DECAY,
        precision=settings.precision,
        seed=settings.seed,
        resume=True,
        smoke=settings.smoke,
        quiet=settings.quiet,
    )
    pretrain_first(wanted, deadline, MOST_ADAPT_EPOCHS)


class ClassificationRun(TrainingRun):
    """A prepared run of `classify`.

    Args:
        order: 0 for the run that is scored and kept; another number shuffles the rows otherwise and is not scored.
        others: folders of finished runs from the same start, whose weights are averaged with this one's at the end.
    """

    unit = "rows"
    best_by = "selection"
    higher_is_better = True
    finish_share, finish_seconds = FINISH_SHARE, FINISH_SECONDS

    def __init__(
        self,
        prepared: PreparedExamples,
        folder: RunFolder,
        deadline: Deadline,
        order: int = 0,
        others: Sequence[Path] = (),
    ):
        self.prepared, self.order, self.others, self.is_kept = prepared, order, others, not order
        self.patience = prepared.plan.patience
        self.train_examples = prepared.examples("train")
        self.train_rows = prepared.encode(self.train_examples, "training")
        self.selection_rows = prepared.encode(prepared.examples("selection"), "selection")
        self.pad_id = int(prepared.tokenizer.pad_token_id)  # type: ignore[arg-type]
        self.rows, self.batch_rows = len(self.train_rows), prepared.plan.batch_rows
        super().__init__(prepared, folder, deadline)
        self.epochs = self.epochs or prepared.plan.most_epochs  # under a clock no more than are of use

    def make_model(self) -> PreTrainedModel:
        """The language model with a new head for the labels, and what is not to be trained frozen."""
        settings, plan = self.prepared.settings, self.prepared.plan
        model = load_base(
            self.prepared.source,
            plan.labels,
            settings.trust_remote_code,
            pad_token_id=self.pad_id,
            **plan.model_fields,
        )
        known = cast(nn.Embedding, model.get_input_embeddings()).num_embeddings
        if known < len(self.prepared.tokenizer):
            with quiet_transformers():
                model.resize_token_embeddings(len(self.prepared.tokenizer))
        if settings.lora:
            trained = range(known, len(self.prepared.tokenizer))
            return add_lora(model, settings, trained)  # type: ignore[return-value]
        freeze(model, settings.train)
        return model

    def make_objective(self) -> nn.Module:
        """The summed cross entropy of the labels."""
        settings, plan = self.prepared.settings, self.prepared.plan
        weights = None
        if settings.class_weights:
            counts = np.array(plan.label_counts, np.float64)
            weights = counts.sum() / (len(counts) * counts)
        return LabelLoss(
            self.model,
            label_weights=weights,
            smoothing=settings.label_smoothing,
            token_dropout=plan.token_dropout,
            kept_ids=sorted(structure_ids(self.tokenizer)),
            language_head=self._language_head() if plan.language_weight else None,
            language_weight=plan.language_weight,
        )

    def _language_head(self) -> torch.Tensor | None:
        """The weights of the head with which the base predicted next tokens."""
        base = load_network(
            self.prepared.source, AutoModelForCausalLM, trust_remote_code=self.prepared.settings.trust_remote_code
        )
        return base.get_output_embeddings().weight.detach().clone()

    def make_batches(self) -> Batches:
        """Rows in the order that the seed decides, those of like length together."""
        plan, state = self.prepared.plan, PartialState()
        seed = self.prepared.settings.seed + (self.order << 20)  # far from the orders of other seeds
        order = BatchOrder(self.rows, self.batch_rows, seed, self.row_limit())
        return ExampleBatches(
            self.train_rows, order, self.pad_id, plan.micro_batch_tokens, state.process_index, state.num_processes
        )

    def first_position(self) -> Position:
        """The beginning; under a clock, with the time that is left once the last scores and files are provided for.

        Runs that are averaged have equal parts, however often one is gone on with; the kept one comes last.
        """
        position = super().first_position()
        if self.deadline.minutes is not None and position.budget_seconds is not None:
            whole, runs = 60 * self.deadline.minutes - self.reserved(), _runs(self.prepared.settings)
            runs_left = runs - self.order + 1 if self.order else 1
            position.budget_seconds = max(1.0, min(whole / runs, position.budget_seconds / runs_left))
        return position

    def validate(self, position: Position) -> dict[str, float]:
        """Scores on the rows for selection; `selection` is the chosen one, the loss deciding between equals.

        Its standard error stands in for that of F1 and of Matthews' correlation where these choose: theirs is larger.
        """
        names = self.prepared.plan.labels
        with self.accelerator.autocast():
            probabilities = predict(self.model, self.selection_rows, self.pad_id)
        truth = self.selection_rows.labels
        values = {"loss": log_loss(probabilities, truth)} | scores(truth, probabilities.argmax(1), names)
        best_by = self.prepared.settings.best_by
        chosen = -values["loss"] if best_by == "loss" else values[best_by] - TIE * values["loss"]
        error = standard_error(probabilities, truth, of_the_loss=best_by == "loss")
        chosen = {"selection": chosen, "selection_error": error}
        return chosen | {f"validation_{name}": round(value, 6) for name, value in values.items()}

    def describe(self, position: Position) -> dict[str, Any]:
        """What every run says of itself, and how often the rows were seen."""
        trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        return super().describe(position) | {
            "epochs": round(position.labels / len(self.train_rows), 3),
            "selection": position.best_value,
            "trained_parameters": trained,
            "cut_texts": self.train_rows.cut,
        }

    def score(self) -> list[dict[str, Any]]:
        """Scores of the rows for selection and of the test, baselines beside them; confusion and worst mistakes.

        A baseline has no step to choose: for the test it learns from the rows for selection too.
        """
        if self.order:
            return []
        selection = self.prepared.examples("selection")
        rows = self._rows(selection, "validation", self.train_examples, self.prepared.name)
        test, name = self._test()
        if len(test):
            rows = self._rows(test, "test", self.train_examples + selection, name, self.folder.out) + rows
        return rows

    def complete(self, folder: Path) -> None:
        """Label the texts of `--predict`, so that a run that goes on does what the first command asked for."""
        if self.prepared.settings.predict is not None and not self.order:
            write_predictions(folder, self.prepared.settings)

    def _test(self) -> tuple[Examples, str]:
        """The rows to test on and what they are called; `--eval-data` is read only now."""
        settings = self.prepared.settings
        if not settings.eval_data:
            return self.prepared.examples("test"), self.prepared.name
        named = Columns(settings.text_column, settings.label_column)
        examples, sources, _ = load_examples(settings.eval_data, named, like=self.prepared.columns, held_out=True)
        self.folder.add_to_recipe({"eval_sources": sources})
        chosen = examples.take(evenly(len(examples), SMOKE_TEST_ROWS)) if settings.smoke else examples
        return chosen, short_name(settings.eval_data)

    def _rows(
        self, examples: Examples, split: str, known: Examples, dataset: str, out: Path | None = None
    ) -> list[dict[str, Any]]:
        """Rows for metrics.json; where texts that are `known` stand among the examples, others without them."""
        prepared, names = self.prepared, self.prepared.plan.labels
        encoded = prepared.encode(examples, split)
        with ProgressBar(f"scoring, {split}", total=1.0) as bar, self.accelerator.autocast():
            probabilities = predict(self.model, encoded, self.pad_id, bar.update)
        measured = Measured(encoded.labels, probabilities.argmax(1), baselines(known, examples.texts, names))
        about = {"dataset": dataset, "seed": prepared.settings.seed}
        rows = classification_rows(measured, names, split=split, **about)
        unknown = int((encoded.labels == IGNORED).sum())
        if unknown:
            say(f"{split}: {unknown:,} of {len(examples):,} rows have a label that no training row has: all mistakes")
        seen = also_in(examples.texts, known.texts)
        if seen.any():
            say(f"{split}: {seen.sum():,} of {len(examples):,} texts are in the training rows too")
        if seen.any() and not seen.all():
            rows += classification_rows(measured.take(~seen), names, split=f"{split} without overlap", **about)
        if out is not None:
            draw_confusion(measured.truth, measured.model, names, out / CONFUSION_FILE)
            write_mistakes(out / MISTAKES_FILE, examples, probabilities, names)
        return rows


def _label_only(settings: ClassifySettings) -> Path:
    """Label a file with a trained classifier, into a new folder."""
    console.quiet = settings.quiet
    if settings.model is None:
        raise InputError("--predict needs a classifier: give --model, the folder that classify wrote, or --data")
    if others := sorted(settings.given() - OF_LABELLING):
        raise InputError(f"--{others[0].replace('_', '-')} is for training: leave it out, or give --data")
    with claim(settings.out, "classify", short_name([settings.predict or ""])) as output:
        content = label_texts(settings.model, settings.predict or "", settings.text_column, settings.trust_remote_code)
        with output.filled() as folder:
            write_yaml(folder / RECIPE_FILE, {"verb": "classify", "settings": public_settings(settings, PATHS)})
            (folder / PREDICTIONS_FILE).write_bytes(content.encode())
    say(f"labels and their probabilities are in {output.path / PREDICTIONS_FILE}")
    return output.path
