"""What the gate has proven is what is sent, byte for byte, whatever happens to the checkpoint in between."""

import errno
import json
import os
import shutil

import pytest

from groundup import hub_upload
from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.common.verbs import PushOptions
from groundup.publishing import gate, gate_folder, pushing
from groundup.publishing.gate import sums_of, through_the_gate
from groundup.publishing.hub import Pushed, Target, push_folder
from groundup.publishing.proof import Proof

LICENSED = {"license": "apache-2.0"}
KINDS = ("language", "large", "classifier", "adapter")


@pytest.fixture
def proven(makers, monkeypatch):
    """Return the gate without its second process; it does what it is given while that would be at work."""
    meanwhile = []

    def prove(*_, **__):
        for action in meanwhile:
            action()
        return Proof(0.0, "")

    monkeypatch.setattr(gate, "prove", prove)
    monkeypatch.setattr(hub_upload, "fetch_model", lambda name: makers("language"))
    monkeypatch.setattr(pushing, "fetch_model", lambda name: makers("language"))
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    return meanwhile.append


def written_over(path):
    with path.open("r+b") as file:
        file.write(b"other bytes")


def replaced(path):
    other = path.with_name("other")
    other.write_bytes(b"a file of another model")
    os.replace(other, path)


def grown(path):
    with path.open("ab") as file:
        file.write(b"\n{}")


def linked(path):
    path.unlink()
    path.symlink_to("/etc/hostname")


HARM = {"written over": written_over, "replaced": replaced, "grown": grown, "removed": os.unlink, "linked": linked}


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("harm", HARM)
def test_no_file_of_a_checkpoint_that_changes_after_its_copy_reaches_what_is_sent(harm, kind, checkpoint, proven):
    folder = checkpoint(kind)
    base = {"base_model": "alice/base"} if kind == "adapter" else {}
    files, _ = gate_folder.sort_files(folder)
    before = contents(folder)
    proven(lambda: [HARM[harm](folder / name) for name in files])
    through = through_the_gate(folder, LICENSED | base, fetch_base=hub_upload.fetch_model)
    with through as parcel:
        sent = contents(parcel.folder)
        assert not any(path.is_symlink() for path in parcel.folder.iterdir())
        assert parcel.proven == sums_of(parcel.folder) and set(parcel.proven) == set(parcel.files)
        written_anew = {"README.md", "recipe.yaml"} | ({"adapter_config.json"} if base else set())
        assert {name: sent[name] for name in set(files) - written_anew} == {
            name: content for name, content in before.items() if name in set(files) - written_anew
        }
        weights = next(name for name in files if name.endswith(".safetensors"))
        assert json.loads(sent["metrics.json"])["weights_sha256"] == sha256_of(parcel.folder / weights)


@pytest.mark.parametrize("door", ["publish", "after_save", "after_the_end"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_door_sends_what_it_has_proven(door, kind, checkpoint, proven, monkeypatch, repo_id):
    folder, sent = checkpoint(kind), {}
    weights = next(path for path in folder.glob("*.safetensors"))
    before = sha256_of(weights)
    proven(lambda: written_over(weights))

    def push(folder, target, message, is_ours, proven):
        sent.update(sums_of(folder))
        assert sent == proven
        return Pushed("0" * 40, True, "there")

    monkeypatch.setattr(hub_upload, "push_folder", push)
    monkeypatch.setattr(pushing, "push_folder", push)
    if door == "publish":
        hub_upload.publish(checkpoint=str(folder), repo_id=repo_id, base_model="alice/base", **LICENSED)
    else:
        options = PushOptions(push_to=repo_id, push_every=1, push_license="mit", push_base_model="alice/base")
        pusher = pushing.Pusher(options)
        pusher.after_save(folder, 1) if door == "after_save" else pusher.after_the_end(folder)
    assert sent[weights.name] == before


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md", "tokenizer.json", "extra.json"])
def test_a_file_that_is_not_the_one_that_was_proven_is_refused_before_the_hub_is_asked(
    name, harm, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_TOKEN", "hf_none")
    monkeypatch.setattr("httpx.Client.send", lambda *_, **__: pytest.fail("the Hub was asked"))
    for file in ("model.safetensors", "config.json", "README.md", "tokenizer.json"):
        (tmp_path / file).write_bytes(file.encode() * 9)
    proven = sums_of(tmp_path)
    if name == "extra.json":
        (tmp_path / name).write_text("{}")  # a file that nobody looked at
    else:
        HARM[harm](tmp_path / name)
    with pytest.raises(InputError, match=f"^{name}: not the same as when it was looked at, and nothing was published"):
        push_folder(tmp_path, Target("alice/x"), "a message", lambda _: True, proven)


@pytest.mark.parametrize("kind", ["language", "adapter"])
@pytest.mark.parametrize("harm", ["replaced", "grown", "removed"])
def test_a_file_that_changes_while_it_is_copied_is_said(harm, kind, checkpoint, monkeypatch):
    folder = checkpoint(kind)
    copy = shutil.copyfile

    def slow(source, target):
        copy(source, target)
        HARM[harm](source)

    monkeypatch.setattr(gate_folder.shutil, "copyfile", slow)
    words = "was removed while it was looked at" if harm == "removed" else "changed while it was copied"
    with pytest.raises(InputError, match=f"{words}: publish when the run has ended"), through_the_gate(folder):
        pass


def test_a_disk_without_room_for_the_copy_is_said(checkpoint, monkeypatch):
    folder = checkpoint()

    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gate_folder.shutil, "copyfile", full)
    with pytest.raises(InputError, match=r"no room in .* for a copy .*: make room, or let TMPDIR name"):
        with through_the_gate(folder):
            pass


def test_a_token_that_comes_into_a_file_after_it_was_looked_at_is_found_in_the_copy(checkpoint, monkeypatch):
    folder = checkpoint()
    sort = gate.sort_files

    def then_a_token(checkpoint):
        found = sort(checkpoint)
        (checkpoint / "log.jsonl").write_text("hf_" + "Ab1" * 12)
        return found

    monkeypatch.setattr(gate, "sort_files", then_a_token)
    with pytest.raises(InputError, match=r"log\.jsonl holds something like a token"), through_the_gate(folder):
        pass
