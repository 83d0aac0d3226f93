"""The verbs `generate` and `chat`: print text while the model generates it, or write it for many prompts."""

import contextlib
import dataclasses
import itertools
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.console import ProgressBar, console, say
from groundup.common.errors import InputError, Interrupted, is_disk_full, near, user_path
from groundup.common.files import atomic_write, content_of, digest
from groundup.common.settings import verb
from groundup.common.verbs import ChatSettings, GenerateSettings
from groundup.data.examples import load_rows
from groundup.data.json_rows import value_of
from groundup.inference.generation import Sampling, can_slide, encode_prompt, lay_out_for_decoding, own_sampling
from groundup.inference.loading import context_of, load_writer
from groundup.inference.writing import Completion, Messages, Writing, can_converse, complete_all, conversation_ids

HELP = """\
/set NAME VALUE   change a sampling setting, one of those that /settings shows
/settings         show the sampling settings
/reset            forget the conversation
/retry            answer the last message again, with the next seed
/save [FILE]      write the conversation to a new file, as a row that `groundup instruct --data` reads
/quit             end the conversation (also Ctrl-D); Ctrl-C stops an answer"""
COLUMNS = ("prompt", "generated_text", "finish_reason", "tokens", "seed")
SEEDS = 2**31
NOTE = ".unfinished"
CHAT_TEMPERATURE = 0.7  # of an answer, where the model says nothing of it
COMMANDS = [line.split()[0] for line in HELP.splitlines()] + ["/help"]


@verb(GenerateSettings)
def generate(settings: GenerateSettings) -> str:
    """Print the prompt and its continuation, or only the answer, token by token; return the generated text.

    With `prompts` write a JSON line for each of them, and return the texts generated now, a line each.
    """
    console.quiet = settings.quiet
    if not settings.model:
        raise InputError("generate needs a model: give its folder or Hub name, such as groundup generate my_model")
    file = PromptsFile(settings) if settings.prompts is not None else None
    if file is None and (settings.out is not None or settings.resume):
        raise InputError("--out and --resume are for --prompts FILE: leave them out, or give that")
    model, tokenizer = load_writer(settings.model, trust_remote_code=settings.trust_remote_code)
    sampling = sampling_of(settings, model)
    if file is not None:
        return file.write(model, tokenizer, sampling, partial(prompt_ids, settings, model, tokenizer))
    prompt = piped_text() if settings.prompt is None else settings.prompt
    lay_out_for_decoding(model)
    ids = prompt_ids(settings, model, tokenizer, prompt)
    if prompt.endswith(" ") and not settings.as_message and tokenizer.decode(ids[-1:]).isspace():
        say("the prompt ends in a space: a model writes a word together with the space before it, so leave that out")
    writing = Writing(model, tokenizer, ids, sampling, past_context=not settings.as_message)
    # What goes on from a prompt stands behind it; an answer stands alone.
    sys.stdout.write("" if settings.as_message or model.config.is_encoder_decoder else prompt)
    show(writing)
    return writing.text


def prompt_ids(
    settings: GenerateSettings, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str
) -> list[int]:
    """Return the ids of a prompt, or of a message in the chat template. Raises `InputError`."""
    if not settings.as_message:
        return encode_prompt(tokenizer, prompt)
    return conversation_ids(tokenizer, [{"role": "user", "content": prompt}], context_of(model), room=0)[0]


def piped_text() -> str:
    """Return what a pipe or a file gives to standard input, without the line end at its end; nothing of a terminal."""
    try:
        kind = os.fstat(sys.stdin.fileno()).st_mode
        if not (stat.S_ISFIFO(kind) or stat.S_ISREG(kind)):
            return ""
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")  # a bad byte is the prompt's error
        return sys.stdin.read().removesuffix("\n").removesuffix("\r")
    except (AttributeError, OSError, ValueError):  # closed, or a stand-in of somebody's
        return ""


@verb(ChatSettings)
def chat(settings: ChatSettings) -> Messages:
    """Answer each line of input until /quit or its end, run slash commands, and return the conversation."""
    if not settings.model:
        raise InputError("chat needs a model: give its folder or Hub name, such as groundup chat my_model")
    model, tokenizer = load_writer(settings.model, trust_remote_code=settings.trust_remote_code)
    sampling = sampling_of(settings, model, temperature=CHAT_TEMPERATURE)
    lay_out_for_decoding(model)
    answers = can_converse(settings.model, tokenizer)
    conversation = Conversation(model, tokenizer, sampling, settings.system, answers=answers)
    if not conversation.answers:
        say("this model was not trained on conversations: it continues what you write")
    say("/help lists the commands; /quit or Ctrl-D ends the conversation")
    with contextlib.suppress(AttributeError):  # a stand-in of somebody's
        sys.stdin.reconfigure(errors="surrogateescape")  # a bad byte is a message's error, not the end of the talk
    with contextlib.suppress(ImportError):  # absent on Windows
        import readline  # noqa: F401 (arrow keys edit the line and bring earlier ones back)
    while True:
        try:
            line = input("> ").strip()
            if line == "/quit":
                break
            if line:
                conversation.obey(line) if line.startswith("/") else conversation.answer(line)
        except EOFError:
            break
        except InputError as error:
            say(str(error))
    return conversation.messages


