import json
import os
import signal
import subprocess
import sys
import time

import pytest

from groundup.cli.main import main
from groundup.cli.recipe import find_recipe, read_recipe
from groundup.common.errors import InputError, Interrupted, names_of
from groundup.common.files import sha256_of
from groundup.common.settings import read_yaml
from groundup.evaluation import evaluating
from groundup.evaluation.benchmarks import documents
from groundup.evaluation.evaluating import evaluate
from groundup.evaluation.metrics_json import read_metrics
from groundup.evaluation.parts import Key, Parts
from groundup.tokenization.folder import save_tokenizer


@pytest.fixture
def models(tmp_path, tiny, bpe):
    """Return two folders of models, of different architectures and the same tokenizer."""
    folders = []
    for name in ("groundup", "gpt2"):
        folders.append(tmp_path / f"{name}-model")
        tiny(name).save_pretrained(folders[-1])
        save_tokenizer(bpe, folders[-1])
    return [str(folder) for folder in folders]


@pytest.fixture
def text_file(tmp_path, texts):
    path = tmp_path / "held-back.txt"
    path.write_text("\n".join(texts), encoding="utf-8")
    return str(path)


def rows(folder, **wanted):
    metrics = read_metrics(folder)["metrics"]
    return [row for row in metrics if all(row.get(key) == value for key, value in wanted.items())]


def test_everything_on_a_text_is_measured_and_named(models, text_file, tmp_path):
    out = evaluate(
        model=models[0],
        data=text_file,
        train_data=text_file,
        stride=9,
        by_document=True,
        samples=2,  # the text is one document, with one beginning
        out=str(tmp_path / "out"),
        quiet=True,
    )
    baselines = {row["baseline"] for row in rows(out, name="bits_per_byte")}
    assert baselines == {None, "unigram", "5-gram", "xz -9e", "xz -9e after the training text"}
    headline, strided, alone = rows(out, name="bits_per_byte", baseline=None)
    assert (headline["stride"], strided["stride"], alone["stride"]) == (32, 9, None)
    assert headline["low"] < headline["value"] < headline["high"]
    assert rows(out, name="word_perplexity", windows="each document alone")[0]["value"] > 1
    assert headline["bytes"] == strided["bytes"] == alone["bytes"]
    assert [row["positions"] for row in rows(out, name="loss_by_position")][:3] == ["1", "2", "3 to 4"]
    assert len(rows(out, name="copied")) == 2 and len(rows(out, name="distinct_1")) == 2
    primed, plain = (
        rows(out, name="bits_per_byte", baseline=name)[0]["value"]
        for name in ("xz -9e after the training text", "xz -9e")
    )
    assert primed < plain
    costs = rows(out, name="tokens_against_english", baseline=None)
    assert {"Polish", "Chinese"} < {row["dataset"] for row in costs} and costs[0]["value"] == 1
    assert len(read_metrics(out)["samples"]) == 1 and (out / "report.html").is_file()
    assert not (out / "work").exists()


def test_several_models_stand_side_by_side_with_what_their_difference_allows_to_say(models, text_file, tmp_path):
    out = evaluate(model=models, data=text_file, samples=0, out=str(tmp_path / "out"), quiet=True)
    assert {row["model"] for row in rows(out, name="loss", baseline=None)} == {"groundup-model", "gpt2-model"}
    (difference,) = rows(out, name="bits_per_byte_difference")
    bits = {row["model"]: row["value"] for row in rows(out, name="bits_per_byte", baseline=None)}
    assert difference["value"] == pytest.approx(bits["gpt2-model"] - bits["groundup-model"], rel=1e-6)
    assert difference["model"] == "gpt2-model" and difference["low"] <= difference["value"] <= difference["high"]
    assert {*read_metrics(out)["training"]["models"]} == {"groundup-model", "gpt2-model"}


def test_names_of_models_are_told_apart(tmp_path):
    for place in ("one/final", "two/final"):
        (tmp_path / place).mkdir(parents=True)
    assert names_of([str(tmp_path / "one/final"), str(tmp_path / "two/final")]) == ["one/final", "two/final"]
    assert names_of(["owner/model", "owner/model"])[1] != "owner/model"


