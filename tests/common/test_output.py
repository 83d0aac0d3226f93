"""The folder that a command writes: whose it is, who is at work in it, and what is left where the command fails."""

import json
import os
import signal
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import groundup.common.output as output_module
from groundup.cli.main import VERBS
from groundup.common.errors import InputError
from groundup.common.output import GOING_ON, STATE, claim, given_folder, is_begun, require_unused, tidy
from groundup.common.settings import hints_of

ENTRIES = ["work/", "final/", "checkpoints/step-3/", "seed-0/", "train/", "tokenizer/", "new-x/", ".part/"]
ENTRIES += ["README.md", "recipe.yaml", "metrics.json", "log.jsonl", "stages.json", "model.safetensors", "notes"]


def contents(folder):
    """Return every path under a folder with its bytes, links and times."""
    return {
        str(path.relative_to(folder)): (path.is_symlink(), path.lstat().st_mtime_ns)
        + ((path.read_bytes(),) if path.is_file() else ())
        for path in [folder, *sorted(folder.rglob("*"))]
    }


@pytest.fixture
def at_work(tmp_path):
    """Start a process that holds a folder; returns it when the folder is its own."""
    started = []

    def start(out, verb="pretrain", then="input()"):
        code = f"from groundup.common.output import claim\nwith claim({str(out)!r}, {verb!r}, 'x') as output:\n"
        code += f"    (output.path / 'work').mkdir()\n    print(1, flush=True)\n    {then}"
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=tmp_path
            )
        )
        assert started[-1].stdout.readline()
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@settings(max_examples=60, deadline=None)
@given(
    entries=st.lists(st.sampled_from(ENTRIES), min_size=1, unique=True),
    content=st.one_of(
        st.binary(max_size=40),
        st.sampled_from([b"verb: cook\n", b"- a\n", b"{}", b"null", b'{"a": {}}', b"verb: [pretrain]\n", b"a: b: c"]),
    ),
    verb=st.sampled_from(["pretrain", "classify", "instruct", "prepare", "evaluate"]),
    resume=st.sampled_from([None, False, True]),
)
def test_a_folder_with_something_of_somebody_else_is_refused_and_stays_as_it_was(
    entries, content, verb, resume, tmp_path_factory
):
    folder = tmp_path_factory.mktemp("foreign")
    for name in entries:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            path.mkdir(parents=True)
            path /= "theirs"
        path.write_bytes(content)
    before = contents(folder)
    with pytest.raises(InputError):
        claim(folder, verb, "x", resume=resume)
    assert contents(folder) == before


@pytest.mark.parametrize("of", ["pretrain", "classify"])
def test_only_the_verb_that_began_a_folder_goes_on_with_it_and_only_when_told(of, tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"verb": of}))
    (tmp_path / "theirs").write_text("kept")
    with pytest.raises(InputError, match="or add --resume" if of == "pretrain" else "a new --out$"):
        claim(tmp_path, "pretrain", "x", resume=False)
    if of == "pretrain":
        with claim(tmp_path, "pretrain", "x", resume=True) as output:
            assert output.goes_on
    else:
        with pytest.raises(InputError, match="was made by `groundup classify`"):
            claim(tmp_path, "pretrain", "x", resume=True)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.yaml", "theirs"}


def test_folders_made_for_a_command_that_fails_are_gone_and_a_folder_of_the_users_is_not(tmp_path):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for out in (theirs, theirs / "a" / "b", tmp_path / "new"):
        with pytest.raises(RuntimeError), claim(out, "merge", "x"):
            raise RuntimeError
        with pytest.raises(RuntimeError), claim(out, "merge", "x") as output, output.filled() as folder:
            (folder / "half").write_text("written")
            raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["theirs"]


@pytest.mark.parametrize("way", ["absent", "empty", ".", "link", "chain of links"])
def test_a_folder_is_filled_wherever_it_is_and_nothing_lies_beside_it(way, tmp_path, monkeypatch):
    place = tmp_path / "place"
    if way != "absent":
        place.mkdir()
    out = place
    if way == ".":
        monkeypatch.chdir(place)
        out = "."
    elif "link" in way:
        (tmp_path / "one").symlink_to(place)
        (tmp_path / "two").symlink_to("one")
        out = tmp_path / ("one" if way == "link" else "two")
    beside = set(tmp_path.iterdir()) | {place}
    with claim(out, "merge", "x") as output, output.filled() as folder:
        (folder / "weights").write_text("w")
        (folder / "recipe.yaml").write_text("verb: merge")
        (folder / "part").mkdir()
    assert {path.name for path in place.iterdir()} == {"weights", "recipe.yaml", "part"}
    assert set(tmp_path.iterdir()) == beside and is_begun(place, "merge")


def test_what_a_person_puts_there_meanwhile_is_neither_replaced_nor_removed(tmp_path):
    out = tmp_path / "out"
    with (
        pytest.raises(InputError, match=r"README\.md has appeared meanwhile"),
        claim(out, "merge", "x") as output,
        output.filled() as folder,
    ):
        (folder / "README.md").write_text("ours")
        (folder / "recipe.yaml").write_text("ours")
        (out / "README.md").write_text("theirs")
    assert [(path.name, path.read_text()) for path in out.iterdir()] == [("README.md", "theirs")]


