"""Give the measures of `METRICS` to the library `evaluate`, which has its own only on the Hub.

A name that stands in the table is ours, so that a number does not depend on the network; any other is asked of the Hub.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate

from groundup.common.errors import InputError, near
from groundup.evaluation.metrics import LABEL, METRICS, TEXTS

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
