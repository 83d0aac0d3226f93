"""The run of `classify`: a model with a head for the labels, what it minimises, and how it is measured.

Of a classifier that is trained on, the head stays: what it knows of a label is kept for that label, whatever place the
label has in the new rows.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse
from scipy.special import softmax
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from groundup.common.console import ProgressBar, say
from groundup.common.errors import InputError, user_path
from groundup.common.files import CONFUSION_FILE, MISTAKES_FILE, atomic_write
from groundup.common.settings import Deadline
from groundup.data.encoding import ExampleRows
from groundup.data.examples import Columns, Examples, also_in, load_examples, spread
from groundup.data.sources import short_name
from groundup.data.windows import IGNORED, BatchOrder, Dealer
from groundup.evaluation.classification import (
    PREDICTIONS_FILE,
    Measured,
    baselines,
    classification_rows,
    draw_confusion,
    label_texts,
    labels_of,
    log_loss,
    predict,
    scores,
    standard_error,
    write_mistakes,
)
from groundup.evaluation.metrics_json import read_metrics
from groundup.inference.loading import load_network, quiet_transformers
from groundup.modeling import GroundupForSequenceClassification
from groundup.modeling.modeling_groundup import GroundupBagOfTokens
from groundup.tokenization.folder import structure_ids
from groundup.tokenization.report import joins
from groundup.training.checkpoint import RunFolder, take_mean
from groundup.training.classification_preparation import PreparedExamples
from groundup.training.loop import Position
from groundup.training.lora import add_lora, freeze
from groundup.training.objectives import LabelLoss, bag_scores, count_features, fit_bag, scales_of, usual_scale
from groundup.training.pretraining_preparation import SMOKE_TEST_ROWS, evenly
from groundup.training.run import TrainingRun
from groundup.training.settings import ClassifySettings

FINISH_SHARE, FINISH_SECONDS = 0.04, 8.0  # of the time, for the baselines, and beside that, for the last files
LINEAR_SHARE = 0.03  # of the time, for the linear part
SMOKE_RUNS = 2  # at most averaged in a short try
BAG_BUCKETS = 2**16  # of the linear part, for pairs and words
TIE = 1e-6  # of the loss, that decides between two steps with the same score


class ClassificationRun(TrainingRun):
    """Carry out a prepared run of `classify`.

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
        self.validation: tuple[Examples, ExampleRows, npt.NDArray[np.float64]]  # scored last; with probabilities
        self.learn_all: Callable[[], None] = lambda: None  # of all rows, for the test: the linear part alone does
        self.train_examples = prepared.examples("train")
        self.train_rows = prepared.encode(self.train_examples, "training")
        self.selection_rows = prepared.encode(prepared.examples("selection"), "validation")
        self.pad_id = int(prepared.tokenizer.pad_token_id)  # type: ignore[arg-type]
        self.rows, self.batch_rows = len(self.train_rows), prepared.plan.batch_rows
        self.most_epochs = prepared.plan.most_epochs
        mean = float(self.train_rows.lengths.mean())
        self.step_tokens = mean * self.batch_rows
        self.validation_tokens = int(self.selection_rows.lengths.sum())
        self.last_tokens = self.validation_tokens + mean * prepared.test_rows
        super().__init__(prepared, folder, deadline)
        self.order_seed += order << 20  # far from the orders of other seeds

    def make_model(self) -> PreTrainedModel:
        """Return the language model with a head for the labels; freeze what is not to be trained."""
        settings, plan = self.prepared.settings, self.prepared.plan
        model = load_base(
            self.prepared.source, plan.labels, settings.trust_remote_code, pad_token_id=self.pad_id, **plan.model_fields
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
        """Return the summed cross-entropy of the labels."""
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
        """Return the weights of the head with which the base predicted next tokens."""
        base = load_network(
            self.prepared.source, AutoModelForCausalLM, trust_remote_code=self.prepared.settings.trust_remote_code
        )
        return base.get_output_embeddings().weight.detach().clone()

    def make_batches(self, order: BatchOrder, rank: int, processes: int) -> Dealer:
        """Return the batches, each of rows of similar length."""
        return self.train_rows.deal(order, self.pad_id, self.plan.micro_batch_tokens, rank, processes)

    def reserved(self) -> float:
        """Return the seconds that the linear part, the last scores and files are to have of the minutes given."""
        return super().reserved() + LINEAR_SHARE * 60 * (self.deadline.minutes or 0.0)

    def first_position(self) -> Position:
        """Return the position before the first step: under a clock, with the time that the end leaves for training.

        Runs that are averaged have equal parts, however often one is gone on with; the kept one comes last.
        """
        position = super().first_position()
        if self.deadline.minutes is not None and position.budget_seconds is not None:
            whole, runs = 60 * self.deadline.minutes - self.reserved(), averaged_runs(self.prepared.settings)
            runs_left = runs - self.order + 1 if self.order else 1
            position.budget_seconds = max(1.0, min(whole / runs, position.budget_seconds / runs_left))
        return position

    def score_some(self, tokens: int) -> int:
        """Score about so many tokens of the rows for selection; return how many they were."""
        rows = self._some_of_selection(tokens)
        with self.accelerator.autocast():
            predict(self.model, rows, self.pad_id)
        return int(rows.lengths.sum())

    def _some_of_selection(self, tokens: int | None) -> ExampleRows:
        """Return rows for selection of about so many tokens in all, of every label its share; None for all."""
        rows = self.selection_rows
        share = 1.0 if tokens is None else min(1.0, tokens / max(1, int(rows.lengths.sum())))
        return rows if share == 1.0 else rows.take(spread(rows.labels, max(1, round(share * len(rows)))))

    def validate(self, position: Position) -> dict[str, float]:
        """Return scores on the validation rows; `selection` is the chosen one, the loss deciding between equals.

        Its standard error stands in for that of F1 and of Matthews' correlation where these choose: theirs is larger.
        """
        rows = self._some_of_selection(position.validation_tokens)
        with self.accelerator.autocast():
            return self._values(rows.labels, predict(self.model, rows, self.pad_id))

    def _values(self, truth: npt.NDArray[np.int64], probabilities: npt.NDArray[np.float64]) -> dict[str, float]:
        names = self.prepared.plan.labels
        values = {"loss": log_loss(probabilities, truth)} | scores(truth, probabilities.argmax(1), names)
        best_by = self.prepared.settings.best_by
        chosen = -values["loss"] if best_by == "loss" else values[best_by] - TIE * values["loss"]
        error = standard_error(probabilities, truth, of_the_loss=best_by == "loss")
        chosen = {"selection": chosen, "selection_error": error}
        return chosen | {f"validation_{name}": round(value, 6) for name, value in values.items()}

    def describe(self, position: Position) -> dict[str, Any]:
        """Return what every run records about itself, and how often the rows were seen."""
        trained = sum(weight.numel() for weight in self.model.parameters() if weight.requires_grad)
        seconds = [read_metrics(folder)["training"]["seconds"] for folder in self.others]
        averaged = {"averaged_runs": 1 + len(seconds), "seconds_of_all_runs": round(position.seconds + sum(seconds), 1)}
        return super().describe(position) | {
            "epochs": round(position.labels / len(self.train_rows), 3),
            "selection": position.best_value,
            "trained_parameters": trained,
            "cut_texts": self.train_rows.cut,
            **(averaged if seconds else {}),
        }

    def finish_model(self) -> float | None:
        """Take the mean with the other runs, score the validation rows, add the linear part; return their value."""
        if self.order:
            return None
        if self.others:
            take_mean(self.model, self.others)
            say(f"the weights are the mean of {1 + len(self.others)} runs")
        selection = self.prepared.examples("selection")
        self.validation = self._scored(selection, "validation", self.validation_tokens / self.last_tokens)
        known = (self.validation[1].labels != IGNORED).any()
        if known and self.prepared.settings.bag and isinstance(self.model, GroundupForSequenceClassification):
            self._add_bag()
        _, rows, probabilities = self.validation
        return self._values(rows.labels, probabilities)["selection"]

    def _add_bag(self) -> None:
        """Add the linear part on the bag of tokens to the network, both weighed on the validation rows."""
        model: Any = self.model
        examples, rows, probabilities = self.validation
        network, known = np.log(probabilities.clip(1e-12)), rows.labels != IGNORED
        model.config.classifier_bag_buckets = BAG_BUCKETS
        bag = GroundupBagOfTokens(model.config)
        bag.joins[: len(self.tokenizer)] = torch.from_numpy(joins(self.tokenizer))
        counts, labels = [count_features(bag, part) for part in (self.train_rows, rows)], self.train_rows.labels
        usual = usual_scale(bag, counts[0], labels)
        fit = partial(fit_bag, class_weights=self.prepared.settings.class_weights)
        fit(bag, counts[0], labels)
        both = network, bag_scores(bag, counts[1])
        factors = scales_of([part[known] for part in both], rows.labels[known], [0.5, usual / 2])
        self.validation = examples, rows, softmax(factors[0] * both[0] + factors[1] * both[1], axis=1)
        with torch.no_grad():
            model.score.weight.mul_(factors[0])
            for weight in bag.parameters():
                weight.mul_(factors[1])
        model.bag = bag.to(model.device).eval()
        everything = sparse.csr_array(sparse.vstack([counts[0], counts[1][known]]))
        of_everything = np.concatenate((labels, rows.labels[known]))
        self.learn_all = partial(fit, bag, everything, of_everything, factor=float(factors[1]))

    def score(self) -> list[dict[str, Any]]:
        """Score the validation and test rows, baselines beside them; draw the confusion matrix, write the mistakes.

        A baseline has no step to choose: for the test it learns from the validation rows too, and so does the linear
        part of the model.
        """
        if self.order:
            return []
        self.learn_all()
        test, name = self._test()
        rows = []
        if len(test):
            tested = self._scored(test, "test", 1.0)
            known = self.train_examples + self.prepared.examples("selection")
            rows = self._rows(*tested, "test", known, name, self.folder.out)
        return rows + self._rows(*self.validation, "validation", self.train_examples, self.prepared.name)

    def complete(self, folder: Path) -> None:
        """Label the texts of `--predict`, so that a resumed run does what the first command asked for."""
        if self.prepared.settings.predict is not None and not self.order:
            write_predictions(folder, self.prepared.settings)

    def _test(self) -> tuple[Examples, str]:
        """Return the rows to test on and their name; `--eval-data` is read only now."""
        settings = self.prepared.settings
        if not settings.eval_data:
            return self.prepared.examples("test"), self.prepared.name
        named = Columns(settings.text_column, settings.label_column)
        examples, sources, _ = load_examples(settings.eval_data, named, like=self.prepared.columns, held_out=True)
        self.folder.add_to_recipe({"eval_sources": sources})
        chosen = examples.take(evenly(len(examples), SMOKE_TEST_ROWS)) if settings.smoke else examples
        return chosen, short_name(settings.eval_data)

    def _scored(
        self, examples: Examples, split: str, share: float
    ) -> tuple[Examples, ExampleRows, npt.NDArray[np.float64]]:
        """Return the rows that this share of the time is enough for, and their labels' probabilities."""
        encoded = self.prepared.encode(examples, split if split == "test" else None)
        part = self.affordable(int(encoded.lengths.sum()), share)
        if part < 1.0:
            chosen = spread(encoded.labels, max(1, int(part * len(examples))))
            say(f"{split}: {len(chosen):,} of {len(examples):,} rows are scored, spread over the labels: time is short")
            examples, encoded = examples.take(chosen), encoded.take(chosen)
        with ProgressBar(f"scoring, {split}", total=1.0) as bar, self.accelerator.autocast():
            return examples, encoded, predict(self.model, encoded, self.pad_id, bar.update)

    def _rows(
        self,
        examples: Examples,
        encoded: ExampleRows,
        probabilities: npt.NDArray[np.float64],
        split: str,
        known: Examples,
        dataset: str,
        out: Path | None = None,
    ) -> list[dict[str, Any]]:
        """Return rows for metrics.json; where `known` texts are among the examples, others without them too."""
        prepared, names = self.prepared, self.prepared.plan.labels
        simple = baselines(known, examples.texts, names)
        measured = Measured(encoded.labels, probabilities.argmax(1), simple, probabilities.max(1))
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


def averaged_runs(settings: ClassifySettings) -> int:
    """Return how many runs have their weights averaged."""
    return min(settings.average, SMOKE_RUNS) if settings.smoke else settings.average


def write_predictions(folder: Path, settings: ClassifySettings) -> None:
    """Label the texts of `settings.predict` by the classifier in `folder`, into a file beside it.

    Texts that cannot be read any more take nothing from a model that is trained: that is said, and what to do.
    """
    try:
        about = settings.text_column, settings.trust_remote_code, settings.threshold
        content = label_texts(str(folder), settings.predict or "", *about)
    except InputError as error:
        say(f"no {PREDICTIONS_FILE}: {error}; fix it, then give --predict and the trained folder as --model")
        return
    atomic_write(folder / PREDICTIONS_FILE, content.encode())


def is_classifier(architectures: list[str] | None) -> bool:
    """Return whether the classes that a config names are those of classifiers."""
    return any(name.endswith("ForSequenceClassification") for name in architectures or [])


def load_base(source: str | Path, names: list[str], trust_remote_code: bool = False, **fields: Any) -> PreTrainedModel:
    """Load the model at `source` with a head for the labels `names`: a classifier keeps what it knows of them.

    `new_weights` of the result names the head, so that an adapter trains it in full and saves it. Raises `InputError`.
    """
    known = PreTrainedConfig.get_config_dict(str(user_path(source)))[0].get("architectures")
    if not is_classifier(known):
        fields["id2label"] = dict(enumerate(names))
        fields["label2id"] = {name: number for number, name in enumerate(names)}
    model = load_network(
        source, AutoModelForSequenceClassification, trust_remote_code=trust_remote_code, new_head=True, **fields
    )
    if is_classifier(known):
        relabel(model, names)
    if isinstance(model, GroundupForSequenceClassification):  # its linear part comes last, of the new rows
        model.bag, model.config.classifier_bag_buckets = None, 0
    return model


def relabel(model: PreTrainedModel, names: list[str]) -> None:
    """Replace a classifier's head in place: labels that it knows keep their weights, new ones start at random."""
    known = labels_of(model)
    inside = f"{model.base_model_prefix}."
    heads = [
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == len(known) and not name.startswith(inside)
    ]
    if not heads:
        raise InputError(f"{model.name_or_path} has no layer with {len(known)} outputs that could be its head")
    name, old = heads[-1]
    new = nn.Linear(
        old.in_features, len(names), bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
    )
    model._init_weights(new)  # type: ignore[operator]
    pairs = [(place, known.index(label)) for place, label in enumerate(names) if label in known]
    with torch.no_grad():
        for place, before in pairs:
            new.weight[place] = old.weight[before]
            if old.bias is not None:
                new.bias[place] = old.bias[before]
    model.set_submodule(name, new)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {label: number for number, label in enumerate(names)}
    model.config.problem_type = None
    about: Any = model
    about.num_labels = len(names)
    about.new_weights = frozenset(f"{name}.{weight}" for weight, _ in new.named_parameters())
