"""Measure a classifier with baselines beside it, draw what it confuses, and label texts with it.

Accuracy, macro-averaged F1 and Matthews' correlation are scikit-learn's; the baselines learn from the same rows.
"""

import csv
import io
import json
import math
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import ConfusionMatrixDisplay, accuracy_score, f1_score, matthews_corrcoef
from sklearn.svm import LinearSVC
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from groundup.common.console import ProgressBar, say
from groundup.common.errors import InputError
from groundup.data.encoding import ExampleRows, encode_examples
from groundup.data.examples import Examples, rows_to_label
from groundup.data.json_rows import value_of
from groundup.data.windows import by_size
from groundup.evaluation.comparison import share_interval
from groundup.evaluation.metrics_json import MAJORITY, SVM
from groundup.inference.loading import context_of, device_of, load_model, require_known

UNKNOWN = "(a label that training had not)"
BATCH_TOKENS, PADDING = 2**13, 0.2  # at most so many go through the model at once, of which such a share is padding
# The features that the SVM may count in a text, and the most rows on which they are compared.
READINGS: list[dict[str, Any]] = [{"ngram_range": (1, 2)}, {"analyzer": "char", "ngram_range": (1, 3)}]
CHOSEN_ROWS = 4000
MOST_MISTAKES = 200
CALIBRATION_BINS = 15  # as is usual since Guo et al. 2017
TEXT_SHOWN = 2000  # characters of a mistaken text
LABEL_SHOWN = 30  # characters of a label in the confusion matrix
NUMBERED_LABELS = 30  # at most so many labels have numbers in their cells
SMALLEST_FONT = 6.0  # points of a label there
OWN_FONT = "DejaVu Sans"  # comes with matplotlib
_NOT_TO_DRAW = ("Last Resort", "Color Emoji")  # boxes with a name in them; pictures that matplotlib cannot scale
PREDICTIONS_FILE = "predictions.csv"
OURS = ("text", "label", "probability")  # columns before those of the labels

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Measured:
    """The labels of rows as numbers: the true ones, the model's predictions and each baseline's.

    `confidence` is the probability that the model gives to its prediction, (N,).
    """

    truth: Numbers
    model: Numbers
    baselines: dict[str, Numbers]
    confidence: npt.NDArray[np.float64]

    def take(self, mask: npt.NDArray[np.bool_]) -> "Measured":
        """Return the rows where a mask is true."""
        baselines = {name: predicted[mask] for name, predicted in self.baselines.items()}
        return Measured(self.truth[mask], self.model[mask], baselines, self.confidence[mask])


@torch.no_grad()
def predict(
    model: PreTrainedModel, rows: ExampleRows, pad_id: int, progress: Callable[[float], None] | None = None
) -> npt.NDArray[np.float64]:
    """Return the probability of each label for each row, (N, labels)."""
    require_known(model, max((max(ids, default=0) for ids in rows.ids), default=0))
    was_training = model.training
    model.eval()
    order = np.argsort(rows.lengths, kind="stable")
    found: list[npt.NDArray[np.float64]] = []
    done = 0
    for indices in by_size(order, rows.lengths, BATCH_TOKENS, PADDING):
        batch = rows.batch(indices, pad_id)
        read = {name: batch[name].to(device_of(model)) for name in ("input_ids", "attention_mask")}
        logits = model(**read).logits
        found.append(logits.double().softmax(-1).cpu().numpy())
        done += len(indices)
        if progress is not None:
            progress(done / len(order))
    model.train(was_training)
    probabilities = np.empty((len(order), found[0].shape[1] if found else 0))
    if found:
        probabilities[order] = np.concatenate(found)
    return probabilities


def log_loss(probabilities: npt.NDArray[np.float64], truth: Numbers) -> float:
    """Return the mean negative log probability of the true labels [nats]."""
    return float(_row_losses(probabilities, truth).mean())


def standard_error(probabilities: npt.NDArray[np.float64], truth: Numbers, of_the_loss: bool) -> float:
    """Return the standard error of the mean loss, or else of the accuracy, over these rows."""
    rows = _row_losses(probabilities, truth) if of_the_loss else probabilities.argmax(1) == truth
    return float(np.std(rows) / np.sqrt(len(truth)))


def _row_losses(probabilities: npt.NDArray[np.float64], truth: Numbers) -> npt.NDArray[np.float64]:
    return -np.log(np.maximum(probabilities[np.arange(len(truth)), truth], 1e-12))


