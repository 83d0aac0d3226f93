"""Tiny checkpoints of every kind, whole as the verbs leave them, and a hub on the loopback interface to send to."""

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from groundup.common.files import sha256_of
from groundup.common.settings import write_yaml
from groundup.evaluation.curves import plot_curve
from groundup.evaluation.likelihood import LanguageScore, language_rows
from groundup.evaluation.metrics_json import write_metrics
from groundup.inference.loading import save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.folder import save_tokenizer
from groundup.tokenization.training import train_bpe

TEXTS = [
    "The cat sat on the mat. The dog sat on the log, and the frog in the bog.\n" * 9,
    "Zażółć gęślą jaźń: für Größe, naïveté & 你好 — 🙂👩‍👩‍👧 ok?\n\n\tdef f(x):\n\t\treturn x  # twice  \n" * 3,
]
LABELS = {"id2label": {0: "ham", 1: "maybe", 2: "spam"}, "label2id": {"ham": 0, "maybe": 1, "spam": 2}}
# Kinds of checkpoints beside language models: the Auto class that loads them, and what their config has.
KINDS = {
    "classifier": ("AutoModelForSequenceClassification", LABELS),
    "masked": ("AutoModelForMaskedLM", {"is_causal": False}),
    "words": ("AutoModelForTokenClassification", LABELS | {"is_causal": False}),
    "answers": ("AutoModelForQuestionAnswering", {}),
    "answering": ("AutoModelForSeq2SeqLM", {"is_encoder_decoder": True, "decoder_start_token_id": 0}),
    "body": ("AutoModel", {}),
}
TOKEN = "hf_" + "aLiCeAnDhErToKeN0123456789abcdefgh"
READER = "hf_" + "rEaDoNlY0123456789abcdefghijklmnop"


@pytest.fixture
def source(tmp_path):
    """Return an empty folder for a model to import."""
    folder = tmp_path / "source"
    folder.mkdir()
    return folder


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


@pytest.fixture(scope="session")
def bpe():
    return train_bpe(TEXTS, 400)


def describe(folder, weights, rows=True, **recipe):
    """Give a folder with weights its recipe, log, curve and scores."""
    recipe = {"name": folder.name, "verb": "pretrain", "settings": {"objective": "clm", "seed": 0}} | recipe
    recipe["sources"] = [{"name": "story.txt", "bytes": 30_000, "sha256": "ab" * 32}]
    write_yaml(folder / "recipe.yaml", recipe)
    log = [{"step": step, "loss": 5 - step, "learning_rate": 0.1, "validation_loss": 5.5 - step} for step in range(4)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in log))
    plot_curve(folder / "log.jsonl", folder / "curve.png")
    score = LanguageScore(nats=2000.0, tokens=1000, correct=400, bytes=3000, context=64)
    unigram = LanguageScore(nats=4000.0, tokens=1000, correct=100, bytes=3000, context=None)
    measured = language_rows(score, dataset="story", split="validation", seed=0, unigram=unigram, xz=2.41)
    training = {"seconds": 3.5, "tokens": 20_000, "parameters": 60_000, "device": "cpu"}
    write_metrics(folder, measured if rows else [], training, sha256_of(folder / weights))
    return folder


