"""Run a GGUF file in llama.cpp: its server (package `xllamacpp`) in this process, behind a port of this machine.

llama.cpp's own protocol (https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md) tells ids, logits
and what a chat template gives, so that another engine's word stands beside ours; OpenAI's is for the users of `serve`.
"""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import json
import math
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedTokenizerFast

from groundup.common.errors import InputError
from groundup.tokenization.report import BYTE_OF_LETTER

HOST = "127.0.0.1"
PACKAGE = "xllamacpp"


def has_llama_cpp() -> bool:
    """Return whether llama.cpp is installed."""
    return importlib.util.find_spec(PACKAGE) is not None


def require_llama_cpp(what: str) -> Any:
    """Return the package of llama.cpp. Raises `InputError`, saying what needs it, where it is not installed."""
    if not has_llama_cpp():
        raise InputError(f"{what} needs llama.cpp: pip install 'groundup[serve]'")
    import xllamacpp

    return xllamacpp


def llama_cpp_version() -> str:
    """Return the package of llama.cpp with its version."""
    return f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"


@dataclass(frozen=True)
class FileSizes:
    """Hold what a GGUF file says of its model: its context (tokens), and the bytes of a token's keys and values."""

    context: int
    cache_bytes: int

    @classmethod
    def of(cls, file: Path) -> "FileSizes":
        """Read them. Raises `InputError` for what is no GGUF file of a language model."""
        import gguf

        try:
            fields = gguf.GGUFReader(file).fields
            form = fields["general.architecture"].contents()

            def size(name: str, default: int | None = None) -> int:
                field = fields.get(f"{form}.{name}")
                return int(fields[f"{form}.{name}"].contents()) if field or default is None else default

            heads = size("attention.head_count")
            width = size("attention.key_length", size("embedding_length") // heads)
            values = 2 * size("block_count") * size("attention.head_count_kv", heads) * width  # a key and a value each
            return cls(size("context_length"), 4 * values)
        except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
            raise InputError(f"{file} is cut short or no GGUF file of a language model: write it again") from error


@dataclass(frozen=True)
class Written:
    """Hold what a model wrote: its ids, the log probability of each, and whether the last one stopped it.

    A log probability is NaN where llama.cpp tells none (see `_is_cut`).
    """

    ids: list[int]
    logprobs: list[float]
    stopped: bool


class Engine(contextlib.AbstractContextManager["Engine"]):
    """llama.cpp over one GGUF file, until the context is left.

    Keys and values are kept in fp32 and attention is computed step by step, as our own loop does: the logits of an fp32
    file are then ours but for rounding.

    Attributes:
        url: its address; OpenAI's protocol is under `/v1`.
    """

    def __init__(
        self,
        file: Path,
        *,
        context: int | None = None,
        parallel: int = 1,
        host: str = HOST,
        port: int = 0,
        api_key: str | None = None,
        name: str = "model",
        on_gpu: bool = False,
    ) -> None:
        """Load the file.

        Args:
            file: a GGUF file.
            context: the tokens that a request may take, prompt and answer together; by default the model's.
            parallel: the requests that are answered at once; more wait.
            host: the address to listen on.
            port: the port there; 0 takes a free one.
            api_key: what every request must bring.
            name: what the server calls the model.
            on_gpu: let llama.cpp use a GPU that it finds.

        Raises:
            InputError: where llama.cpp is not installed or cannot load the file, and for a port that is taken.
        """
        llama = require_llama_cpp("running a GGUF file")
        require_free(host, port)
        params = llama.CommonParams()
        params.model.path, params.model_alias = str(file), {name}
        params.n_parallel, params.n_ctx = parallel, parallel * (context or FileSizes.of(file).context)
        params.hostnames, params.port = [host], port
        params.api_keys = [api_key] if api_key else []
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = torch.get_num_threads()
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.reasoning_format = llama.common_reasoning_format.COMMON_REASONING_FORMAT_NONE
        params.n_gpu_layers = -1 if on_gpu else 0
        params.fit_params = params.warmup = False  # the sizes are those above, and nobody waits for the first token
        params.cache_ram_mib = 0  # else up to 8 GiB of what was asked before
        params.cors_origins, params.cors_credentials = "localhost", False  # not every page in a browser here
        params.endpoint_slots = params.ui = False  # what others ask is nobody's business; our page is the playground
        params.verbosity = 0
        try:
            self._server: Any = llama.Server(params)
        except RuntimeError as error:
            raise InputError(
                f"llama.cpp cannot load {file}: it is cut short, or of a kind that it does not know"
            ) from error
        self.url = str(self._server.listening_address)

    def __exit__(self, *_: object) -> None:
        _hang_up(int(self.url.rsplit(":", 1)[1]))
        self._server = None  # ends its threads

    def ask(self, path: str, **body: Any) -> dict[str, Any]:
        """Return the answer to a request. Raises `ValueError` with llama.cpp's own words for one that it refuses."""
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            raise ValueError(json.load(error)["error"]["message"]) from error

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text; with `special` the spelling of a special token is that token, else it is text."""
        return self.ask("/tokenize", content=text, add_special=False, parse_special=special)["tokens"]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens spelt out."""
        return self.ask("/detokenize", tokens=list(ids))["content"]

    def chat_text(self, messages: Sequence[dict[str, str]]) -> str:
        """Return a conversation as the chat template spells it, ready for the next answer."""
        return self.ask("/apply-template", messages=list(messages))["prompt"]

    def write(
        self, prompt_ids: Sequence[int], new_tokens: int, tokenizer: PreTrainedTokenizerFast, forced: Sequence[int] = ()
    ) -> Written:
        """Return what follows a prompt: the likeliest token at each step, or the `forced` ones, whatever they are."""
        grammar = {"grammar": "root ::= " + " ".join(f"<[{token}]>" for token in forced)} if forced else {}
        answer = self.ask(
            "/completion",
            prompt=list(prompt_ids),
            n_predict=new_tokens,
            samplers=["temperature"],
            temperature=0,
            n_probs=1,
            return_tokens=True,
            cache_prompt=bool(forced),
            **grammar,
        )
        ids, steps, logprobs = answer["tokens"][:new_tokens], list(answer.get("completion_probabilities", [])), []
        for number, token in enumerate(ids, 1):
            is_told = steps and steps[0]["id"] == token and not _is_cut(_text_of(ids[:number], tokenizer))
            logprobs.append(steps.pop(0)["logprob"] if is_told else math.nan)
        return Written(ids, logprobs, answer["stop_type"] == "eos" and len(ids) == len(answer["tokens"]))

    def nats(self, before: int, ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> float:
        """Return the negative log likelihood of `ids`, which follow the token `before`."""
        total, start = 0.0, 0
        while start < len(ids):  # a run of tokens that are text, then a part of a character, which no grammar takes
            stop = start
            while stop < len(ids) and _is_text(_text_of([ids[stop]], tokenizer)):
                stop += 1
            prompt = [before, *ids[:start]]
            if stop > start:
                total += sum(self.write(prompt, stop - start, tokenizer, ids[start:stop]).logprobs)
            if stop < len(ids):
                total += self._logprob([before, *ids[:stop]], ids[stop], tokenizer)
            start = stop + 1
        return -total

    def _logprob(self, prompt_ids: Sequence[int], token: int, tokenizer: PreTrainedTokenizerFast) -> float:
        """Return the log probability of a token by those of all, told beside a letter that is written in its place."""
        (letter,) = tokenizer.encode("a", add_special_tokens=False)
        told = self.ask(
            "/completion",
            prompt=list(prompt_ids),
            n_predict=1,
            n_probs=len(tokenizer),
            grammar=f"root ::= <[{letter}]>",
            samplers=["temperature"],
            temperature=0,
        )["completion_probabilities"][0]["top_logprobs"]
        return next(step["logprob"] for step in told if step["id"] == token)


_SETTLED = 0.02  # seconds, after which whoever was just let in is among the connections
_LONGEST = 4  # bytes of a character
_LEADS = ((0xE0, 0xC0, 2), (0xF0, 0xE0, 3), (0xF8, 0xF0, 4))  # of a first byte the mask, the bits, and how many follow


def _text_of(ids: Sequence[int], tokenizer: PreTrainedTokenizerFast) -> bytes:
    """Return the end of the text of ids as llama.cpp writes it: special tokens are none."""
    text, added = b"", tokenizer.added_tokens_decoder
    for token in reversed(ids):
        if token in added:
            piece = b"" if added[token].special else added[token].content.encode()
        else:
            piece = bytes(BYTE_OF_LETTER[letter] for letter in str(tokenizer.convert_ids_to_tokens(token)))
        text = piece + text
        if len(text) >= _LONGEST:
            break
    return text


def _is_text(piece: bytes) -> bool:
    """Return whether bytes are whole characters."""
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_cut(text: bytes) -> bool:
    """Return whether a text ends within a character: llama.cpp then waits for the rest, and tells no probability."""
    ends = [text[-back] for back in range(1, min(_LONGEST, len(text)) + 1)]
    return any(byte & mask == bits and back < long for back, byte in enumerate(ends, 1) for mask, bits, long in _LEADS)


def _hang_up(port: int) -> None:
    """Close the port and every connection: llama.cpp would wait for clients that read no more."""
    for status in (psutil.CONN_LISTEN, psutil.CONN_ESTABLISHED, psutil.CONN_ESTABLISHED):
        for connection in psutil.Process().net_connections("tcp"):
            if connection.status == status and connection.laddr.port == port and connection.fd >= 0:
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(connection.fd)) as shared:
                    shared.shutdown(socket.SHUT_RDWR)
        time.sleep(_SETTLED)


def require_free(host: str, port: int) -> None:
    """Raise `InputError` for an address that cannot be listened on: llama.cpp does not say why."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            where = f"cannot listen on {host}, port {port} ({error.strerror or error})"
            raise InputError(f"{where}: choose another --port, or another --host") from error


def quantize(matrix: Any, kind: Any) -> Any:
    """Return the bytes (uint8, numpy) of a matrix (fp32, numpy) in a type of GGUF, as llama.cpp rounds it.

    The package `gguf` knows the simple types; llama.cpp's own function (ggml.h) makes the others. Raises `InputError`
    where that is needed and not there.
    """
    import gguf
    import numpy as np

    with contextlib.suppress(NotImplementedError):
        return gguf.quantize(matrix, kind)
    llama = require_llama_cpp(f"a matrix in {kind.name}")
    try:
        function = ctypes.CDLL(llama.xllamacpp.__file__).ggml_quantize_chunk
    except (OSError, AttributeError) as error:
        raise InputError(
            f"this build of {PACKAGE} does not show its quantiser, which {kind.name} needs: choose --quantize q8_0"
        ) from error
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    packed = np.empty(gguf.quant_shape_to_byte_shape(matrix.shape, kind), np.uint8)
    written = function(int(kind), matrix.ctypes.data, packed.ctypes.data, 0, *matrix.shape, None)
    if written != packed.nbytes:
        raise ValueError(f"llama.cpp wrote {written:,} bytes in {kind.name} where {packed.nbytes:,} were due")
    return packed
