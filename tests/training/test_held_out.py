"""What is measured on is no text that was trained on: copies are counted, said and left out; tests have names of their
own."""

import json
import random
import shutil

import pytest
import yaml

import groundup as package
from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.common.settings import Deadline
from groundup.data.conversations import load_conversations
from groundup.data.documents import Documents
from groundup.data.examples import Columns, load_examples
from groundup.data.sources import load_documents
from groundup.evaluation.language import Text
from groundup.evaluation.metrics_json import read_metrics
from groundup.training.checkpoint import RunFolder
from groundup.training.pretraining_preparation import open_prepared, prepare_run
from groundup.training.run import TrainingRun
from groundup.training.settings import PretrainSettings

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")

TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "context_length": 32, "batch_tokens": 256}


def text_of(seed, count=60):
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijklmnop", k=draw.randint(3, 9))) for _ in range(count))


def edited(text):
    return " ".join("other" if place % 30 == 7 else word for place, word in enumerate(text.split()))


def write_rows(path, texts):
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return str(path)


def prepared(tmp_path, *data, **more):
    """Return the run before its first step: its text for training and for validation, and what the recipe says."""
    run = RunFolder(tmp_path / "out")
    prepare_run(PretrainSettings(data=[str(item) for item in data], max_steps=1, **TINY | more), run, Deadline())
    found = open_prepared(run)
    train, validation = (
        found.tokenizer.decode(stream.read(0, len(stream))) for stream in (found.train, found.validation)
    )
    return train, validation, yaml.safe_load((run.out / "recipe.yaml").read_text())


TEXTS = [text_of(seed) for seed in range(40)]
REPEATED = {
    "once": (TEXTS, 0),
    "two of the four held out": (TEXTS[:36] + TEXTS[2:4] + TEXTS[36:38], 2),
    "two, nearly": ([*TEXTS[:36], *map(edited, TEXTS[2:4]), *TEXTS[36:38]], 2),
    "all twice": (TEXTS + TEXTS, 8),
    "all twice, nearly": ([*TEXTS, *map(edited, TEXTS)], 8),
    "all thrice": (TEXTS * 3, 12),
    "each beside its copy": ([text for text in TEXTS for _ in range(2)], 0),
}


@pytest.mark.parametrize("name", REPEATED)
def test_no_text_that_is_trained_on_is_scored(name, tmp_path, capsys):
    texts, copies = REPEATED[name]
    train, validation, recipe = prepared(tmp_path, write_rows(tmp_path / "rows.jsonl", texts))
    assert recipe["overlap"]["copies"] == copies
    scored = [text for text in texts if text in validation]
    assert scored
    alike = {text: edited(text) for text in TEXTS} | {edited(text): text for text in TEXTS}
    assert not [text for text in scored if text in train or alike[text] in train]
    said = " ".join(capsys.readouterr().err.split())
    assert (f"{copies} of {recipe['overlap']['count']} documents are in the training text too" in said) == (copies > 0)
    assert recipe["overlap"]["left_out_of"] == (
        None if not copies else "training" if name.startswith("all") else "score"
    )


@pytest.mark.parametrize("name", REPEATED)
def test_shards_hold_the_same_apart_as_the_text_itself(name, tmp_path):
    data = write_rows(tmp_path / "rows.jsonl", REPEATED[name][0])
    train, validation, recipe = prepared(tmp_path, data)
    package.prepare(data=[data], tokenizer=str(tmp_path / "out" / "work" / "tokenizer"), out="shards", quiet=True)
    shutil.rmtree(tmp_path / "out")
    assert prepared(tmp_path, "shards", vocab_size=None)[:2] == (train, validation)
    assert yaml.safe_load((tmp_path / "out" / "recipe.yaml").read_text())["overlap"] == recipe["overlap"]


@pytest.mark.parametrize("times", [2, 3])
def test_one_text_that_repeats_itself_is_held_out_too(times, tmp_path):
    text = text_of(0, 20_000)
    (tmp_path / "text.txt").write_text("\n".join([text] * times))
    train, validation, recipe = prepared(tmp_path, tmp_path / "text.txt")
    assert recipe["overlap"]["copies"] == recipe["overlap"]["count"] > 5
    passages = [validation[start : start + 200] for start in range(1000, len(validation) - 1000, 1000)]
    assert sum(passage in train for passage in passages) <= 0.1 * len(passages)


def test_templates_that_are_all_alike_are_scored_nevertheless_and_it_is_said(tmp_path, capsys):
    rows = [f"{text_of(0)} {number}" for number in range(100)]
    train, validation, recipe = prepared(tmp_path, write_rows(tmp_path / "rows.jsonl", rows))
    assert recipe["overlap"] == {"count": 10, "unit": "documents", "copies": 10, "left_out_of": None}
    assert "the score includes text that was trained on" in " ".join(capsys.readouterr().err.split())
    assert rows[-1] in validation and rows[0] in train


WAYS = ["the same path", "a copy", "a folder", "a pattern", "a link", "another ending", "a relative path", "a zip"]


