"""Measure labels and texts under the names that the library `evaluate` has for it; `METRICS` is the table.

scikit-learn, sacrebleu and rouge_score do the work; each is imported where it is first used. Texts are counted in
words, marks and, where a script has no blanks between words, characters. Unicode says which scripts those are (UAX #14:
ideographs, and those that need a dictionary to find a word's end), so no language has to be known.

`load_metric` gives these measures to `evaluate`, which has its own only on the Hub. A name that stands in the table is
ours, so that a number does not depend on the network; any other is asked of the Hub.
"""

import string
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import datasets
import evaluate
import numpy as np
import regex

from groundup.common.errors import InputError, near

LONGEST_WORD = 40  # letters; a longer run without a blank is a loop, or no language
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
BLEU_FIELDS = ("score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len")

_UNSPACED = r"[\p{Line_Break=Ideographic}\p{Line_Break=Complex_Context}\p{Line_Break=Conditional_Japanese_Starter}]"
_UNIT = regex.compile(rf"(?P<letter>{_UNSPACED}\p{{M}}*)|(?P<word>(?:(?!{_UNSPACED})\w)+)|\S")


def units(text: str) -> list[str]:
    """Return words and marks, and each letter of a script without blanks or of a run too long for a word."""
    found = []
    for unit in _UNIT.finditer(text):
        word = unit["word"]
        found += regex.findall(r"\X", word) if word and len(word) > LONGEST_WORD else [unit[0]]
    return found


def ngrams(words: Sequence[str], length: int) -> list[tuple[str, ...]]:
    """Return all `length` units in a row."""
    return list(zip(*(words[start:] for start in range(length))))


def as_compared(text: str) -> str:
    """Return a text as it is compared: composed letters (NFC), no white space around it."""
    return unicodedata.normalize("NFC", text).strip()


class WordTokenizer:
    """Tokenize for `rouge_score`, whose own tokenizer knows only the letters a to z: for those both give the same.

    Words are in lower case, without marks; a text that has nothing else gives its marks.
    """

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        found = units(text.lower().replace("_", " "))
        return [unit for unit in found if regex.search(r"\w", unit)] or found


def exact_match(
    predictions: Sequence[str], references: Sequence[str], ignore_case: bool = False, ignore_punctuation: bool = False
) -> dict[str, float]:
    """Return the share of texts that equal their reference, letter for letter."""
    without = str.maketrans("", "", string.punctuation if ignore_punctuation else "")

    def plain(text: str) -> str:
        return (text.lower() if ignore_case else text).translate(without)

    same = [plain(prediction) == plain(reference) for prediction, reference in zip(predictions, references)]
    return {"exact_match": sum(same) / len(same)}


def chrf(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    char_order: int = 6,
    word_order: int = 0,
    beta: int = 2,
    lowercase: bool = False,
) -> dict[str, float]:
    """Return the F-score of character n-grams (0 to 100) of a corpus, each text with as many references."""
    from sacrebleu.metrics import CHRF

    measure = CHRF(char_order, word_order, beta, lowercase=lowercase)
    score = measure.corpus_score(predictions, list(zip(*references))).score
    return {"score": score, "char_order": char_order, "word_order": word_order, "beta": beta}


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    lowercase: bool = False,
    tokenize: str | None = None,
) -> dict[str, Any]:
    """Return BLEU (0 to 100) of a corpus and what it is made of, each text with as many references."""
    from sacrebleu.metrics import BLEU

    if tokenize is None and any(regex.search(_UNSPACED, text) for texts in references for text in texts):
        tokenize = "char"  # by words a sentence without blanks would be one
    found = BLEU(lowercase=lowercase, tokenize=tokenize).corpus_score(predictions, list(zip(*references)))
    return {name: getattr(found, name) for name in BLEU_FIELDS}


