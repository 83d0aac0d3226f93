"""The gate: what it lets through, and each failure named with its mend."""

import json
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.common.settings import read_yaml, write_yaml
from groundup.publishing.gate import check_content, through_the_gate
from groundup.publishing.gate_folder import CONTRACT, sort_files

LICENSED = {"license": "apache-2.0"}


def passes(folder, **additions):
    sort_files(folder)
    return check_content(folder, LICENSED | additions)


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reweigh(folder, change, **metadata):
    """Change the weights, and let metrics.json know."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"} | metadata)
    change_json(folder / "metrics.json", weights_sha256=sha256_of(folder / "model.safetensors"))


def with_header(folder, header: bytes, length: int | None = None):
    path = folder / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header)
    change_json(folder / "metrics.json", weights_sha256=sha256_of(path))


@pytest.mark.parametrize("kind", ["language", "classifier"])
def test_what_a_verb_left_passes_and_only_the_contract_is_taken(kind, checkpoint):
    folder = checkpoint(kind)
    assert passes(folder) == {"model.safetensors": sha256_of(folder / "model.safetensors")}
    (folder / "notes.txt").write_text("mine")
    (folder / "checkpoints" / "step-1" / "state").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "state" / "position.json").write_text("{}")
    files, left_out = sort_files(folder)
    assert left_out == ["checkpoints/", "notes.txt"] and set(files) <= set(CONTRACT)
    assert read_yaml(folder / "recipe.yaml")["license"] == "apache-2.0"


# What lies in the folder. Each: what spoils it, and words of the message.

SECRET = "hf_" + "Ab1" * 12
LIES = {
    "a pickle by its name": (
        lambda f: (f / "training_args.bin").write_bytes(b"x"),
        "training_args.bin is or may be a pickle",
    ),
    "a pickle by its content": (
        lambda f: (f / "note.txt").write_bytes(pickle.dumps([1])),
        "note.txt is or may be a pickle",
    ),
    "an archive of torch": (lambda f: torch.save([1], f / "thing"), "thing is or may be a pickle"),
    "arrays": (lambda f: np.save(f / "a.npy", np.zeros(1)), "a.npy is or may be a pickle"),
    "a pickle far below": (lambda f: deep(f).write_bytes(b"x"), "a/b/c.pkl is or may be a pickle"),
    "a token": (lambda f: (f / "log.jsonl").write_text(json.dumps({"token": SECRET})), "make the token invalid"),
    "a token in a file that stays": (
        lambda f: (f / "notes.md").write_text(SECRET),
        "notes.md holds something like a token",
    ),
    "a private key": (lambda f: (f / "k.txt").write_text("-----BEGIN RSA PRIVATE KEY-----"), "k.txt holds"),
    "a file for secrets": (lambda f: (f / ".env").write_text("A=1"), ".env is a file for secrets"),
    "a link out": (lambda f: (f / "chat.jinja").symlink_to("/etc/passwd"), "chat.jinja is a link out of the folder"),
    "a link to a parent": (lambda f: relink(f, "vocab.json"), "vocab.json is a link out of the folder"),
    "a name with a new line": (lambda f: (f / "a\nb").write_text(""), r"a\nb is not a plain one"),
    "a name that draws": (lambda f: (f / "\x1b[2J").write_text(""), r"\x1b[2J is not a plain one"),
    "a name that turns round": (lambda f: (f / "a\u202egpj.py").write_text(""), r"a\u202egpj.py is not a plain one"),
    "a name with a backslash": (lambda f: (f / "..\\x").write_text(""), "is not a plain one"),
    "a name that is an option": (lambda f: (f / "--force").write_text(""), "is not a plain one"),
    "a name of broken bytes": (lambda f: (f / os.fsdecode(b"\xff")).mkdir(), r"\udcff is not a plain one"),
    "a name that is too long": (lambda f: (f / ("x" * 240)).write_text(""), "is not a plain one"),
    "a folder in a file's place": (lambda f: (f / "vocab.json").mkdir(), "vocab.json is no regular file"),
    "a pipe": (lambda f: os.mkfifo(f / "merges.txt"), "merges.txt is no regular file"),
}


def deep(folder):
    (folder / "a" / "b").mkdir(parents=True)
    return folder / "a" / "b" / "c.pkl"


def relink(folder, name):
    (folder.parent / name).write_text("{}")
    (folder / name).symlink_to(f"../{name}")


def assert_refused(folder, spoil, words, by):
    """Assert that a folder that was spoilt is refused in words that name it, and tell no token."""
    spoil(folder)
    with pytest.raises(InputError) as error:
        by(folder)
    said = str(error.value)
    assert words in said and said.isprintable() and "Ab1Ab1" not in said


@pytest.mark.parametrize("name", LIES)
def test_what_must_not_lie_beside_a_checkpoint_is_named(name, checkpoint):
    assert_refused(checkpoint(), *LIES[name], by=sort_files)


def test_what_is_wrong_is_said_of_the_folder_that_was_given(checkpoint):
    folder = checkpoint()
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError) as error, through_the_gate(folder):
        pass
    assert str(error.value).startswith(f"{folder} is not fit to be published: there is no file of weights")


@pytest.mark.parametrize("length", [0x280, 0x380, 0x480, 0x580])
def test_a_header_whose_length_begins_as_a_pickle_does_is_no_pickle(length, checkpoint):
    folder = checkpoint()
    with_header(folder, b"{" + b" " * (length - 2) + b"}")
    assert "model.safetensors" in sort_files(folder)[0]
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InputError, match="may be a pickle"):
        sort_files(folder)


def test_a_link_inside_the_folder_is_as_good_as_a_file(checkpoint):
    folder = checkpoint()
    (folder / "tokenizer.json").rename(folder / "real")
    (folder / "tokenizer.json").symlink_to("real")
    assert "tokenizer.json" in sort_files(folder)[0]


# What is in the files.

BAD = {
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "there is no file of weights"),
    "two kinds of weights": (lambda f: (f / "model.gguf").write_bytes(b"GGUF"), "there are 2 files of weights"),
    "no number": (lambda f: reweigh(f, lambda t: t["model.norm.weight"].fill_(np.nan)), "model.norm.weight"),
    "an infinite number": (lambda f: reweigh(f, lambda t: t["model.norm.weight"].fill_(np.inf)), "not finite"),
    "weights that were cut": (lambda f: cut(f / "model.safetensors"), "not a complete safetensors file"),
    "a header of gigabytes": (lambda f: with_header(f, b"{}", 2**40), "claims 1,099,511,627,776 bytes"),
    "a header beyond the Hub": (lambda f: with_header(f, b"{" + b" " * 26_000_000 + b"}"), "the Hub reads 25,000,000"),
    "a header longer than the file": (lambda f: with_header(f, b"{}", 1000), "not a complete safetensors file"),
    "a header of another kind": (lambda f: with_header(f, b"[1, 2]"), "not a complete safetensors file"),
    "no tensors": (lambda f: with_header(f, b"{}"), "holds no tensor"),
    "a path in the header": (lambda f: reweigh(f, len, source="/home/me/x"), "the header of model.safetensors holds"),
    "a token in the header": (lambda f: reweigh(f, len, key=SECRET), "the header of model.safetensors holds"),
    "no scores": (lambda f: (f / "metrics.json").unlink(), "metrics.json is missing"),
    "scores of other weights": (
        lambda f: change_json(f / "metrics.json", weights_sha256="0" * 64),
        "not made from these",
    ),
    "scores that are no numbers": (lambda f: change_json(f / "metrics.json", metrics=[{"name": 1}]), "no list of rows"),
    "scores without an end": (lambda f: (f / "metrics.json").write_text("[" * 100_000), "metrics.json is no JSON"),
    "no recipe": (lambda f: (f / "recipe.yaml").unlink(), "recipe.yaml is missing: write one"),
    "a recipe of another kind": (lambda f: (f / "recipe.yaml").write_text("- 1"), "recipe.yaml cannot be used"),
    "a recipe that makes objects": (
        lambda f: (f / "recipe.yaml").write_text("a: !!python/object:os.system {}"),
        "recipe",
    ),
    "a path of mine": (
        lambda f: (f / "recipe.yaml").write_text("data: /home/me/x.txt\nlicense: mit"),
        "/home/me/x.txt",
    ),
    "a path in the log": (
        lambda f: (f / "log.jsonl").write_text('{"x": "C:\\\\Users\\\\me"}'),
        "a place on your machine",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "a config of another kind": (lambda f: (f / "config.json").write_text("3"), "config.json is no mapping"),
    "a class that nobody knows": (lambda f: change_json(f / "config.json", architectures=["Foo"]), "no known class"),
    "layers without end": (
        lambda f: change_json(f / "config.json", num_hidden_layers=10**9),
        "more than there are tensors",
    ),
    "code from elsewhere": (
        lambda f: change_json(f / "config.json", auto_map={"AutoConfig": "evil/repo--m.C"}),
        "evil/repo--m.C",
    ),
    "code that is missing": (lambda f: (f / "modeling_groundup.py").unlink(), "which auto_map names, is missing"),
    "code that other code imports": (
        lambda f: (f / "generation_groundup.py").unlink(),
        "generation_groundup.py, which modeling_groundup.py imports, is missing",
    ),
    "code that imports from elsewhere": (
        lambda f: (f / "generation_groundup.py").write_text("from ..elsewhere import x"),
        "generation_groundup.py imports ..elsewhere, no file of this folder",
    ),
    "code that was changed": (lambda f: (f / "modeling_groundup.py").write_text("import os"), "--trust-remote-code"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json is missing"),
    "a broken tokenizer": (lambda f: cut(f / "tokenizer.json"), "tokenizer.json cannot be used"),
    "a tokenizer with code": (
        lambda f: change_json(f / "tokenizer_config.json", auto_map={"AutoTokenizer": ["t.T"]}),
        "code",
    ),
    "a tokenizer that loses text": (lambda f: lossy(f / "tokenizer.json"), "does not decode to the text"),
    "a config of ten megabytes": (lambda f: (f / "config.json").write_text(" " * 10_000_001), "10,000,001 bytes"),
}


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def lossy(path):
    change_json(path, normalizer={"type": "Lowercase"})


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_in_a_file_is_named_with_its_mend(name, checkpoint):
    assert_refused(checkpoint(), *BAD[name], by=passes)


def test_everything_that_is_wrong_is_said_at_once(checkpoint):
    folder = checkpoint()
    (folder / "metrics.json").unlink()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(InputError) as error:
        check_content(folder, {})
    for words in ("metrics.json is missing", "tokenizer.json is missing", "no licence is set: add --license"):
        assert words in str(error.value)


def test_the_licence_may_stand_in_the_recipe_and_the_command_wins(checkpoint):
    folder = checkpoint()
    write_yaml(folder / "recipe.yaml", read_yaml(folder / "recipe.yaml") | {"license": "mit"})
    check_content(folder, {"license": None})
    assert "license: mit" in (folder / "README.md").read_text()
    check_content(folder, {"license": "apache-2.0"})
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    with pytest.raises(InputError, match="no licence"):
        check_content(folder, {"license": "all mine!"})


def test_a_folder_that_is_none_is_said(tmp_path):
    with pytest.raises(InputError, match="is no folder"):
        sort_files(tmp_path / "nothing")
