"""Follow a text while a model writes it, for terminal and page: its pieces, its speed, and why it ended."""

import time
from collections.abc import Iterator

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.errors import InputError, user_path
from groundup.common.files import RECIPE_FILE
from groundup.common.settings import read_yaml
from groundup.inference.generation import Sampling, can_slide, check_text, room_after, stream_text
from groundup.inference.loading import context_of
from groundup.tokenization.chat import ChatEncoder

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
