"""Rows about how long a person waits for the first token after Enter, in the terminal and on the page."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from gradio_client import Client
from gradio_client.client import Job
from measuring import Row

from groundup.data import python_docs
from groundup.inference.loading import save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.training import train_bpe

WANTED = 0.3  # seconds
TIMES = 20
PROMPT = "Return the first item of the sequence for which"
WRITTEN = 150  # tokens
SIZES = {"hidden_size": 320, "intermediate_size": 1280, "num_hidden_layers": 6, "num_attention_heads": 5}


@contextmanager
def untrained() -> Iterator[tuple[str, float]]:
    """Yield the folder of a model with random weights, removed afterwards, and its millions of parameters."""
    tokenizer = train_bpe(python_docs.load()["train"]["text"], 4096)
    ends = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id}
    torch.manual_seed(0)
    # Not from zero: such logits are all equal, and the end of text is soon drawn.
    sizes = SIZES | {"vocab_size": len(tokenizer), "max_position_embeddings": 512, "zero_init": False}
    model = GroundupForCausalLM(GroundupConfig(**sizes, **ends))
    with tempfile.TemporaryDirectory() as folder:
        save_model(Path(folder), model, tokenizer)
        yield folder, model.num_parameters() / 1e6


def terminal() -> Row:
    """Measure from a line sent to `groundup chat` to the first piece of its answer."""
    with untrained() as (folder, size), subprocess.Popen(
        [sys.executable, "-m", "groundup", "chat", "--model", folder, "--max-new-tokens", "20"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdin is not None and process.stdout is not None
        answers, found = process.stdout.fileno(), []
        _read_until(answers, b"> ")
        for _ in range(TIMES):
            started = time.perf_counter()
            process.stdin.write(PROMPT.encode() + b"\n")
            process.stdin.flush()
            first = os.read(answers, 4096)
            found.append(time.perf_counter() - started)
            _read_until(answers, b"\n> ", first)
        process.stdin.close()
    return _row("first-token", f"groundup chat, {size:.1f} M parameters", found)


def page() -> Row:
    """Measure from a prompt sent to the page to its first update, nobody else there."""
    with untrained() as (folder, size), _visit(folder) as url:
        visitor = Client(url, verbose=False)
        found = []
        for _ in range(TIMES):
            seconds, job = _seconds_to_first(visitor)
            job.result()
            found.append(seconds)
    return _row("first-token-page", f"playground, {size:.1f} M parameters", found)


def page_beside_another() -> Row:
    """Measure the same while another visitor's text is written, from its first token to beyond that of the second."""
    with untrained() as (folder, size), _visit(folder) as url:
        first, second = Client(url, verbose=False), Client(url, verbose=False)
        found = []
        for _ in range(TIMES):
            _, job = _seconds_to_first(first)
            seconds, other = _seconds_to_first(second)
            if job.done():
                raise RuntimeError("the first visitor's text was over before the second's began: let it be longer")
            found.append(seconds)
            job.result()
            other.result()
    return _row("first-token-second", f"a second visitor's, {size:.1f} M parameters", found)


@contextmanager
def _visit(folder: str) -> Iterator[str]:
    """Start a playground in a process of its own; yield its address."""
    command = [sys.executable, "-m", "groundup", "playground", "--model", folder]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            yield next(word for line in process.stderr for word in line.split() if word.startswith("http://"))
        finally:
            process.terminate()


def _seconds_to_first(visitor: Client) -> tuple[float, Job]:
    started = time.perf_counter()
    job = visitor.submit(PROMPT, 0.8, 50, 0.95, WRITTEN, 0, api_name="/complete")
    next(iter(job))
    return time.perf_counter() - started, job


def _read_until(stream: int, end: bytes, read: bytes = b"") -> None:
    while not read.endswith(end):
        read += os.read(stream, 4096)


def _row(name: str, what: str, seconds: list[float]) -> Row:
    middle, ratios = statistics.median(seconds), [WANTED / value for value in seconds]
    what = f"{WANTED} s ÷ seconds to the first token after Enter, {what}, {TIMES} times"
    return Row(name, what, WANTED / middle, min(ratios), max(ratios), f"{middle:.3f} s", f"{WANTED} s")
