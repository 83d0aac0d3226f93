"""Write and read metrics.json: what was measured, of which weights, with which packages."""

import importlib.metadata
import json
import math
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.files import METRICS_FILE, atomic_write, sha256_of

PACKAGES = ("groundup", "torch", "transformers", "tokenizers", "datasets", "accelerate", "numpy")


def write_metrics(
    folder: Path,
    rows: Sequence[dict[str, Any]],
    training: dict[str, Any],
    weights_sha256: str | None,
    samples: Sequence[dict[str, Any]] = (),
    failures: Mapping[str, str] | None = None,
) -> Path:
    """Write `metrics.json` into `folder` and return its path.

    Args:
        rows: what was measured, one a number, as `language_rows` makes them; may be empty.
        training: seconds, tokens, parameters, device and whatever else says how the model came to be.
        weights_sha256: of the `model.safetensors` that was measured, so that a card cannot outlive its weights.
        samples: texts that the model wrote, with `prompt`, `text` and `seed`.
        failures: what could not be measured, and why.
    """
    metrics = {
        "metrics": [row if _is_finite(row["value"]) else row | {"note": "not a finite number"} for row in rows],
        "training": training,
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
        "weights_sha256": weights_sha256,
    }
    metrics |= {"samples": list(samples)} if samples else {}
    metrics |= {"failures": dict(failures)} if failures else {}
    path = Path(folder) / METRICS_FILE
    atomic_write(path, (json.dumps(_finite(metrics), indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return path


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read `metrics.json`; where there is none, the same with nothing in it. Raises `InputError` if it is broken."""
    path = Path(folder) / METRICS_FILE
    if not path.exists():
        return {"metrics": [], "training": {}, "versions": {}, "weights_sha256": None}
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON ({error}): evaluate the model again") from error
    if not isinstance(metrics, dict) or not isinstance(metrics.get("metrics"), list):
        raise InputError(f"{path} has no list of metrics: evaluate the model again")
    return metrics


def own_metrics(folder: Path, weights: Path | None) -> dict[str, Any]:
    """Read `metrics.json` without the scores where they were not made from these weights, which is said."""
    metrics = read_metrics(folder)
    if metrics["metrics"] and weights is not None and metrics.get("weights_sha256") != sha256_of(weights):
        say(f"{METRICS_FILE} of {folder} does not belong to its weights: its scores are left out")
        return metrics | {"metrics": [], "samples": [], "weights_sha256": sha256_of(weights)}
    return metrics


def _is_finite(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _finite(value: Any) -> Any:
    """Return a value with None for numbers that JSON cannot write (a run that diverged has some)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value if _is_finite(value) else None
