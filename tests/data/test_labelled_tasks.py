from groundup.data import python_docs
from groundup.data.examples import Columns, also_in, load_examples
from groundup.data.labelled_tasks import LIBRARY_AREAS, library_areas, without_module


def test_the_built_in_task_has_rows_enough_in_every_area_and_no_text_on_both_sides():
    task = library_areas()
    assert len(task["train"]) + len(task["test"]) >= 3000
    for area in set(task["train"]["label"]):
        assert task["train"]["label"].count(area) >= 100
        assert task["test"]["label"].count(area) >= 10
    assert not also_in(task["test"]["text"], task["train"]["text"]).any()


def test_test_texts_are_of_documents_that_pretraining_on_the_corpus_keeps_back():
    kept_back = {text.partition("\n")[2].strip() for text in python_docs.load()["validation"]["text"]}
    for text in list(library_areas()["test"]["text"])[:50]:
        assert text.partition("\n")[2].strip() in kept_back or text.strip() in kept_back


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
