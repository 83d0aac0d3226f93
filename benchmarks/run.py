"""`make bench`: ours beside a peer, in turn in one process, as ratios; medians of several runs, with their range.

    make bench              every row that takes minutes
    make bench ROW=name     one row

Prints a table and writes benchmarks/results.json. Absolute figures depend on the machine, ratios less so.
"""

import argparse
import bisect
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from lm_eval.api.instance import Instance
from rich.console import Console
from rich.table import Table
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from groundup.common.console import console
from groundup.data import python_docs
from groundup.data.documents import Documents
from groundup.data.tokens import write_shards
from groundup.evaluation.benchmarks import as_lm, quiet
from groundup.evaluation.generation import Sampling, lay_out_for_decoding, stream_tokens
from groundup.evaluation.language_parts import BY_DOCUMENT, Text, score_text
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.bpe import train_bpe
from groundup.tokenization.folder import plain_backend
from groundup.training.objectives import NextTokenLoss
from groundup.training.optim import build_optimizers
from groundup.training.plan import bf16_is_native

RUNS = 5


@dataclass
class Row:
    """A ratio of ours to the peer's, above 1 where ours is better, over paired runs."""

    name: str
    what: str
    median: float
    lowest: float
    highest: float
    ours: str
    peer: str


def compare(
    name: str,
    what: str,
    unit: str,
    work: float,
    ours: Callable[[], object],
    peer: Callable[[], object],
    runs: int = RUNS,
) -> Row:
    """Run ours and the peer in turn, once unmeasured and `runs` times measured; rates are `work` per second."""
    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(runs + 1):
        for side, run in (("ours", ours), ("peer", peer)):
            started = time.perf_counter()
            run()
            if number:
                seconds[side].append(time.perf_counter() - started)
    ratios = [theirs / own for own, theirs in zip(seconds["ours"], seconds["peer"])]
    rates = {side: f"{work / statistics.median(times):,.0f} {unit}" for side, times in seconds.items()}
    return Row(name, what, statistics.median(ratios), min(ratios), max(ratios), rates["ours"], rates["peer"])


def tokenise() -> Row:
    """Our shards against the tokenizer's own threads alone, on the built-in corpus."""
    documents = python_docs.load()["train"]
    tokenizer = train_bpe(documents["text"], 4096)
    backend, texts = plain_backend(tokenizer), list(documents["text"])
    tokens = sum(len(encoding.ids) for encoding in backend.encode_batch_fast(texts))

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(documents, tokenizer, Path(folder) / "shards")

    what = "tokenise and write shards ÷ encode_batch_fast alone"
    return compare("tokenise", what, "tokens/s", tokens, ours, lambda: backend.encode_batch_fast(texts))


SMALL = {"vocab_size": 4096, "n_positions": 256, "n_embd": 256, "n_layer": 6, "n_head": 4}  # 5.9 million parameters
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
PROMPT = list(range(1, 17))


def own_and_stock(**sizes: int) -> tuple[GroundupForCausalLM, GPT2LMHeadModel]:
    """A network of ours in GPT-2's shape and transformers' own, with random weights; GPT-2 small without `sizes`."""
    own = GroundupForCausalLM(GroundupConfig.preset("gpt2", **ENDS, **sizes))
    return own.eval(), GPT2LMHeadModel(GPT2Config(**ENDS, **sizes)).eval()


def by_generate(model: PreTrainedModel, new: int) -> None:
    """Write `new` tokens by the model's own `generate`."""
    ids = torch.tensor([PROMPT])
    generate: Any = model.generate
    generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new, max_new_tokens=new,
        pad_token_id=0,
    )  # fmt: skip


def by_own_loop(model: PreTrainedModel, new: int) -> None:
    """Write `new` tokens as `groundup generate` does."""
    for _ in stream_tokens(model, PROMPT, Sampling(max_new_tokens=new, temperature=0, stop_ids=(-1,))):
        pass


