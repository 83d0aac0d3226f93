"""Commands that are killed or stopped just before a write, drawn among all of theirs, and are then given again."""

import json
import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

import groundup as package
from groundup.cli.main import main
from groundup.common.files import sha256_of
from groundup.evaluation.curves import log_rows
from groundup.evaluation.metrics_json import read_metrics

pytestmark = pytest.mark.slow

WRITES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")  # besides files that are opened for writing
TINY = ["--vocab-size", "270", "--hidden-size", "32", "--num-hidden-layers", "1", "--context-length", "32"]
BASE = ["--model", "base"]
VERBS = {
    "tokenizer": ["tokenizer", "--data", "text.txt", "--vocab-size", "270"],
    "prepare": ["prepare", "--data", "text.txt", "--tokenizer", "tokens"],
    "pretrain": ["pretrain", "--data", "text.txt", "--max-steps", "5", "--save-every", "2", *TINY],
    "adapter": ["pretrain", "--data", "text.txt", "--init-from", "base", "--lora", "--max-steps", "2"],
    "classify": ["classify", "--data", "rows.jsonl", "--max-steps", "2", *BASE],
    "seeds": ["classify", "--data", "rows.jsonl", "--max-steps", "1", "--seeds", "2", *BASE],
    "mean": ["classify", "--data", "rows.jsonl", "--max-steps", "1", "--average", "2", *BASE],
    "labels": ["classify", "--predict", "texts.txt", "--model", "classifier"],
    "instruct": ["instruct", "--data", "asked.jsonl", "--max-steps", "2", *BASE],
    "evaluate": ["evaluate", "--data", "text.txt", "--smoke", *BASE],
    "merge": ["merge", "adapter"],
    "export": ["export", "base", "--to", "qwen3"],
    "import": ["import", "gpt2"],
}
GOES_ON = ("prepare", "pretrain", "adapter", "classify", "seeds", "mean", "instruct", "evaluate")
SIGNALS = (*[signal.SIGKILL] * 4, signal.SIGINT, signal.SIGTERM)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Return a folder with what the commands read."""
    folder, draw = tmp_path_factory.mktemp("kills"), random.Random(0)
    words = [[draw.choice(["red", "green", "blue", "black"]) for _ in range(6)] for _ in range(200)]
    text, rows, asked = folder / "text.txt", folder / "rows.jsonl", folder / "asked.jsonl"
    text.write_text("\n".join(map(" ".join, words)))
    (folder / "texts.txt").write_text("red\nblue black\n")
    labelled = [{"text": f"{number}: {' '.join(row)}", "label": row[-1]} for number, row in enumerate(words)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in labelled))
    pairs = [{"prompt": row["text"], "completion": row["label"]} for row in labelled]
    asked.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    tiny = {"vocab_size": 270, "hidden_size": 32, "num_hidden_layers": 1, "context_length": 32}
    done = {"max_steps": 1, "quiet": True}
    package.train_tokenizer(data=[text], vocab_size=270, out=folder / "tokens", quiet=True)
    package.pretrain(data=[text], out=folder / "base", **tiny, **done)
    package.pretrain(data=[text], init_from=folder / "base", lora=True, out=folder / "adapter", **done)
    package.classify(data=[rows], model=folder / "base", out=folder / "classifier", **done)
    tokens = AutoTokenizer.from_pretrained(folder / "tokens")
    ends = {"bos_token_id": tokens.eos_token_id, "eos_token_id": tokens.eos_token_id}
    sizes = GPT2Config(vocab_size=len(tokens), n_embd=32, n_layer=1, n_head=2, n_positions=32, **ends)
    GPT2LMHeadModel(sizes).save_pretrained(folder / "gpt2")
    tokens.save_pretrained(folder / "gpt2")
    return folder


def command(words, folder, log, stop_at, number):
    """Do a command in `folder`, note each of its writes there in `log`, and signal this process before one of them."""
    os.chdir(folder)
    writes = []

    def note(event, arguments):
        if event == "open":
            path, mode, flags = arguments
            if not (isinstance(mode, str) and set(mode) & set("wax+")) and not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event in WRITES:
            path = arguments[0]
        else:
            return
        if not isinstance(path, str | bytes) or not os.fsdecode(path).removeprefix(folder + "/").startswith("out"):
            return
        writes.append(os.fsdecode(path))
        if len(writes) == stop_at + 1:
            os.kill(os.getpid(), number)

    sys.addaudithook(note)
    with open("said", "w") as said:
        os.dup2(said.fileno(), 2)
        status = main([*words, "--out", "out", "--quiet"])
    Path(log).write_text(json.dumps(writes))
    sys.exit(status)


@pytest.fixture
def give(in_a_fork):
    """Give a command in a new process, which gets a signal before its write `stop_at`; return its exit status."""

    def give(words, folder, stop_at=-1, number=0):
        return in_a_fork(command, words, str(folder), str(folder / "log"), stop_at, number)

    return give


def result(out):
    """Return all files: the content of weights, shards and tokenizers, scores and logs without what a clock says."""
    found = {}
    for path in sorted(out.rglob("*")):
        content = ""
        if path.suffix in (".safetensors", ".npy") or path.name == "tokenizer.json":
            content = sha256_of(path)
        elif path.name == "metrics.json":
            content = [(row["name"], row["value"]) for row in read_metrics(path.parent)["metrics"]]
        elif path.name == "log.jsonl":
            content = [(row["step"], row.get("loss")) for row in log_rows(path) if row.get("event") != "resume"]
        found[str(path.relative_to(out))] = content
    return found


@pytest.mark.parametrize("verb", VERBS)
def test_stopped_before_a_write_and_given_again_a_command_leaves_what_one_never_stopped_does(
    verb, place, give, tmp_path
):
    def fresh(name):
        (tmp_path / name).mkdir()
        for entry in place.iterdir():
            (tmp_path / name / entry.name).symlink_to(entry)
        return tmp_path / name

    whole = fresh("whole")
    assert give(VERBS[verb], whole) == 0
    writes, expected = json.loads((whole / "log").read_text()), result(whole / "out")
    for stop_at, number in zip(random.Random(verb).sample(range(len(writes)), len(SIGNALS)), SIGNALS):
        told = f"{number.name} before write {stop_at}, {writes[stop_at]}"
        folder = fresh(f"stopped-{stop_at}")
        status, said = give(VERBS[verb], folder, stop_at, number), (folder / "said").read_text()
        if number == signal.SIGKILL:
            assert status == -number, told
        else:  # 0 where all was done
            assert (status, len(said.splitlines())) in ((130, 1), (0, 0)), (told, said)
        more = ["--resume"] if verb in GOES_ON else []
        status, said = give([*VERBS[verb], *more], folder), (folder / "said").read_text()
        assert (status, len(said.splitlines())) in ((0, 0), (2, 1)), (told, said)
        if status == 2:  # what was whole by then is not made again
            assert not more and "choose a new --out" in said, (told, said)
        assert result(folder / "out") == expected, (told, said)
        assert sorted(path.name for path in folder.iterdir() if path.name.startswith(".")) == [], told
        shutil.rmtree(folder)
