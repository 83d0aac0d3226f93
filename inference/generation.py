"""Sample and stream: our own decode loop, one token at a time, and text that appears as soon as it is whole.

Step by step what `model.generate` does for one prompt, without the bookkeeping that costs a small model a large share
of each token. Sampling follows Fan et al. 2018 (top-k), Holtzman et al. 2020 (top-p), Nguyen et al. 2024 (min-p) and
Keskar et al. 2019 (repetition penalty).
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from groundup.common.errors import InputError
from groundup.inference.decoding import decoder_for
from groundup.inference.loading import context_of, evaluating, require_known
from groundup.modeling.generation_groundup import every_thread_reads, is_plain_weight
from groundup.tokenization.folder import structure_ids

# What transformers takes where nothing is said.
_GENERATE = {"temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0}


@dataclass(frozen=True)
class Sampling:
    """The way to draw a token: the repetition penalty, temperature, top-k, top-p and min-p, one after the other.

    Ranges are those of the options of the same names; None means the default. Raises `InputError` for a value
    outside its range.
    """

    max_new_tokens: int = 200
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    seed: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: list[str] = field(default_factory=list)
    """Stop sequences: the generated text ends where one would begin."""
    stop_ids: tuple[int, ...] = ()
    """Token ids that end the text and are no part of it; empty: those that the model's generation config names."""

    def __post_init__(self) -> None:
        from groundup.common.options import SamplingOptions  # what a setting may be is declared there
        from groundup.common.settings import checked, hints_of

        for name, hint in hints_of(SamplingOptions).items():
            value = getattr(type(self), name) if getattr(self, name) is None else getattr(self, name)
            object.__setattr__(self, name, checked(name, value, hint))


def stream_tokens(
    model: PreTrainedModel, input_ids: list[int], sampling: Sampling, *, past_context: bool = False
) -> Generator[int, None, str]:
    """Yield the ids that follow a prompt, one at a time; the same seed gives the same ids.

    The generator's own value (`reason = yield from ...`) is "stop" after a stop id, which is not yielded, or "length"
    after `max_new_tokens` or at the end of the model's context. With `past_context` a model that `can_slide` reads the
    end of a longer prompt, and goes on from the latest half of a full context. Raises `InputError` for a prompt that is
    empty, longer than the context else, or of another tokenizer.
    """
    context, slides = context_of(model), past_context and can_slide(model)
    if not input_ids or (len(input_ids) > context and not slides):
        raise InputError(
            f"the prompt has {len(input_ids):,} tokens, the model takes 1 to {context:,}: change the prompt"
        )
    require_known(model, max(input_ids))
    room = sampling.max_new_tokens if slides else min(sampling.max_new_tokens, room_after(model, len(input_ids)))
    sampling = replace(sampling, max_new_tokens=room, stop_ids=sampling.stop_ids or stop_ids_of(model))
    with evaluating(model), every_thread_reads(model):
        return (yield from _decode(model, input_ids[-context:], sampling))


def can_slide(model: PreTrainedModel) -> bool:
    """Return whether a model can go on past its context: a decoder whose positions are angles, not a finite table."""
    rotates = getattr(model.config.get_text_config(), "rope_parameters", None)
    return bool(rotates) and not model.config.is_encoder_decoder


def room_after(model: PreTrainedModel, prompt_tokens: int) -> int:
    """Return how many tokens a model can write after a prompt; an encoder and a decoder have a context each."""
    # The last token drawn is not fed back, so a full context still gives one.
    return context_of(model) + (0 if model.config.is_encoder_decoder else 1 - prompt_tokens)