def generate() -> Row:
    """Our decode loop against `generate` of stock GPT-2, a small model."""
    own, stock = own_and_stock(**SMALL)
    lay_out_for_decoding(own)
    what = "groundup generate ÷ GPT2LMHeadModel.generate, 5.9 M parameters, batch 1, greedy, fp32"
    return compare("generate", what, "tokens/s", 100, lambda: by_own_loop(own, 100), lambda: by_generate(stock, 100))


def generate_gpt2() -> Row:
    """`generate` against `generate`, GPT-2 small's shape."""
    own, stock = own_and_stock()
    what = "GroundupForCausalLM.generate ÷ GPT2LMHeadModel.generate, GPT-2 small, batch 1, greedy, fp32"
    return compare("generate-gpt2", what, "tokens/s", 32, lambda: by_generate(own, 32), lambda: by_generate(stock, 32))


def generate_gpt2_own() -> Row:
    """Our decode loop against `generate` of stock GPT-2, GPT-2 small's shape."""
    own, stock = own_and_stock()
    lay_out_for_decoding(own)
    what = "groundup generate ÷ GPT2LMHeadModel.generate, GPT-2 small, batch 1, greedy, fp32"
    return compare(
        "generate-gpt2-own", what, "tokens/s", 32, lambda: by_own_loop(own, 32), lambda: by_generate(stock, 32)
    )


WRITE_AND_TELL = """
import sys
from pathlib import Path
from transformers import AutoModelForCausalLM
sys.path.insert(0, sys.argv[1])
import run
model = AutoModelForCausalLM.from_pretrained(sys.argv[3])
if sys.argv[2] == "by_own_loop":
    run.lay_out_for_decoding(model)
getattr(run, sys.argv[2])(model, 32)
# Not getrusage's: a new process begins there with its parent's peak.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) / 1024)
"""


def memory(name: str, way: str, what: str) -> Row:
    """The most memory of a process that loads a model of GPT-2 small's shape and writes: stock's ÷ ours."""
    found: dict[str, list[float]] = {"ours": [], "peer": []}
    with tempfile.TemporaryDirectory() as folder:
        for side, model in zip(found, own_and_stock()):
            model.save_pretrained(f"{folder}/{side}")
        for _ in range(RUNS):
            for side, function in (("ours", way), ("peer", "by_generate")):
                command = [sys.executable, "-c", WRITE_AND_TELL, str(Path(__file__).parent), function]
                done = subprocess.run([*command, f"{folder}/{side}"], check=True, capture_output=True, text=True)
                found[side].append(float(done.stdout.split()[-1]))
    ratios = [theirs / own for own, theirs in zip(found["ours"], found["peer"])]
    peaks = {side: f"{statistics.median(values):,.0f} MB" for side, values in found.items()}
    return Row(name, what, statistics.median(ratios), min(ratios), max(ratios), peaks["ours"], peaks["peer"])


def memory_gpt2() -> Row:
    """Peak memory of `generate` against `generate`."""
    what = "peak memory: GPT2LMHeadModel.generate's ÷ GroundupForCausalLM.generate's, GPT-2 small"
    return memory("memory-gpt2", "by_generate", what)


def memory_gpt2_own() -> Row:
    """Peak memory of our decode loop against `generate` of stock GPT-2."""
    what = "peak memory: GPT2LMHeadModel.generate's ÷ groundup generate's, GPT-2 small"
    return memory("memory-gpt2-own", "by_own_loop", what)


