import json
import math
import re
import subprocess
import sys

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from groundup.common.errors import InputError
from groundup.evaluation.benchmarks import TASKS_FOLDER, as_lm, documents, find_tasks, run_task
from groundup.evaluation.language import TokenScores
from groundup.evaluation.likelihood import document_ends, each_document_alone
from groundup.inference.loading import context_of
from groundup.tokenization.folder import save_tokenizer, structure_ids
from groundup.tokenization.report import TokenBytes


@pytest.fixture
def lm(tiny, bpe):
    return as_lm(tiny("groundup"), bpe, 8)


def values(result, baseline=None):
    return {row["name"]: row["value"] for row in result.rows if row["baseline"] == baseline}


def test_rolling_perplexity_is_ours_with_each_document_alone(lm, tiny, bpe, stream_of, tmp_path):
    rows = 6
    theirs = values(run_task(lm, "docs_text", manager=find_tasks(["docs_text"]), limit=rows))
    texts = documents()["test"]["text"][:rows]
    stream = stream_of(texts, bpe)
    windows = each_document_alone(document_ends(stream, bpe.eos_token_id), context_of(tiny("groundup")))
    scores = TokenScores(tmp_path, stream, structure_ids(bpe))
    scores.score(tiny("groundup"), windows)
    ours = scores.total(windows, TokenBytes.of(bpe))
    assert any(len(bpe.encode(text)) > context_of(tiny("groundup")) for text in texts)
    assert ours.bits_per_byte == pytest.approx(theirs["bits_per_byte"], rel=1e-5)
    words = sum(len(re.split(r"\s+", text)) for text in texts)
    assert math.exp(ours.nats / words) == pytest.approx(theirs["word_perplexity"], rel=1e-4)


def test_a_choice_has_chance_beside_it_and_a_word_the_most_frequent_one(lm):
    choice = run_task(lm, "docs_module", manager=find_tasks(["docs_module"]), limit=8)
    assert values(choice, "chance") == {"accuracy": 0.25, "accuracy_norm": 0.25}
    row = choice.rows[0]
    assert row["count"] == 8 and row["low"] <= row["value"] <= row["high"] and row["num_fewshot"] == 0
    assert sum(choice.scores["docs_module", "accuracy"]) / 8 == values(choice)["accuracy"]
    word = run_task(lm, "docs_last_word", manager=find_tasks(["docs_last_word"]), limit=8)
    assert values(word, "most frequent answer")["accuracy"] >= 1 / 8
    perplexity = next(row for row in word.rows if row["name"] == "perplexity")
    assert 0 < perplexity["low"] < perplexity["value"] < perplexity["high"]


def test_examples_stand_before_the_question_and_come_from_training(lm, monkeypatch):
    seen = {}
    from groundup.evaluation import benchmarks

    evaluate = benchmarks.lm_evaluator.evaluate

    def watch(*arguments, **options):
        seen["results"] = evaluate(*arguments, **options)
        return seen["results"]

    monkeypatch.setattr(benchmarks.lm_evaluator, "evaluate", watch)
    for shots in (0, 2):
        run_task(lm, "instruction_spell_out", manager=find_tasks(["instruction_spell_out"]), num_fewshot=shots, limit=2)
        sample = seen["results"]["samples"]["instruction_spell_out"][0]
        prompt = sample["arguments"][0][0]
        assert prompt.count("Answer:") == shots + 1 and prompt.endswith("Answer:")
        assert sample["doc"]["output"] not in prompt


def test_a_prompt_that_the_context_has_no_room_for_is_said_to_be_cut(lm, tiny, bpe):
    def notes(lm, task, shots):
        result = run_task(lm, task, manager=find_tasks([task]), num_fewshot=shots, limit=3)
        return {row.get("note") for row in result.rows}

    assert notes(lm, "instruction_spell_out", 8) == {
        "3 prompts of instruction_spell_out with 8 examples are longer than the model's 32 tokens: "
        "their beginning is cut off"
    }
    wide = GPT2LMHeadModel(GPT2Config(vocab_size=len(bpe), n_embd=16, n_layer=1, n_head=2, n_positions=2048))
    assert notes(as_lm(wide, bpe, 8), "instruction_spell_out", 8) == {None}
    assert notes(lm, "docs_text", 0) == {None}  # read in windows


def test_an_answer_longer_than_the_context_is_the_reason_that_is_given(lm):
    with pytest.raises(RuntimeError, match="an answer is longer than the model's 32 tokens"):
        run_task(lm, "instruction_upper_case", manager=find_tasks(["instruction_upper_case"]), limit=3)


def test_every_task_of_ours_is_found_and_loads_rows():
    names = sorted(path.stem for path in TASKS_FOLDER.glob("*.yaml"))
    manager = find_tasks(names)
    for name in names:
        (task,) = manager.load([name])["tasks"].values()
        assert len(list(task.test_docs())) >= 20, name


def test_a_task_that_nobody_knows_is_the_users_error(tmp_path):
    with pytest.raises(InputError, match="did you mean 'docs_module'"):
        find_tasks(["docs_modul"])
    with pytest.raises(InputError, match="no task file"):
        find_tasks([str(tmp_path / "mine.yaml")])


@pytest.mark.slow
def test_a_standard_task_is_known_by_its_name():
    assert "hellaswag" in find_tasks(["hellaswag", "docs_module"]).all_tasks


def test_a_task_of_the_users_own_file_runs(lm, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "a", "answer": "b"}\n' * 3)
    path = tmp_path / "mine.yaml"
    path.write_text(
        f"task: mine\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {tmp_path}/rows.jsonl\n"
        "output_type: loglikelihood\ntest_split: test\ndoc_to_text: '{{question}}'\ndoc_to_target: '{{answer}}'\n"
        "metric_list:\n  - metric: acc\n"
    )
    result = run_task(lm, str(path), manager=find_tasks([str(path)]))
    assert {row["dataset"] for row in result.rows} == {"mine"} and result.rows[0]["count"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["groundup", "gpt2"])
def test_results_are_those_of_lm_evals_own_command_on_the_saved_folder(name, tiny, bpe, tmp_path):
    folder = tmp_path / "model"
    tiny(name).save_pretrained(folder)
    save_tokenizer(bpe, folder)
    tasks = ["docs_last_word", "docs_module", "docs_text", "instruction_spell_out"]
    manager, lm = find_tasks(tasks), as_lm(tiny(name), bpe, 8)
    for shots in (0, 2):
        chosen = [task for task in tasks if shots == 0 or task != "docs_text"]
        command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--tasks", ",".join(chosen)]
        command += ["--model_args", f"pretrained={folder},trust_remote_code=True,dtype=float32", "--device", "cpu"]
        command += ["--include_path", str(TASKS_FOLDER), "--num_fewshot", str(shots), "--limit", "10"]
        command += ["--batch_size", "8", "--output_path", str(tmp_path / f"out-{shots}")]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        (path,) = (tmp_path / f"out-{shots}").rglob("results*.json")
        theirs = json.loads(path.read_text())["results"]
        for task in chosen:
            ours = run_task(lm, task, manager=manager, num_fewshot=shots, limit=10)
            names = {"accuracy": "acc", "accuracy_norm": "acc_norm"}
            for measure, value in values(ours).items():
                assert value == pytest.approx(theirs[task][f"{names.get(measure, measure)},none"], rel=1e-5)
