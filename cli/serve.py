"""The verb `serve`: a model behind OpenAI's protocol, by an engine that others wrote and keep.

llama.cpp serves a GGUF file with the exact weights of the checkpoint. It is made and proven once, and kept under
HF_HOME by the hash of what it is made of. `transformers serve` takes what such a file cannot hold.
"""

import contextlib
import importlib.util
import ipaddress
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import psutil
from huggingface_hub import constants
from transformers import PreTrainedModel

from groundup import __version__
from groundup.common.console import console, say
from groundup.common.errors import InputError, Interrupted, Unavailable, public_name, user_path
from groundup.common.files import GGUF_WEIGHTS, atomic_folder, content_of, digest
from groundup.common.settings import verb
from groundup.common.verbs import ServeSettings
from groundup.inference.llama_cpp import Engine, FileSizes, require_free, require_llama_cpp
from groundup.inference.loading import load_model, save_model
from groundup.modeling.architectures import ARCHITECTURES
from groundup.modeling.export import assemble, gguf_form, make_twin
from groundup.modeling.stock import from_stock, groundup_config, obstacles
from groundup.publishing.gguf import Expected, prove_file, write_file

_NO_WEIGHTS = (".md", ".png", ".html", ".jsonl", ".yaml", "metrics.json")  # files that change no answer
_CLOSED = "closed"


@verb(ServeSettings)
def serve(settings: ServeSettings) -> None:
    """Serve a model until Ctrl-C or SIGTERM, which end with status 130."""
    console.quiet = settings.quiet
    if not settings.model:
        raise InputError("serve needs a model: give --model FOLDER, or --model FILE.gguf")
    _check_address(settings)
    require_free(settings.host, settings.port)
    (_serve_by_llama_cpp if settings.engine == "llama.cpp" else _serve_by_transformers)(settings)


def _check_address(settings: ServeSettings) -> None:
    """Raise `InputError` for an address that other machines reach, where nothing keeps them out."""
    try:
        is_here = settings.host == "localhost" or ipaddress.ip_address(settings.host).is_loopback
    except ValueError as error:
        raise InputError(f"--host {settings.host} is no address: give one such as 127.0.0.1 or 0.0.0.0") from error
    if settings.engine == "transformers":
        for option, value in (("--api-key", settings.api_key), ("--context-length", settings.context_length)):
            if value is not None:
                raise InputError(f"`transformers serve` knows no {option}: leave it out, or serve by llama.cpp")
        if not is_here:
            raise InputError(f"`transformers serve` asks for no key: leave out --host {settings.host}")
    if not is_here and settings.api_key is None:
        raise InputError(f"--host {settings.host} lets other machines in: add --api-key, which they must bring")


def _serve_by_llama_cpp(settings: ServeSettings) -> None:
    require_llama_cpp("serve")
    file = user_path(settings.model)
    if not (file.suffix.lower() == ".gguf" and file.is_file()):
        file = cached_file(settings.model, settings.trust_remote_code)
    name = public_name(settings.model).removesuffix(".gguf")
    with Engine(
        file,
        context=_context(settings, file),
        parallel=settings.parallel,
        host=settings.host,
        port=settings.port,
        api_key=settings.api_key,
        name=name,
        on_gpu=True,
    ) as engine:
        _say_open(engine.url, name)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            raise Interrupted(_CLOSED) from None


def _context(settings: ServeSettings, file: Path) -> int:
    """Return the tokens that a request may take: what was asked for, else what the model and half of the memory allow.

    Raises `InputError` for more than the model's context.
    """
    sizes = FileSizes.of(file)
    if (asked := settings.context_length) is not None:
        if asked > sizes.context:
            raise InputError(f"--context-length {asked:,} is beyond the model's context of {sizes.context:,} tokens")
        return asked
    room = psutil.virtual_memory().available // 2 // (settings.parallel * sizes.cache_bytes)
    if room < sizes.context:
        say(
            f"{settings.parallel} requests at once have memory for {room:,} tokens each, of the model's "
            f"{sizes.context:,}: --parallel 1 allows more"
        )
    return max(1, min(sizes.context, room))


def _say_open(url: str, name: str) -> None:
    say(f"{name} answers at {url}/v1 (OpenAI's protocol); Ctrl-C ends")


# ---------------------------------------------------------------------------------------------------------------------
# What is served, made once