def rouge(
    predictions: Sequence[str],
    references: Sequence[str],
    rouge_types: Sequence[str] | None = None,
    use_stemmer: bool = False,
) -> dict[str, float]:
    """Return the mean F1 (0 to 1) of words and word sequences in common with the reference, for each type."""
    from rouge_score.rouge_scorer import RougeScorer

    types = list(rouge_types or ROUGE_TYPES)
    tokenizer = None if use_stemmer else WordTokenizer()  # the stemmer is for English alone
    scorer = RougeScorer(types, use_stemmer=use_stemmer, tokenizer=tokenizer)
    rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
    return {name: sum(row[name].fmeasure for row in rows) / len(rows) for name in types}


def _of_labels(name: str, function: str, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
    """Return what a function of scikit-learn gives under `name`: a number, or an array with one for each label."""
    from sklearn import metrics

    score = getattr(metrics, function)(references, predictions, **options)
    return {name: score if np.ndim(score) else float(score)}


@dataclass(frozen=True)
class Metric:
    """A measure: the function, what it takes as a row's prediction and reference, and what it gives."""

    compute: Callable[..., dict[str, Any]]
    takes: str
    gives: str


LABEL, TEXT, TEXTS = "a label", "a text", "a text and a list of references"
METRICS = {
    "accuracy": Metric(partial(_of_labels, "accuracy", "accuracy_score"), LABEL, "share of labels that are right"),
    "f1": Metric(partial(_of_labels, "f1", "f1_score"), LABEL, "F1 of a label, of each, or their `average`"),
    "precision": Metric(partial(_of_labels, "precision", "precision_score"), LABEL, "precision, as F1"),
    "recall": Metric(partial(_of_labels, "recall", "recall_score"), LABEL, "recall, as F1"),
    "matthews_correlation": Metric(
        partial(_of_labels, "matthews_correlation", "matthews_corrcoef"), LABEL, "-1 to 1 (Matthews 1975)"
    ),
    "exact_match": Metric(exact_match, TEXT, "share of texts that equal their reference"),
    "rouge": Metric(rouge, TEXT, "ROUGE F1, 0 to 1 (Lin 2004)"),
    "sacrebleu": Metric(bleu, TEXTS, "BLEU, 0 to 100 (Post 2018)"),
    "chrf": Metric(chrf, TEXTS, "chrF, 0 to 100 (Popović 2015)"),
}


_FOR_SCRIPTS = ("module_type", "download_config", "download_mode", "revision")  # options that say where a script lies


def metric_names() -> list[str]:
    """Return the metrics that need no network."""
    return sorted(METRICS)


def load_metric(name: str, **options: Any) -> evaluate.EvaluationModule:
    """Return a metric by its name, or by the path of a script. Raises `InputError` where there is none to be had.

    `evaluate.evaluator(...).compute(metric=load_metric("accuracy"))`; `options` are those of `evaluate.load`.
    """
    if name in METRICS:
        return _module(name)(**{key: value for key, value in options.items() if key not in _FOR_SCRIPTS})
    try:
        return evaluate.load(name, **options)
    except Exception as error:
        known = metric_names()
        hint = f"{near(name, known)}: without the Hub there are {', '.join(known)}"
        raise InputError(f"no metric {name!r}{hint}") from error


def combine_metrics(names: Sequence[str]) -> evaluate.CombinedEvaluations:
    """Return several metrics in one, computed together from the same predictions and references."""
    return evaluate.combine([load_metric(name) for name in names])


def _module(name: str) -> type[evaluate.Metric]:
    """Return a metric as a class of `evaluate`, which takes the metric's name from the name of the class."""
    metric = METRICS[name]
    kind = datasets.Value("int32" if metric.takes == LABEL else "string")
    columns = {"predictions": kind, "references": datasets.Sequence(kind) if metric.takes == TEXTS else kind}

    def info(_: evaluate.Metric) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=metric.gives,
            citation="",
            inputs_description=f"of each row {metric.takes}",
            features=datasets.Features(columns),
        )

    def compute(_: evaluate.Metric, **arguments: Any) -> dict[str, Any]:
        return metric.compute(**arguments)

    return type(name, (evaluate.Metric,), {"_info": info, "_compute": compute})
