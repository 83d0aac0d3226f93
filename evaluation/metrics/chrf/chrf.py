"""The F-score of character n-grams, as sacrebleu counts it.

A metric of the library `evaluate`, whose own scripts are only on the Hub; its results bear the same names.
"""

import datasets
import evaluate
from sacrebleu.metrics import CHRF


class Chrf(evaluate.Metric):
    """`score` (0 to 100) of a corpus, with `char_order`, `word_order` and `beta` (Popović 2015)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="chrF of a corpus.",
            citation="Popović 2015",
            inputs_description="predictions: texts; references: for each a list of texts, of one length",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, char_order=6, word_order=0, beta=2, lowercase=False):
        metric = CHRF(char_order=char_order, word_order=word_order, beta=beta, lowercase=lowercase)
        score = metric.corpus_score(predictions, list(zip(*references))).score
        return {"score": score, "char_order": char_order, "word_order": word_order, "beta": beta}
