"""Follow a text while a model writes it, for terminal and page: its pieces, its speed, and why it ended; or write many.

Many prompts go through `model.generate` side by side, which is faster than one after the other. Each text is the one it
would be alone: what may be drawn, where a text ends and how tokens become text is said by the same functions.
"""

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from transformers import GenerationConfig, LogitsProcessor, PreTrainedModel, PreTrainedTokenizerFast, StoppingCriteria

from groundup.common.errors import InputError, user_path
from groundup.common.files import RECIPE_FILE
from groundup.common.settings import read_yaml
from groundup.inference.generation import (
    Sampling,
    can_slide,
    check_text,
    draw,
    room_after,
    stop_ids_of,
    stream_pieces,
    stream_text,
    stream_tokens,
    stream_until,
)
from groundup.inference.loading import context_of, device_of, evaluating, require_known
from groundup.tokenization.chat import ChatEncoder
from groundup.tokenization.folder import structure_ids

Messages = list[dict[str, str]]
"""A conversation: dicts of `role` ("system", "user", "assistant") and `content`."""


class Writing:
    """The text that a model writes after a prompt: iterate over its pieces, each as soon as it is whole.

    During and after the iteration, `text` is what was written, `summary` its speed, and `ending` why it was cut short.
    With `past_context` a text continues when the context is full, if the model can do that.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        prompt_ids: list[int],
        sampling: Sampling,
        *,
        past_context: bool = False,
    ):
        self.text = ""
        self._slides = past_context and can_slide(model)
        self._model, self._tokenizer, self._prompt_ids, self._sampling = model, tokenizer, prompt_ids, sampling
        self._began = self._first = self._last = time.perf_counter()
        self._reason: str | None = None

    def __iter__(self) -> Iterator[str]:
        self._began = time.perf_counter()
        stream = stream_text(self._model, self._tokenizer, self._prompt_ids, self._sampling, past_context=self._slides)
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:
                self._reason = end.value
                return
            self._last = time.perf_counter()
            if not self.text:
                self._first = self._last
            self.text += piece
            yield piece

    @property
    def summary(self) -> str:
        """Return how many tokens the text has, how many came in a second, and how long the first one took."""
        if not (tokens := self._tokens):
            return "nothing written"
        rate = tokens / max(self._last - self._began, 1e-9)
        return f"{tokens:,} tokens, {rate:,.0f} tokens/s, the first after {self._first - self._began:.2f} s"

    @property
    def ending(self) -> str | None:
        """Return one line where the context ended the text before `max_new_tokens` or could not hold it, else None."""
        context, prompt = context_of(self._model), len(self._prompt_ids)
        if prompt > context:
            return f"the prompt has {prompt:,} tokens: only the last {context:,}, the model's context, were read"
        room = room_after(self._model, prompt)
        if self._slides and self._tokens > room:
            return (
                f"prompt and text are longer than the model's context of {context:,} tokens: after that it saw only "
                f"the latest {context // 2:,} to {context:,}"
            )
        if self._slides or self._reason != "length" or room >= self._sampling.max_new_tokens:
            return None
        return (
            f"stopped after {room:,} of {self._sampling.max_new_tokens:,} tokens: prompt and text fill the model's "
            f"context of {context:,} tokens"
        )

    @property
    def _tokens(self) -> int:
        return len(self._tokenizer.encode(self.text, add_special_tokens=False, verbose=False))


def can_converse(source: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a model has a chat template and, if it is ours, was trained further than pretraining."""
    recipe = user_path(source) / RECIPE_FILE
    only_pretrained = recipe.is_file() and read_yaml(recipe).get("verb") == "pretrain"
    return tokenizer.chat_template is not None and not only_pretrained


def conversation_ids(
    tokenizer: PreTrainedTokenizerFast, messages: Messages, context: int, room: int
) -> tuple[list[int], int]:
    """Return the ids of a conversation that ends with the user, and how many of its messages were left out.

    The oldest exchanges are left out until `room` tokens of the context are free; what the system says and the last
    message stay. Raises `InputError` for a message that is no text, and where the chat template refuses them.
    """
    for message in messages:
        check_text(message["content"], "the message")
    opening = [message for message in messages[:1] if message["role"] == "system"]
    rest = messages[len(opening) :]
    left_out = 0
    try:
        encoder = ChatEncoder(tokenizer)
        ids = encoder.prompt_ids(messages)
        while len(ids) + room > context and left_out + 2 < len(rest):
            left_out += 2
            ids = encoder.prompt_ids(opening + rest[left_out:])
    except ValueError as error:
        raise InputError(str(error)) from error
    return ids, left_out


# ---------------------------------------------------------------------------------------------------------------------
# Many prompts at once


@dataclass(frozen=True)
class Completion:
    """The text that follows a prompt, the number of its tokens, and its end: "stop" or "length"."""

    text: str
    tokens: int
    reason: str


def complete_all(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: Sequence[list[int]],
    samplings: Sequence[Sampling],
    *,
    past_context: bool = False,
) -> list[Completion]:
    """Return what `stream_text` gives for each prompt and sampling, most prompts together; but for seeds all are alike.

    A text that may outgrow the context is written alone: the others of its batch could not go on as it does.
    """
    together = [
        index
        for index, (ids, sampling) in enumerate(zip(prompts, samplings, strict=True))
        if 0 < len(ids) <= context_of(model) and sampling.max_new_tokens <= room_after(model, len(ids))
    ]
    drawn: dict[int, tuple[list[int], str]] = {}
    if together:
        batch = [prompts[index] for index in together]
        drawn = dict(zip(together, decode_together(model, batch, [samplings[index] for index in together], tokenizer)))
    texts = []
    for index, (ids, sampling) in enumerate(zip(prompts, samplings)):
        tokens = (
            _replayed(*drawn[index])
            if index in drawn
            else stream_tokens(model, ids, sampling, past_context=past_context)
        )
        texts.append(_completion(tokens, tokenizer, ids, sampling.stop))
    return texts


