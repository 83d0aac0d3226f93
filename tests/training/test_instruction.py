"""The verb from outside, on rows that a tiny model learns in seconds: the answer is the last word of the question."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import groundup as package
from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.data.encoding import ConversationRows
from groundup.data.windows import IGNORED, BatchOrder
from groundup.tokenization.training import train_word_level

WORDS = ("red", "green", "blue", "black", "white", "pink")
TINY = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 1, "context_length": 64, "quiet": True}


def rows_of(count, seed=0):
    chance = np.random.default_rng(seed)
    for number in range(count):
        colours = chance.choice(WORDS, 2)
        yield {"instruction": f"{number} of {seed}:", "input": " ".join(colours), "output": str(colours[-1])}


@pytest.fixture(scope="module")
def made(tmp_path_factory, write_rows):
    folder = tmp_path_factory.mktemp("instruct")
    data, test = write_rows(folder / "rows.jsonl", rows_of(300)), write_rows(folder / "test.jsonl", rows_of(40, seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        package.instruct(data=[data], eval_data=[test], out=str(folder / "out"), max_steps=40, **TINY)
    return folder


@pytest.fixture
def stock(tmp_path):
    """Return a GPT-2 of transformers' own class, untrained, whose tokenizer has no chat template."""
    tokenizer = train_word_level([" ".join(row.values()) for row in rows_of(60)], 200)
    sizes = {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), **sizes, **ends)).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    return str(tmp_path / "base")


def test_a_new_model_learns_to_answer_and_to_stop(made, scores_of):
    metrics = scores_of(made / "out")
    for split in ("validation", "test"):
        before = metrics["answer_loss", split, "before training"]["value"]
        assert metrics["answer_loss", split, None]["value"] < before / 2
    assert metrics["stopped", "test", None]["value"] > 0.9
    assert metrics["exact_match", "test", None]["count"] == 40


def test_the_checkpoint_is_a_hub_repository_with_samples_and_names_no_path_of_this_machine(made):
    out = made / "out"
    assert {path.name for path in out.iterdir()} == {
        "README.md", "chat_template.jinja", "checkpoints", "config.json", "configuration_groundup.py", "curve.png",
        "generation_config.json", "generation_groundup.py", "log.jsonl", "metrics.json", "model.safetensors",
        "modeling_groundup.py", "recipe.yaml", "samples.md", "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert len((out / "samples.md").read_text().splitlines()) == 12
    for path in out.rglob("*"):
        assert not path.is_file() or str(made).encode() not in path.read_bytes(), path


def test_transformers_alone_answers_with_the_saved_template_and_stops(made):
    tokenizer = AutoTokenizer.from_pretrained(made / "out")
    model = AutoModelForCausalLM.from_pretrained(made / "out")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "7 of 1:\nred blue"}], add_generation_prompt=True, return_tensors="pt"
    )
    written = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(written[-1]) == "<|end|>" and len(written) < 20


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_a_finished_run_is_left_alone(made, tmp_path):
    options = {"data": [str(made / "rows.jsonl")], "max_steps": 40, **TINY}
    package.instruct(out=str(tmp_path / "again"), **options)
    assert sha256_of(tmp_path / "again" / "model.safetensors") == sha256_of(made / "out" / "model.safetensors")
    before = {path: path.stat().st_mtime_ns for path in (made / "out").rglob("*")}
    package.instruct(out=str(made / "out"), resume=True, **options)
    assert {path: path.stat().st_mtime_ns for path in (made / "out").rglob("*")} == before


def test_a_stock_model_without_a_chat_template_learns_the_layout_in_words(tmp_path, stock, scores_of, write_rows):
    data = write_rows(tmp_path / "rows.jsonl", rows_of(60))
    out = package.instruct(
        data=[data],
        model=stock,
        split=[0.5, 0.3, 0.2],
        out=str(tmp_path / "out"),
        max_steps=3,
        quiet=True,
    )
    metrics = scores_of(out)
    assert metrics["answer_loss", "test", None]["value"] < metrics["answer_loss", "test", "before training"]["value"]
    assert metrics["exact_match", "test", None]["count"] == 18
    assert "### Response:" in AutoTokenizer.from_pretrained(out).chat_template
    assert type(AutoModelForCausalLM.from_pretrained(out)) is GPT2LMHeadModel


def test_the_chat_layout_gives_a_stock_model_the_tokens_it_lacks(tmp_path, stock, write_rows):
    data = write_rows(tmp_path / "rows.jsonl", rows_of(60))
    out = package.instruct(data=[data], model=stock, layout="chat", out=str(tmp_path / "out"), max_steps=2, quiet=True)
    again = AutoTokenizer.from_pretrained(out)
    assert len(again("<|user|><|assistant|><|end|>").input_ids) == 3
    assert AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().num_embeddings == len(again)
    generation = json.loads((out / "generation_config.json").read_text())
    assert again.convert_tokens_to_ids("<|end|>") in generation["eos_token_id"]