def train() -> Row:
    """A whole step of ours (network, loss, AdamW) against stock GPT-2 with AdamW, each in its best precision."""
    vocabulary, width, layers, context, rows = 8192, 384, 6, 256, 8
    torch.manual_seed(0)
    ids = torch.randint(0, vocabulary, (rows, context))
    precision = torch.bfloat16 if bf16_is_native() else torch.float32
    sizes = {"vocab_size": vocabulary, "n_positions": context, "n_embd": width, "n_layer": layers, "n_head": 6}
    dropout = {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}
    own = GroundupForCausalLM(GroundupConfig.preset("gpt2", bos_token_id=0, eos_token_id=0, **sizes, **dropout)).train()
    stock = GPT2LMHeadModel(GPT2Config(bos_token_id=0, eos_token_id=0, **sizes, **dropout)).train()
    rates = dict.fromkeys(("matrix", "embedding", "head", "vector"), 1e-3)
    objective, optimizers = NextTokenLoss(own), build_optimizers(own, "adamw", rates, 0.1)
    optimizer = torch.optim.AdamW(stock.parameters(), lr=1e-3)
    labels = functional.pad(ids, (0, 1), value=-100)[:, 1:]

    def ours() -> None:
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            loss = objective(input_ids=ids, shift_labels=labels) / labels.numel()
        loss.backward()
        for each in optimizers:
            each.step()
            each.zero_grad()

    def peer() -> None:
        with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
            loss = stock(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    what = f"training step ÷ GPT2LMHeadModel + AdamW, 6 layers, 384 wide, {str(precision)[6:]}"
    return compare("train", what, "tokens/s", rows * context, ours, peer)


def evaluate() -> Row:
    """Half a megabyte of documents scored by a model of 10 M parameters, tokenising included; the same by lm-eval."""
    documents = python_docs.load()["train"]
    sizes = list(itertools.accumulate(len(text.encode()) for text in documents["text"]))
    documents = documents.select(range(bisect.bisect_left(sizes, 500_000) + 1))
    tokenizer = train_bpe(documents["text"], 4096)
    widths = {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 6, "num_attention_heads": 5}
    config = GroundupConfig(vocab_size=len(tokenizer), max_position_embeddings=256, **widths)
    torch.manual_seed(0)
    model = GroundupForCausalLM(config).eval()
    lm = as_lm(model, tokenizer, 16)
    requests = [Instance("loglikelihood_rolling", {}, (text,), number) for number, text in enumerate(documents["text"])]
    text = Text(Documents.of(documents), None, "docs", 0)
    nats = {}
    console.quiet = True

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            scores, windows = score_text(model, tokenizer, text, BY_DOCUMENT, Path(folder), batch_rows=16)
            nats["ours"] = scores.total(windows, None).nats

    def peer() -> None:
        with quiet():
            nats["peer"] = -sum(lm.loglikelihood_rolling(requests, disable_tqdm=True))

    size = f"{model.num_parameters() / 1e6:.1f} M parameters, {sizes[len(documents) - 1] / 1e3:.0f} kB"
    row = compare("evaluate", f"score documents ÷ lm-eval's HFLM, {size}", "documents/s", len(documents), ours, peer, 2)
    if abs(nats["ours"] / nats["peer"] - 1) > 1e-4:
        raise RuntimeError(f"the two disagree: {nats}")
    return row


ROWS = {
    "tokenise": tokenise,
    "generate": generate,
    "generate-gpt2": generate_gpt2,
    "generate-gpt2-own": generate_gpt2_own,
    "memory-gpt2": memory_gpt2,
    "memory-gpt2-own": memory_gpt2_own,
    "train": train,
    "evaluate": evaluate,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--row", choices=ROWS, help="one row alone")
    chosen = parser.parse_args().row
    rows = [ROWS[name]() for name in ([chosen] if chosen else ROWS)]
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    table = Table(title=f"ours ÷ peer, median of {RUNS} ({machine})", box=None, header_style="bold")
    for column in ("row", "ratio", "range", "ours", "peer", "what"):
        table.add_column(column)
    for row in rows:
        table.add_row(
            row.name, f"{row.median:.2f}", f"{row.lowest:.2f} to {row.highest:.2f}", row.ours, row.peer, row.what
        )
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    results = {"machine": machine, "runs": RUNS, "rows": [asdict(row) for row in rows]}
    Path(__file__).with_name("results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
