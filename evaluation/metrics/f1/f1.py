"""The F1 of labels, by class or averaged.

A metric of the library `evaluate`, whose own scripts are only on the Hub; its results bear the same names.
"""

import datasets
import evaluate
from sklearn.metrics import f1_score


class F1(evaluate.Metric):
    """`f1` of one class, or with `average` over classes; with `average=None` one number a class."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="F1 of labels.",
            citation="Pedregosa et al. 2011",
            inputs_description="predictions and references: one of each a row",
            features=datasets.Features({"predictions": datasets.Value("int32"), "references": datasets.Value("int32")}),
        )

    def _compute(
        self,
        predictions,
        references,
        labels=None,
        pos_label=1,
        average="binary",
        sample_weight=None,
        zero_division="warn",
    ):
        score = f1_score(
            references,
            predictions,
            labels=labels,
            pos_label=pos_label,
            average=average,
            sample_weight=sample_weight,
            zero_division=zero_division,
        )
        return {"f1": score if average is None else float(score)}