def scores(truth: Numbers, predicted: Numbers, names: Sequence[str]) -> dict[str, float]:
    """Return accuracy, macro F1 over the labels of `truth`, Matthews' correlation; of two labels `f1` of the rarer.

    The names are ours alone: a label may be called what it likes, `macro` or `loss` too.
    """
    present = np.unique(truth)
    measured = {
        "accuracy": accuracy_score(truth, predicted),
        "f1_macro": f1_score(truth, predicted, labels=present, average="macro", zero_division=0.0),  # type: ignore[arg-type] (its stub says str)
        # Of a single label scikit-learn gives 0 too, with warnings of its own.
        "mcc": matthews_corrcoef(truth, predicted) if len(np.union1d(truth, predicted)) > 1 else 0.0,
    }
    if len(names) == 2:
        rarer = _rarer(truth)
        measured["f1"] = f1_score(truth == rarer, predicted == rarer, zero_division=0.0)  # type: ignore[arg-type]
    return {name: float(value) for name, value in measured.items()}


def calibration_error(right: npt.NDArray[np.bool_], confidence: npt.NDArray[np.float64]) -> float:
    """Return how far confidence lies from accuracy, a mean over `CALIBRATION_BINS` bins of equal width weighed by rows.

    Guo et al. 2017, equation 3: the expected calibration error.
    """
    bins = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    gaps = np.bincount(bins, right.astype(np.float64) - confidence, minlength=CALIBRATION_BINS)
    return float(np.abs(gaps).sum() / len(right))


def _rarer(truth: Numbers) -> int:
    """Return the number of whichever of two labels occurs less often."""
    return int(np.argmin(np.bincount(truth[truth >= 0], minlength=2)))


def baselines(train: Examples, texts: Sequence[str], names: Sequence[str]) -> dict[str, Numbers]:
    """Return what two simple methods predict for `texts` after learning from `train`, as indices into `names`.

    One is the commonest label. The other is TF-IDF with a linear SVM (Wang and Manning 2012 show how hard it is to
    beat), with scikit-learn's defaults. Its features are words and pairs of words, or characters up to three in a row,
    whichever does better on a held-out fifth of the rows: so it reads languages without blanks between words too.
    """
    numbers = {name: number for number, name in enumerate(names)}
    truth = np.array([numbers[label] for label in train.labels])
    majority = np.full(len(texts), np.bincount(truth).argmax())
    last = np.arange(len(truth)) % 5 == 4
    order = np.argsort(truth, kind="stable")  # a fifth of each label
    mixed = np.random.default_rng(0)
    kept, tried = (mixed.permutation(order[indices])[:CHOSEN_ROWS] for indices in (~last, last))
    known, asked = [train.texts[row] for row in kept], [train.texts[row] for row in tried]
    right = [np.mean(_svm(known, truth[kept], asked, kind) == truth[tried]) if len(tried) else 0.0 for kind in READINGS]
    best = max(range(len(READINGS)), key=lambda index: right[index])
    return {MAJORITY: majority, SVM: _svm(train.texts, truth, texts, READINGS[best])}


def _svm(texts: Sequence[str], truth: Numbers, asked: Sequence[str], reading: dict[str, Any]) -> Numbers:
    """Return the predictions of a linear SVM on TF-IDF trained on `texts`, or the commonest label if it learns none."""
    vectorizer = TfidfVectorizer(**reading)
    try:
        features = vectorizer.fit_transform(texts)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that stops a little early is one too
            return np.asarray(LinearSVC(random_state=0).fit(features, truth).predict(vectorizer.transform(asked)))
    except ValueError:  # not one word in all of the texts, or one label alone
        return np.full(len(asked), np.bincount(truth).argmax())


def classification_rows(
    measured: Measured, names: Sequence[str], *, dataset: str, split: str, seed: int
) -> list[dict[str, Any]]:
    """Return rows for metrics.json: each score of the model and of each baseline; `f1` says of which `label`."""
    common = {"dataset": dataset, "split": split, "count": len(measured.truth), "seed": seed}
    by_whom = {None: measured.model, **measured.baselines}
    found = {who: scores(measured.truth, predicted, names) for who, predicted in by_whom.items()}
    of_label = {"f1": {"label": names[_rarer(measured.truth)]}} if "f1" in found[None] else {}
    rows = [
        {"name": name, "value": found[who][name], **of_label.get(name, {}), **common, "baseline": who}
        for name in found[None]
        for who in by_whom
    ]
    rows = [row | share_interval(row["value"], row["count"]) if row["name"] == "accuracy" else row for row in rows]
    error = calibration_error(measured.truth == measured.model, measured.confidence)
    return [*rows, {"name": "calibration_error", "value": error, **common, "baseline": None}]


