"""BLEU as sacrebleu counts it.

A metric of the library `evaluate`, whose own scripts are only on the Hub; its results bear the same names.
"""

import datasets
import evaluate
from sacrebleu.metrics import BLEU

from groundup.evaluation.units import is_unspaced

FIELDS = ("score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len")


class SacreBleu(evaluate.Metric):
    """`score` (0 to 100), `counts`, `totals`, `precisions`, `bp`, `sys_len`, `ref_len` of a corpus (Post 2018)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="BLEU of a corpus.",
            citation="Post 2018",
            inputs_description="predictions: texts; references: for each a list of texts, of one length",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Sequence(datasets.Value("string"))}
            ),
        )

    def _compute(self, predictions, references, lowercase=False, tokenize=None):
        if tokenize is None and any(is_unspaced(text) for texts in references for text in texts):
            tokenize = "char"  # by words a sentence without blanks would be one
        found = BLEU(lowercase=lowercase, tokenize=tokenize).corpus_score(predictions, list(zip(*references)))
        return {name: getattr(found, name) for name in FIELDS}
