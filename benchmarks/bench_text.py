"""Rows about text: tokenising it, and scoring it."""

import bisect
import itertools
import tempfile
from pathlib import Path

import torch
from lm_eval.api.instance import Instance
from measuring import Row, compare

from groundup.common.console import console
from groundup.data import python_docs
from groundup.data.documents import Documents
from groundup.data.tokens import write_shards
from groundup.evaluation.benchmarks import as_lm, quiet
from groundup.evaluation.language_parts import BY_DOCUMENT, Text, score_text
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.bpe import train_bpe
from groundup.tokenization.folder import plain_backend


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
