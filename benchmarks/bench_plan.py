"""The row about the plan: what it chooses by itself beside choices made by hand, on texts unlike each other."""

import statistics
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from measuring import Row, bits_per_byte

import groundup
from groundup.common.console import console
from groundup.data import python_docs

MINUTES = 3.0
TEXT_BYTES = 5_000_000  # of source code, and of a text that is given
# Changes by hand: sizes around those that a small machine can train in minutes, and what the plan derives from them.
GRID: list[dict[str, Any]] = [
    {"hidden_size": 96, "num_hidden_layers": 3},
    {"hidden_size": 128, "num_hidden_layers": 2},
    {"hidden_size": 128, "num_hidden_layers": 4},
    {"hidden_size": 160, "num_hidden_layers": 3},
    {"hidden_size": 192, "num_hidden_layers": 4},
    {"vocab_size": 2048},
    {"vocab_size": 8192},
    {"batch_tokens": 4096},
    {"context_length": 256},
    {"learning_rate": 1.5},
]


def plan(text: str | None) -> Row:
    """Bits per byte after the same minutes: the best choice of the grid ÷ the plan's own, on each text."""
    console.quiet = True
    found = {name: _best_and_own(name, written) for name, written in _texts(text).items()}
    ratios = [best / own for own, best, _ in found.values()]
    what = f"bits per byte after {MINUTES:g} minutes, the best of {len(GRID)} choices by hand ÷ the plan's own: "
    what += "; ".join(f"{name} {choice}" for name, (_, _, choice) in found.items())
    own, best = (", ".join(f"{values[side]:.3f}" for values in found.values()) for side in (0, 1))
    return Row("plan", what, statistics.median(ratios), min(ratios), max(ratios), own, best)


def _texts(given: str | None) -> dict[str, str]:
    """Prose about code, code, and a text of the caller's."""
    library = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    code = "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in library)[:TEXT_BYTES]
    texts = {"documentation": "\n\n".join(python_docs.load()["train"]["text"]), "source code": code}
    return texts | ({given: Path(given).read_text(encoding="utf-8")[:TEXT_BYTES]} if given else {})


def _best_and_own(name: str, text: str) -> tuple[float, float, str]:
    """The plan's own bits per byte, the grid's least, and what the latter changed."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        file.write_text(text, encoding="utf-8")
        scores = []
        for number, choice in enumerate([{}, *GRID]):
            out = groundup.pretrain(
                data=[str(file)], minutes=MINUTES, out=str(Path(folder) / str(number)), quiet=True, **choice
            )
            scores.append(bits_per_byte(out))
            print(f"{name}: {choice or 'the plan'}: {scores[-1]:.4f}", flush=True)
    best = min(range(len(GRID)), key=lambda number: scores[number + 1])
    return scores[0], scores[best + 1], ", ".join(f"{key} {value}" for key, value in GRID[best].items())
