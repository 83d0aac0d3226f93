import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from groundup.common.console import ProgressBar
from groundup.common.errors import InputError
from groundup.data import tokens
from groundup.data.documents import Share
from groundup.data.preparation import is_prepared, open_prepared_data, prepare
from groundup.data.sources import load_documents
from groundup.data.tokens import TokenStream
from groundup.tokenization.folder import load_tokenizer, save_tokenizer
from groundup.tokenization.training import train_bpe

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(train_bpe(["some words of a text, 0123456789\n" * 9], 300), folder)
    return str(folder)


@pytest.fixture
def rows(tmp_path):
    """Return seven files of three documents each, all different."""
    for number in range(7):
        lines = [json.dumps({"text": f"document {number} {letter}\n" * 9}) for letter in "abc"]
        (tmp_path / "rows").mkdir(exist_ok=True)
        (tmp_path / "rows" / f"{number}.jsonl").write_text("\n".join(lines))
    return str(tmp_path / "rows")


def ids_of(stream: TokenStream) -> list[int]:
    return stream.read(0, len(stream)).tolist()


def texts_in(stream: TokenStream, tokenizer) -> list[str]:
    ids = np.array(ids_of(stream))
    borders = np.flatnonzero(ids == stream.meta["end_of_text"])
    return [load_tokenizer(tokenizer).decode(ids[a + 1 : b]) for a, b in itertools.pairwise(borders)]


# ---------------------------------------------------------------------------------------------------------------------
# Parts


@pytest.mark.parametrize("count", [2, 7, 10])  # of files, of a file each, and more parts than files
def test_the_parts_of_a_corpus_hold_each_document_once(rows, tokenizer, count):
    for number in range(1, count + 1):
        prepare(data=[rows], tokenizer=tokenizer, part=f"{number}/{count}", out="shards", quiet=True)
    data = open_prepared_data(Path("shards"))
    found = [*texts_in(data.train, tokenizer), *texts_in(data.validation, tokenizer)]
    assert sorted(found) == sorted(load_documents([rows])[0].texts())
    assert len(texts_in(data.validation, tokenizer)) == count
    assert data.train.meta["documents"] == len(texts_in(data.train, tokenizer)) == 21 - count
    assert data.train.meta["bytes"] == sum(len(text.encode()) for text in texts_in(data.train, tokenizer))
    assert [row["name"] for row in data.sources] == [f"{number}.jsonl" for number in range(7)]


def test_parts_that_are_missing_are_named(rows, tokenizer):
    for number in (1, 4):
        prepare(data=[rows], tokenizer=tokenizer, part=f"{number}/5", out="shards", quiet=True)
    with pytest.raises(InputError, match="lacks the parts 2/5, 3/5, 5/5"):
        open_prepared_data(Path("shards"))


def test_a_part_that_is_not_finished_is_refused(rows, tokenizer):
    for number in (1, 2):
        prepare(data=[rows], tokenizer=tokenizer, part=f"{number}/2", out="shards", quiet=True)
    shutil.rmtree(Path("shards", Share(2, 2).folder, "validation"))
    with pytest.raises(InputError, match=r"part-00002-of-00002/validation holds no shards"):
        open_prepared_data(Path("shards"))


def test_parts_of_two_sets_or_of_two_tokenizers_do_not_join(rows, tokenizer, tmp_path):
    save_tokenizer(train_bpe(["some other words of a text\n" * 9], 290), tmp_path / "other")
    for number, made_with in ((1, tokenizer), (2, "other")):
        prepare(data=[rows], tokenizer=str(made_with), part=f"{number}/2", out="shards", quiet=True)
    with pytest.raises(InputError, match="part-00002-of-00002 was prepared with another tokenizer"):
        open_prepared_data(Path("shards"))
    prepare(data=[rows], tokenizer=tokenizer, part="1/3", out="shards", quiet=True)
    with pytest.raises(InputError, match="parts of 2 and of 3"):
        open_prepared_data(Path("shards"))