@pytest.mark.slow
def test_an_encoder_and_a_decoder_learn_the_same_rows(made, tmp_path, scores_of):
    out = package.instruct(
        data=[str(made / "rows.jsonl")],
        eval_data=[str(made / "test.jsonl")],
        architecture="encoder-decoder",
        out=str(tmp_path / "out"),
        max_steps=40,
        **TINY,
    )
    metrics = scores_of(out)
    assert (
        metrics["answer_loss", "test", None]["value"] < metrics["answer_loss", "test", "before training"]["value"] / 2
    )
    assert metrics["stopped", "test", None]["value"] > 0.9
    assert AutoModelForSeq2SeqLM.from_pretrained(out).config.is_encoder_decoder


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lora": True}, "--lora adapts an existing model"),
        ({"split": [0.5, 0.5]}, "three shares that sum to 1"),
        ({"split": [0.6, 0.6, -0.2]}, "split -0.2: a number of at least 0 and at most 1 is wanted"),
        ({"split": [0.5, 0.2, 0.2]}, "three shares that sum to 1"),
        ({"split": [0.8, 0.1, 0.1], "eval_data": ["x"]}, "both give a test set: leave one out"),
        ({"architecture": "encoder-decoder", "model": "x"}, "makes a new model"),
        ({"pretrain_share": 1.0}, "pretrain_share 1.0: a number of at least 0 and below 1 is wanted"),
        ({"patience": 0}, "patience 0: a whole number of at least 1"),
        ({"patience": -1}, "patience -1: a whole number of at least 1"),
        ({"minutes": 1, "max_steps": 2}, "give one budget"),
        ({"context_length": 4}, "no token would be trained"),
    ],
)
def test_options_that_make_no_sense_are_refused_and_leave_no_folder(tmp_path, options, says, write_rows):
    data = write_rows(tmp_path / "rows.jsonl", rows_of(20))
    with pytest.raises(InputError, match=says):
        package.instruct(data=[data], out=str(tmp_path / "out"), quiet=True, **options)
    assert not (tmp_path / "out").exists()


def test_held_out_rows_that_are_asked_in_training_are_dropped(tmp_path, capsys, write_rows):
    rows = [{"prompt": f"What is {number % 30}?", "completion": "blue"} for number in range(60)]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(InputError, match="are too few to hold some out for validation"):
        package.instruct(data=[data], split=[0.5, 0.0, 0.5], out=str(tmp_path / "out"), max_steps=1, **TINY)
    rows[-1]["prompt"] = "What is new?"
    write_rows(tmp_path / "rows.jsonl", rows)
    loud = TINY | {"quiet": False}
    package.instruct(data=[data], split=[0.5, 0.0, 0.5], out=str(tmp_path / "out"), max_steps=1, **loud)
    assert "29 of 30 held-out rows are in training too: left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("new", "says"), [(0, "15 of 15 test rows have prompts that are in training too: all are scored"), (3, "12 of 15")]
)
def test_a_test_set_is_also_scored_without_the_rows_seen_in_training(
    tmp_path, capsys, new, says, scores_of, write_rows
):
    asked = [0] * 25 + [0] * (15 - new) + list(range(1, new + 1)) + list(range(20, 30))  # training, test, validation
    rows = [{"prompt": f"What is {number}?", "completion": "blue"} for number in asked]
    data = write_rows(tmp_path / "rows.jsonl", rows)
    loud = TINY | {"quiet": False}
    out = package.instruct(data=[data], split=[0.5, 0.3, 0.2], out=str(tmp_path / "out"), max_steps=1, **loud)
    assert says in capsys.readouterr().err
    metrics = scores_of(out)
    assert metrics["exact_match", "test", None]["count"] == 15
    without = [row["count"] for (name, split, _), row in metrics.items() if split == "test without them"]
    assert without == ([new] * 6 if new else [])


def test_rows_to_test_on_that_have_no_answer_or_are_cut_are_said(tmp_path, capsys, write_rows):
    data, test = write_rows(tmp_path / "rows.jsonl", rows_of(60)), tmp_path / "test.jsonl"
    long = {"instruction": "Go on:", "output": "red green " * 100}
    write_rows(test, [*rows_of(10, seed=1), {"instruction": "What?", "output": ""}, long])
    loud = TINY | {"quiet": False}
    package.instruct(data=[data], eval_data=[str(test)], out=str(tmp_path / "out"), max_steps=1, **loud)
    said = capsys.readouterr().err
    assert said.count("test: 1 of 12 rows: have no answer") == 1
    assert said.count("test: 1 of 12 rows: are longer than 64 tokens") == 1