def config(**changes):
    sizes = {"vocab_size": 400, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    tokens = {"max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
    return GroundupConfig(**sizes | tokens | changes)


def shaken(model, seed=0):
    """Make a model's weights so large that no two logits nearly tie, and none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="session")
def makers(bpe, tmp_path_factory):
    """Return kinds of checkpoints, each made once; `checkpoint` gives copies."""
    made = {}

    def language(folder):
        save_model(folder, shaken(GroundupForCausalLM(config())), bpe)
        return describe(folder, "model.safetensors")

    def second(folder):
        """Return another version of the language model."""
        save_model(folder, shaken(GroundupForCausalLM(config()), seed=1), bpe)
        return describe(folder, "model.safetensors")

    def headed(folder):
        """Return a model of any other kind, named in `KINDS`."""
        head, knobs = KINDS[folder.name]
        model = getattr(transformers, head)._model_mapping[GroundupConfig](config(**knobs))
        save_model(folder, shaken(model), bpe)
        return describe(folder, "model.safetensors", rows=False, verb="classify")

    def large(folder):
        """Return weights of some megabytes, which are sent in parts."""
        save_model(folder, shaken(GroundupForCausalLM(config(hidden_size=384, intermediate_size=1024))), bpe)
        return describe(folder, "model.safetensors")

    def adapter(folder):
        """Make an adapter as peft writes it, with the base as the path where it was found."""
        base = AutoModelForCausalLM.from_pretrained(get("language"))
        adapted = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"]))
        shaken(adapted).save_pretrained(folder)
        (folder / "README.md").unlink()
        save_tokenizer(bpe, folder)
        return describe(folder, "adapter_model.safetensors", verb="instruct")

    def get(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp("made") / kind
            folder.mkdir()
            others = {"language": language, "second": second, "large": large, "adapter": adapter}
            made[kind] = others.get(kind, headed)(folder)
        return made[kind]

    return get


@pytest.fixture
def kinds():
    """Return `KINDS`, for the tests."""
    return KINDS


@pytest.fixture
def checkpoint(makers, tmp_path):
    """Return a copy of a checkpoint of a kind, which a test may spoil."""

    def copy(kind="language", name=None):
        return Path(shutil.copytree(makers(kind), tmp_path / (name or kind)))

    return copy


class Hub:
    """The server as a process: started, stopped, given faults, asked what it holds and what it was asked."""

    token, reader = TOKEN, READER

    def __init__(self, root):
        self.root = root
        root.mkdir()
        users = {
            TOKEN: {"name": "alice", "orgs": ["lab", "evaluate-metric"], "role": "write"},
            READER: {"name": "alice", "orgs": [], "role": "read"},
        }
        (root / "users.json").write_text(json.dumps(users))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        program = Path(__file__).with_name("hub_server.py")
        self.process = subprocess.Popen([sys.executable, program, self.root, str(self.port)])
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
                return
            time.sleep(0.05)
        raise RuntimeError("the hub did not start")

    def stop(self):
        self.process.kill()
        self.process.wait()

    def fail(self, *faults):
        """Let the next requests that fit fail: {"path": regex, "do": "status", "status": 503} and so on."""
        urllib.request.urlopen(
            urllib.request.Request(f"{self.url}/_faults", json.dumps(faults).encode(), method="POST")
        ).close()

    def state(self, name, kind="models"):
        path = self.root / "repos" / kind / f"{name}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def files(self, name, revision="main"):
        """Return the content of each path at the head of a branch, or at a commit."""
        state = self.state(name)
        files = state["commits"][state["heads"].get(revision, revision)]["files"]
        return {
            path: (self.root / "objects" / (entry.get("lfs") or entry["oid"])).read_bytes()
            for path, entry in files.items()
        }

    def requests(self):
        return [json.loads(line) for line in (self.root / "requests.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def running_hub(tmp_path_factory):
    hub = Hub(tmp_path_factory.mktemp("loopback") / "hub")
    yield hub
    hub.stop()


@pytest.fixture
def hub(running_hub):
    """Return the hub of the session, alive and without faults."""
    if running_hub.process.poll() is not None:
        running_hub.start()
    running_hub.fail()
    return running_hub


@pytest.fixture
def repo_id(request):
    """Return a name on the hub that no other test uses."""
    return f"alice/test-{hashlib.sha1(request.node.nodeid.encode()).hexdigest()[:12]}"


def empty_home(home, url, token):
    """Return the environment of somebody new: an empty home, a hub, perhaps a token."""
    home.mkdir(exist_ok=True)
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    offers = {"HOME": home, "HF_HOME": home / "hf", "HF_ENDPOINT": url, "HF_HUB_DISABLE_XET": "1"}
    offers |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1"}
    offers |= {"HF_TOKEN": token} if token else {}
    return kept | {name: str(value) for name, value in offers.items()}


@pytest.fixture
def elsewhere(running_hub, tmp_path):
    """Run Python with these arguments in a new process with an empty home, that knows the hub and perhaps a token."""
    homes = itertools.count()

    def run(*arguments, token=TOKEN, check=True, home=None, **variables):
        home = home or tmp_path / f"home-{next(homes)}"
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=empty_home(home, running_hub.url, token) | variables,
            cwd=home, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300,
        )  # fmt: skip
        if check:
            assert done.returncode == 0, done.stderr[-3000:]
        return done

    run.environment = lambda home, token: empty_home(home, running_hub.url, token)
    return run


PUSHER = """\
import dataclasses, json, os, sys, traceback
from pathlib import Path
from groundup.publishing import hub, hub_client
hub_client.WAITS = (0.05, 0.1)
for line in sys.stdin:
    order = json.loads(line)
    os.environ["HF_TOKEN"], hub_client.SILENCE_SECONDS = order["token"], order["patience"]
    try:
        pushed = hub.push_folder(
            Path(order["folder"]), hub.Target(**order["target"]), "a message", order["ours"].__contains__
        )
        answer = dataclasses.asdict(pushed)
    except Exception as error:
        shown = "".join(traceback.format_exception(error))
        answer = {"error": type(error).__name__, "said": str(error), "traceback": shown}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture(scope="session")
def pusher(running_hub, tmp_path_factory):
    """Run `push_folder` in a process with an empty home, as often as it is told."""
    home = tmp_path_factory.mktemp("pusher")
    process = subprocess.Popen(
        [sys.executable, "-c", PUSHER],
        env=empty_home(home, running_hub.url, None), cwd=home, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(home / "errors").open("w"),
    )  # fmt: skip

    ours = ("model.safetensors", "README.md", "old.json")

    def push(folder, repo_id, *, token=TOKEN, patience=60.0, **target):
        order = {"folder": str(folder), "target": {"repo_id": repo_id} | target, "token": token, "ours": ours}
        order["patience"] = patience  # seconds that a silent server is waited for
        process.stdin.write(json.dumps(order) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    push.home = home
    yield push
    process.kill()
    process.wait()


WORKER = """\
import contextlib, io, json, os, sys, traceback
answers, _ = os.fdopen(os.dup(1), "w"), os.dup2(2, 1)
for line in sys.stdin:
    order, status = json.loads(line), 0
    os.environ["HF_TOKEN"] = order["token"] or ""
    said, complained = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complained):
        try:
            exec(order["code"], {"__name__": "order"})
        except SystemExit as end:
            status = end.code or 0
        except BaseException:
            status = 1
            traceback.print_exc()
    answers.write(json.dumps([status, said.getvalue(), complained.getvalue()]) + "\\n")
    answers.flush()
"""


@pytest.fixture(scope="session")
def worker(running_hub, tmp_path_factory):
    """Start processes with an empty home that know the hub; each runs one piece of code after the other.

    A process costs seconds, most of them the import of torch; repositories have names of their own, so that nothing
    that one piece of code left in its caches serves another.
    """
    running = {}

    def work(name, code, token=None, check=True, opening=""):
        if name not in running:
            work.homes.append(home := tmp_path_factory.mktemp(name))
            running[name] = subprocess.Popen(
                [sys.executable, "-c", opening + WORKER],
                env=empty_home(home, running_hub.url, None), cwd=home, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=(home / "errors").open("w"),
            )  # fmt: skip
        process = running[name]
        process.stdin.write(json.dumps({"code": code, "token": token}) + "\n")
        process.stdin.flush()
        done = subprocess.CompletedProcess(code, *json.loads(process.stdout.readline()))
        assert not check or done.returncode == 0, done.stderr[-3000:]
        return done

    work.homes = []
    yield work
    for process in running.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def publish(worker):
    """Run `groundup publish` as somebody with a token and an empty home."""

    def run(folder, repo_id, *options, token=TOKEN, check=True):
        words = ["publish", folder, repo_id, "--license", "apache-2.0", "--language", "en", *options]
        code = f"import sys; from groundup.cli.main import main; sys.exit(main({list(map(str, words))!r}))"
        return worker("publisher", code, token, check)

    return run


@pytest.fixture(scope="session")
def clean_process(worker):
    """Run code that knows `name` and `revision`, but neither our package nor a token; the lines that it prints."""

    def run(code, repo_id, revision="main", token=None):
        opening = f"name, revision = {repo_id!r}, {revision!r}\n"
        without_us = "import sys; sys.modules['groundup'] = None\n"
        return worker("clean_process", opening + code, token, opening=without_us).stdout.splitlines()

    return run


@pytest.fixture(scope="session")
def published(running_hub, publish, makers):
    """Return the name of a published checkpoint of a kind, tagged v1, made once; a later commit has other files."""
    names = {}

    def get(kind, *options):
        if kind not in names:
            names[kind] = f"alice/the-{kind}"
            options += ("--base-model", get("language")) if kind == "adapter" else ()
            publish(makers(kind), names[kind], "--tag", "v1", *options)
        return names[kind]

    return get
