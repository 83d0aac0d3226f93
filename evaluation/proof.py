"""Whether a checkpoint is what it claims to be for someone who has never heard of this package.

A second process, in which `groundup` cannot be imported and whose home is empty, loads the folder by transformers'
Auto classes, with the code that travels in it, and must give the same logits and the same greedy text.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from groundup.common.errors import InputError
from groundup.evaluation.generation import encode_prompt
from groundup.evaluation.loading import load_model

TOLERANCE = 1e-4  # between logits: the same fp32 arithmetic in two processes

_STRANGER = """\
import json, sys
sys.modules["groundup"] = None  # from here on importing it fails
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, ids, new_tokens, answer = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
prompt = torch.tensor([ids])
with torch.no_grad():
    logits = model(prompt).logits
written = model.generate(
    prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=new_tokens,
    pad_token_id=tokenizer.pad_token_id,
)
save_file({"logits": logits, "written": written}, answer)
"""


@dataclass(frozen=True)
class Proof:
    """What the stranger got: the largest difference between logits, and its greedy text after the prompt."""

    largest_difference: float
    completion: str


def prove(folder: Path, prompt: str, new_tokens: int = 20) -> Proof:
    """Load `folder` in a clean process and compare logits and greedy text with ours.

    Raises `InputError` when it does not load there, or gives something else.
    """
    model, tokenizer = load_model(folder)
    model.float().cpu()
    ids = encode_prompt(tokenizer, prompt)
    answer = _ask_a_stranger(folder, ids, new_tokens)
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits
    difference = (logits - answer["logits"]).abs().max().item()
    if not difference <= TOLERANCE:
        raise InputError(f"{folder} gives other logits without this package, by {difference:.2g}: do not publish it")
    prompt_ids = torch.tensor([ids])
    generate: Callable[..., torch.Tensor] = model.generate  # type: ignore[assignment]
    written = generate(
        prompt_ids,
        attention_mask=torch.ones_like(prompt_ids),
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=tokenizer.pad_token_id,
    )
    if not torch.equal(written, answer["written"]):
        raise InputError(f"{folder} writes other text without this package: do not publish it")
    return Proof(difference, str(tokenizer.decode(written[0, len(ids) :], skip_special_tokens=True)))


def _ask_a_stranger(folder: Path, ids: list[int], new_tokens: int) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as home:
        answer = Path(home) / "answer.safetensors"
        arguments = [str(folder.resolve()), json.dumps(ids), str(new_tokens), str(answer)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
        done = subprocess.run(
            [sys.executable, "-I", "-c", _STRANGER, *arguments],
            env=kept | {"HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
            raise InputError(f"{folder} does not load without this package: {last}")
        return load_file(answer)
