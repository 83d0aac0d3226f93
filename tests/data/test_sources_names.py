"""Every existing file is read as itself, whatever its name; only what does not exist is a pattern or an address."""

import gzip
import json
import os
import zipfile

import datasets
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from groundup.common.console import console
from groundup.common.errors import InputError, public_name, user_path
from groundup.data.examples import load_texts
from groundup.data.preparation import is_prepared
from groundup.data.sources import check_exists, is_hub_name, load_corpus, load_documents, load_tables

TEXTS = ["the text of row one", "and that of row two"]
ROWS = [{"text": text} for text in TEXTS]
ODD = "[]{}*?~%#:=+&'\"!$;,@^`|\\() -\n\tä漢é\u0301👋x1."
names = st.text(ODD, min_size=1, max_size=12).filter(lambda name: name.strip(". ") and "/" not in name)
KINDS = [".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".txt.gz"]


def write(path, kind):
    if kind == ".parquet":
        pd.DataFrame(ROWS).to_parquet(path)
        return
    text = {
        ".txt": TEXTS[0],
        ".json": json.dumps(ROWS),
        ".csv": "text\n" + "\n".join(TEXTS),
        ".tsv": "text\n" + "\n".join(TEXTS),
        ".jsonl": "\n".join(map(json.dumps, ROWS)),
    }[kind.removesuffix(".gz")]
    content = text.encode()
    path.write_bytes(gzip.compress(content) if kind.endswith(".gz") else content)


def texts(item):
    return list(load_documents([str(item)])[0].texts())


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, st.sampled_from(KINDS))
@example("rows[1]", ".jsonl")
@example("part?", ".csv")
@example("a::b", ".jsonl")
@example("hf:owner", ".json")
@example("~nobody", ".tsv")
@example("-x", ".parquet")
def test_a_file_of_any_name_is_read_as_itself(tmp_path_factory, name, kind):
    folder = tmp_path_factory.mktemp("data")
    decoys = [folder / f"rows1{kind}", folder / f"partX{kind}"]
    path = folder / f"{name}{kind}"
    assume(path not in decoys)
    for decoy in decoys:
        write(decoy, ".txt")  # what a pattern would find, and could not read
    write(path, kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for item in (path, f"{name}{kind}", f"./{name}{kind}"):
            check_exists([str(item)])
            assert not is_hub_name(str(item))
            assert texts(item) == (TEXTS[:1] if ".txt" in kind else TEXTS)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names, names)
@example("my data [v2]", "rows")
@example("owner:name", "x")
def test_a_folder_of_any_name_is_read_as_itself(tmp_path_factory, name, inner):
    place = tmp_path_factory.mktemp("data")
    folder = place / name
    folder.mkdir()
    write(folder / f"{inner}.csv", ".csv") if not inner.startswith(".") else write(folder / "rows.csv", ".csv")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for item in (folder, name, f"{name}/"):
            assert not is_prepared(str(item))
            assert texts(item) == TEXTS
            assert load_texts(str(item), None) == TEXTS
            assert [len(table) for _, table in load_tables([str(item)])[0]] == [2]


def test_a_path_of_names_like_a_hub_dataset_is_itself_where_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner").mkdir()
    write(tmp_path / "owner" / "name", ".txt")
    assert texts("owner/name") == TEXTS[:1]


def test_a_built_in_name_is_built_in_and_that_is_said_where_a_file_has_it_too(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "python-docs", ".txt")
    with console.capture() as said:
        assert load_corpus(["python-docs"]).sources[0]["name"].startswith("python-docs (")
    assert "what is called so here is ./python-docs" in said.get()
    assert texts("./python-docs") == TEXTS[:1]


def test_a_member_of_an_archive_may_have_any_name(tmp_path):
    with zipfile.ZipFile(tmp_path / "all [v2].zip", "w") as archive:
        archive.writestr("a::b*.jsonl", "\n".join(map(json.dumps, ROWS)))
        archive.writestr("x[1]/?.txt", "third")
    assert texts(tmp_path / "all [v2].zip") == [*TEXTS, "third"]


def test_what_does_not_exist_is_a_pattern(tmp_path):
    for number, text in enumerate(TEXTS, 1):
        (tmp_path / f"rows{number}.txt").write_text(text, encoding="utf-8")
    assert texts(tmp_path / "rows[12].txt") == TEXTS[:2]


@pytest.mark.parametrize("name", ["~nobody-of-that-name/x.txt", "a" * 300, "b" * 300 + ".txt", "a\0b", "[" * 300])
def test_what_can_be_no_file_is_one_line(name):
    for look in (texts, is_hub_name, public_name, lambda name: check_exists([name])):
        try:
            look(name)
        except InputError as error:
            assert "\n" not in str(error)


def test_a_prompt_is_no_path_but_one_line():
    with pytest.raises(InputError, match="is longer than a name can be"):
        user_path("Once upon a time " * 40)


def test_a_home_is_spelt_out_unless_something_of_that_very_name_is_here(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    write(home / "a.txt", ".txt")
    assert texts("~/a.txt") == TEXTS[:1]
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "a.txt").write_text("here", encoding="utf-8")
    assert texts("~/a.txt") == ["here"]


# ---------------------------------------------------------------------------------------------------------------------
# What stands in folders