LENGTHS = st.lists(st.integers(2, 40), min_size=1, max_size=30)


@given(LENGTHS, st.integers(1, 8), st.integers(1, 4), st.integers(20, 200))
@settings(deadline=None)
def test_processes_share_a_steps_rows_in_as_many_micro_batches_each(lengths, batch_rows, processes, tokens):
    """Together they hold every trained label of the step once, and each has as many backward passes as the others."""
    rows = ConversationRows.from_lists(
        [([index + 1] * length, [True] * length) for index, length in enumerate(lengths)]
    )
    order = BatchOrder(len(lengths), batch_rows, seed=0)
    shares = []
    for rank in range(processes):
        shares.append(rows.deal(order, 0, tokens, rank, processes).micro_batches(0))
    assert len({len(share) for share in shares}) == 1
    labels = torch.cat([batch["labels"].flatten() for share in shares for batch in share])
    expected = [index + 1 for index in order.indices(0) for _ in range(lengths[index] - 1)]
    assert sorted(labels[labels != IGNORED].tolist()) == sorted(expected)


def margin(model, tokenizer, row):
    """Return how much likelier the chosen answer is than the rejected one [nats]."""

    def likelihood(answer):
        whole = tokenizer.apply_chat_template([*row["prompt"], *answer], return_tensors="pt", return_dict=True)[
            "input_ids"
        ]
        prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=True)["input_ids"]
        with torch.no_grad():
            scores = model(whole).logits[0, :-1].log_softmax(-1).gather(-1, whole[0, 1:, None])[:, 0]
        return scores[len(prompt) - 1 :].sum().item()

    return likelihood(row["chosen"]) - likelihood(row["rejected"])


@pytest.mark.slow
def test_trl_tunes_a_checkpoint_of_ours_to_preferences(made, tmp_path):
    """The first word instead of the last: DPO (Rafailov et al. 2023) as docs/instructions.md shows it."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [
        {
            "prompt": [{"role": "user", "content": f"{row['instruction']}\n{row['input']}"}],
            "chosen": [{"role": "assistant", "content": row["input"].split()[0]}],
            "rejected": [{"role": "assistant", "content": row["output"]}],
        }
        for row in rows_of(80, seed=2)
        if row["input"].split()[0] != row["output"]
    ]
    model = AutoModelForCausalLM.from_pretrained(made / "out")
    tokenizer = AutoTokenizer.from_pretrained(made / "out")
    before = sum(margin(model, tokenizer, row) for row in rows[:10])
    settings = {"max_steps": 10, "learning_rate": 1e-3, "per_device_train_batch_size": 8, "use_cpu": True}
    trainer = DPOTrainer(
        model,
        args=DPOConfig(output_dir=str(tmp_path / "dpo"), report_to="none", bf16=False, **settings),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "tuned"))
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    after = sum(margin(tuned, AutoTokenizer.from_pretrained(tmp_path / "tuned"), row) for row in rows[:10])
    assert type(tuned).__name__ == "GroundupForCausalLM"
    assert after > before + 1


def test_an_adapter_learns_to_answer_and_is_saved_alone(made, tmp_path, scores_of):
    out = package.instruct(
        data=[str(made / "rows.jsonl")], model=str(made / "out"), lora=True, lora_rank=2, split=[0.6, 0.2, 0.2],
        out=str(tmp_path / "out"), max_steps=3, learning_rate=5e-4, quiet=True,
    )  # fmt: skip
    assert not (out / "model.safetensors").exists()
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(made / "out")
    metrics = scores_of(out)
    assert metrics["answer_loss", "test", "before training"]["value"] < 1  # the base has learnt it already
    assert metrics["exact_match", "test", None]["count"] == 60


@pytest.mark.slow
def test_a_run_killed_at_any_moment_and_resumed_ends_with_the_same_weights(made, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "groundup", "instruct", "--out", str(out)]
    words = [word for name, value in TINY.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    begin = [*command, "--data", str(made / "rows.jsonl"), "--max-steps", "40", "--save-every", "4", *words]
    for step in (8, 20):
        process = subprocess.Popen(begin if step == 8 else [*command, "--resume"], cwd=tmp_path)
        while not any(int(path.name[5:]) >= step for path in out.glob("checkpoints/step-*")):
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--resume"], cwd=tmp_path, check=True)
    assert sha256_of(out / "model.safetensors") == sha256_of(made / "out" / "model.safetensors")
