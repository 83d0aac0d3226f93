"""How rows are split before a model learns to answer, and how gently it is moved."""

import json
import math
import time

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from groundup.common.errors import InputError
from groundup.common.settings import Deadline
from groundup.data.conversations import Conversation
from groundup.data.encoding import ConversationRows
from groundup.inference.saving import save_model
from groundup.modeling import GroundupConfig, GroundupForCausalLM
from groundup.tokenization.chat import ALPACA_TEMPLATE, CHAT_TEMPLATE
from groundup.tokenization.folder import CHAT_TOKENS
from groundup.tokenization.training import train_word_level
from groundup.training import instruction_preparation as preparation
from groundup.training.instruction_preparation import (
    FINE_TUNING,
    _lay_out,
    _limits,
    _padding_warnings,
    _plan,
    _split,
    prepare_instructions,
    read_conversations,
)
from groundup.training.plan import LEAST_DECAY, make_plan
from groundup.training.pretraining_preparation import SMOKE_ROWS
from groundup.training.run_folder import RunFolder
from groundup.training.settings import InstructSettings


def questions(count):
    return [
        Conversation([{"role": "user", "content": f"What is {n}?"}, {"role": "assistant", "content": "blue"}])
        for n in range(count)
    ]


def settings_of(**options):
    return InstructSettings(data=["rows.jsonl"], **options)


def test_the_parts_of_a_split_follow_one_another_and_share_no_row():
    rows = questions(20)
    parts = _split(rows, settings_of(split=[0.5, 0.2, 0.3]))
    assert parts == {"train": rows[:10], "test": rows[10:14], "validation": rows[14:]}


def test_without_a_split_a_tenth_is_kept_back_by_the_seed():
    rows = questions(100)
    parts = [_split(rows, settings_of(seed=seed)) for seed in (1, 1, 2)]
    assert [(len(part["train"]), len(part["validation"]), len(part["test"])) for part in parts] == [(90, 10, 0)] * 3
    assert parts[0] == parts[1] != parts[2]
    assert sorted(row.key for row in parts[0]["train"] + parts[0]["validation"]) == sorted(row.key for row in rows)


def asked_and_answered(pairs):
    return [
        Conversation([{"role": "user", "content": asked}, {"role": "assistant", "content": said}])
        for asked, said in pairs
    ]


@pytest.mark.parametrize(
    ("prompts", "answers", "of_prompts"),
    [(1, 500, False), (2, 50, False), (3, 7, False), (20, 25, True), (100, 3, True), (1, 2, False), (5, 2, False)],
)
def test_what_is_kept_back_is_never_empty_and_never_trained_on(prompts, answers, of_prompts):
    rows = asked_and_answered((f"ask {p}", f"{p} say {a}") for p in range(prompts) for a in range(answers))
    for seed in range(3):
        parts = _split(rows, settings_of(seed=seed))
        train, back = ([(row.key, row.answer) for row in parts[part]] for part in ("train", "validation"))
        assert not set(train) & set(back) and len(train) + len(back) == len(rows)
        assert 0 < len(back) <= max(1, math.ceil(0.1 * len(rows)))
        assert not of_prompts or not {key for key, _ in train} & {key for key, _ in back}


@pytest.mark.parametrize("twice", [[("a", "b")] * 9 + [("c", "d")], [("a", "b"), ("a", "b"), ("a", "c")]])
def test_rows_that_are_alike_are_on_one_side(twice):
    parts = _split(asked_and_answered(twice), settings_of())
    assert len({(row.key, row.answer) for row in parts["validation"]}) == len(parts["validation"]) == 1


def test_rows_that_are_all_alike_leave_none_to_keep_back():
    with pytest.raises(InputError, match="12 rows, 1 of them different, are too few"):
        _split(asked_and_answered([("a", "b")] * 12), settings_of())


def test_of_a_split_in_order_rows_with_new_answers_are_kept_where_all_prompts_are_the_same():
    rows = asked_and_answered(("one style", f"post {number}") for number in range(20))
    parts = _split(rows, settings_of(split=[0.8, 0.1, 0.1]))
    assert parts["validation"] == rows[18:]