def test_a_part_that_fails_loses_nothing_else_and_is_tried_again(models, text_file, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def fail(*_):
        raise RuntimeError("the disk of the samples\nis gone")

    with monkeypatch.context() as broken:
        broken.setattr(evaluating, "writing_part", fail)
        with pytest.raises(InputError, match=r"model: writing: the disk of the samples\).*--resume --out"):
            evaluate(model=models[0], data=text_file, samples=1, out=str(out))
    assert rows(out, name="bits_per_byte") and not rows(out, name="distinct_1")
    assert read_metrics(out)["failures"] == {"groundup-model: writing": "the disk of the samples"}
    before = rows(out, name="bits_per_byte")
    monkeypatch.setattr(evaluating, "score_text", lambda *_: pytest.fail("measured again"))
    evaluate(out=str(out), resume=True, quiet=True)
    assert rows(out, name="distinct_1") and rows(out, name="bits_per_byte") == before
    assert "failures" not in read_metrics(out) and not (out / "work").exists()


def test_an_interrupted_evaluation_goes_on_and_gives_the_same_numbers(models, text_file, tmp_path, monkeypatch):
    whole = evaluate(model=models, data=text_file, samples=1, out=str(tmp_path / "whole"), quiet=True)

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted:
        interrupted.setattr(evaluating, "tokenizer_rows", stop)
        with pytest.raises(Interrupted, match="--resume"):
            evaluate(model=models, data=text_file, samples=1, out=str(tmp_path / "out"), quiet=True)
    assert not (tmp_path / "out" / "metrics.json").exists()
    for other in ({"samples": 3}, {"seed": 1}, {"data": __file__}, {"model": models[:1]}, {"by_document": True}):
        option = "--" + next(iter(other)).replace("_", "-")
        with pytest.raises(InputError, match=f"leave out {option} .* choose a new --out"):
            evaluate(out=str(tmp_path / "out"), resume=True, quiet=True, **other)
        with pytest.raises(InputError, match=f"is finished: leave out {option}"):
            evaluate(out=str(whole), resume=True, quiet=True, **other)
    out = evaluate(out=str(tmp_path / "out"), resume=True, quiet=True, samples=1, batch_rows=8)  # no score hangs on it
    assert read_metrics(out)["metrics"] == read_metrics(whole)["metrics"]
    content = (out / "metrics.json").read_bytes()
    evaluate(out=str(out), resume=True, quiet=True)
    assert (out / "metrics.json").read_bytes() == content


@pytest.mark.parametrize("change", ["the weights", "the tokenizer", "the text"])
def test_what_was_measured_with_other_inputs_is_measured_again(change, models, text_file, tmp_path, tiny, monkeypatch):
    """The replaced file has the old one's time and size: a key of these would mix two models under one hash."""
    out = tmp_path / "out"

    def fail(*_):
        raise RuntimeError("no samples")

    with monkeypatch.context() as broken:
        broken.setattr(evaluating, "writing_part", fail)
        with pytest.raises(InputError, match="no samples"):
            evaluate(model=models, data=text_file, samples=1, out=str(out), quiet=True)
    before = {row["model"]: row["value"] for row in rows(out, name="loss", baseline=None)}
    path = {"the weights": "model.safetensors", "the tokenizer": "tokenizer.json"}.get(change)
    path = tmp_path / "gpt2-model" / path if path else tmp_path / "held-back.txt"
    stamp, content = path.stat(), path.read_bytes()
    if change == "the weights":
        content = bytearray(content)
        content[-4096:] = bytes(4096)
    elif change == "the tokenizer":
        known = json.loads(content)
        ids = known["model"]["vocab"]
        known["model"]["vocab"] = dict(zip(ids, [*list(ids.values())[:6], *reversed(list(ids.values())[6:])]))
        content = json.dumps(known).encode()
    else:
        content = content.replace(b"The cat", b"Tea sat")
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    evaluate(out=str(out), resume=True, quiet=True)
    after = {row["model"]: row["value"] for row in rows(out, name="loss", baseline=None)}
    assert after["gpt2-model"] != before["gpt2-model"]
    assert (after["groundup-model"] == before["groundup-model"]) == (change != "the text")
    fresh = evaluate(model=models, data=text_file, samples=1, out=str(tmp_path / "fresh"), quiet=True)
    assert read_metrics(out) == read_metrics(fresh)


def test_no_two_names_share_a_part_and_no_two_models_a_name(tmp_path):
    parts, names = (
        Parts(tmp_path),
        ["lr=1", "lr-1", "lr 1", "lr/1", "LR-1", "é", "e\u0301", "x" * 300, "x" * 301, "", "."],
    )
    (tmp_path / "work" / "parts").mkdir(parents=True)
    for name in names:
        parts.do(Key(name, "as it is"), lambda name=name: {"rows": [name]})
    assert [parts.get(Key(name, "as it is"))["rows"] for name in names] == [[name] for name in names]
    assert not parts.has(Key("lr=1", "changed")) and parts.is_old(Key("lr=1", "changed"))
    for place in ("p/a", "q/a"):
        (tmp_path / place).mkdir(parents=True)
    here, there = str(tmp_path / "p/a"), str(tmp_path / "q/a")
    for sources in ([here, here, here], [here, there, "p/a"], ["m", "m", "m (2)"], ["m (2)", "m", "m"]):
        assert len(set(names_of(sources))) == len(sources)


def test_what_is_wrong_from_the_start_leaves_no_folder_and_touches_none(models, text_file, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no file or folder"):
        evaluate(model=models[0], data=str(tmp_path / "none.txt"), out=str(out), quiet=True)
    with pytest.raises(InputError, match="does not exist"):
        evaluate(model=str(tmp_path / "none"), data=text_file, out=str(out), quiet=True)
    assert not out.exists()
    out.mkdir()
    (out / "work").mkdir()
    (out / "recipe.yaml").write_text("mine")
    with pytest.raises(InputError, match="already holds something"):
        evaluate(model=models[0], data=text_file, out=str(out), quiet=True)
    assert (out / "recipe.yaml").read_text() == "mine" and (out / "work").is_dir()


def test_a_stride_beyond_the_context_fails_alone(models, text_file, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(InputError, match=r"all but this is written .*--stride 99 must lie between 1 and"):
        evaluate(model=models[0], data=text_file, stride=99, samples=0, out=str(out), quiet=True)
    assert "--stride 99 must lie between 1 and" in read_metrics(out)["failures"]["groundup-model: language, strided"]
    assert rows(out, name="bits_per_byte")


def test_words_and_bits_by_document_are_those_of_lm_eval_on_the_same_text(models, tmp_path):
    data = tmp_path / "documents.jsonl"
    texts = documents()["test"]["text"][:5]
    data.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = evaluate(
        **{"model": models[0], "data": str(data), "by_document": True, "samples": 0},
        **{"tasks": "docs_text", "limit": 5, "out": str(tmp_path / "out"), "quiet": True},
    )
    for name in ("word_perplexity", "bits_per_byte"):
        ours, theirs = (
            rows(found, name=name, windows="each document alone"),
            rows(found, name=name, dataset="docs_text"),
        )
        assert ours[0]["value"] == pytest.approx(theirs[0]["value"], rel=1e-4)


def test_examples_in_the_prompt_give_a_curve(models, tmp_path):
    shots = [0, 1, 2, 4, 8]
    out = evaluate(
        **{"model": models[0], "tasks": "instruction_spell_out", "num_fewshot": shots, "limit": 4},
        **{"out": str(tmp_path / "out"), "quiet": True},
    )
    found = rows(out, name="accuracy", baseline=None)
    assert [row["num_fewshot"] for row in found] == shots
    assert all("cut off" in row["note"] for row in found[2:])
    page = (out / "report.html").read_text()
    assert "Few-shot accuracy" in page and page.count("<svg") == 1


def test_tasks_alone_need_no_text_and_give_a_row_for_each_number_of_examples(models, tmp_path):
    words = ["evaluate", "--model", models[0], models[1], "--tasks", "docs_module", "--num-fewshot", "0,1"]
    assert main([*map(str, words), "--limit", "4", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    found = rows(tmp_path / "out", name="accuracy", baseline=None, model="gpt2-model")
    assert [row["num_fewshot"] for row in found] == [0, 1] and found[0]["count"] == 4
    assert len(rows(tmp_path / "out", name="accuracy_difference")) == 2


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(models, text_file, tmp_path):
    one = evaluate(model=models[0], data=text_file, samples=0, out=str(tmp_path / "one"), quiet=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["-m", "groundup", "evaluate", "--model", models[0], "--data", text_file, "--samples", "0"]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "two")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for mine, theirs in zip(rows(one), rows(tmp_path / "two"), strict=True):
        assert mine["value"] == pytest.approx(theirs["value"], rel=1e-5), mine["name"]


@pytest.mark.slow
def test_killed_in_the_middle_of_a_text_it_goes_on_with_the_windows_that_are_left(models, tmp_path, texts):
    text = tmp_path / "long.txt"
    text.write_text("\n".join(texts) * 400, encoding="utf-8")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "groundup", "evaluate", "--model", models[0], "--samples", "0", "--out", str(out)]
    running = subprocess.Popen([*command, "--data", str(text), "--batch-rows", "1"], stderr=subprocess.DEVNULL)
    import numpy as np

    def share():
        scores = next(out.glob("work/*/language/nats.npy"), None)
        return float(np.mean(~np.isnan(np.load(scores)))) if scores else 0.0

    while share() < 0.1:
        assert running.poll() is None
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert 0.1 <= share() < 1 and not (out / "metrics.json").exists()
    subprocess.run([*command, "--resume", "--quiet"], check=True, timeout=300)
    whole = evaluate(model=models[0], data=str(text), samples=0, out=str(tmp_path / "whole"), quiet=True)
    for mine, theirs in zip(rows(out), rows(whole), strict=True):
        assert mine["value"] == pytest.approx(theirs["value"], rel=1e-5)
    assert json.loads((out / "metrics.json").read_text())["metrics"]


def test_the_recipe_of_equal_compute_compares_three_ways_by_what_comes_before():
    recipe = read_recipe(find_recipe("equal_compute"))
    *_, compare = recipe.stages
    assert (compare.verb, compare.options["model"]) == ("evaluate", ["{from_nothing}", "{continued}", "{adapter}"])
    minutes = {stage.options["minutes"] for stage in recipe.stages if stage.options["data"] == ["my_text.txt"]}
    assert len(minutes) == 1


UNUSED = [("stride", 4), ("by_document", True), ("text_column", "x"), ("train_data", ["x"])]
UNUSED += [("num_fewshot", [2]), ("limit", 3)]


@pytest.mark.parametrize(("option", "value"), UNUSED)
def test_a_setting_of_what_is_not_measured_is_refused_before_any_work(option, value, tmp_path):
    of_text = option not in ("num_fewshot", "limit")
    given = {"tasks": ["docs_text"]} if of_text else {"data": ["x"]}
    needed = "data" if of_text else "tasks"
    with pytest.raises(InputError, match=f"has nothing to do without --{needed}: add that"):
        evaluate(model=["x"], out=str(tmp_path / "o"), **given, **{option: value})
    assert not (tmp_path / "o").exists()


def test_a_finished_evaluation_knows_the_text_that_it_measured_on(models, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text("The cat sat on the mat. " * 9)
    options = {"model": models[:1], "data": [str(text)], "samples": 0, "out": str(tmp_path / "out")}
    evaluate(**options)
    (source,) = read_yaml(tmp_path / "out" / "recipe.yaml")["sources"]
    assert (source["name"], source["sha256"]) == ("text.txt", sha256_of(text))
    evaluate(**options, resume=True)
    assert "is finished: nothing to do" in " ".join(capsys.readouterr().err.split())
    text.write_text("The dog sat on the log. " * 9)
    with pytest.raises(InputError, match=r"was made from another text\.txt than --data .* has"):
        evaluate(**options, resume=True)
