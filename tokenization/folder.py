"""Save and load a tokenizer as a folder that every version of transformers reads; names of its special tokens.

Special tokens mark structure and never come out of a document's own text: see `plain_backend`.
"""

import hashlib
import json
import logging
from pathlib import Path

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from groundup.common.errors import InputError, first_line, near_file, user_path

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"  # its own token: with pad = end of text a model never learns to stop
MASK = "<|mask|>"  # only in the tokenizer of an encoder
SYSTEM, USER, ASSISTANT, END = CHAT_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")

_LOADING_ONLY = ("backend", "is_local", "local_files_only")  # written by transformers 5, of no use in a repository


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path, context: int | None = None) -> None:
    """Write the tokenizer's files into `folder` so that transformers 4 and 5 both load them with no code of ours.

    `context` is the number of tokens that the model beside it was made for: there `truncation=True` and pipelines cut,
    or before it where the tokenizer has a smaller number of its own.

    transformers 5 writes a class name and a list under `extra_special_tokens` that version 4 does not know. Unless it
    is told what a model takes, version 4 also hands it `token_type_ids`, at which `generate` raises, and which GPT-2
    adds to its embeddings.
    """
    tokenizer.backend_tokenizer.no_truncation()  # the last call's, which would go into tokenizer.json
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(folder)
    path = Path(folder) / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    for name in _LOADING_ONLY:
        settings.pop(name, None)
    settings["model_input_names"] = list(tokenizer.model_input_names)
    if context is not None:
        settings["model_max_length"] = min(context, tokenizer.model_max_length)
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    path.write_text(json.dumps(settings, indent=2, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")


def load_tokenizer(source: str | Path) -> PreTrainedTokenizerFast:
    """Load the tokenizer of a folder or a Hub name. Raises `InputError` when there is none or it is no fast one."""
    path = user_path(source)
    if not path.exists() and (len(path.parts) > 2 or (len(path.parts) == 2 and path.parent.is_dir())):
        raise InputError(f"no folder {source}{near_file(path)}: give a tokenizer's folder or its name on the Hub")
    if path.is_file():
        raise InputError(f"{source} is a file: give the folder of a tokenizer or a model")
    library = logging.getLogger("transformers")
    level = library.level
    library.setLevel(logging.ERROR)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(path), trust_remote_code=False)
    except Exception as error:
        reason = first_line(error)
        if "instantiate the backend tokenizer" in reason:
            reason = "it has no tokenizer.json"
        elif "must be a mapping" in reason:
            reason = "its config.json holds no names and values"
        raise InputError(f"cannot load a tokenizer from {source}: {reason}") from error
    finally:
        library.setLevel(level)
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise InputError(f"the tokenizer of {source} has no tokenizer.json: convert it to a fast tokenizer first")
    return tokenizer


def without_length(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Take from a tokenizer the context of the model that it was saved with: it gets another."""
    tokenizer.model_max_length = VERY_LARGE_INTEGER
    return tokenizer


def fingerprint(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return the sha256 of what turns text into ids: equal for two tokenizers that give the same ids for every text."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    state.update(truncation=None, padding=None)  # the last call's options, no part of the tokenizer
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def require_ids_of(base: str | Path, tokenizer: PreTrainedTokenizerFast, option: str) -> None:
    """Raise `InputError` unless the ids of `tokenizer`, which `option` gave, are what the model `base` knows them as.

    They are where the model's own tokenizer has every token at the same id; the other may have more at new ids.
    """
    own, given = load_tokenizer(base).get_vocab(), tokenizer.get_vocab()
    unlike = sorted((number, token) for token, number in own.items() if given.get(token) != number)
    if unlike:
        number, token = unlike[0]
        there = f"{given[token]} there" if token in given else "not there"
        raise InputError(
            f"{option} is no tokenizer of {base}: {len(unlike):,} of the {len(own):,} tokens that the model knows have "
            f"another id or none ({token!r} is {number} in the model and {there}): use the model's own, or one that "
            "extends it"
        )


def plain_backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    """Return a copy of the backend to which text is only text: special tokens are neither added nor recognised.

    A document that contains the characters `<|endoftext|>` becomes the ids of those characters, not the special id,
    so that no text can forge the border between two documents.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    return backend


def structure_ids(tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
    """Return the special tokens that mark structure, not text. An unknown word is text, so its token is not one.

    GPT-2 names its end of text as the unknown token too: a token with a second role keeps that role.
    """
    unknown, roles = tokenizer.unk_token_id, (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
    return frozenset(token for token in tokenizer.all_special_ids if token != unknown or token in roles)
