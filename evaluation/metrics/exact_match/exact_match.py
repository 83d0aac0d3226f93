"""The share of texts that are the reference, letter for letter.

A metric of the library `evaluate`, whose own scripts are only on the Hub; its results bear the same names.
"""

import string

import datasets
import evaluate


class ExactMatch(evaluate.Metric):
    """`exact_match`: the share of texts that equal their reference; case and marks can be left out of account."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Share of texts equal to their reference.",
            citation="",
            inputs_description="predictions and references: one of each a row",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, ignore_case=False, ignore_punctuation=False):
        without = str.maketrans("", "", string.punctuation if ignore_punctuation else "")

        def plain(text):
            return (text.lower() if ignore_case else text).translate(without)

        same = [plain(prediction) == plain(reference) for prediction, reference in zip(predictions, references)]
        return {"exact_match": sum(same) / len(same)}