@pytest.mark.parametrize("out", ["", " ", "~nobody-of-that-name/x", "a" * 300, "file", "file/x", "nowhere", "\0"])
def test_a_folder_that_cannot_be_is_said_in_one_line_before_any_work(out, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("theirs")
    (tmp_path / "nowhere").symlink_to("gone")
    before = contents(tmp_path)
    with pytest.raises(InputError) as told:
        claim(out, "pretrain", "x", resume=False)
    assert "\n" not in str(told.value)
    assert contents(tmp_path) == before


def test_a_place_that_cannot_be_written_to_is_said_before_any_work(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(InputError, match=r"cannot write to .*Read-only file system.*another --out"):
        claim(tmp_path / "new", "merge", "x")


def test_a_full_disk_and_a_file_that_may_not_be_read_are_told_apart(tmp_path):
    errors = [(28, tmp_path / "out" / "x", "no space left"), (27, tmp_path / "out" / "x", "no space left")]
    errors += [(13, tmp_path / "out" / "x", "cannot write to")]
    with pytest.raises(InputError, match="no space left"), claim(tmp_path / "out", "merge", "x"):
        raise OSError("423778 requested and 141248 written")  # numpy's way to say it
    for number, name, said in [*errors, (13, tmp_path / "data.txt", r"cannot open .*data\.txt")]:
        with pytest.raises(InputError, match=said), claim(tmp_path / "out", "merge", "x"):
            raise OSError(number, os.strerror(number), str(name))


@pytest.mark.parametrize("name", ["x" * 400, "ü" * 200, "漢" * 300, "a/b\nc", "...", "", "\udcff"])
def test_any_name_becomes_the_name_of_a_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outputs = [claim(None, "evaluate", name), claim(None, "evaluate", name)]
    assert outputs[1].path.name == f"{outputs[0].path.name}-1"
    for output in reversed(outputs):
        with output:
            pass
    assert not list(tmp_path.iterdir())


def test_a_home_folder_is_known_by_its_sign(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert given_folder("~/x") == tmp_path / "x"


def test_the_second_command_in_a_folder_hears_who_has_it_however_it_names_it(at_work, tmp_path):
    out = tmp_path / "out"
    (tmp_path / "link").symlink_to(out)
    first = at_work(out)
    before = contents(out)
    names = (out, tmp_path / "link", out / ".." / "out", out)
    for name, verb, resume in zip(names, ("pretrain", "pretrain", "evaluate", "merge"), (True, False, True, None)):
        with pytest.raises(InputError, match=f"in use by `groundup pretrain`, process {first.pid}, since 2"):
            claim(name, verb, "x", resume=resume)
    with pytest.raises(InputError, match="in use"):
        require_unused(out)
    assert contents(out) == before
    first.communicate("\n")
    require_unused(out)
    assert [path.name for path in out.iterdir()] == ["work"]


def test_one_process_cannot_have_a_folder_twice_either(tmp_path):
    with claim(tmp_path / "out", "merge", "x"), pytest.raises(InputError, match=f"process {os.getpid()}"):
        claim(tmp_path / "out", "merge", "x")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_frees_its_folder_which_its_own_verb_alone_goes_on_with(number, at_work, tmp_path):
    out = tmp_path / "out"
    process = at_work(out)
    process.send_signal(number)
    process.wait()
    require_unused(out)
    for verb, resume in (("classify", True), ("merge", None), ("pretrain", False)):
        with pytest.raises(InputError, match="choose a new --out"):
            claim(out, verb, "x", resume=resume)
    for _ in range(2):  # one that fails before it has done anything can be tried again
        with pytest.raises(RuntimeError), claim(out, "pretrain", "x", resume=True) as output:
            assert not output.goes_on  # there is no recipe: it begins anew
            raise RuntimeError
    with claim(out, "pretrain", "x", resume=True):
        (out / "recipe.yaml").write_text("verb: pretrain")
    assert {path.name for path in out.iterdir()} == {"work", "recipe.yaml"}


def test_what_a_killed_command_was_writing_is_no_hindrance(at_work, tmp_path):
    out = tmp_path / "out"
    then = "(output.path / 'work').rmdir(); new = output.filled(); new.__enter__(); print(2, flush=True); input()"
    process = at_work(out, "merge", then)
    assert process.stdout.readline()
    process.kill()
    process.wait()
    assert any((out / STATE).glob("new-*"))
    with claim(out, "merge", "x") as output, output.filled() as folder:
        (folder / "recipe.yaml").write_text("verb: merge")
    assert [path.name for path in out.iterdir()] == ["recipe.yaml"]


def test_commands_that_begin_at_once_without_a_name_have_a_folder_each(tmp_path):
    code = "from groundup.common.output import claim\nimport sys\nsys.stdin.readline()\n"
    code += "with claim(None, 'tokenizer', 'x') as o:\n    (o.path / 'x').touch(); print(o.path)"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    found = {racer.communicate(timeout=60)[0].strip() for racer in racers}
    assert found == {f"runs/tokenizer-x{end}" for end in ("", "-1", "-2", "-3")}
    assert {path.name for path in (tmp_path / "runs").rglob("*")} == {"x", *(name.split("/")[1] for name in found)}


def test_of_commands_that_begin_at_once_in_one_folder_one_has_it(tmp_path):
    code = "from groundup.common.output import claim\nimport sys\nsys.stdin.readline()\n"
    code += "with claim('out', 'merge', 'x') as o:\n    print('mine', flush=True); sys.stdin.readline()"
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for racer in racers:
        racer.stdin.write("\n")
        racer.stdin.flush()
    for _ in range(3):  # those that do not have it end
        os.wait()
    said = [racer.communicate("\n", timeout=60) for racer in racers]
    assert [out for out, _ in said].count("mine\n") == 1
    assert sum("is in use by" in error for _, error in said) == 3
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_only_verbs_that_go_on_are_named_as_the_maker_of_a_folder(tmp_path):
    going_on = {name for name, verb in VERBS.items() if "resume" in hints_of(verb.settings)}
    assert going_on - {"generate", "run"} == set(GOING_ON)  # one goes on with a file, the other by its stages
    for maker, said in [
        ("prepare", "resume it with that verb"),
        ("export", "did not write"),
        ("bake", "did not write"),
    ]:
        folder = tmp_path / maker
        folder.mkdir()
        (folder / "recipe.yaml").write_text(f"verb: {maker}\n")
        with pytest.raises(InputError, match=said):
            claim(folder, "pretrain", "x", resume=True)
    (folder / "recipe.yaml").write_text("verb: [\n")  # somebody's, in whatever form
    with pytest.raises(InputError, match="did not write"):
        claim(folder, "pretrain", "x", resume=True)


def test_what_a_killed_command_had_whole_is_moved_up_by_the_next_one(tmp_path):
    out, names = tmp_path / "out", ["a", "config.json", "recipe.yaml", "metrics.json"]

    def killed_after(moves):
        code = "import os, pathlib\nfrom groundup.common.output import claim\nreal, moved = pathlib.Path.rename, []\n"
        code += f"def rename(self, target):\n    if len(moved) > {moves}:\n        os.kill(os.getpid(), 9)\n"
        code += "    moved.append(target)\n    return real(self, target)\npathlib.Path.rename = rename\n"
        code += f"with claim({str(out)!r}, 'export', 'x') as output, output.filled() as new:\n"
        code += f"    for name in {names}:\n        (new / name).write_text('ours')\n"
        assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL

    killed_after(2)
    assert {path.name for path in out.iterdir()} == {STATE, "a", "config.json"}
    with pytest.raises(InputError, match="has the finished output of a killed `groundup export`"):
        claim(out, "export", "x")
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    with pytest.raises(InputError, match="already holds something"):
        claim(out, "export", "x")


def test_a_command_that_succeeds_where_one_was_killed_leaves_nothing_of_it(tmp_path):
    (tmp_path / STATE).mkdir()
    note = {"verb": "merge", "process": 1, "since": "then"}
    (tmp_path / STATE / "holder.json").write_text(json.dumps(note))
    with claim(tmp_path, "merge", "x") as output, output.filled() as new:
        (new / "recipe.yaml").write_text("verb: pretrain\n")  # a merged model has its adapter's recipe
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_what_is_left_of_a_lock_is_removed_unless_a_command_is_at_work(tmp_path, at_work):
    at_work(tmp_path / "held")
    for name in ("held", "left", "none"):
        (tmp_path / name / ("" if name == "none" else STATE)).mkdir(parents=True, exist_ok=True)
        tidy(tmp_path / name)
    assert (tmp_path / "held" / STATE / "lock").is_file()
    assert not list((tmp_path / "left").iterdir()) and not list((tmp_path / "none").iterdir())


def test_a_name_that_is_not_utf_8_is_refused_before_any_work():
    with pytest.raises(InputError, match=r"--out b.: the name is not UTF-8"):
        given_folder("b\udcff")


def test_what_is_taken_back_loses_first_what_makes_it_a_whole_one(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    names = ["model.safetensors", "config.json", "recipe.yaml"]
    monkeypatch.setattr("groundup.common.output.sync_folder", stop)  # stopped when all is moved up
    real, removed = output_module.remove, []

    def remove_one(path):
        if path.parent == tmp_path / "out":
            removed.append(path.name)
            if len(removed) == 2:
                raise KeyboardInterrupt  # and stopped again
        real(path)

    monkeypatch.setattr(output_module, "remove", remove_one)
    with pytest.raises(KeyboardInterrupt), claim(tmp_path / "out", "export", "x") as output, output.filled() as new:
        for name in names:
            (new / name).write_text("ours")
    assert removed[:2] == ["recipe.yaml", "config.json"]
