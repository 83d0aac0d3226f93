"""Generate for the prompts of a file: JSON lines, in batches, resumed where a killed run left off.

FILE               a finished row a line, in the order of the prompts
FILE.unfinished    while it is written: what it is made of, so that nobody goes on with another model or another seed
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import ProgressBar, say
from groundup.common.errors import InputError, Interrupted, is_disk_full, user_path
from groundup.common.files import atomic_write, content_of, digest
from groundup.common.verbs import GenerateSettings
from groundup.data.examples import load_rows
from groundup.data.json_rows import value_of
from groundup.inference.generation import Sampling, can_slide
from groundup.inference.loading import context_of
from groundup.inference.writing import Completion, complete_all

OURS = ("prompt", "generated_text", "finish_reason", "tokens", "seed")
SEEDS = 2**31
NOTE = ".unfinished"

Ids = Callable[[str], list[int]]


class PromptsFile:
    """The prompts of a file, and where what is generated for them goes. Raises `InputError` for what will not do."""

    def __init__(self, settings: GenerateSettings) -> None:
        if settings.prompt is not None:
            raise InputError("--prompt and --prompts: give one of them")
        if settings.resume and settings.out is None:
            raise InputError("--resume needs --out: give the file that the killed run was writing")
        self.settings, self.source = settings, settings.prompts or ""
        self.out = None if settings.out is None else user_path(settings.out)
        if self.out is not None:
            self._check_out(self.out)
        self.rows = load_rows(self.source, None, usual="prompt")
        if not self.rows:
            raise InputError(f"{self.source} holds no prompt: write one a line, or rows with a column `prompt`")
        if clash := next((name for _, row in self.rows for name in row if name in OURS), None):
            raise InputError(f"{self.source} has a column {clash!r}, which the output has too: rename it")

    def _check_out(self, out: Path) -> None:
        if out.is_dir():
            raise InputError(f"{out} is a folder: name a file for --out, such as {out / 'generated.jsonl'}")
        if not out.parent.is_dir():
            raise InputError(f"{out.parent} is no folder: make it first, or choose another --out")
        if out.exists() and not self.settings.resume:
            more = ", or add --resume to go on with it" if _note_of(out).exists() else ""
            raise InputError(f"{out} already exists: choose another --out{more}")

    def write(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, sampling: Sampling, ids_of: Ids) -> str:
        """Write a JSON line for each prompt that has none yet; return the texts generated now, a line each."""
        prompts = self._encoded(model, ids_of)
        completed = partial(complete_all, model, tokenizer, past_context=not self.settings.as_message)
        if self.out is None:
            return self._rest(completed, sampling, prompts, 0, lambda lines: print(lines, end="", flush=True))
        lock = Path(f"{self.out}.lock")
        try:
            with FileLock(lock, timeout=0):
                texts = self._resumed(self.out, completed, sampling, prompts)
                lock.unlink(missing_ok=True)
                return texts
        except Timeout:
            raise InputError(f"{self.out} is being written by another command: wait until it ends") from None
        except OSError as error:
            if is_disk_full(error):
                raise InputError(f"no space left for {self.out}: make room, then add --resume") from error
            raise InputError(f"cannot write {self.out} ({error.strerror or error}): choose another --out") from error

    def _encoded(self, model: PreTrainedModel, ids_of: Ids) -> list[list[int]]:
        """Return the ids of all prompts. Raises `InputError` now for one that the model cannot take."""
        context, slides = context_of(model), not self.settings.as_message and can_slide(model)
        prompts, cut = [], 0
        for number, (text, _) in enumerate(self.rows, 1):
            try:
                ids = ids_of(text)
            except InputError as error:
                raise InputError(f"{self.source}, prompt {number}: {error}") from error
            if len(ids) > context and not slides:
                raise InputError(
                    f"{self.source}, prompt {number} has {len(ids):,} tokens, the model takes 1 to {context:,}: "
                    "shorten it"
                )
            prompts.append(ids)
            cut += len(ids) > context
        if cut:
            say(f"{cut:,} of {len(prompts):,} prompts are longer than the model's context: only their ends are read")
        if empty := sum(not text for text, _ in self.rows):
            say(f"{empty:,} of {len(prompts):,} prompts are empty: each begins a new text")
        return prompts

    def _resumed(self, out: Path, completed: Any, sampling: Sampling, prompts: list[list[int]]) -> str:
        """Write what a file lacks of its rows, after those that a killed run left whole."""
        note, made_of, done = _note_of(out), self._made_of(sampling), 0
        if out.exists():
            if not note.exists():
                say(f"{out} is finished: nothing to do")
                return ""
            kept = json.loads(note.read_text(encoding="utf-8"))
            if other := next((name for name in made_of if made_of[name] != kept.get(name)), None):
                raise InputError(f"{out} was begun with another {other}: give the same, or choose another --out")
            done = _whole_rows(out)
        else:
            atomic_write(note, json.dumps(made_of).encode())
        with out.open("ab") as file:

            def keep(lines: str) -> None:
                file.write(lines.encode())
                file.flush()
                os.fsync(file.fileno())

            try:
                texts = self._rest(completed, sampling, prompts, done, keep)
            except KeyboardInterrupt as stop:
                told = f"stopped after {_whole_rows(out):,} of {len(prompts):,} prompts"
                raise Interrupted(f"{told}: give the command again with --resume to go on") from stop
        note.unlink()
        say(f"{len(prompts):,} texts are in {out}")
        return texts

    def _rest(
        self, completed: Any, sampling: Sampling, prompts: list[list[int]], done: int, keep: Callable[[str], None]
    ) -> str:
        """Generate for the prompts from number `done` on, a batch at a time, and hand on the lines of each batch."""
        texts, tokens, started, total = [], 0, time.monotonic(), len(prompts)
        if done:
            say(f"{done:,} of {total:,} prompts are done already")
        with ProgressBar("generating", total, unit="prompts") as bar:
            bar.update(done)
            for start in range(done, total, self.settings.batch_prompts):
                places = range(start, min(total, start + self.settings.batch_prompts))
                seeds = [(sampling.seed + place) % SEEDS for place in places]
                each = [replace(sampling, seed=seed) for seed in seeds]
                batch = completed([prompts[place] for place in places], each)
                keep("".join(self._line(place, seed, one) for place, seed, one in zip(places, seeds, batch)))
                texts += [one.text for one in batch]
                tokens += sum(one.tokens for one in batch)
                bar.update(places[-1] + 1, f"{tokens / max(time.monotonic() - started, 1e-9):,.0f} tokens/s")
        return "\n".join(texts)

    def _line(self, place: int, seed: int, one: Completion) -> str:
        text, others = self.rows[place]
        row = {name: value_of(cell) for name, cell in others.items()} | {"prompt": text}
        row |= {"generated_text": one.text, "finish_reason": one.reason, "tokens": one.tokens, "seed": seed}
        return json.dumps(row, ensure_ascii=False) + "\n"

    def _made_of(self, sampling: Sampling) -> dict[str, Any]:
        """Return what the rows depend on, by the names that a person knows, in types that JSON has."""
        values = {name.replace("_", "-"): value for name, value in asdict(sampling).items()}
        made = {"model": content_of(self.settings.model, "model"), "prompts file": digest([*self.rows])}
        return json.loads(json.dumps(made | values | {"as-message": self.settings.as_message}))


def _note_of(out: Path) -> Path:
    return out.with_name(out.name + NOTE)


def _whole_rows(out: Path) -> int:
    """Return how many lines of a file are whole; cut off what a killed process left of one more."""
    with out.open("rb+") as file:
        content = file.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            file.truncate(whole)
    return content.count(b"\n")
