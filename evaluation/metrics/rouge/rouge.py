"""ROUGE: words and runs of words in common with a reference.

A metric of the library `evaluate`, whose own scripts are only on the Hub; its results bear the same names.
"""

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer

from groundup.evaluation.units import WordTokenizer

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge(evaluate.Metric):
    """Mean F1 of `rouge1`, `rouge2`, `rougeL`, `rougeLsum` over rows (Lin 2004)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="ROUGE F1.",
            citation="Lin 2004",
            inputs_description="predictions and references: one of each a row",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, rouge_types=None, use_stemmer=False):
        kinds = list(rouge_types or KINDS)
        tokenizer = None if use_stemmer else WordTokenizer()  # the stemmer is for English alone
        scorer = RougeScorer(kinds, use_stemmer=use_stemmer, tokenizer=tokenizer)
        rows = [scorer.score(reference, prediction) for prediction, reference in zip(predictions, references)]
        return {kind: sum(row[kind].fmeasure for row in rows) / len(rows) for kind in kinds}