@pytest.mark.parametrize("way", WAYS)
def test_a_file_given_twice_counts_once(way, tmp_path, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    first = folder / "a.txt"
    first.write_text(text_of(0, 2000))
    again = {
        "the same path": first, "a copy": tmp_path / "b.txt", "a folder": folder, "a pattern": folder / "*.txt",
        "a link": tmp_path / "link.txt", "another ending": tmp_path / "a.md",
        "a relative path": "folder/../folder/a.txt", "a zip": tmp_path / "a.zip",
    }[way]  # fmt: skip
    if way in ("a copy", "another ending"):
        shutil.copyfile(first, again)
    elif way == "a link":
        again.symlink_to(first)
    elif way == "a zip":
        shutil.make_archive(str(tmp_path / "a"), "zip", folder)
    train, validation, recipe = prepared(tmp_path, first, again)
    assert len(train) + len(validation) == pytest.approx(len(text_of(0, 2000)), rel=0.02)
    assert [source["name"] for source in recipe["sources"]] == ["a.txt"]
    assert "given more than once, read once" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["classify", "instruct"])
def test_rows_given_twice_count_once(verb, tmp_path):
    rows = [{"text": f"text {n}", "label": "ab"[n % 2], "prompt": f"text {n}", "completion": "x"} for n in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copyfile(path, tmp_path / "copy.jsonl")
    data = [str(path), str(tmp_path), str(tmp_path / "*.jsonl")]
    read = load_examples if verb == "classify" else load_conversations
    found, *_ = read(data, Columns() if verb == "classify" else "\n")
    assert len(found) == 20


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """Return a model with a text to be tested on of which a half was trained on."""
    folder = tmp_path_factory.mktemp("tested")
    data = write_rows(folder / "train.jsonl", TEXTS)
    test = write_rows(folder / "other.jsonl", [*TEXTS[:5], *(text_of(seed) for seed in range(100, 105))])
    out = package.pretrain(data=[data], eval_data=[test], out=str(folder / "out"), max_steps=2, quiet=True, **TINY)
    return folder, out


def test_a_text_to_be_tested_on_has_its_own_name_hash_and_baselines(tested):
    folder, out = tested
    metrics = read_metrics(out)
    rows = [row for row in metrics["metrics"] if row["split"] == "test"]
    assert {row["dataset"] for row in rows} == {"other"}
    assert {row["baseline"] for row in rows} == {None, "unigram", "xz -9e"}
    assert {row["dataset"] for row in metrics["metrics"] if row["split"] == "validation"} == {"train"}
    [source] = yaml.safe_load((out / "recipe.yaml").read_text())["eval_sources"]
    assert (source["name"], source["sha256"]) == ("other.jsonl", sha256_of(folder / "other.jsonl"))


def test_what_of_it_was_trained_on_is_counted_and_not_scored(tested):
    _, out = tested
    metrics = read_metrics(out)
    assert metrics["training"]["overlap"]["test"] == {"count": 10, "unit": "documents", "copies": 5}
    scored = next(row for row in metrics["metrics"] if row["split"] == "test" and row["name"] == "bits_per_byte")
    assert scored["bytes"] == sum(len(text_of(seed).encode()) for seed in range(100, 105))


def test_a_model_measured_on_its_own_training_text_is_not_called_tested(tested, tmp_path, capsys):
    folder, out = tested
    (tmp_path / "renamed.jsonl").write_bytes((folder / "train.jsonl").read_bytes())
    other = package.pretrain(
        data=[str(folder / "other.jsonl")], out=str(tmp_path / "other"), max_steps=2, quiet=True, **TINY
    )
    measured = package.evaluate(
        model=[str(out), str(other)], data=[str(tmp_path / "renamed.jsonl")], out=str(tmp_path / "e"), samples=0,
        batch_rows=4,
    )  # fmt: skip
    rows = [row for row in read_metrics(measured)["metrics"] if row["name"] == "bits_per_byte"]
    assert {(row["model"], row["split"]) for row in rows} == {("out", "training"), ("other", "test")}
    said = " ".join(capsys.readouterr().err.split())
    assert "out was trained on renamed.jsonl, as its recipe says" in said
    differences = [row for row in read_metrics(measured)["metrics"] if row.get("against")]
    assert {row["split"] for row in differences} == {"training"}


def test_of_the_built_in_text_what_is_held_out_is_a_test(tmp_path):
    documents, sources = load_documents(["python-docs"])
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"sources": sources}))
    assert not Text(documents, None, "python-docs", 0, sources).trained_on_by(str(tmp_path))


@pytest.mark.parametrize("recipe", ["", "- a list", "sources: 3", "sources: [3, {name: x}]", "a: [", None])
def test_a_recipe_of_another_tool_says_nothing_of_what_was_trained_on(recipe, tmp_path):
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    sources = [{"name": "x", "sha256": "0"}]
    assert not Text(Documents([]), None, "x", 0, sources).trained_on_by(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("test.txt", b"%PDF-1.4", "is a PDF file"),
        ("test.txt", "für".encode("latin-1"), "is not UTF-8 text"),
        ("test.txt", b" ", "no text in"),
        ("test.jsonl", b'{"id": 1}\n{"id": 2}\n', "has no column of text"),
    ],
)
@pytest.mark.parametrize("verb", ["pretrain", "classify", "instruct"])
def test_what_is_wrong_with_a_text_to_be_tested_on_is_said_before_anything_is_trained(
    verb, name, content, says, tmp_path, monkeypatch
):
    rows = [{"text": text_of(n), "label": "ab"[n % 2], "prompt": f"p{n}", "completion": "x"} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(TrainingRun, "run", lambda *_, **__: pytest.fail("it trained"))
    options = TINY if verb != "classify" else {key: TINY[key] for key in TINY if key != "batch_tokens"}
    with pytest.raises(InputError, match=says if verb == "pretrain" else name):
        getattr(package, verb)(data=["rows.jsonl"], eval_data=[name], out="out", max_steps=1, quiet=True, **options)
    assert not (tmp_path / "out").exists()
