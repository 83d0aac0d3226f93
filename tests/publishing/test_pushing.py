"""One commit, whole or not at all: `push_folder` in a process of its own, against a real server with faults."""

import threading
import time

import pytest

from groundup.common.errors import InputError
from groundup.publishing.hub import Target
from groundup.publishing.hub_client import without_secrets

CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# a model\n"


@pytest.fixture
def folder(tmp_path, repo_id):
    """Return a small folder with a file that goes to the large-file store, one that does not, and one below."""
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "model.safetensors").write_bytes(repo_id.encode() * 40)
    (folder / "below" / "data.json").write_text("{}")
    return folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def holds(hub, repo_id, folder, branch="main"):
    files = hub.files(repo_id, branch)
    files.pop(".gitattributes")
    return files == contents(folder)


def commits(hub, repo_id):
    return len(hub.state(repo_id)["commits"])


def test_a_new_repository_gets_everything_in_one_commit(hub, pusher, folder, repo_id):
    done = pusher(folder, repo_id, private=True, tag="v1.0")
    state = hub.state(repo_id)
    assert holds(hub, repo_id, folder) and commits(hub, repo_id) == 2  # the hub makes the first
    assert state["private"] and state["tags"] == {"v1.0": done["commit"]} == {"v1.0": state["heads"]["main"]}
    assert done["is_new"] and done["url"] == f"{hub.url}/{repo_id}/tree/{done['commit']}"


def test_nothing_is_committed_when_nothing_changed_and_a_missing_tag_is_made_up_for(hub, pusher, folder, repo_id):
    first = pusher(folder, repo_id)
    second = pusher(folder, repo_id, tag="v2")
    assert (second["commit"], second["is_new"]) == (first["commit"], False) and commits(hub, repo_id) == 2
    assert hub.state(repo_id)["tags"] == {"v2": first["commit"]}
    assert pusher(folder, repo_id, tag="v2")["commit"] == first["commit"]


def test_a_second_version_replaces_what_is_ours_and_keeps_what_is_not(hub, pusher, folder, repo_id, tmp_path):
    (folder / "old.json").write_text("[]")
    (folder / "theirs.md").write_text("a text of theirs")
    pusher(folder, repo_id)
    (folder / "old.json").unlink()
    (folder / "theirs.md").rename(tmp_path / "theirs.md")
    (folder / "model.safetensors").write_bytes(b"new")
    assert pusher(folder, repo_id)["is_new"] and commits(hub, repo_id) == 3
    files = hub.files(repo_id)
    assert files["model.safetensors"] == b"new" and "theirs.md" in files and "old.json" not in files


def test_a_branch_is_made_and_the_main_one_is_left_alone(hub, pusher, folder, repo_id):
    done = pusher(folder, repo_id, branch="runs/second")
    assert holds(hub, repo_id, folder, "runs/second") and set(hub.files(repo_id)) == {".gitattributes"}
    (folder / "README.md").write_text(CARD + "more")
    again = pusher(folder, repo_id, branch="runs/second")
    assert hub.state(repo_id)["commits"][again["commit"]]["parent"] == done["commit"]


def test_a_pull_request_leaves_the_main_branch_alone(hub, pusher, folder, repo_id):
    pusher(folder, repo_id)
    before = hub.state(repo_id)["heads"]
    (folder / "model.safetensors").write_bytes(b"better")
    done = pusher(folder, repo_id, pull_request=True)
    assert hub.state(repo_id)["heads"] == before and done["url"] == f"{hub.url}/{repo_id}/discussions/1"
    assert pusher(folder, f"{repo_id}-not-there", pull_request=True)["error"] == "InputError"


def test_a_large_file_goes_in_parts(hub, pusher, folder, repo_id):
    (folder / "model.safetensors").write_bytes(repo_id.encode() * 200_000)
    seen = len(hub.requests())
    pusher(folder, repo_id)
    parts = [row for row in hub.requests()[seen:] if row["path"].startswith("/_parts/")]
    assert holds(hub, repo_id, folder) and sorted(row["method"] for row in parts) == ["POST", "PUT", "PUT", "PUT"]
    assert not any(row["token"] for row in parts)  # the store is another party: it needs no token and gets none