def mean_rows(runs: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return the rows of several seeds as one each: the mean, and the standard deviation (n - 1) beside it."""
    together: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for rows in runs:
        for row in rows:
            key = tuple(row.get(column) for column in ("name", "label", "dataset", "split", "baseline"))
            together.setdefault(key, []).append(row)
    means = []
    for rows in together.values():
        values = [row["value"] for row in rows]
        spread = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        seeds = [row["seed"] for row in rows]
        first = {name: value for name, value in rows[0].items() if name not in ("low", "high", "interval")}
        means.append(first | {"value": float(np.mean(values)), "std": spread, "seed": None, "seeds": seeds})
    return means


def draw_confusion(truth: Numbers, predicted: Numbers, names: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix: true labels are rows, predicted labels columns; shades are shares of the row.

    With more than `NUMBERED_LABELS` labels the cells have no numbers and the picture grows no further: names are
    smaller, and where that is not enough only each second, third, ... is written. A name that no installed font can
    write is replaced by the label's number in config.json (`id2label`).
    """
    known = truth >= 0  # scikit-learn's confusion_matrix raises where no row has a known label
    counts = np.zeros((len(names), len(names)), np.int64)
    np.add.at(counts, (truth[known], predicted[known]), 1)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    numbered = len(names) <= NUMBERED_LABELS
    cells = 0.55 * min(len(names), NUMBERED_LABELS)  # inches
    room = 0.7 * 72 * cells / len(names)  # points that a slanted name has between its neighbours
    font, every = min(10, max(SMALLEST_FONT, room)), math.ceil(SMALLEST_FONT / room)
    shown = [_in_short(name) for name in names[::every]]
    fonts = fonts_for(shown)
    shown = [name if can_write(name, fonts) else f"label {every * index}" for index, name in enumerate(shown)]
    numbers = any(shown[index] != _in_short(name) for index, name in enumerate(names[::every]))
    side = cells + max(2.5, 1 + 0.09 * max(map(len, shown)))
    figure = Figure(figsize=(side, side), dpi=150 if numbered else 100, layout="constrained")
    axes = figure.subplots()
    drawn = ConfusionMatrixDisplay(shares)
    drawn.plot(include_values=numbered, cmap="Blues", ax=axes, colorbar=False, im_kw={"vmin": 0, "vmax": 1})
    ticks = range(0, len(names), every)
    style: dict[str, Any] = {"parse_math": False, "fontsize": font, "fontfamily": fonts}  # $ begins no formula
    axes.set_xticks(ticks, shown, rotation=45, ha="right", rotation_mode="anchor", **style)
    axes.set_yticks(ticks, shown, **style)
    said = ["number of texts"] * numbered + ["shade: share of the row"]
    said += ["labels by their numbers in config.json (id2label)"] * numbers
    figure.suptitle("; ".join(said), fontsize=8, wrap=True)
    for text, count in zip(np.ravel(cast(Any, drawn.text_)), counts.flat) if numbered else ():
        text.set(text=f"{count:,}" if count else "", fontsize=8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # of a letter in no installed font: its label is a number then
        figure.savefig(path)


def _in_short(label: str) -> str:
    """Return a label as one line of at most `LABEL_SHOWN` characters."""
    line = " ".join(label.split())
    return line if len(line) <= LABEL_SHOWN else line[: LABEL_SHOWN - 1] + "…"


def fonts_for(words: Sequence[str]) -> list[str]:
    """Return fonts that together have the words' letters, as far as any installed font has them; ours comes first."""
    fonts = [OWN_FONT]
    missing = {letter for word in words for letter in word} - _letters(font_manager.findfont(OWN_FONT))
    for entry in sorted(font_manager.fontManager.ttflist, key=lambda entry: (entry.weight != 400, entry.name)):
        if not missing:
            break
        if not any(kind in entry.name for kind in _NOT_TO_DRAW) and missing & (letters := _letters(entry.fname)):
            fonts.append(entry.name)
            missing -= letters
    return list(dict.fromkeys(fonts))


def can_write(word: str, fonts: Sequence[str]) -> bool:
    """Return whether fonts have all letters of a word that runs from left to right: matplotlib would reverse others."""
    letters = set().union(*(_letters(font_manager.findfont(font)) for font in fonts))
    return set(word) <= letters and not any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in word)


@cache
def _letters(path: str) -> frozenset[str]:
    """Return the letters that a font has."""
    try:
        return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
    except (OSError, RuntimeError):  # a font that matplotlib cannot read
        return frozenset()


def write_mistakes(path: Path, examples: Examples, probabilities: npt.NDArray[np.float64], names: Sequence[str]) -> int:
    """Write the mistakes the model was surest of, one JSON object a line, and return how many it made in all."""
    predicted = probabilities.argmax(1)
    wrong = [index for index, label in enumerate(examples.labels) if names[predicted[index]] != label]
    wrong.sort(key=lambda index: -probabilities[index].max())
    with path.open("w", encoding="utf-8") as file:
        for index in wrong[:MOST_MISTAKES]:
            line = {"label": examples.labels[index], "predicted": names[predicted[index]]}
            line |= {"probability": round(float(probabilities[index].max()), 4)}
            line |= {"text": examples.texts[index][:TEXT_SHOWN]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return len(wrong)


def labels_of(model: PreTrainedModel) -> list[str]:
    """Return the labels of a classifier in the order of its head."""
    return [str(name) for _, name in sorted((model.config.id2label or {}).items())]


def label_texts(
    classifier: str,
    data: str,
    text_column: str | None = None,
    trust_remote_code: bool = False,
    threshold: float | None = None,
) -> str:
    """Label the texts of a table, the lines of a text file, or one text, in their order.

    Returns a CSV with the table's other columns, then `text`, `label`, `probability` (of that label) and one with the
    probability of each label, under the label's name. If a label has the name of one of our columns, these are all
    `probability of NAME`; a column of the table with the name of one of these is called `NAME in the table`. A text
    longer than the context is truncated; the number of these is printed. Texts whose best label is less probable than
    the threshold are left out, and counted. Raises `InputError` for a model that is no classifier and for texts that
    cannot be read.
    """
    rows = rows_to_label(data, text_column)
    texts = [text for text, _ in rows]
    empty = sum(not text.strip() for text in texts)
    if empty:
        say(f"{empty:,} of {len(texts):,} texts are empty: their labels mean nothing")
    names, probabilities = label_probabilities(classifier, texts, trust_remote_code)
    if threshold is not None:
        sure = np.flatnonzero(probabilities.max(1, initial=0.0) >= threshold)
        say(f"{len(rows) - len(sure):,} of {len(rows):,} texts have no label of probability {threshold:g}: left out")
        rows, probabilities = [rows[index] for index in sure], probabilities[sure]
    written = io.StringIO()
    table = csv.writer(written)  # whose lines end as in RFC 4180: with "\n" alone a text's own "\r" would get no quotes
    clash = not set(OURS).isdisjoint(names)
    ours = [*OURS, *(f"probability of {name}" if clash else name for name in names)]
    others = list(dict.fromkeys(name for _, row in rows for name in row))
    table.writerow([*(f"{name} in the table" if name in ours else name for name in others), *ours])
    for (text, row), chances in zip(rows, probabilities):
        best = int(np.argmax(chances))
        kept = [_as_cell(row.get(name)) for name in others]
        table.writerow([*kept, text, names[best], *(f"{value:.4f}" for value in (chances[best], *chances))])
    return written.getvalue()


def _as_cell(cell: Any) -> str:
    """Return a cell of the user's table as a CSV has it."""
    if cell is None or isinstance(cell, str):  # a number too, as it was written
        return str(cell or "")
    value = value_of(cell)
    return value if isinstance(cell, bytes) else json.dumps(value)


def label_probabilities(
    classifier: str, texts: Sequence[str], trust_remote_code: bool = False
) -> tuple[list[str], npt.NDArray[np.float64]]:
    """Return a classifier's labels, and the probability of each for each text, (N, labels). Raises `InputError`."""
    kind = AutoModelForSequenceClassification
    model, tokenizer = load_model(classifier, trust_remote_code=trust_remote_code, kind=kind)
    names = labels_of(model)
    context = min(context_of(model), tokenizer.model_max_length)
    rows = encode_examples(texts, [""] * len(texts), names, tokenizer, context)
    if rows.cut:
        say(f"{rows.cut:,} of {len(texts):,} texts are longer than {context} tokens: truncated")
    if tokenizer.pad_token_id is None:
        raise InputError(f"the tokenizer of {classifier} has no padding token: train it with groundup classify")
    with ProgressBar("labelling", total=1.0) as bar:
        return names, predict(model, rows, int(tokenizer.pad_token_id), bar.update)  # type: ignore[arg-type]
