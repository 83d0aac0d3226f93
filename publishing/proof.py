"""Prove that a checkpoint is what it claims to be for someone who does not have this package.

A clean process, in which `groundup` cannot be imported and whose home is empty (`clean_process.py`), loads the folder
by the very code on its card, and by every other Auto class it names, with the code that travels in it. It must give the
same token ids, the same logits and the same greedy text as this process.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file

import groundup.modeling  # noqa: F401 (registers our models with the Auto classes)
from groundup.common.errors import InputError, one_line
from groundup.common.files import CONFIG_FILE
from groundup.inference.folder import WRITERS, auto_class_of, read_json, tokenizer_of
from groundup.inference.generation import encode_prompt
from groundup.inference.loading import context_of, load_adapter, quiet_transformers
from groundup.publishing.card import code_on_card
from groundup.tokenization.folder import load_tokenizer

_PROBE_TOKENS = 64
ROUNDING = 1e-5  # of the largest logit: twins agree to the last bit where matrix products are laid out alike
TOLERANCE = 1e-4  # between logits: the same fp32 arithmetic in two processes
PROBE = "The quick brown fox (aged 12½) says: »naïve façade« 你好 🙂\n\tand\u00a0goes on  twice.\n"


@dataclass(frozen=True)
class Proof:
    """Hold what the clean process gave: the largest difference between logits, and its greedy text after the prompt."""

    largest_difference: float
    completion: str


def prove(folder: Path, prompt: str, new_tokens: int = 20, *, base: Path | None = None) -> Proof:
    """Load `folder` in a clean process and compare ids, logits and greedy text with ours.

    Args:
        folder: a model, or an adapter to `base`. The code that lies in them runs: look at it first.
        prompt: what the model is given; cut to half its context.
        base: the folder of the adapter's base model.

    Raises:
        InputError: when it does not load there, or gives something else.
    """
    tokenizer = load_tokenizer(folder) if base is None else tokenizer_of(folder, str(base))
    auto_class = auto_class_of(folder)
    place = base or folder
    model: Any = _load(folder, auto_class) if base is None else load_adapter(folder, base=str(base)).float().cpu()
    ids = encode_prompt(tokenizer, prompt)[: max(1, context_of(model) // 2)]
    probe_ids = tokenizer.encode(PROBE, verbose=False)  # of a classifier it may be longer than what that looks at
    if (highest := max(*ids, *probe_ids)) >= model.config.get_text_config().vocab_size:
        raise InputError(
            f"{folder}: the tokenizer has a token {highest}, the model only {model.config.vocab_size} rows"
        )
    code = sorted(read_json(place / CONFIG_FILE).get("auto_map") or {})
    question = {
        "code": code_on_card(folder, str(folder.resolve()), base and base.resolve()),
        "place": str(place.resolve()),
        "other_classes": [name for name in code if name.startswith("AutoModel") and name != auto_class],
        "text": PROBE,
        "text_ids": probe_ids,
        "ids": ids,
        "is_encoder_decoder": bool(model.config.is_encoder_decoder),
        "new_tokens": min(new_tokens, context_of(model) - len(ids)) if auto_class in WRITERS else 0,
    }
    return _compare(folder, model, tokenizer, question)


def _compare(folder: Path, model: Any, tokenizer: Any, question: dict[str, Any]) -> Proof:
    """Put the question to a clean process and to `model`. Raises `InputError` where they answer otherwise."""
    answer = _ask_a_clean_process(folder, question)
    ids = torch.tensor([question["ids"]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    difference = (logits_of(model, inputs) - answer["logits"]).abs().max().item()
    if not difference <= TOLERANCE:
        raise InputError(f"{folder} gives other logits without this package, by {difference:.2g}: do not publish it")
    if not question["new_tokens"]:
        return Proof(difference, "")
    written = model.generate(
        **inputs,
        do_sample=False,
        num_beams=1,
        max_new_tokens=question["new_tokens"],
        pad_token_id=tokenizer.pad_token_id,
    )
    if not torch.equal(written, answer["written"]):
        raise InputError(f"{folder} writes other text without this package: do not publish it")
    new = written[0] if question["is_encoder_decoder"] else written[0, ids.shape[1] :]
    return Proof(difference, str(tokenizer.decode(new, skip_special_tokens=True)))


@torch.no_grad()
def logits_of(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the logits of a model on the CPU; a decoder beside an encoder reads the same ids.

    On one thread: several split a product differently at each call.
    """
    if model.config.is_encoder_decoder:
        inputs = inputs | {"decoder_input_ids": inputs["input_ids"]}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        output = model.cpu().eval()(**inputs)
    finally:
        torch.set_num_threads(threads)
    return output["logits"] if "logits" in output else output[0]


@dataclass(frozen=True)
class Probed:
    """Hold what a model gave for a fixed row of ids, so that it need not stay in memory until another is compared."""

    inputs: dict[str, torch.Tensor]
    logits: torch.Tensor

    @classmethod
    def of(cls, model: Any) -> "Probed":
        """Return what a model gives for ids that do not change."""
        length, chance = min(_PROBE_TOKENS, context_of(model)), torch.Generator().manual_seed(0)
        inputs = {"input_ids": torch.randint(model.config.vocab_size, (1, length), generator=chance)}
        return cls(inputs, logits_of(model, inputs))

    def require_same(self, model: Any, failed: str, rounding: float = ROUNDING) -> float:
        """Return the largest difference from the logits of `model`.

        Raises `InputError`, which begins with `failed`, where it is more than `rounding` of the largest logit.
        """
        difference = (self.logits - logits_of(model, self.inputs)).abs().max().item()
        if not difference <= rounding * self.logits.abs().max().item():
            raise InputError(f"{failed}: the result gives other logits, by {difference:.2g}, and is not kept")
        return difference


def _load(folder: Path, auto_class: str) -> Any:
    """Load a model as this package does, fp32 on the CPU, with every weight found and every one used."""
    try:
        with quiet_transformers():
            model, info = getattr(transformers, auto_class).from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    except Exception as error:  # of a broken checkpoint transformers may raise anything
        raise InputError(f"{folder} does not load: {one_line(error)}") from error
    for kind in ("missing_keys", "unexpected_keys"):
        if info[kind]:
            names = ", ".join(sorted(info[kind])[:3])
            raise InputError(f"{folder} has {kind.replace('_keys', '')} weights ({names}): save the model again")
    return model.eval()


def _ask_a_clean_process(folder: Path, question: dict[str, Any]) -> dict[str, torch.Tensor]:
    with tempfile.TemporaryDirectory() as home:
        question_path, answer_path = Path(home) / "question.json", Path(home) / "answer.safetensors"
        question_path.write_text(json.dumps(question), encoding="utf-8")
        program = Path(__file__).with_name("clean_process.py")
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
        done = subprocess.run(
            [sys.executable, "-I", str(program), str(question_path), str(answer_path)],
            env=kept | {"HOME": home, "HF_HOME": home, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"status {done.returncode}"
            raise InputError(f"{folder} does not load without this package: {last}")
        return load_file(answer_path)
