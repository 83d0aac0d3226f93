"""`groundup serve` as programs use it: OpenAI's own client, many at once, and what they do wrong."""

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import openai
import pytest
import torch
from huggingface_hub import constants
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from groundup.cli import serve as serve_module
from groundup.cli.main import main, parse
from groundup.cli.serve import cached_file, cached_twin
from groundup.common.errors import InputError
from groundup.inference.generation import Sampling, complete, stream_tokens
from groundup.inference.llama_cpp import FileSizes
from groundup.inference.loading import load_model, save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.publishing.conversion import export
from groundup.tokenization.chat import ChatEncoder
from groundup.tokenization.training import train_bpe

TEXT = "The cat sat on the mat. The dog sat on the log, and the frog in the bog.\n"
CONTEXT = 64
KEY = "a-key-for-tests"
GREEDY = {"temperature": 0, "max_tokens": 12}
ASK = [{"role": "user", "content": "The cat"}]


def save(folder, letters_only=True, **knobs):
    """Save a tiny model that writes letters alone, if asked: its text is then the same wherever bytes become one."""
    tokenizer = train_bpe([TEXT] * 5, 300)
    torch.manual_seed(1)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(tokenizer)}
    config = GroundupConfig(**sizes, max_position_embeddings=CONTEXT, eos_token_id=0, **knobs)
    model = GroundupForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
        if letters_only:
            others = [n for n in range(len(tokenizer)) if not tokenizer.decode([n]).strip().isalpha()]
            others += [n for n in range(len(tokenizer)) if not tokenizer.decode([n]).isascii()]
            model.lm_head.weight[others] = 0  # their logits are 0, and those of the letters lie around it
    model.generation_config = GenerationConfig(do_sample=True, temperature=0.001, eos_token_id=0)
    save_model(folder, model, tokenizer)
    return folder


def _run(words, said, home):
    with open(said, "w") as file:
        os.dup2(file.fileno(), 2)
    constants.HF_HOME = home
    sys.exit(main(words))


class Served:
    """A running `groundup serve`."""

    def __init__(self, fork, folder, model, *options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._said = folder / f"said-{self.port}"
        words = ["serve", "--model", str(model), "--port", str(self.port), *map(str, options)]
        self.process = fork(_run, words, str(self._said), str(folder / "home"))
        for _ in range(600):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                break
            except OSError:
                assert self.process.is_alive(), self.said
                time.sleep(0.05)
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0)

    @property
    def said(self):
        return self._said.read_text() if self._said.exists() else ""

    def end(self, number=signal.SIGTERM):
        os.kill(self.process.pid, number)
        self.process.join(30)
        return self.process.exitcode


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("serving")


@pytest.fixture(scope="module")
def model_folder(folder):
    return save(folder / "my_model")


@pytest.fixture(scope="module")
def loaded(model_folder):
    return load_model(model_folder)


@pytest.fixture(scope="module")
def served(fork, folder, model_folder):
    running = Served(fork, folder, model_folder, "--api-key", KEY)
    yield running
    assert running.end() == 130
    lines = running.said.splitlines()
    assert lines[-1] == "groundup serve: closed" and "making a GGUF file of my_model, once" in lines[0]
    assert "llama.cpp gives the same ids" in lines[1] and "my_model answers at http://127.0.0.1" in lines[2]
    assert len(lines) == 4 and KEY not in running.said


@pytest.fixture
def client(served):
    return served.client


def greedy(loaded, prompt, tokens=12):
    return complete(*loaded, prompt, Sampling(temperature=0, max_new_tokens=tokens))


def completed(client, prompt="The cat", **options):
    return client.completions.create(model="my_model", prompt=prompt, **GREEDY | options)


def test_the_model_is_listed_by_its_name(client):
    assert [model.id for model in client.models.list()] == ["my_model"]


def test_a_completion_is_the_greedy_text_of_the_checkpoint_with_its_tokens_counted(client, loaded):
    answer = completed(client)
    assert answer.choices[0].text == greedy(loaded, "The cat") != ""
    assert answer.choices[0].finish_reason == "length"
    prompt = len(loaded[1].encode("The cat"))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt, 12)