class Conversation:
    """A conversation in the terminal: its messages and the sampling settings of the next answer."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        sampling: Sampling,
        system: str = "",
        *,
        answers: bool,
    ):
        self.model, self.tokenizer, self.sampling, self.answers = model, tokenizer, sampling, answers
        self._opening: Messages = [{"role": "system", "content": system}] if system else []
        self.messages = list(self._opening)

    def answer(self, line: str) -> None:
        """Print the answer to a line, and keep both. Raises `InputError` for a line that is too long."""
        asked = [*self.messages, {"role": "user", "content": line}]
        if self.answers:
            context = context_of(self.model)
            room = min(self.sampling.max_new_tokens, context // 4)
            ids, left_out = conversation_ids(self.tokenizer, asked, context, room)
            if left_out:
                say(f"the first {left_out} messages do not fit into the model's context and are left out")
        else:
            ids = encode_prompt(self.tokenizer, line)
        writing = Writing(self.model, self.tokenizer, ids, self.sampling, past_context=not self.answers)
        try:
            show(writing)
        except KeyboardInterrupt:
            say("stopped")
        say(f"[{writing.summary}]")
        self.messages = [*asked, {"role": "assistant", "content": writing.text}]

    def obey(self, line: str) -> None:
        """Run a slash command. Raises `InputError` for an unknown or malformed one."""
        command, *words = line.split()
        if command == "/help":
            say(HELP)
        elif command == "/settings":
            say(self._settings())
        elif command == "/reset":
            self.messages = list(self._opening)
            say("a new conversation")
        elif command == "/set" and len(words) == 2:
            self._set(*words)
        elif command == "/save" and len(words) < 2:
            self._save(*words)
        elif command == "/retry" and len(self.messages) > len(self._opening):
            self.sampling = dataclasses.replace(self.sampling, seed=self.sampling.seed + 1)
            last = self.messages[-2]["content"]
            self.messages = self.messages[:-2]
            self.answer(last)
        elif command == "/retry":
            raise InputError("there is no message to answer again yet")
        elif command in COMMANDS:
            raise InputError(next(text for text in HELP.splitlines() if text.startswith(command)))
        else:
            raise InputError(f"unknown command {command}{near(command, COMMANDS)}: /help shows them")

    def _settings(self) -> str:
        return ", ".join(f"{name} {getattr(self.sampling, name)}" for name in _SETTABLE)

    def _set(self, name: str, value: str) -> None:
        name = name.replace("-", "_")
        if name not in _SETTABLE:
            raise InputError(f"no setting {name!r}{near(name, _SETTABLE)}: there are {', '.join(_SETTABLE)}")
        self.sampling = dataclasses.replace(self.sampling, **{name: value})
        say(self._settings())

    def _save(self, name: str | None = None) -> None:
        free = (Path(f"chat-{number}.jsonl") for number in itertools.count(1))
        path = user_path(name) if name else next(path for path in free if not path.exists())
        row = json.dumps({"messages": self.messages}, ensure_ascii=False)
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(row + "\n")
        except FileExistsError as error:
            raise InputError(f"{path} already exists: choose another name") from error
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from error
        say(f"{len(self.messages)} messages saved to {path}")


_SETTABLE = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "seed")


def sampling_of(settings: GenerateSettings | ChatSettings, model: PreTrainedModel, **usual: Any) -> Sampling:
    """Return how to sample: as the settings say, else as the model's generation config does, else as usual.

    Raises `InputError` for a value outside its range.
    """
    given = {name: getattr(settings, name) for name in _SETTABLE if getattr(settings, name) is not None}
    return Sampling(**usual | own_sampling(model) | given, stop=settings.stop)


def show(writing: Writing) -> None:
    """Print a text while it is generated, and a notice if the model's context ended it."""
    try:
        for piece in writing:
            sys.stdout.write(piece)
            sys.stdout.flush()
    finally:
        sys.stdout.write("\n")
        sys.stdout.flush()
    if writing.ending:
        say(writing.ending)


# ---------------------------------------------------------------------------------------------------------------------
# Many prompts: FILE has a finished row a line, in the order of the prompts; FILE.unfinished says while it is written
# what it is made of, so that nobody goes on with another model or another seed


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
        if clash := next((name for _, row in self.rows for name in row if name in COLUMNS), None):
            raise InputError(f"{self.source} has a column {clash!r}, which the output has too: rename it")

    def _check_out(self, out: Path) -> None:
        if out.is_dir():
            raise InputError(f"{out} is a folder: name a file for --out, such as {out / 'generated.jsonl'}")
        if not out.parent.is_dir():
            raise InputError(f"{out.parent} is no folder: make it first, or choose another --out")
        if out.exists() and not self.settings.resume:
            more = ", or add --resume to go on with it" if _note_of(out).exists() else ""
            raise InputError(f"{out} already exists: choose another --out{more}")

    def write(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        sampling: Sampling,
        ids_of: Callable[[str], list[int]],
    ) -> str:
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

    def _encoded(self, model: PreTrainedModel, ids_of: Callable[[str], list[int]]) -> list[list[int]]:
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
                each = [dataclasses.replace(sampling, seed=seed) for seed in seeds]
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
        values = {name.replace("_", "-"): value for name, value in dataclasses.asdict(sampling).items()}
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