@pytest.mark.parametrize("part", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4"])
def test_a_part_that_is_none_is_refused(rows, tokenizer, part):
    with pytest.raises(InputError, match=f"--part {part}: give I/N"):
        prepare(data=[rows], tokenizer=tokenizer, part=part, out="shards")


def test_a_part_of_less_than_that_many_documents_is_refused(tokenizer):
    Path("a.txt").write_text("a text")
    with pytest.raises(InputError, match="only 1 documents to divide"):
        prepare(data=["a.txt"], tokenizer=tokenizer, part="1/2", out="shards")


def test_a_part_needs_a_folder_that_all_parts_share(rows, tokenizer):
    with pytest.raises(InputError, match="--part needs --out"):
        prepare(data=[rows], tokenizer=tokenizer, part="1/2")


# ---------------------------------------------------------------------------------------------------------------------
# Stopped and begun again


@pytest.fixture
def story_file(tmp_path):
    path = tmp_path / "story.txt"
    path.write_text("".join(f"line {number} of a long story, 0123456789\n" for number in range(6000)))
    return str(path)


def files_of(folder) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_files(story_file, tokenizer, tmp_path):
    # Small shards, so that there are many to be killed between, and a disk that takes its time.
    code = f"""
import os, time
from groundup.data import tokens
from groundup.data.preparation import prepare
tokens.SHARD_TOKENS, tokens.BATCH_BYTES = 1000, 10_000
sync = os.fsync
os.fsync = lambda descriptor: (time.sleep(0.02), sync(descriptor))
print("ready", flush=True)
prepare(data=[{story_file!r}], tokenizer={tokenizer!r}, out="shards", quiet=True, resume=True)
print("done", flush=True)
"""

    def start() -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        return process

    kept, partial = [], tmp_path / "shards" / ".train.partial"
    for number in range(4):
        process = start()
        while process.poll() is None and len(list(partial.glob("*.npy"))) < 15 * (number + 1):
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        kept.append({path.name: path.stat().st_mtime_ns for path in partial.glob("*.npy")})
    process = start()
    assert process.communicate(timeout=300)[0] == "done\n"
    for earlier, later in itertools.pairwise(kept):
        kept_shards = {name for name, time in earlier.items() if later[name] == time}
        assert len(kept_shards) >= len(earlier) - 1  # all but the one that was being written
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "SHARD_TOKENS", 1000)
        never_killed = prepare(data=[story_file], tokenizer=tokenizer, out="whole", quiet=True)
    assert files_of(tmp_path / "shards") == files_of(never_killed)
    assert len(open_prepared_data(never_killed).train.shards) > 60


def test_what_is_finished_is_used_again_when_nothing_has_changed(story_file, tokenizer, monkeypatch):
    folder = prepare(data=[story_file], tokenizer=tokenizer, out="shards", quiet=True)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    monkeypatch.setattr(tokens, "plain_backend", None)  # nothing may be tokenised
    prepare(data=[story_file], tokenizer=tokenizer, out="shards", quiet=True, resume=True)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ("text", "started with other .*sources"),
        ("tokenizer", "leave out --tokenizer other"),
        ("tokenizer in its place", "started with other .*tokenizer"),
        ("smoke", "leave out --smoke True"),
    ],
)
def test_a_folder_begun_with_something_else_is_left_alone(story_file, tokenizer, tmp_path, changed, named):
    tokenizer = shutil.copytree(tokenizer, tmp_path / "own")
    folder = prepare(data=[story_file], tokenizer=tokenizer, out="shards", quiet=True)
    before = files_of(folder)
    if changed == "text":
        Path(story_file).write_text("another story\n" * 99)
    if changed == "tokenizer":
        tokenizer = str(tmp_path / "other")
    if changed.startswith("tokenizer"):
        save_tokenizer(train_bpe(["other words"], 262), Path(tokenizer))
    with pytest.raises(InputError, match=named):
        prepare(data=[story_file], tokenizer=tokenizer, out="shards", resume=True, smoke=changed == "smoke")
    assert files_of(folder) == before