@torch.no_grad()
def _decode(model: PreTrainedModel, input_ids: list[int], sampling: Sampling) -> Generator[int, None, str]:
    """Draw from the logits of the last position and feed what was drawn, in a loop.

    Where the context is full its latest half is read again, as a text of its own: positions stay those that the model
    was trained on.
    """
    context, read, left = context_of(model), list(input_ids), sampling.max_new_tokens
    decoder = decoder_for(model, min(context, len(read) + left))
    logits = decoder.start(read)
    generator = torch.Generator(logits.device).manual_seed(sampling.seed)
    said = None  # a mark for each token that is penalised
    if sampling.repetition_penalty != 1:
        said = torch.zeros_like(logits, dtype=torch.bool)
        said[[] if model.config.is_encoder_decoder else read] = True
    while True:
        token = int(draw(logits, sampling, generator, said))
        if token in sampling.stop_ids:
            return "stop"
        yield token
        if said is not None:
            said[token] = True
        left -= 1
        if not left:
            return "length"
        if len(read) < context or model.config.is_encoder_decoder:
            logits = decoder.step(token)
            read.append(token)
        else:
            read = [*read, token][-max(1, context // 2) :]
            decoder = decoder_for(model, min(context, len(read) + left))
            logits = decoder.start(read)


def draw(
    logits: torch.Tensor, sampling: Sampling, generator: torch.Generator, said: torch.Tensor | None = None
) -> torch.Tensor:
    """Draw one id, shape (1,) or (), from the logits (V,) of a position; `said` (V,) marks those that are penalised."""
    if said is not None:
        penalty = sampling.repetition_penalty
        logits = torch.where(said, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
    if sampling.temperature == 0:
        return logits.argmax()
    logits, ids = likeliest(logits.float() / sampling.temperature, sampling)
    chosen = torch.multinomial(logits.softmax(-1), 1, generator=generator)
    return chosen if ids is None else ids[chosen]


def likeliest(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cut logits (V,) down by top-k, top-p and min-p: what is left and its ids, None where nothing was cut."""
    if not 0 < sampling.top_k < len(logits) and sampling.top_p == 1 and not sampling.min_p:
        return logits, None
    kept = sampling.top_k if 0 < sampling.top_k < len(logits) else len(logits)
    logits, ids = logits.topk(kept)  # likeliest first
    if sampling.top_p < 1:
        probabilities = logits.softmax(-1)
        before = probabilities.cumsum(-1) - probabilities  # what the likelier tokens have together
        logits = logits.masked_fill(before >= sampling.top_p, -torch.inf)
    if sampling.min_p:
        logits = logits.masked_fill(logits < logits[0] + math.log(sampling.min_p), -torch.inf)
    return logits, ids


def own_sampling(model: PreTrainedModel) -> dict[str, Any]:
    """Return temperature, top-k, top-p, min-p and repetition penalty as a model's generation config has them.

    What it leaves out means what it means to `model.generate`, if that samples by it.
    """
    config: Any = model.generation_config
    stated = {name: value for name in _GENERATE if (value := getattr(config, name, None)) is not None}
    return _GENERATE | stated if config.do_sample else stated


def stop_ids_of(model: PreTrainedModel) -> tuple[int, ...]:
    """Return the ids that end a text, from the model's generation config."""
    ids = model.generation_config.eos_token_id
    return () if ids is None else tuple(ids) if isinstance(ids, list | tuple) else (ids,)


def stream_text(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt_ids: list[int],
    sampling: Sampling,
    *,
    past_context: bool = False,
) -> Generator[str, None, str]:
    """Yield the text that follows a prompt in pieces of whole characters, without tokens that only mark structure.

    A character whose bytes lie in several tokens appears with its last one; half a character at the very end does
    not, and what may be the beginning of a stop text appears once it is not. `past_context` and the generator's own
    value, which is "stop" after a stop text too, are those of `stream_tokens`.
    """
    tokens = stream_tokens(model, prompt_ids, sampling, past_context=past_context)
    return (yield from stream_until(sampling.stop, stream_pieces(tokens, tokenizer, prompt_ids)))


def stream_until(stop: Sequence[str], pieces: Generator[str, None, str]) -> Generator[str, None, str]:
    """Yield pieces up to the first stop text, whatever ends the text."""
    held = ""
    while True:
        try:
            held += next(pieces)
        except StopIteration as end:
            if held:
                yield held
            return end.value
        found = [place for text in stop if (place := held.find(text)) >= 0]
        safe = min(found) if found else len(held) - max((_begun(held, text) for text in stop), default=0)
        if safe:
            yield held[:safe]
        if found:
            pieces.close()
            return "stop"
        held = held[safe:]


def _begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text are those at the beginning of a stop text."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


def stream_pieces(
    tokens: Generator[int, None, str], tokenizer: PreTrainedTokenizerFast, prompt_ids: list[int]
) -> Generator[str, None, str]:
    """Yield the text of tokens in pieces of whole characters, whatever ends it."""
    decoder = DecodeStream(ids=prompt_ids)  # some tokens read differently at the start of a text
    structure, held = structure_ids(tokenizer), []
    while True:
        try:
            token = next(tokens)
        except StopIteration as end:
            if rest := str(tokenizer.decode(held)).rstrip("\ufffd"):
                yield rest
            return end.value
        if token in structure:
            continue
        held.append(token)
        if piece := decoder.step(tokenizer.backend_tokenizer, token):
            yield piece
            held = []


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompt: str, sampling: Sampling) -> str:
    """Return the text that follows `prompt`, as one string."""
    return "".join(stream_text(model, tokenizer, encode_prompt(tokenizer, prompt), sampling))


def check_text(text: str, what: str) -> None:
    """Raise `InputError` for a text with half a character: what is left of a byte that was not UTF-8, or of a cut."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        found = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half a character (U+{code:04X})"
        raise InputError(f"{what} is not UTF-8: {found} after {error.start:,} characters: write it as UTF-8") from error


def encode_prompt(tokenizer: PreTrainedTokenizerFast, prompt: str) -> list[int]:
    """Return the ids of a prompt; an empty one begins a new text, with the token that precedes every document.

    Raises `InputError` for one that is no text, and an empty one where the tokenizer has no such token.
    """
    check_text(prompt, "the prompt")
    ids, begin = tokenizer.encode(prompt, verbose=False), tokenizer.bos_token or tokenizer.eos_token
    if not ids and begin is None:
        raise InputError("the prompt is empty, and the tokenizer has no token that begins a text: give a prompt")
    return ids or tokenizer.encode(str(begin))


def lay_out_for_decoding(model: PreTrainedModel) -> PreTrainedModel:
    """Store the wide matrices of a model on a CPU column by column, in place, and return it: decoding gets faster.

    One token times a matrix reads the whole matrix, which streams through memory fastest along its longer side: for the
    head of GPT-2 small in about half of the time. Values and shapes stay; do not train or save the model afterwards,
    both want rows.
    """
    layers = [layer for layer in model.modules() if type(layer) is nn.Linear and is_plain_weight(layer.weight)]
    wide = {id(layer.weight): layer.weight for layer in layers if layer.out_features > layer.in_features}
    # In place, the largest first: weights from a file are in memory only once they are touched.
    for weight in sorted(wide.values(), key=torch.Tensor.numel, reverse=True):
        if weight.is_contiguous():
            columns = weight.data.t().contiguous()
            weight.data = weight.data.view(columns.shape).copy_(columns).t()
    return model
