"""Compiled runs: when they are chosen, and that they are the same runs."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import groundup as package
from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.training import plan
from groundup.training.plan import WORTH_COMPILING, Given, make_plan

TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "context_length": 32, "batch_tokens": 256}


@pytest.mark.parametrize(
    ("options", "seconds", "has_compiler", "compiled"),
    [
        ({}, WORTH_COMPILING, True, True),
        ({}, WORTH_COMPILING - 1, True, False),
        ({}, WORTH_COMPILING, False, False),
        ({}, None, True, False),  # a budget in steps: a run is the same whether there is a compiler or not
        ({"smoke": True}, WORTH_COMPILING, True, False),
        ({"compile": "no"}, WORTH_COMPILING, True, False),
        ({"compile": "yes"}, None, True, True),
    ],
)
def test_blocks_are_compiled_where_a_clock_pays_for_it_or_where_asked(
    options, seconds, has_compiler, compiled, monkeypatch
):
    monkeypatch.setattr(plan, "compiler_found", lambda: has_compiler)
    assert make_plan(Given(**options), 1e6, seconds, flops=1e11).compiled is compiled


def test_asked_to_compile_without_a_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(plan, "compiler_found", lambda: False)
    with pytest.raises(InputError, match=r"--compile yes: .* install g\+\+"):
        make_plan(Given(compile="yes"), 1e6, None)


@pytest.mark.slow
def test_a_compiled_run_has_the_same_losses_and_resumes_bit_for_bit_after_a_kill(story, tmp_path):
    losses = {}
    for choice in ("no", "yes"):
        out = tmp_path / choice
        package.pretrain(data=[str(story)], out=str(out), max_steps=30, compile=choice, quiet=True, **TINY)
        rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        losses[choice] = [row["loss"] for row in rows if "loss" in row]
    assert losses["yes"] == pytest.approx(losses["no"], abs=0.03)
    words = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "groundup", "pretrain", "--out", str(out), "--resume"]
    begin = [*command, "--data", str(story), "--max-steps", "30", "--save-every", "4", "--compile", "yes", *words]
    process = subprocess.Popen(begin, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (out / "checkpoints" / "step-12").exists():
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    assert sha256_of(out / "model.safetensors") == sha256_of(tmp_path / "yes" / "model.safetensors")


@pytest.mark.slow
def test_a_compiler_that_fails_costs_speed_and_nothing_else(story, tmp_path):
    broken = tmp_path / "g++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exec g++ --version\necho no headers >&2; exit 1\n')
    broken.chmod(0o755)
    words = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    weights = {}
    for name, variables in {"broken": {"CXX": str(broken)}, "none": {"TORCH_COMPILE_DISABLE": "1"}}.items():
        out = tmp_path / name
        command = [sys.executable, "-m", "groundup", "pretrain", "--data", str(story), "--out", str(out)]
        environment = os.environ | variables | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
        done = subprocess.run(
            [*command, "--max-steps", "3", "--compile", "yes", *words], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        weights[name] = sha256_of(out / "model.safetensors")
    assert weights["broken"] == weights["none"]
