"""Text to a person, as it is made: `generate` goes on from a prompt, `chat` holds a conversation."""

import sys
from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from groundup.cli.settings import ChatSettings, GenerateSettings
from groundup.common.console import say
from groundup.common.errors import InputError
from groundup.common.settings import read_yaml, verb
from groundup.evaluation.generation import Sampling, encode_prompt, lay_out_for_decoding, stream_text
from groundup.evaluation.loading import load_model


@verb(GenerateSettings)
def generate(settings: GenerateSettings) -> str:
    """Print the prompt and what the model writes after it, token by token, and return what it wrote."""
    if not settings.model:
        raise InputError("generate needs a model: give --model FOLDER")
    model, tokenizer = load_model(settings.model, trust_remote_code=settings.trust_remote_code)
    lay_out_for_decoding(model)
    sys.stdout.write(settings.prompt)
    return show(stream_text(model, tokenizer, encode_prompt(tokenizer, settings.prompt), sampling_of(settings)))


@verb(ChatSettings)
def chat(settings: ChatSettings) -> list[dict[str, str]]:
    """Read lines, answer each, until an empty line; return the conversation."""
    if not settings.model:
        raise InputError("chat needs a model: give --model FOLDER")
    model, tokenizer = load_model(settings.model, trust_remote_code=settings.trust_remote_code)
    lay_out_for_decoding(model)
    can_chat = tokenizer.chat_template is not None and not _only_pretrained(settings.model)
    if not can_chat:
        say("this model was not taught to converse: it goes on from what you write")
    messages = [{"role": "system", "content": settings.system}] if settings.system else []
    while line := _read_line():
        messages.append({"role": "user", "content": line})
        ids = conversation_ids(tokenizer, messages) if can_chat else encode_prompt(tokenizer, line)
        answer = show(stream_text(model, tokenizer, ids, sampling_of(settings)))
        messages.append({"role": "assistant", "content": answer})
    return messages


def conversation_ids(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, str]]) -> list[int]:
    """The ids of a conversation, ready for the model's answer."""
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(str(text), add_special_tokens=False)["input_ids"]


def sampling_of(settings: GenerateSettings | ChatSettings) -> Sampling:
    """How the settings say that tokens are drawn."""
    return Sampling(
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
    )


def show(pieces: Iterable[str]) -> str:
    """Print pieces of text as they come, then a line end; return them joined."""
    written = []
    for piece in pieces:
        written.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return "".join(written)


def _read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def _only_pretrained(model: str) -> bool:
    """Whether a checkpoint of ours says of itself that nothing came after pretraining."""
    recipe = Path(model).expanduser() / "recipe.yaml"
    return recipe.is_file() and read_yaml(recipe).get("verb") == "pretrain"
