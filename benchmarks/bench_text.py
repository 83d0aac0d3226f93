"""Rows about text: tokenising it, and scoring it."""

import bisect
import itertools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from datasets import concatenate_datasets
from lm_eval.api.instance import Instance
from measuring import Row, compare

from groundup.common.console import console
from groundup.data import python_docs
from groundup.data.documents import Documents
from groundup.data.tokens import write_shards
from groundup.evaluation.benchmarks import as_lm, quiet
from groundup.evaluation.language import BY_DOCUMENT, Text, score_text
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.folder import plain_backend, save_tokenizer
from groundup.tokenization.training import train_bpe

GIGABYTE, MOST_MEGABYTES = 1_000_000_000, 600


def tokenise() -> Row:
    """Compare our shards with the tokenizer's own threads alone, on the built-in corpus ten times over."""
    documents = python_docs.load()["train"]
    tokenizer = train_bpe(documents["text"], 4096)
    documents = concatenate_datasets([documents] * 10)
    backend, texts = plain_backend(tokenizer), list(documents["text"])
    tokens = sum(len(encoding.ids) for encoding in backend.encode_batch_fast(texts))

    def ours() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_shards(documents, tokenizer, Path(folder) / "shards")

    what = "tokenise and write shards ÷ encode_batch_fast alone"
    return compare("tokenise", what, "tokens/s", tokens, ours, lambda: backend.encode_batch_fast(texts))


def evaluate() -> Row:
    """Score half a megabyte of documents by a model of 10 M parameters, tokenising included; the same by lm-eval."""
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


def prepare_memory() -> Row:
    """Measure the most memory that `groundup prepare` and all its processes hold together on a file of 1 GB."""
    documents = python_docs.load()["train"]
    text = "\n\n".join(documents["text"])
    with tempfile.TemporaryDirectory() as folder:
        file, tokenizer, out = (Path(folder) / name for name in ("text.txt", "tokenizer", "shards"))
        save_tokenizer(train_bpe(documents["text"], 8192), tokenizer)
        with file.open("w", encoding="utf-8") as written:
            for number in range(GIGABYTE // len(text.encode()) + 1):
                written.write(f"{number}\n\n{text}\n\n")
        command = [sys.executable, "-m", "groundup", "prepare", "--data", str(file), "--tokenizer", str(tokenizer)]
        started = time.perf_counter()
        process = subprocess.Popen([*command, "--out", str(out), "--quiet"])
        try:
            peak = _peak_of_all(process)
        finally:
            process.kill()
        if process.returncode:
            raise RuntimeError(f"prepare ended with status {process.returncode}")
        seconds = time.perf_counter() - started
    what = f"{MOST_MEGABYTES} MB ÷ memory of all processes that prepare 1 GB of text, in {seconds:.0f} s"
    ratio = MOST_MEGABYTES / peak
    return Row("prepare-memory", what, ratio, ratio, ratio, f"{peak:,.0f} MB", f"{MOST_MEGABYTES} MB")


def _peak_of_all(process: subprocess.Popen[bytes]) -> float:
    """Return the most memory [MB] that a process and its children hold together, shared pages counted once."""
    peak, whole = 0.0, psutil.Process(process.pid)
    while process.poll() is None:
        try:
            held = sum(part.memory_full_info().pss for part in [whole, *whole.children(recursive=True)])
        except psutil.NoSuchProcess:  # one of them has just ended
            continue
        peak = max(peak, held / 1e6)
        time.sleep(0.2)
    return peak
