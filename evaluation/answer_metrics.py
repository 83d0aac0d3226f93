"""Written answers against the right ones, as a metric of the library `evaluate`, which has its own only on the Hub.

A file that `evaluate.load` takes by its path, too.
"""

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

from groundup.evaluation.units import WordTokenizer, as_compared


class AnswerMetric(evaluate.Metric):
    """`exact_match` (share), `chrf` (0 to 100; Popović 2015) and `rouge_l` (F1, 0 to 1; Lin 2004) of answers.

    An answer is exact when it equals the reference but for white space around it, and for how Unicode composes letters.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Exact match, chrF and ROUGE-L of answers.",
            citation="",
            inputs_description="predictions and references: texts",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, float]:  # type: ignore[override]
        predictions, references = ([as_compared(text) for text in texts] for texts in (predictions, references))
        pairs = list(zip(predictions, references, strict=True))
        rouge = RougeScorer(["rougeL"], tokenizer=WordTokenizer())
        return {
            "exact_match": sum(written == right for written, right in pairs) / len(pairs),
            "chrf": CHRF().corpus_score(predictions, [references]).score,
            "rouge_l": sum(rouge.score(right, written)["rougeL"].fmeasure for written, right in pairs) / len(pairs),
        }
