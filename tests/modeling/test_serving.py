"""Doors that need a process of their own or time: `transformers serve` and `chat`, int8 matrices, compiled steps."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import torch
from transformers import AutoModelForCausalLM

from groundup.modeling.export import make_twin

GREEDY = {"do_sample": False, "max_new_tokens": 6}


@pytest.fixture
def command():
    """Return the `transformers` command and its environment."""
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return [sys.executable, "-m", "transformers.cli.transformers"], os.environ | environment


@contextlib.contextmanager
def serving(command, folder, *options):
    """Yield a server on this machine alone, once it answers; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program, environment = command
    arguments = ["serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu", *options]
    log = folder.parent / "server.log"
    with log.open("w") as output:
        server = subprocess.Popen([*program, *arguments], env=environment, stdout=output, stderr=output)
    try:
        for _ in range(400):
            assert server.poll() is None, log.read_text()[-3000:]
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(60)


def ask(address, path, **body):
    body |= {"max_tokens": 6, "temperature": 0}
    request = urllib.request.Request(address + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["choices"][0]


def written(model, tokenizer, text):
    ids = tokenizer(text, return_tensors="pt").input_ids
    output = model.generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **GREEDY)
    return tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_transformers_serve_and_chat_answer_with_the_words_of_our_model(command, build, tokenizer, tmp_path):
    # Through its twin: `serve` looks a model's class up among transformers' own, with or without --trust-remote-code.
    model, folder = build(eos_token_id=1), tmp_path / "twin"
    make_twin(model, "qwen3").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    messages = [{"role": "user", "content": "w8 w9"}]
    said = tokenizer.apply_chat_template(messages, tokenize=False)
    expected = written(model, tokenizer, said)
    with serving(command, folder) as address:
        answer = ask(address, "/v1/completions", model=str(folder), prompt="w4 w5 w6")
        assert answer["text"].split() == written(model, tokenizer, "w4 w5 w6").split() != []
        answer = ask(address, "/v1/chat/completions", model=str(folder), messages=messages)
        assert answer["message"]["content"].endswith(expected) and expected
        program, environment = command
        environment.pop("HF_HUB_OFFLINE")  # it forbids the client this machine's own server too
        chat = subprocess.run(
            [*program, "chat", folder, address, "max_new_tokens=6", "do_sample=False"],
            input="w8 w9\n!exit\n", env=environment | {"COLUMNS": "200"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert expected in " ".join(chat.stdout.split()), chat.stdout + chat.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["modern", "gpt2"])
def test_matrices_in_int8_answer_nearly_the_same_and_write(kind, build, tmp_path, ids):
    build(kind).save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        exact = model(ids).logits
        small = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, torch.qint8)
        near, alone = small(ids).logits, small(ids[:1]).logits  # how inputs are rounded depends on what they stand with
    assert "DynamicQuantizedLinear" in str(small.model.layers[0])
    # Measured with these random weights: 0.06 (gpt2) and 0.14 (modern) of the spread of the logits.
    assert 0 < (near - exact).std() < 0.25 * exact.std()
    text = small.generate(ids[:1], pad_token_id=0, **GREEDY)
    assert text.shape == (1, 46) and int(text[0, 40]) == int(alone[0, -1].argmax())


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["modern", "gpt2", "sliding"])
def test_a_compiled_model_generates_the_same_text(kind, build, ids, compiler):
    model, prompt = build(kind), ids[:2, :9]
    named = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "cache_implementation": "static", **GREEDY}
    plain = model.generate(prompt, **named)
    torch.compiler.reset()  # what other tests compiled counts towards the limit of variants
    model.forward = torch.compile(model.forward, fullgraph=True)
    assert torch.equal(model.generate(prompt, **named), plain)