def test_a_public_repository_is_not_made_private_in_silence(hub, pusher, folder, repo_id):
    pusher(folder, repo_id)
    said = pusher(folder, repo_id, private=True)
    assert said["error"] == "InputError" and "is public already" in said["said"]


def test_a_tag_is_never_moved(hub, pusher, folder, repo_id):
    first = pusher(folder, repo_id, tag="v1")
    (folder / "model.safetensors").write_bytes(b"better")
    said = pusher(folder, repo_id, tag="v1")
    assert "choose a new one" in said["said"] and hub.state(repo_id)["tags"] == {"v1": first["commit"]}


# What goes wrong. Each fault: what is injected, the kind of error and words of its message.

STATUS = {"do": "status", "times": 9}
COMMIT, CREATE = "/commit/", "/api/repos/create"
FAULTS = {
    "a token that is refused": ({"path": "/api/", **STATUS, "status": 401}, "InputError", "hf auth login"),
    "no right to write": ({"path": COMMIT, **STATUS, "status": 403}, "InputError", "write rights"),
    "no right to upload": ({"path": "/preupload/", **STATUS, "status": 403}, "InputError", "write rights"),
    "something not found": ({"path": COMMIT, **STATUS, "status": 404}, "InputError", "check name, branch"),
    "a conflict": ({"path": COMMIT, **STATUS, "status": 409}, "Unavailable", "run the same command again"),
    "a head that moved": ({"path": COMMIT, **STATUS, "status": 412}, "InputError", "somebody pushed"),
    "too many requests": ({"path": COMMIT, **STATUS, "status": 429}, "Unavailable", "in some minutes"),
    "a broken server": ({"path": COMMIT, **STATUS, "status": 500}, "Unavailable", "status 500"),
    "a busy server": ({"path": COMMIT, **STATUS, "status": 503}, "Unavailable", "again later"),
    "a silent server": ({"path": COMMIT, "do": "silence", "seconds": 1.5, "times": 3}, "Unavailable", "not answer"),
    "bytes that change": ({"path": "/_store/", "do": "corrupt on the way", "times": 9}, "InputError", "hash"),
    "a push in between": ({"path": COMMIT, "do": "push"}, "InputError", "somebody pushed"),
    "a card that is refused": ({"path": "validate-yaml", **STATUS, "status": 400}, "InputError", "refuse"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_the_repository_is_as_before_the_message_says_what_to_do_and_the_second_try_succeeds(
    name, hub, pusher, folder, repo_id
):
    fault, kind, words = FAULTS[name]
    pusher(folder, repo_id)
    before = hub.files(repo_id)
    (folder / "model.safetensors").write_bytes(better := b"better " + repo_id.encode())
    hub.fail(fault | {"repo": repo_id})
    said = pusher(folder, repo_id, patience=0.5 if fault["do"] == "silence" else 60.0)
    assert said["error"] == kind and words in said["said"] and "\n" not in said["said"], said
    if fault["do"] == "silence":
        time.sleep(1.5)  # the server wakes up and may still do what it was asked
    else:
        theirs = {"theirs.txt": b"somebody else was here"} if fault["do"] == "push" else {}
        assert hub.files(repo_id) == before | theirs
    hub.fail()
    assert "error" not in pusher(folder, repo_id)
    assert hub.files(repo_id)["model.safetensors"] == better


NEW = {name: fault for name, fault in FAULTS.items() if fault[0]["do"] not in ("push", "silence")} | {
    "a name that is taken meanwhile": ({"path": CREATE, **STATUS, "status": 409}, "InputError", "knows no repository"),
    "no right to make one": ({"path": CREATE, **STATUS, "status": 403}, "InputError", "check the owner's name"),
    "nothing readable yet": ({"path": "/refs", "do": "status", "times": 3, "status": 500}, "Unavailable", "later"),
    "a branch that cannot be made": ({"path": "/branch/", **STATUS, "status": 403}, "InputError", "write rights"),
}  # fmt: skip


@pytest.mark.parametrize("name", NEW)
def test_a_repository_made_for_a_push_that_fails_is_removed_again(name, hub, pusher, folder, repo_id):
    fault, kind, words = NEW[name]
    hub.fail(fault)
    said = pusher(folder, repo_id, branch="runs/first")
    assert said["error"] == kind and words in said["said"] and "\n" not in said["said"], said
    assert hub.state(repo_id) is None
    was_made = any(row["path"].endswith("/delete") for row in hub.requests()[-4:])
    assert ("removed again" in said["said"]) == was_made
    hub.fail()
    assert pusher(folder, repo_id, branch="runs/first")["is_new"] and holds(hub, repo_id, folder, "runs/first")


def test_a_repository_that_cannot_be_removed_again_is_told_of(hub, pusher, folder, repo_id):
    hub.fail({"path": COMMIT, **STATUS, "status": 403}, {"path": "/delete", **STATUS, "status": 403})
    said = pusher(folder, repo_id)
    assert "write rights" in said["said"] and said["said"].endswith("empty: the same command goes on with it")
    assert set(hub.files(repo_id)) == {".gitattributes"}
    hub.fail()
    assert pusher(folder, repo_id)["is_new"] and holds(hub, repo_id, folder)


@pytest.mark.parametrize("moment", ["die in the middle", "die before the answer"])
@pytest.mark.parametrize("path", [CREATE, "/_store/", COMMIT])
def test_a_server_that_dies_leaves_no_new_repository_or_a_whole_one(moment, path, hub, pusher, folder, repo_id):
    hub.fail({"path": path, "do": moment})
    doctor = threading.Thread(target=revive, args=(hub,))
    doctor.start()
    said = pusher(folder, repo_id)
    doctor.join()
    if hub.state(repo_id) is not None and not holds(hub, repo_id, folder):
        assert "may be left there empty" in said["said"], said  # it was away for too long
        assert set(hub.files(repo_id)) == {".gitattributes"}
    if "error" in said:
        said = pusher(folder, repo_id)
    assert "error" not in said and holds(hub, repo_id, folder) and commits(hub, repo_id) == 2


@pytest.mark.parametrize(
    "path", ["/preupload/", "/_store/", "/lfs/verify", COMMIT, CREATE, "/refs", "/resolve/", "/tag/"]
)
def test_a_fault_that_passes_is_waited_for(path, hub, pusher, folder, repo_id):
    hub.fail({"path": path, "do": "status", "status": 503})
    assert pusher(folder, repo_id, tag="v1")["is_new"]
    assert holds(hub, repo_id, folder) and commits(hub, repo_id) == 2 and hub.state(repo_id)["tags"]


def test_a_damaged_file_is_found_and_the_files_before_come_back(hub, pusher, folder, repo_id):
    (folder / "old.json").write_text("[]")
    pusher(folder, repo_id, tag="v1")
    before = hub.files(repo_id)
    (folder / "old.json").unlink()
    (folder / "new.json").write_text("[]")
    (folder / "README.md").write_text(CARD + "more")
    (folder / "model.safetensors").write_bytes(b"better " + repo_id.encode())
    hub.fail({"path": "/_store/", "do": "corrupt the store"})
    said = pusher(folder, repo_id, tag="v2")
    assert said["error"] == "Unavailable" and "other bytes of model.safetensors" in said["said"], said
    assert hub.files(repo_id) == before and "v2" not in hub.state(repo_id)["tags"]
    assert pusher(folder, repo_id, tag="v2")["is_new"] and holds(hub, repo_id, folder)


def test_a_new_repository_with_a_damaged_file_is_removed_again(hub, pusher, folder, repo_id):
    hub.fail({"path": "/_store/", "do": "corrupt the store"})
    assert "removed again" in pusher(folder, repo_id)["said"] and hub.state(repo_id) is None
    pusher(folder, repo_id)
    assert holds(hub, repo_id, folder) and commits(hub, repo_id) == 2


def test_a_file_that_was_damaged_since_is_sent_again_though_nothing_changed(hub, pusher, folder, repo_id):
    pusher(folder, repo_id)
    entry = hub.state(repo_id)["commits"][hub.state(repo_id)["heads"]["main"]]["files"]["model.safetensors"]
    (hub.root / "objects" / entry["lfs"]).write_bytes(b"?" * entry["size"])
    assert not pusher(folder, repo_id)["is_new"] and holds(hub, repo_id, folder)


def test_what_cannot_be_read_back_is_said_to_be_there(hub, pusher, folder, repo_id):
    hub.fail({"path": "/resolve/", **STATUS, "status": 503})
    said = pusher(folder, repo_id)
    assert said["error"] == "Unavailable" and "is there, but could not be read back" in said["said"]
    assert holds(hub, repo_id, folder)
    hub.fail()
    assert not pusher(folder, repo_id)["is_new"]


@pytest.mark.parametrize("moment", ["die in the middle", "die before the answer"])
@pytest.mark.parametrize("path", ["/_store/", COMMIT])
def test_a_server_that_dies_and_comes_back_has_all_or_nothing(moment, path, hub, pusher, folder, repo_id):
    pusher(folder, repo_id)
    before = contents(folder)
    (folder / "model.safetensors").write_bytes(b"better " + repo_id.encode())
    hub.fail({"path": path, "do": moment})
    doctor = threading.Thread(target=revive, args=(hub,))
    doctor.start()
    said = pusher(folder, repo_id)
    doctor.join()
    found = hub.files(repo_id)
    found.pop(".gitattributes")
    assert found in (before, contents(folder))
    if "error" in said:
        assert "has all of it" in said["said"]
        said = pusher(folder, repo_id)
    assert "error" not in said and holds(hub, repo_id, folder) and commits(hub, repo_id) == 3


def revive(hub):
    hub.process.wait(20)
    hub.start()


def test_a_hub_that_cannot_be_reached_is_said_in_one_line(hub, pusher, folder, repo_id):
    hub.stop()
    said = pusher(folder, repo_id)
    assert said["error"] == "Unavailable" and f"cannot reach {hub.url}" in said["said"]


def test_rights_are_asked_of_the_token(hub, pusher, folder, repo_id):
    assert "no token" in pusher(folder, repo_id, token="")["said"]
    assert "hf auth login" in pusher(folder, repo_id, token="hf_" + "x" * 34)["said"]
    for attempt in ({"token": hub.reader}, {"repo_id": repo_id.replace("alice", "bob")}):
        said = pusher(folder, **({"repo_id": repo_id} | attempt))
        assert said["error"] == "InputError" and "--pull-request" in said["said"], said
        assert hub.state(repo_id) is None


def test_the_token_is_in_no_message_and_no_file(hub, pusher, folder, repo_id):
    hub.fail({"path": COMMIT, "do": "status", "status": 500, "times": 9, "said": "your token is TOKEN"})
    said = pusher(folder, repo_id)
    hub.fail({"path": COMMIT, "do": "status", "status": 400, "said": "your token is TOKEN, or hf_" + "q" * 34})
    said = str(said) + str(pusher(folder, repo_id))
    assert "***" in said and "qqqq" not in said
    pusher(folder, repo_id)
    written = [path.read_bytes() for path in pusher.home.rglob("*") if path.is_file()]
    written += [path.read_bytes() for path in (hub.root / "objects").iterdir()]
    assert hub.token not in said and not any(hub.token.encode() in content for content in written)


@pytest.mark.parametrize(
    "name", ["x", "a/b/c", "a/..", "../a", "a b/c", "-a/b", "a/" + "x" * 200, "a/b.git", "a/b\n", ""]
)
def test_a_name_that_no_repository_can_have_is_refused_before_anything_is_asked(name):
    with pytest.raises(InputError):
        Target(name)


@pytest.mark.parametrize("name", ["-x", "a..b", "a b", "/a", "a/", "a.lock", "a@{1", "a~1", "a\n", ".a", "a//b", ""])
def test_a_branch_or_tag_that_git_does_not_take_is_refused(name):
    for option in ("branch", "tag"):
        with pytest.raises(InputError, match=option):
            Target("alice/x", **{option: name})
    with pytest.raises(InputError, match="leave out"):
        Target("alice/x", pull_request=True, branch="b")


def test_stars_stand_for_tokens_of_any_kind(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "a-token-of-no-known-form")
    for token in ("hf_" + "a" * 34, "ghp_" + "b" * 36, "AKIA" + "C" * 16, "a-token-of-no-known-form"):
        assert without_secrets(f"see {token}!") == "see ***!"
