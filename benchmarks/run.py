"""`make bench`: ours beside a peer, in turn, as ratios; medians of several runs, with their range.

    make bench                    every row that takes minutes
    make bench ROW=name           one row
    make bench ALL=1              the longer ones too, of which `plan` takes hours
    make bench ROW=plan TEXT=shakespeare.txt
    make bench ROW=peer-classify MODEL=my_model DATA=my_rows.csv MINUTES=10

Prints a table and writes benchmarks/results.json. Absolute figures depend on the machine, ratios less so.
"""

import argparse
import json
import os
import platform
import sys
from dataclasses import asdict
from pathlib import Path

if __name__ == "__main__":  # before torch reads it; a row may start a process that is to wait in another way
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import bench_ablation
import bench_finetuning
import bench_peers
import bench_plan
import bench_text
import bench_training
import bench_waiting
import bench_writing
import torch
from measuring import Row
from rich.console import Console
from rich.table import Table

ROWS = {
    "tokenise": bench_text.tokenise,
    "generate": bench_writing.generate,
    "generate-gpt2": bench_writing.generate_gpt2,
    "generate-gpt2-own": bench_writing.generate_gpt2_own,
    "memory-gpt2": bench_writing.memory_gpt2,
    "memory-gpt2-own": bench_writing.memory_gpt2_own,
    "train": bench_training.train,
    "train-adamw": bench_training.train_uncompiled,
    "peak": bench_training.peak_share,
    "memory-step": bench_training.memory_step,
    "lora-step": bench_finetuning.lora_step,
    "full-step": bench_finetuning.full_step,
    "lora-memory": bench_finetuning.lora_memory,
    "lora-memory-int8": bench_finetuning.lora_memory_int8,
    "evaluate": bench_text.evaluate,
    "first-token": bench_waiting.terminal,
    "first-token-page": bench_waiting.page,
    "first-token-second": bench_waiting.page_beside_another,
    "prepare-memory": bench_text.prepare_memory,
}
ROWS_ON_TEXT = {  # these take a text
    "nanogpt": bench_training.nanogpt,
    "ablation": bench_ablation.ablation,
    "plan": bench_plan.plan,
}
ROWS_ON_MODEL = {  # these take a model that others trained, data and minutes
    "peer-classify": bench_peers.classify,
    "peer-instruct": bench_peers.instruct,
    "peer-domain": bench_peers.domain,
}
LONG = ("prepare-memory", "ablation", "plan", *ROWS_ON_MODEL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    every = [*ROWS, *ROWS_ON_TEXT, *ROWS_ON_MODEL]
    parser.add_argument("--row", choices=every, help="one row alone")
    parser.add_argument("--all", action="store_true", help="also the longer rows; the plan takes hours")
    parser.add_argument(
        "--text", help="a text for nanogpt, ablation, plan and peer-domain (default: the built-in corpus)"
    )
    parser.add_argument("--data", help="rows for peer-classify or peer-instruct (default: the built-in ones)")
    parser.add_argument("--model", help="a model's folder or Hub name for the rows beside peers")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes of each run of these rows")
    options = parser.parse_args()
    rows = []
    for name in [options.row] if options.row else [name for name in every if options.all or name not in LONG]:
        if name in ROWS_ON_MODEL and options.model is None:
            print(f"{name} needs MODEL: a folder, or a name on the Hub such as HuggingFaceTB/SmolLM2-135M-Instruct")
            continue
        rows.append(measure(name, options))
        show(rows[-1:])
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    results = {"machine": machine, "rows": [asdict(row) for row in rows]}
    if rows:
        Path(__file__).with_name("results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


def measure(name: str, options: argparse.Namespace) -> Row:
    """Measure a row with what the options give for it."""
    if name in ROWS_ON_MODEL:
        data = options.text if name == "peer-domain" else options.data
        return ROWS_ON_MODEL[name](options.model, data, options.minutes)
    return ROWS_ON_TEXT[name](options.text) if name in ROWS_ON_TEXT else ROWS[name]()


def show(rows: list[Row]) -> None:
    """Print rows as a table."""
    table = Table(box=None, header_style="bold")
    for column in ("row", "ratio", "range", "ours", "peer", "what"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.name, f"{row.median:.2f}", f"{row.lowest:.2f} to {row.highest:.2f}", row.ours, row.peer, row.what
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)


if __name__ == "__main__":
    sys.exit(main())