def test_a_damaged_shard_of_a_stopped_run_is_written_again(story_file, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "SHARD_TOKENS", 1000)
    whole = prepare(data=[story_file], tokenizer=tokenizer, out="whole", quiet=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ProgressBar, "update", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        prepare(data=[story_file], tokenizer=tokenizer, out="shards", quiet=True)
    partial = tmp_path / "shards" / ".train.partial"
    (partial / "shard-00007.npy").write_bytes((partial / "shard-00007.npy").read_bytes()[:-1])
    with (partial / "progress.jsonl").open("ab") as file:
        file.write(b'{"name": "shard-')  # torn by the kill
    prepare(data=[story_file], tokenizer=tokenizer, out="shards", quiet=True, resume=True)
    assert files_of(tmp_path / "shards") == files_of(whole)


def test_resuming_needs_the_folder_and_refuses_one_of_something_else(story_file, tokenizer, tmp_path):
    with pytest.raises(InputError, match="--resume needs --out"):
        prepare(data=[story_file], tokenizer=tokenizer, resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something that `prepare` did not write"):
        prepare(data=[story_file], tokenizer=tokenizer, resume=True, out="mine")
    assert files_of(tmp_path / "mine") == {"thesis.tex": b""}


# ---------------------------------------------------------------------------------------------------------------------
# What is opened


def test_a_prepared_folder_holds_its_tokenizer_and_names_its_text(story_file, tokenizer):
    folder = prepare(data=[story_file], tokenizer=tokenizer, out="shards", quiet=True)
    data = open_prepared_data(folder, tokenizer)
    assert (
        "".join([*texts_in(data.train, tokenizer), *texts_in(data.validation, tokenizer)])
        == Path(story_file).read_text()
    )
    assert data.tokenizer.get_vocab() == load_tokenizer(tokenizer).get_vocab()
    assert (data.name, [row["name"] for row in data.sources]) == ("story", ["story.txt"])
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["sources"] == data.sources


def test_another_tokenizer_than_the_shards_were_made_with_is_refused(story_file, tokenizer, tmp_path):
    folder = prepare(data=[story_file], tokenizer=tokenizer, out="shards", quiet=True)
    save_tokenizer(train_bpe(["other words"], 262), tmp_path / "other")
    with pytest.raises(InputError, match="not prepared with the tokenizer of other"):
        open_prepared_data(folder, "other")


def test_a_folder_of_text_is_not_prepared(rows, story_file):
    assert not is_prepared(rows)
    assert not is_prepared(story_file)
    assert not is_prepared("owner/name")


# ---------------------------------------------------------------------------------------------------------------------
# datatrove


def write_datatrove(path: Path, documents, tokenizer: str | None, size: int = 2, index: bool = True) -> None:
    """Return the files of `TokenizedFile` in datatrove's pipeline/tokens/tokenizer.py, byte by byte."""
    ends = np.cumsum([len(ids) for ids in documents]).tolist()
    letter = {2: "H", 4: "I"}[size]
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(struct.pack(f"<{len(ids)}{letter}", *ids) for ids in documents))
    if index:
        path.with_name(path.name + ".index").write_bytes(struct.pack(f"<{len(ends)}Q", *ends))
    if tokenizer:
        path.with_name(path.name + ".metadata").write_text(f"{tokenizer}|{size}\n{ends[-1]}\n{ends[-1]} T")


@pytest.mark.parametrize("size", [2, 4])
def test_shards_of_datatrove_are_read(tokenizer, size):
    end = load_tokenizer(tokenizer).eos_token_id
    documents = [[*range(10, 10 + length), end] for length in range(1, 31)]
    write_datatrove(Path("ds", "00000_00000_shuffled.ds"), documents[:11], tokenizer, size)
    write_datatrove(Path("ds", "00001_00000_shuffled.ds"), documents[11:], tokenizer, size)
    assert is_prepared("ds")
    data = open_prepared_data(Path("ds"))
    assert ids_of(data.train) == [end, *itertools.chain(*documents[:27])]
    assert ids_of(data.validation) == [end, *itertools.chain(*documents[27:])]  # the last tenth
    assert data.tokenizer.get_vocab() == load_tokenizer(tokenizer).get_vocab()
    assert data.train.meta["end_of_text"] == end
    assert [row["name"] for row in data.sources] == ["00000_00000_shuffled.ds", "00001_00000_shuffled.ds"]


def test_shards_of_datatrove_without_metadata_or_index_take_the_tokenizer_that_is_given(tokenizer):
    end = load_tokenizer(tokenizer).eos_token_id
    write_datatrove(Path("ds", "a.ds"), [[*range(10, 29), end]], None, index=False)
    with pytest.raises(InputError, match="does not say which tokenizer"):
        open_prepared_data(Path("ds"))
    data = open_prepared_data(Path("ds"), tokenizer)
    assert ids_of(data.train) == [end, *range(10, 28)]
    assert ids_of(data.validation) == [end, 28, end]


def test_documents_that_datatrove_did_not_separate_are_said(tokenizer, capfd):
    write_datatrove(Path("ds", "a.ds"), [[7, 8], [9, 10]], tokenizer)
    Path("ds", "a.ds.loss").write_bytes(b"\1\1\1\0")
    open_prepared_data(Path("ds"))
    said = capfd.readouterr().err
    assert "no end-of-text token" in said
    assert "loss masks are ignored" in said


@pytest.mark.parametrize("damage", ["odd", "short", "other tokenizer", "no metadata of its"])
def test_damaged_shards_of_datatrove_are_refused(tokenizer, damage):
    path = Path("ds", "a.ds")
    write_datatrove(path, [[7, 8], [9, 999 if damage == "other tokenizer" else 10]], tokenizer)
    if damage == "odd":
        path.write_bytes(path.read_bytes()[:-1])
    if damage == "short":
        path.write_bytes(path.read_bytes()[:-2])
    if damage == "no metadata of its":
        path.with_name("a.ds.metadata").write_text("something else")
    expected = {
        "odd": "not a multiple of 2",
        "short": "not what its index says",
        "other tokenizer": "holds the id 999, the tokenizer has 277",
        "no metadata of its": "not datatrove's",
    }
    with pytest.raises(InputError, match=expected[damage]):
        open_prepared_data(Path("ds"))


def test_a_folder_of_nothing_is_refused(tmp_path):
    with pytest.raises(InputError, match="holds no shards"):
        open_prepared_data(tmp_path)


@pytest.mark.parametrize("named", ["the given", "a like one", "another"])
def test_the_tokenizer_given_for_shards_of_datatrove_has_the_ids_of_the_one_they_name(tokenizer, tmp_path, named):
    if named == "a like one":
        save_tokenizer(load_tokenizer(tokenizer), tmp_path / "like")
    if named == "another":
        save_tokenizer(train_bpe(["other words"], 262), tmp_path / "another")
    name = {"the given": tokenizer, "a like one": tmp_path / "like", "another": tmp_path / "another"}[named]
    end = load_tokenizer(tokenizer).eos_token_id
    write_datatrove(Path("ds", "a.ds"), [[7, 8, end], [9, 10, end]], str(name))
    if named == "another":
        with pytest.raises(InputError, match="whose ids are not those of"):
            open_prepared_data(Path("ds"), tokenizer)
    else:
        assert len(open_prepared_data(Path("ds"), tokenizer).train)