def cached_file(source: str, trust_remote_code: bool = False) -> Path:
    """Return a GGUF file with the weights of a model in fp32, proven in llama.cpp when it was made.

    Raises `InputError` for a model that such a file cannot hold, or that llama.cpp does not compute as we do.
    """
    folder = _cache_folder(source, "gguf")
    if (folder / GGUF_WEIGHTS).is_file():
        return folder / GGUF_WEIGHTS
    say(f"making a GGUF file of {public_name(source)}, once, in {folder}")
    model, tokenizer = load_model(source, trust_remote_code=trust_remote_code)
    model.float().cpu()
    try:
        ours: Any = _as_ours(model)
        expected = Expected.all_of(ours, tokenizer)
        twin = make_twin(ours, gguf_form(ours.config))
        with atomic_folder(folder) as new:
            write_file(new / GGUF_WEIGHTS, twin, tokenizer, public_name(source))
            proven = prove_file(new / GGUF_WEIGHTS, tokenizer, expected, is_coarse=twin.config.model_type == "gpt2")
    except ValueError as error:
        other = "add --engine transformers"
        raise InputError(f"llama.cpp cannot serve {source}: {' '.join(str(error).split())}: {other}") from error
    say(str(proven))
    return folder / GGUF_WEIGHTS


def _as_ours(model: Any) -> PreTrainedModel:
    """Return a model of our class with the weights of a stock one. Raises `ValueError` where it cannot hold them."""
    if model.config.model_type == "groundup":
        return model
    ours = assemble(groundup_config(model.config), from_stock(model.state_dict(), model.config))
    ours.generation_config = model.generation_config
    return ours


def cached_twin(source: str, trust_remote_code: bool = False) -> Path:
    """Return the folder of a stock model with the weights of a model of ours. Raises `InputError` if none can be."""
    folder = _cache_folder(source, "twin")
    if folder.is_dir():
        return folder
    model, tokenizer = load_model(source, trust_remote_code=trust_remote_code)
    config: Any = model.config
    if config.model_type != "groundup":
        return user_path(source)
    forms = [name for name in ARCHITECTURES if not obstacles(config, name)]
    if not forms:
        raise InputError(f"no stock model does what {source} does: use it in Python, or groundup chat")
    say(f"making a {forms[0]} model of {public_name(source)}, once, in {folder}")
    with atomic_folder(folder) as new:
        save_model(new, make_twin(model.cpu(), forms[0]), tokenizer)
    return folder


def _cache_folder(source: str, kind: str) -> Path:
    """Return where what is made of a model is kept: by the hash of its files, or of its commit on the Hub."""
    content = content_of(source, "model")
    if isinstance(content, dict):
        content = {name: value for name, value in content.items() if not name.endswith(_NO_WEIGHTS)}
    return Path(constants.HF_HOME) / "groundup" / f"{kind}-{digest([content, __version__])[:32]}"


# ---------------------------------------------------------------------------------------------------------------------
# transformers


def _serve_by_transformers(settings: ServeSettings) -> None:
    if missing := [name for name in ("fastapi", "openai", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise InputError(f"`transformers serve` needs {', '.join(missing)}: pip install 'groundup[serve]'")
    folder = str(cached_twin(settings.model, settings.trust_remote_code))
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", folder]
    command += ["--host", settings.host, "--port", str(settings.port), "--log-level", "error"]
    command += ["--trust-remote-code"] if settings.trust_remote_code else []
    apart: Any = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}  # where it lists every request
    server = subprocess.Popen(command, **apart, env=os.environ | {"TQDM_DISABLE": "1"})
    try:
        url = f"http://{settings.host}:{settings.port}"
        while not _answers(url):
            if server.poll() is not None:
                raise Unavailable(f"`transformers serve` ended with status {server.returncode}: what it said is above")
            time.sleep(0.2)
        _say_open(url, folder)
        server.wait()
        raise Unavailable(f"`transformers serve` ended with status {server.returncode}")
    except KeyboardInterrupt:
        raise Interrupted(_CLOSED) from None
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:  # it waits for an answer that is long
            server.kill()
            server.wait()


def _answers(url: str) -> bool:
    with contextlib.suppress(OSError, urllib.error.URLError):
        urllib.request.urlopen(f"{url}/health", timeout=5).close()
        return True
    return False