def _replayed(ids: list[int], reason: str) -> Generator[int, None, str]:
    yield from ids
    return reason


def _completion(
    tokens: Generator[int, None, str], tokenizer: PreTrainedTokenizerFast, prompt_ids: list[int], stop: Sequence[str]
) -> Completion:
    count, text = 0, ""

    def counted() -> Generator[int, None, str]:
        nonlocal count
        while True:
            try:
                token = next(tokens)
            except StopIteration as end:
                return end.value
            count += 1
            yield token

    pieces = stream_until(stop, stream_pieces(counted(), tokenizer, prompt_ids))
    while True:
        try:
            text += next(pieces)
        except StopIteration as end:
            return Completion(text, count, end.value)


@torch.no_grad()
def decode_together(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    samplings: Sequence[Sampling],
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> list[tuple[list[int], str]]:
    """Return the ids that follow each prompt, up to a stop id, and why they end there, as `stream_tokens` gives them.

    The prompts are filled up on the left to one length, and each must leave room for its text. With a tokenizer a row
    ends with its stop text too. Equal to one prompt at a time but for rounding, which only decides between two tokens
    that are as likely as each other.
    """
    first = samplings[0]
    stop_ids = first.stop_ids or stop_ids_of(model)
    for ids in prompts:
        require_known(model, max(ids))
    fill, device, longest = max(0, min(stop_ids, default=0)), device_of(model), max(map(len, prompts))
    # The fill is never read: the mask hides it before a prompt, and after a text it is cut off.
    ids = torch.tensor([[fill] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    begin = 1 if model.config.is_encoder_decoder else longest  # where the new ids are in a row
    draws = first.temperature > 0 or first.repetition_penalty != 1
    ends = {
        "max_new_tokens": first.max_new_tokens,
        "eos_token_id": sorted(token for token in stop_ids if token >= 0) or None,
        "pad_token_id": fill,
    }
    generate: Any = model.generate
    with evaluating(model), _with_ends_alone(model):
        written = generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            logits_processor=[DrawEach(model, prompts, samplings)] if draws else [],
            stopping_criteria=[StopTexts(tokenizer, prompts, first.stop)] if tokenizer and first.stop else [],
            **ends,
        )
    rows = []
    for row in written[:, begin:].tolist():
        end = next((place for place, token in enumerate(row) if token in stop_ids), None)
        rows.append((row[:end], "length" if end is None else "stop"))
    return rows


@contextlib.contextmanager
def _with_ends_alone(model: PreTrainedModel) -> Iterator[None]:
    """Leave of a model's generation config what a text begins with: how to draw is said by `Sampling` alone."""
    before: Any = model.generation_config
    first = {name: getattr(before, name, None) for name in ("bos_token_id", "decoder_start_token_id")}
    model.generation_config = GenerationConfig(**first)
    try:
        yield
    finally:
        model.generation_config = before


class DrawEach(LogitsProcessor):
    """Leave of each row's logits only the token that `draw` takes, from a generator of the row's own."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], samplings: Sequence[Sampling]):
        self.prompts, self.samplings, self.is_pair = prompts, samplings, model.config.is_encoder_decoder
        self.generators: list[torch.Generator] = []
        self.said: list[torch.Tensor | None] = [None] * len(prompts)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Take (B, T) ids and (B, V) logits; return logits of which one in each row is finite."""
        chosen: Any = torch.full_like(scores, -torch.inf)
        is_first = not self.generators
        if is_first:
            self.generators = [torch.Generator(scores.device).manual_seed(one.seed) for one in self.samplings]
        for row, sampling in enumerate(self.samplings):
            if sampling.repetition_penalty != 1:
                self._mark(row, input_ids, scores, is_first)
            chosen[row, draw(scores[row], sampling, self.generators[row], self.said[row])] = 0.0
        return chosen

    def _mark(self, row: int, input_ids: torch.Tensor, scores: torch.Tensor, is_first: bool) -> None:
        """Mark the prompt's tokens, then each one drawn."""
        said = self.said[row]
        if is_first or said is None:
            said = self.said[row] = torch.zeros_like(scores[row], dtype=torch.bool)
            said[[] if self.is_pair else list(self.prompts[row])] = True
        else:
            said[input_ids[row, -1]] = True


class StopTexts(StoppingCriteria):
    """End each row once its text has a stop text; where it is cut is decided where the text is put together."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, prompts: Sequence[Sequence[int]], stop: Sequence[str]):
        self.backend, self.structure, self.stop = tokenizer.backend_tokenizer, structure_ids(tokenizer), stop
        self.streams = [DecodeStream(ids=list(ids)) for ids in prompts]
        self.tails, self.longest = [""] * len(prompts), max(map(len, stop))

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **_: Any) -> Any:
        """Tell of each row whether it ends with its last token, (B,)."""
        ends = []
        for row, token in enumerate(input_ids[:, -1].tolist()):
            piece = "" if token in self.structure else self.streams[row].step(self.backend, token) or ""
            heard = self.tails[row] + piece
            self.tails[row] = heard[-self.longest :]
            ends.append(any(stop in heard for stop in self.stop))
        return torch.tensor(ends, device=input_ids.device)