def test_an_answer_goes_through_the_chat_template(client, loaded):
    model, tokenizer = loaded
    ids = ChatEncoder(tokenizer).prompt_ids(ASK)
    expected = list(stream_tokens(model, ids, Sampling(temperature=0, max_new_tokens=12)))
    answer = client.chat.completions.create(model="my_model", messages=ASK, **GREEDY)
    assert answer.choices[0].message.content == tokenizer.decode(expected, skip_special_tokens=True) != ""
    assert answer.usage.prompt_tokens == len(ids)


def test_a_stream_brings_the_same_text_in_pieces_and_the_counts_at_its_end(client, loaded):
    options = {"stream": True, "stream_options": {"include_usage": True}}
    pieces = list(completed(client, **options))
    assert len(pieces) > 4
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == greedy(loaded, "The cat")
    assert pieces[-1].usage.completion_tokens == 12
    said = client.chat.completions.create(model="my_model", messages=ASK, **GREEDY | options)
    whole = client.chat.completions.create(model="my_model", messages=ASK, **GREEDY)
    text = "".join(piece.choices[0].delta.content or "" for piece in said if piece.choices)
    assert text == whole.choices[0].message.content


def test_a_stop_text_ends_an_answer_before_it(client, loaded):
    text = greedy(loaded, "The cat")
    stop = text[5:8]
    answer = completed(client, stop=[stop])
    assert answer.choices[0].text == text[: text.index(stop)] and answer.choices[0].finish_reason == "stop"


def test_max_tokens_limits_an_answer(client):
    assert completed(client, max_tokens=3).usage.completion_tokens == 3


def test_the_same_seed_gives_the_same_text_and_a_tiny_top_p_the_likeliest(client, loaded):
    def drawn(seed, **options):
        return completed(client, temperature=1.5, seed=seed, **options).choices[0].text

    texts = {drawn(seed) for seed in (1, 1, 2, 3)}
    assert drawn(1) == drawn(1) and len(texts) == 3
    assert drawn(1, top_p=1e-6) == drawn(2, top_p=1e-6) == greedy(loaded, "The cat")


def test_the_models_own_generation_config_is_honoured(client, loaded):
    """It says temperature 0.001, which is as good as 0; 1.5 in a request is something else."""
    own = client.completions.create(model="my_model", prompt="The cat", max_tokens=12).choices[0].text
    assert own == greedy(loaded, "The cat") != completed(client, temperature=1.5, seed=1).choices[0].text


def test_ten_clients_at_once_each_get_their_own_text(client, loaded):
    prompts = [f"The {word} sat on" for word in ["cat", "dog", "frog", "log", "bog", "mat", "on", "the", "and", "in"]]
    with ThreadPoolExecutor(10) as many:
        texts = list(many.map(lambda prompt: completed(client, prompt).choices[0].text, prompts))
    assert texts == [greedy(loaded, prompt) for prompt in prompts]


def test_a_stream_that_is_left_does_not_hold_others_up(client):
    for _ in range(6):  # more than are answered at once
        stream = completed(client, max_tokens=40, stream=True)
        next(iter(stream))
        stream.close()
    assert completed(client).usage.completion_tokens == 12


def test_what_is_asked_wrongly_is_a_bad_request_and_the_server_goes_on(client):
    with pytest.raises(openai.BadRequestError, match=r"exceeds the available context size \(64 tokens\)"):
        completed(client, "cat " * 100)
    for options in ({"temperature": "hot"}, {"max_tokens": "many"}, {"seed": "x"}):
        with pytest.raises(openai.BadRequestError):
            completed(client, **options)
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="my_model", messages=[{"role": "user"}])
    assert completed(client).choices[0].text


def test_a_text_ends_where_the_context_is_full(client, loaded):
    prompt = len(loaded[1].encode("The cat"))
    assert completed(client, max_tokens=500).usage.completion_tokens in (CONTEXT - prompt, CONTEXT - prompt + 1)


