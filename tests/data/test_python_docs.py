import json

import pytest

from groundup.data import python_docs
from groundup.data.examples import Columns, also_in, load_examples
from groundup.data.python_docs import LIBRARY_AREAS, library_areas, without_module
from groundup.data.sources import load_corpus, load_documents


@pytest.fixture(scope="module")
def docs():
    return python_docs.load()


def test_about_two_megabytes_are_split_nine_to_one(docs):
    sizes = {split: sum(len(text.encode()) for text in docs[split]["text"]) for split in docs}
    assert 1_000_000 < sum(sizes.values()) < 5_000_000
    assert 0.85 < sizes["train"] / sum(sizes.values()) < 0.95


def test_a_document_says_what_it_documents(docs):
    rows = {row["name"]: row for split in docs.values() for row in split}
    row = rows["json.dumps"]
    assert row["text"].startswith("json.dumps(obj, *, skipkeys=False")
    assert "\n\nSerialize ``obj`` to a JSON formatted ``str``." in row["text"]
    assert row["area"] == "json"
    assert rows["json"]["text"].startswith("module json\n\n")


def test_no_text_is_there_twice_nor_on_both_sides(docs):
    bodies = [text.split("\n\n", 1)[1] for split in docs.values() for text in split["text"]]
    assert len(bodies) == len(set(bodies))


def test_tests_and_other_packages_are_left_out(docs):
    areas = {area for split in docs.values() for area in split["area"]}
    assert not areas & {"test", "idlelib", "lib2to3", "turtledemo", "site-packages", "torch"}


def test_the_side_of_a_document_follows_from_its_name_alone(docs):
    for split, rows in docs.items():
        assert {python_docs.split_of(name) for name in rows["name"]} == {split}
    assert python_docs.split_of("json.dumps") == "train"  # by the sha256 of the name, on every machine
    assert python_docs.split_of("json.loads") == "validation"


def test_a_second_reading_gives_the_same(docs):
    python_docs.load.cache_clear()
    again = python_docs.load()
    assert all(docs[split]["text"][:] == again[split]["text"][:] for split in docs)


def test_the_corpus_keeps_its_own_split_and_has_a_source(docs):
    corpus = load_corpus(["python-docs"])
    assert list(corpus.validation.texts()) == docs["validation"]["text"][:]
    assert list(corpus.train.texts()) == docs["train"]["text"][:]
    assert corpus.sources[0]["name"].startswith("python-docs (3.")
    assert len(corpus.sources[0]["sha256"]) == 64
    json.dumps(corpus.sources)


def test_it_can_be_read_beside_a_file(docs, tmp_path):
    (tmp_path / "a.txt").write_text("0123456789")
    corpus = load_corpus([str(tmp_path / "a.txt"), "python-docs"])
    assert list(corpus.train.texts())[-1] == "012345678"
    assert list(corpus.validation.texts())[-1] == "9"


def test_what_is_measured_on_is_the_held_out_part_alone(docs, tmp_path):
    (tmp_path / "a.txt").write_text("0123456789")
    documents, _ = load_documents(["python-docs", str(tmp_path / "a.txt")])
    assert list(documents.texts()) == [*docs["validation"]["text"], "0123456789"]


def test_the_built_in_task_has_rows_enough_in_every_area_and_no_text_on_both_sides():
    task = library_areas()
    assert len(task["train"]) + len(task["test"]) >= 3000
    for area in set(task["train"]["label"]):
        assert task["train"]["label"].count(area) >= 100
        assert task["test"]["label"].count(area) >= 10
    assert not also_in(task["test"]["text"], task["train"]["text"]).any()


def test_test_texts_are_of_documents_that_pretraining_on_the_corpus_holds_out():
    held_out = {text.partition("\n")[2].strip() for text in python_docs.load()["validation"]["text"]}
    for text in list(library_areas()["test"]["text"])[:50]:
        assert text.partition("\n")[2].strip() in held_out or text.strip() in held_out


def test_a_heading_does_not_say_where_a_document_comes_from():
    cases = {
        ("json.dumps", "json.dumps(obj)\n\nSerialize."): "dumps(obj)\n\nSerialize.",
        ("a.b.C.run", "a.b.C.run(self)\n\nRun it."): "run(self)\n\nRun it.",
        ("a.b.C", "class a.b.C(Base)\n\nA class."): "class C(Base)\n\nA class.",
        ("a.b", "module a.b\n\nA module."): "A module.",
    }
    for (name, text), expected in cases.items():
        assert without_module(name, text) == expected


def test_it_is_read_by_its_name():
    train, sources, columns = load_examples([LIBRARY_AREAS], Columns())
    test, _, _ = load_examples([LIBRARY_AREAS], Columns(), held_out=True)
    assert (columns.text, columns.label) == ("text", "label")
    assert len(train) > 5 * len(test)
    assert sources[0]["name"].startswith(LIBRARY_AREAS)