def said_of(item):
    with console.capture() as said:
        found = texts(item)
    return found, said.get()


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    write(tmp_path / "elsewhere" / "rows.csv", ".csv")
    write(tmp_path / "data" / "sub" / "a.txt", ".txt")
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "sub" / "back").symlink_to(tmp_path / "data")
    found, said = said_of(tmp_path / "data")
    assert found == [*TEXTS, TEXTS[0]]
    assert "skipped 1 that are reached before, through a link (back)" in said
    assert texts(tmp_path / "data" / "**" / "*.txt") == TEXTS[:1]


def test_links_to_nothing_pipes_and_hidden_files_are_counted(tmp_path):
    write(tmp_path / "a.txt", ".txt")
    write(tmp_path / ".hidden.txt", ".txt")
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere.txt")
    (tmp_path / "circle.txt").symlink_to(tmp_path / "circle.txt")
    os.mkfifo(tmp_path / "pipe.txt")
    found, said = said_of(tmp_path)
    assert found == TEXTS[:1]
    assert "skipped 1 that are hidden (.hidden.txt)" in said
    assert "skipped 3 that are links to nothing, pipes or devices (circle.txt, gone.txt, pipe.txt)" in said


@pytest.mark.parametrize("make", ["link", "circle", "pipe", "device"])
def test_what_is_no_file_is_refused_in_one_line(tmp_path, make):
    path = tmp_path / "data.txt"
    if make == "device":
        path = "/dev/null"
    elif make == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "nowhere" if make == "link" else path)
    says = {"link": "is a link to", "circle": "is a link to", "pipe": "is a pipe", "device": "is a device"}[make]
    for look in (texts, lambda item: check_exists([str(item)])):
        with pytest.raises(InputError, match=says) as error:
            look(path)
        assert "\n" not in str(error.value)


def test_a_name_that_is_no_utf8_is_read_and_said(tmp_path):
    path = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.jsonl")
    with open(path, "w", encoding="utf-8") as file:
        file.write('{"body": "a first", "id": 1}\n{"body": "a second", "id": 2}\n')
    corpus = load_corpus([path])
    assert corpus.sources[0]["name"] == "caf\ufffd\\n.jsonl"
    assert public_name(path) == "caf\ufffd\\n.jsonl"
    found, said = said_of(tmp_path)
    assert found == ["a first", "a second"]
    assert "caf\ufffd\\n.jsonl: reads the column body as text; not id" in said


def test_a_file_that_vanishes_while_it_is_read_is_one_line(tmp_path):
    for kind in (".txt", ".jsonl", ".csv", ".parquet"):
        path = tmp_path / f"rows{kind}"
        write(path, kind)
        if kind == ".txt":
            documents, _ = load_documents([str(path)])
            path.unlink()
            with pytest.raises(InputError, match="cannot read"):
                list(documents.texts())
        else:
            ((_, table),) = load_tables([str(path)])[0]
            path.unlink()
            with pytest.raises(InputError, match="cannot read"):
                list(table.numbered())


# ---------------------------------------------------------------------------------------------------------------------
# What is kept is kept by content


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".txt", ".zip"])
def test_a_file_replaced_under_the_same_name_and_time_is_read_anew(tmp_path, kind):
    path = tmp_path / f"rows{kind}"
    for value in ("old text", "new text"):
        rows = [{"text": value}] * 3
        if kind == ".zip":
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("rows.jsonl", "\n".join(map(json.dumps, rows)))
        elif kind == ".parquet":
            pd.DataFrame(rows).to_parquet(path)
        else:
            content = f"text\n{value}\n{value}\n{value}\n" if kind in (".csv", ".tsv") else json.dumps(rows)
            content = "\n".join(map(json.dumps, rows)) if ".jsonl" in kind else content
            content = value if kind == ".txt" else content
            path.write_bytes(gzip.compress(content.encode(), mtime=0) if kind.endswith(".gz") else content.encode())
        os.utime(path, (1e9, 1e9))
        assert set(texts(path)) == {value}
        if kind not in (".txt",):
            assert {row["text"] for _, table in load_tables([str(path)])[0] for _, row in table.numbered()} == {value}


def test_a_saved_dataset_is_read_as_its_rows_and_anew_when_it_is_replaced(tmp_path):
    for value in ("old text", "new text"):
        rows = datasets.Dataset.from_dict({"id": ["a", "b"], "body": [value, value]})
        rows.save_to_disk(tmp_path / "alone")
        datasets.DatasetDict({"train": rows, "test": rows.select([0])}).save_to_disk(tmp_path / "data" / "both")
        for folder in ("alone", "data"):
            found, said = said_of(tmp_path / folder)
            assert found == [value, value]
            assert "reads the column body as text; not id" in said
        assert "the split train is read, not test" in said
        assert texts(tmp_path / "data" / "both" / "test") == [value]
        assert load_texts(str(tmp_path / "alone"), None) == [value, value]


def test_a_saved_dataset_that_is_not_whole_or_has_no_split_to_train_on_is_one_line(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a"]})
    datasets.DatasetDict({"one": rows, "two": rows}).save_to_disk(tmp_path / "splits")
    with pytest.raises(InputError, match="has the splits one, two: give the folder of one"):
        texts(tmp_path / "splits")
    rows.save_to_disk(tmp_path / "broken")
    next((tmp_path / "broken").glob("*.arrow")).unlink()
    with pytest.raises(InputError, match="cannot read the saved dataset broken") as error:
        texts(tmp_path / "broken")
    assert "\n" not in str(error.value)
