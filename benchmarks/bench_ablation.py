"""The row about what each part of the defaults earns: the same run without it, the same number of updates."""

import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from measuring import Row, bits_per_byte, one_thread_each

import groundup
from groundup.data import python_docs
from groundup.training import loop, optim

UPDATES = 350
SIZES = {"hidden_size": 128, "num_hidden_layers": 3, "context_length": 128, "batch_tokens": 2048, "vocab_size": 4096}


class WithoutCare(optim.Muon):
    """Muon with decay of every weight."""

    def _step_together(self, parameters: list[torch.nn.Parameter], group: dict[str, Any]) -> None:
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        super()._step_together(parameters, group | {"weight_decay": 0.0})


def _decay(share: float) -> Any:
    return patch.object(loop, "learning_rate_factor", lambda used, **_: _factor(used, warmup=0.0, decay=share))


_factor = loop.learning_rate_factor
# What is left out: options of `pretrain` in its place, and patches where there is no option.
WITHOUT: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "nothing": ({}, []),
    "nothing, another seed": ({"seed": 1}, []),
    "Muon (AdamW for all)": ({"optimizer": "adamw"}, []),
    "momentum's warm-up": ({}, [patch.object(loop, "momentum", lambda share, warmup: 0.95)]),
    "care for which weights decay": ({}, [patch.object(optim, "Muon", WithoutCare)]),
    "weight decay": ({"weight_decay": 0.0}, []),
    "decay of the rate over 0.6 of the run (0.2)": ({}, [_decay(0.2)]),
    "a level stretch before it (decay from the start)": ({}, [_decay(1.0)]),
    "norms of queries and keys": ({"model_config": {"qk_norm": False}}, []),
    "a gate in the MLP (ReLU squared)": ({"model_config": {"gated_mlp": False, "hidden_act": "relu2"}}, []),
    "RMS norm (layer norm)": ({"model_config": {"norm": "layer_norm"}}, []),
    "rotary positions (learned)": ({"model_config": {"position_embedding": "learned"}}, []),
    "a head of its own (tied)": ({"model_config": {"tie_word_embeddings": True}}, []),
    "a start at zero": ({"model_config": {"zero_init": False}}, []),
}


def ablation(text: str | None) -> Row:
    """Print the bits per byte of each run without a part; the row is the least of them ÷ that of the whole."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "text.txt"
        written = Path(text).read_text(encoding="utf-8") if text else "\n\n".join(python_docs.load()["train"]["text"])
        file.write_text(written, encoding="utf-8")
        scores = dict(zip(WITHOUT, one_thread_each(_score, [(file, part) for part in WITHOUT])))
    for part, score in scores.items():
        print(f"without {part}: {score:.4f}", flush=True)
    whole = scores.pop("nothing")
    ratios = sorted(value / whole for value in scores.values())
    what = f"bits per byte after {UPDATES} updates without each part ÷ with all; the least and the greatest"
    best = min(scores, key=lambda name: scores[name])
    return Row("ablation", what, ratios[0], ratios[0], ratios[-1], f"{whole:.3f}", f"{scores[best]:.3f} without {best}")


def _score(run: tuple[Path, str]) -> float:
    """Return the bits per byte of a run without a part."""
    file, part = run
    options, patches = WITHOUT[part]
    out = file.with_name(f"run-{list(WITHOUT).index(part)}")
    with ExitStack() as stack:
        for change in patches:
            stack.enter_context(change)
        groundup.pretrain(data=[str(file)], max_steps=UPDATES, out=str(out), quiet=True, **SIZES | options)
    return bits_per_byte(out)