def test_without_the_key_nothing_is_told_and_no_foreign_page_may_ask(served):
    stranger = openai.OpenAI(base_url=served.client.base_url, api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        completed(stranger)
    headers = {"Origin": "http://elsewhere.test", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"http://127.0.0.1:{served.port}/v1/models", headers=headers)
    with urllib.request.urlopen(request) as answer:
        assert answer.headers["Access-Control-Allow-Origin"] in (None, "", "null")


def test_ctrl_c_ends_it_while_it_answers_and_frees_the_port(fork, folder, model_folder):
    running = Served(fork, folder, model_folder)
    assert "making" not in running.said  # kept from the first time
    stream = completed(running.client, max_tokens=40, stream=True)
    next(iter(stream))
    began = time.monotonic()
    assert running.end(signal.SIGINT) == 130 and time.monotonic() - began < 15
    assert running.said.splitlines()[-1] == "groundup serve: closed"
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", running.port))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "serve needs a model: give --model FOLDER"),
        (["--model", "x", "--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in: add --api-key"),
        (["--model", "x", "--host", "::"], "lets other machines in: add --api-key"),
        (["--model", "x", "--host", "here"], "--host here is no address"),
        (["--model", "./nowhere"], "./nowhere does not exist"),
        (["--model", "x", "--engine", "vllm"], "llama.cpp or transformers is wanted"),
        (["--model", "x", "--engine", "transformers", "--api-key", KEY], "knows no --api-key"),
        (["--model", "x", "--engine", "transformers", "--host", "0.0.0.0"], "asks for no key"),
    ],
)
def test_what_cannot_be_served_is_one_line(options, message, capsys, in_an_empty_folder):
    assert main(["serve", *options]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") <= 2 and KEY not in said


def test_a_port_that_is_taken_is_the_users_error(model_folder, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main(["serve", "--model", str(model_folder), "--port", port]) == 2
    assert f"cannot listen on 127.0.0.1, port {port}" in capsys.readouterr().err


def test_without_llama_cpp_one_line_says_what_to_install(monkeypatch, capsys, model_folder):
    monkeypatch.setattr("groundup.inference.llama_cpp.has_llama_cpp", lambda: False)
    assert main(["serve", "--model", str(model_folder), "--port", "18099"]) == 2
    assert "serve needs llama.cpp: pip install 'groundup[serve]'" in capsys.readouterr().err


def test_a_context_beyond_the_models_is_refused_and_a_long_one_is_cut_to_the_memory(home, model_folder, monkeypatch):
    file = cached_file(str(model_folder))
    sizes = FileSizes.of(file)
    assert sizes == FileSizes(CONTEXT, 4 * 2 * 2 * 2 * 16)  # bytes of a key and a value, 2 layers, 2 heads of 16
    with pytest.raises(InputError, match=r"--context-length 65 is beyond the model's context of 64 tokens"):
        serve_module._context(parse("serve", ["--model", "x", "--context-length", "65"]), file)
    settings = parse("serve", ["--model", "x", "--parallel", "4"])
    assert serve_module._context(settings, file) == CONTEXT
    memory = type("Memory", (), {"available": 2 * 4 * 10 * sizes.cache_bytes})
    monkeypatch.setattr(serve_module.psutil, "virtual_memory", lambda: memory)
    assert serve_module._context(settings, file) == 10


def test_options_are_those_of_the_contract():
    settings = parse("serve", ["--model", "m"])
    assert (settings.engine, settings.host, settings.api_key) == ("llama.cpp", "127.0.0.1", None)


# ---------------------------------------------------------------------------------------------------------------------
# The files that are served


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "groundup"


def test_a_file_is_made_once_and_again_when_the_model_changes(home, model_folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(model_folder, copy)
    first = cached_file(str(copy))
    made = first.stat().st_mtime_ns
    (copy / "README.md").write_text("another card")
    assert cached_file(str(copy)) == first and first.stat().st_mtime_ns == made
    settings = GenerationConfig.from_pretrained(copy)
    settings.temperature = 0.5
    settings.save_pretrained(copy)
    assert cached_file(str(copy)) != first and len(list(home.iterdir())) == 2


def test_a_stock_model_and_a_gguf_file_are_served_too(home, fork, folder, model_folder, tmp_path):
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    _, tokenizer = load_model(model_folder)
    torch.manual_seed(0)
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, eos_token_id=0)
    save_model(tmp_path / "llama", LlamaForCausalLM(config), tokenizer)
    assert cached_file(str(tmp_path / "llama")).is_file()
    file = export(checkpoint=str(model_folder), to="gguf", quantize="q8_0", out=str(tmp_path / "small.gguf"))
    running = Served(fork, folder, file, "--context-length", 32, "--parallel", 2)
    try:
        assert [model.id for model in running.client.models.list()] == ["small"]
        assert completed(running.client).usage.completion_tokens == 12
    finally:
        assert running.end() == 130


def test_a_model_that_a_file_cannot_hold_is_for_transformers(home, tmp_path):
    save(tmp_path / "sliding", sliding_window=8)
    with pytest.raises(InputError, match=r"sliding_window=8 .*: add --engine transformers"):
        cached_file(str(tmp_path / "sliding"))
    twin = cached_twin(str(tmp_path / "sliding"))
    assert twin.parent == home and (twin / "model.safetensors").is_file() and cached_twin(str(twin)) == twin


def test_a_file_that_llama_cpp_computes_otherwise_is_not_kept(home, model_folder, monkeypatch):
    def other(model, form):
        twin = make_twin(model, form)
        with torch.no_grad():
            twin.model.norm.weight *= 1.5
        return twin

    make_twin = serve_module.make_twin
    monkeypatch.setattr(serve_module, "make_twin", other)
    with pytest.raises(InputError, match=r"llama.cpp cannot serve .* computes other numbers"):
        cached_file(str(model_folder))
    assert list(home.iterdir()) == []


@pytest.mark.slow
def test_the_page_does_what_it_says(folder, monkeypatch, capsys):
    """Each command of ours on docs/howto/serve.md runs, and its Python snippet talks to the first server."""
    page = (Path(__file__).resolve().parents[2] / "docs" / "howto" / "serve.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (snippet,) = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    lines = [shlex.split(line)[1:] for block in blocks for line in block.splitlines()]
    place = folder / "page"
    place.mkdir()
    save(place / "my_model")
    monkeypatch.chdir(place)
    exports = [words for words in lines if words[0] == "export"]
    serving = [words for words in lines if words[0] == "serve"]
    assert len(exports) == 3 and len(serving) == 3
    for words in exports:
        assert main(words) == 0, capsys.readouterr().err
    assert {path.name for path in place.iterdir()} > {"my_model.gguf", "my_model.Modelfile", "my_twin"}
    environment = os.environ | {"HF_HOME": str(folder / "home")}
    for number, words in enumerate(serving):
        words = [word.replace("0.0.0.0", "127.0.0.2") for word in words]  # of this machine too
        with subprocess.Popen([sys.executable, "-m", "groundup", *words], env=environment) as server:
            host = "127.0.0.2" if "127.0.0.2" in words else "127.0.0.1"
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://{host}:8080/health", timeout=5).close()
                    break
                assert server.poll() is None
                time.sleep(0.1)
            if number == 0:
                exec(compile(snippet, "serve.md", "exec"), {})
                assert capsys.readouterr().out.strip()
            server.terminate()
            assert server.wait(60) == 130


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_transformers_serves_what_a_file_cannot_hold(number, fork, folder, monkeypatch):
    place = save(folder / f"sliding-{number}", sliding_window=8)
    running = Served(fork, folder, place, "--engine", "transformers")
    try:
        loaded = load_model(place)
        monkeypatch.setattr(constants, "HF_HOME", str(folder / "home"))  # the server's
        twin = str(cached_twin(str(place)))
        answer = running.client.completions.create(model=twin, prompt="The cat", **GREEDY)
        assert answer.choices[0].text.split() == greedy(loaded, "The cat").split() != []
    finally:
        assert running.end(number) == 130
    assert running.said.splitlines()[-1] == "groundup serve: closed"
