"""The library `evaluate` on our terms: its metrics by name where the Hub can be reached, our own scripts everywhere.

`metrics/NAME/NAME.py` stands in for a script that the library keeps on the Hub. A name that is there is ours, so that a
number does not depend on the network; any other name is asked of the Hub.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate

from groundup.common.errors import InputError, near

METRICS_FOLDER = Path(__file__).parent / "metrics"


def metric_names() -> list[str]:
    """The metrics that need no network."""
    return sorted(path.parent.name for path in METRICS_FOLDER.glob("*/*.py"))


def load_metric(name: str, **options: Any) -> evaluate.EvaluationModule:
    """A metric by its name, or by the path of a script. Raises `InputError` where there is none to be had.

    `evaluate.evaluator(...).compute(metric=load_metric("accuracy"))`; `options` are those of `evaluate.load`.
    """
    own = METRICS_FOLDER / name / f"{name}.py"
    try:
        return evaluate.load(str(own) if own.is_file() else name, **options)
    except Exception as error:
        known = metric_names()
        hint = f"{near(name, known)}: without the Hub there are {', '.join(known)}"
        raise InputError(f"no metric {name!r}{hint}") from error


def combine_metrics(names: Sequence[str]) -> evaluate.CombinedEvaluations:
    """Several metrics computed together from the same predictions and references."""
    return evaluate.combine([load_metric(name) for name in names])