def test_a_model_that_was_trained_before_is_moved_more_gently_and_an_adapter_is_not():
    rows = ConversationRows.from_lists([([1] * 100, [True] * 100), ([1] * 20, [True] * 20)])

    def rates(model):
        return _plan(settings_of(model=model, max_steps=10), rows, 512, 384, 10**6, None).rates

    gentle = {name: rate if name == "adapter" else FINE_TUNING * rate for name, rate in rates(None).items()}
    assert rates("somewhere") == gentle and "adapter" in gentle


def test_the_decay_and_the_width_are_those_given():
    rows = ConversationRows.from_lists([([1] * 20, [True] * 20)])
    asked = _plan(settings_of(max_steps=10, weight_decay=0.5), rows, 64, None, 10**6, None)
    assert asked.weight_decay == 0.5
    taught = _plan(settings_of(model="somewhere", max_steps=10), rows, 64, 384, 10**6, None)
    assert taught.weight_decay == LEAST_DECAY and taught.model["hidden_size"] == 384


def test_a_row_may_be_as_long_as_what_the_model_looks_at_and_no_longer(tmp_path):
    model = GroundupForCausalLM(GroundupConfig(vocab_size=100, hidden_size=32, max_position_embeddings=48))
    save_model(tmp_path, model, train_word_level(["What is it?"], 100))
    assert _limits(settings_of(model=str(tmp_path), context_length=48)) == (48, 32)
    assert _limits(settings_of(model=str(tmp_path))) == (48, 32)
    with pytest.raises(InputError, match="has a context of 48"):
        _limits(settings_of(model=str(tmp_path), context_length=49))


def test_a_new_model_sees_its_longest_row_and_an_update_holds_as_many_rows_as_its_tokens():
    rows = ConversationRows.from_lists([([1] * length, [True] * length) for length in [200, *[18] * 99, *[20] * 100]])
    plan = _plan(settings_of(max_steps=10, batch_tokens=3 * 512), rows, 512, None, 10**6, None)
    assert plan.context_length == 256  # the multiple of 64 from 200 on
    assert plan.batch_rows == round(3 * 512 / rows.lengths.mean()) == 77
    assert plan.micro_batch_tokens % 256 == 0 and plan.micro_batch_tokens <= 3 * 512
    asked = _plan(settings_of(max_steps=10, context_length=320), rows, 320, None, 10**6, None)
    assert asked.context_length == 320


def llama(folder, positions):
    """A Llama that can look at so many tokens, with a tokenizer that has a token for each word."""
    tokenizer = train_word_level(["What is it? blue " + " ".join(str(n) for n in range(200))], 300)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **sizes)
    ).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_a_model_that_can_look_far_gets_rows_and_updates_as_one_that_can_not(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"What is {n}?", "completion": "blue " * (1500 if n == 0 else 5)} for n in range(200)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def plan(positions, **options):
        name, model = f"{positions}{options}", llama(tmp_path / str(positions), positions)
        settings = InstructSettings(data=[str(path)], split=[0.9, 0.0, 0.1], model=model, max_steps=1, **options)
        prepare_instructions(settings, RunFolder(tmp_path / name), Deadline())
        return RunFolder(tmp_path / name).read_recipe()[0]["plan"]

    far = plan(131072)
    assert far["context_length"] == 1024 and far == plan(1024)
    assert far["batch_rows"] < 180  # not all rows in one update
    assert "training: 1 of 180 rows: are longer than 1,024 tokens" in capsys.readouterr().err
    assert plan(131072, context_length=2048)["context_length"] == 2048
    assert "are longer" not in capsys.readouterr().err


def test_the_tokens_of_our_template_are_added_to_those_that_a_tokenizer_has():
    tokenizer = train_word_level(["What is it?"], 100)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<theirs>"]})
    _lay_out(tokenizer, CHAT_TEMPLATE)
    assert {"<theirs>", *CHAT_TOKENS} <= set(tokenizer.all_special_tokens)


def test_only_the_layout_in_words_needs_a_token_that_ends_a_text():
    tokenizer = train_word_level(["What is it?"], 100)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="needs an end-of-text token"):
        _lay_out(tokenizer, ALPACA_TEMPLATE)
    _lay_out(tokenizer, CHAT_TEMPLATE)
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_a_padding_token_that_ends_answers_is_said_to_do_so():
    tokenizer = train_word_level(["What is it?"], 100)
    tokenizer.pad_token = tokenizer.eos_token
    (said,) = _padding_warnings(tokenizer, [tokenizer.eos_token_id])
    assert tokenizer.eos_token in said
    assert _padding_warnings(tokenizer, [tokenizer.eos_token_id + 1]) == []
    tokenizer.pad_token = None
    assert _padding_warnings(tokenizer, [tokenizer.eos_token_id]) == []


