"""The share of labels that are right.

A metric of the library `evaluate`, whose own scripts are only on the Hub; its results bear the same names.
"""

import datasets
import evaluate
from sklearn.metrics import accuracy_score


class Accuracy(evaluate.Metric):
    """`accuracy`: the share of labels that are right, or with `normalize=False` their number."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of right labels.",
            citation="Pedregosa et al. 2011",
            inputs_description="predictions and references: one of each a row",
            features=datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}),
        )

    def _compute(self, predictions, references, normalize=True, sample_weight=None):
        score = accuracy_score(references, predictions, normalize=normalize, sample_weight=sample_weight)
        return {"accuracy": float(score)}