def test_what_preparing_takes_is_part_of_the_minutes(tmp_path, monkeypatch):
    budgets = []

    def noted(settings, text_bytes, seconds):
        budgets.append(seconds)
        return make_plan(settings, text_bytes, seconds, flops=1e11)

    monkeypatch.setattr(preparation, "make_plan", noted)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"What is {n}?", "completion": "blue"}) + "\n" for n in range(40)))
    settings = InstructSettings(data=[str(path)], minutes=60.0, vocab_size=300)
    prepare_instructions(settings, RunFolder(tmp_path / "run"), Deadline(time.time() - 30 * 60))
    assert 25 * 60 < budgets[0] < 30 * 60


def test_what_is_counted_of_the_rows_is_that_of_those_trained_on(tmp_path):
    rows = [{"prompt": f"What is {n}?", "completion": "long " * (60 if n % 9 == 0 else 1)} for n in range(97)]
    rows += [{"prompt": "What?", "completion": ""}] * 3
    path, run = tmp_path / "rows.jsonl", RunFolder(tmp_path / "run")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"context_length": 32, "vocab_size": 300, "max_steps": 1, "pretrain_share": 0.0}
    prepare_instructions(InstructSettings(data=[str(path)], split=[0.9, 0.0, 0.1], **sizes), run, Deadline())
    counts = run.read_recipe()[0]["rows"]
    assert counts["train"] == len(ConversationRows.open(run.work / "train")) == 87
    assert counts["cut"] == sum(n % 9 == 0 for n in range(87))
    assert counts["without_answer"] == 3


def test_rows_kept_back_that_are_cut_or_left_out_are_said(tmp_path, capsys):
    rows = [{"prompt": f"What is {n}?", "completion": "blue"} for n in range(18)]
    rows += [{"prompt": "What?", "completion": "long " * 60}, {"prompt": "What " * 60, "completion": "blue"}]
    rows += [{"prompt": f"What is {n}?", "completion": "blue"} for n in (30, 31)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = {"context_length": 32, "vocab_size": 300, "max_steps": 1, "pretrain_share": 0.0}
    settings = InstructSettings(data=[str(path)], split=[18 / 22, 0.0, 4 / 22], **sizes)
    prepare_instructions(settings, RunFolder(tmp_path / "run"), Deadline())
    said = capsys.readouterr().err
    assert said.count("validation: 1 of 4 rows: are longer than 32 tokens") == 1
    assert said.count("validation: 1 of 4 rows: do not reach their answer within 32 tokens") == 1
    assert "of 22 rows" not in said


def test_a_short_try_takes_rows_from_the_whole_table(tmp_path):
    path, run = tmp_path / "rows.jsonl", RunFolder(tmp_path / "run")
    rows = [{"prompt": f"What is {n}?", "completion": "blue"} for n in range(2 * SMOKE_ROWS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_instructions(InstructSettings(data=[str(path)], smoke=True), run, Deadline())
    counts = run.read_recipe()[0]["rows"]
    assert counts["train"] + counts["validation"] == SMOKE_ROWS
    asked = {row.messages[0]["content"] for row in read_conversations(run.work / "train.jsonl")}
    assert {"What is 0?", f"What is {2 * SMOKE_ROWS - 2}?"} & asked


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "What is 3?", "completion": ""}, "has an answer"),
        ({"text": "What is 3?"}, "has the columns text: rows need"),
        ({"prompt": "What is 3? " * 100, "completion": "blue"}, "the test rows: no token would be trained"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "has an answer"),
    ],
)
def test_rows_that_nothing_can_be_measured_on_are_refused_before_training(tmp_path, row, says):
    train, test = tmp_path / "rows.jsonl", tmp_path / "test.jsonl"
    train.write_text("".join(json.dumps({"prompt": f"What is {n}?", "completion": "blue"}) + "\n" for n in range(40)))
    test.write_text(json.dumps(row) + "\n")
    settings = InstructSettings(data=[str(train)], eval_data=[str(test)], vocab_size=300, max_steps=1)
    with pytest.raises(InputError, match=says):
        prepare_instructions(settings, RunFolder(tmp_path / "run"), Deadline())
