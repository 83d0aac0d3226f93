"""How rows are split before a model learns to answer, and how large the steps are."""

import itertools
import math
import time
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from groundup.common.errors import InputError
from groundup.common.settings import Deadline
from groundup.tokenization.chat import CHAT_TEMPLATE
from groundup.tokenization.folder import CHAT_TOKENS
from groundup.tokenization.training import train_word_level
from groundup.training import instruction_preparation as preparation
from groundup.training.checkpoint import RunFolder
from groundup.training.instruction_preparation import open_instructions, prepare_instructions
from groundup.training.optim import FINE_TUNING, learning_rates
from groundup.training.plan import LEAST_DECAY, make_plan, suitable_minutes
from groundup.training.pretraining_preparation import SMOKE_ROWS
from groundup.training.settings import InstructSettings


def asked_and_answered(pairs):
    return [{"prompt": asked, "completion": said} for asked, said in pairs]


def questions(count):
    return asked_and_answered((f"What is {n}?", "blue") for n in range(count))


@pytest.fixture
def prepared(tmp_path, write_rows):
    """Prepare rows, for a new model of a small vocabulary or the one that is given, and read back what that left."""
    runs = itertools.count()

    def prepare(rows, deadline=None, **options):
        data = write_rows(tmp_path / "rows.jsonl", rows)
        run = RunFolder(tmp_path / f"run-{next(runs)}")
        options = {"max_steps": 1} | ({} if "model" in options else {"vocab_size": 300}) | options
        prepare_instructions(InstructSettings(data=[data], **options), run, deadline or Deadline())
        return open_instructions(run)

    return prepare


@pytest.fixture
def llama(tmp_path):
    """Save a Llama that can look at so many tokens, with a tokenizer that has a token for each word; return its path.

    `change` is done to the tokenizer first.
    """

    def save(positions=256, change=lambda tokenizer: None):
        tokenizer = train_word_level(["What is it? blue " + " ".join(str(n) for n in range(200))], 300)
        change(tokenizer)
        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **sizes)
        folder = tmp_path / f"llama-{positions}"
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return save


def prompts(found, part):
    return [row.messages[0]["content"] for row in found.conversations(part)]


def keys(found, part):
    return [(row.key, row.answer) for row in found.conversations(part)]


def test_the_parts_of_a_split_follow_one_another_and_share_no_row(prepared):
    found = prepared(questions(20), split=[0.5, 0.2, 0.3])
    asked = [f"What is {n}?" for n in range(20)]
    assert [prompts(found, part) for part in ("train", "test", "validation")] == [asked[:10], asked[10:14], asked[14:]]


def test_without_a_split_a_tenth_is_held_out_by_the_seed(prepared):
    found = [prepared(questions(100), seed=seed) for seed in (1, 1, 2)]
    parts = [[prompts(one, part) for part in ("train", "validation", "test")] for one in found]
    assert [[len(part) for part in one] for one in parts] == [[90, 10, 0]] * 3
    assert parts[0] == parts[1] != parts[2]
    assert sorted(parts[0][0] + parts[0][1]) == sorted(f"What is {n}?" for n in range(100))


@pytest.mark.parametrize(
    ("prompts", "answers", "of_prompts"),
    [(1, 500, False), (2, 50, False), (3, 7, False), (20, 25, True), (100, 3, True), (1, 2, False), (5, 2, False)],
)
def test_what_is_held_out_is_never_empty_and_never_trained_on(prompts, answers, of_prompts, prepared):
    rows = asked_and_answered((f"ask {p}", f"{p} say {a}") for p in range(prompts) for a in range(answers))
    for seed in range(3):
        found = prepared(rows, seed=seed)
        train, held_out = keys(found, "train"), keys(found, "validation")
        assert not set(train) & set(held_out) and len(train) + len(held_out) == len(rows)
        assert 0 < len(held_out) <= max(1, math.ceil(0.1 * len(rows)))
        assert not of_prompts or not {key for key, _ in train} & {key for key, _ in held_out}


@pytest.mark.parametrize("twice", [[("a", "b")] * 9 + [("c", "d")], [("a", "b"), ("a", "b"), ("a", "c")]])
def test_rows_that_are_alike_are_on_one_side(twice, prepared):
    held_out = keys(prepared(asked_and_answered(twice)), "validation")
    assert len(set(held_out)) == len(held_out) == 1


def test_rows_that_are_all_alike_leave_none_to_hold_out(prepared):
    with pytest.raises(InputError, match="12 rows, 1 of them different, are too few"):
        prepared(asked_and_answered([("a", "b")] * 12))


def test_an_ordered_split_holds_out_new_answers_when_all_prompts_are_the_same(prepared):
    rows = asked_and_answered(("one style", f"post {number}") for number in range(20))
    found = prepared(rows, split=[0.8, 0.1, 0.1])
    assert [row.answer for row in found.conversations("validation")] == ["post 18", "post 19"]


def test_a_pretrained_model_gets_smaller_learning_rates_and_an_adapter_does_not(prepared, llama):
    base = llama()
    new = prepared(questions(20), hidden_size=32, context_length=64).plan.rates
    theirs = prepared(questions(20), model=base, context_length=64).plan
    assert (theirs.optimizer, theirs.rates) == ("adamw", learning_rates("adamw", 32, from_elsewhere=True))
    (Path(base) / "recipe.yaml").write_text("verb: pretrain\nplan: {}\n")  # as of a run of ours
    taught = prepared(questions(20), model=base, context_length=64).plan.rates
    gentle = {name: rate if name == "adapter" else FINE_TUNING * rate for name, rate in new.items()}
    assert taught == pytest.approx(gentle) and "adapter" in gentle


def test_the_weight_decay_is_the_one_given_and_the_width_the_models(prepared, llama):
    assert prepared(questions(20), weight_decay=0.5).plan.weight_decay == 0.5
    taught = prepared(questions(20), model=llama()).plan
    assert taught.weight_decay == LEAST_DECAY and taught.model["hidden_size"] == 32


def test_a_row_may_be_as_long_as_the_models_context_and_no_longer(prepared, llama):
    model = llama(48)
    assert prepared(questions(20), model=model, context_length=48).plan.context_length == 48
    assert prepared(questions(20), model=model).plan.context_length == 48
    with pytest.raises(InputError, match="has a context of 48"):
        prepared(questions(20), model=model, context_length=49)


def test_a_new_models_context_fits_its_longest_row_and_a_step_holds_its_tokens(prepared):
    rows = asked_and_answered([("What is it?", " ".join(f"{n} and" for n in range(60)))]) + questions(199)
    found = prepared(rows, batch_tokens=3 * 512, split=[0.9, 0.0, 0.1])
    longest, plan = int(found.train.lengths.max()), found.plan
    assert longest > 64 and 0 <= plan.context_length - longest < 64 and plan.context_length % 64 == 0
    assert plan.batch_rows == round(3 * 512 / found.train.lengths.mean()) < len(found.train)
    assert plan.micro_batch_tokens % plan.context_length == 0 and plan.micro_batch_tokens <= 3 * 512
    assert prepared(rows, context_length=320).plan.context_length == 320


def test_a_model_that_can_look_far_gets_rows_and_steps_as_one_that_can_not(prepared, llama, capsys):
    rows = [{"prompt": f"What is {n}?", "completion": "blue " * (1500 if n == 0 else 5)} for n in range(200)]

    def plan(positions, **options):
        return prepared(rows, model=llama(positions), split=[0.9, 0.0, 0.1], **options).plan

    far = plan(131072)
    assert far.context_length == 1024 and far == plan(1024)
    assert far.batch_rows < 180  # not all rows in one step
    assert "training: 1 of 180 rows: are longer than 1,024 tokens" in capsys.readouterr().err
    assert plan(131072, context_length=2048).context_length == 2048
    assert "are longer" not in capsys.readouterr().err


def test_the_tokens_of_our_template_are_added_to_those_that_a_tokenizer_has(prepared, llama):
    model = llama(change=lambda own: own.add_special_tokens({"additional_special_tokens": ["<theirs>"]}))
    tokenizer = prepared(questions(20), model=model, layout="chat").tokenizer
    assert {"<theirs>", *CHAT_TOKENS} <= set(tokenizer.all_special_tokens)


def test_only_the_layout_in_words_needs_a_token_that_ends_a_text(prepared, llama):
    model = llama(change=lambda own: setattr(own, "eos_token", None))
    with pytest.raises(InputError, match="needs an end-of-text token"):
        prepared(questions(20), model=model, layout="alpaca")
    assert prepared(questions(20), model=model, layout="chat").tokenizer.chat_template == CHAT_TEMPLATE


def test_a_padding_token_that_ends_answers_is_said_to_do_so(prepared, llama, capsys):
    def said(change):
        prepared(questions(20), model=llama(change=change), layout="alpaca")
        return capsys.readouterr().err

    assert "the padding token <|endoftext|> ends answers, too" in said(
        lambda own: setattr(own, "pad_token", own.eos_token)
    )
    assert "ends answers" not in said(lambda own: None)
    assert "ends answers" not in said(lambda own: setattr(own, "pad_token", None))


def test_without_a_budget_it_says_which_one_it_chose(prepared, llama, capsys):
    assert prepared(questions(20), max_steps=None).settings.minutes == 1.0
    assert prepared(questions(20), max_steps=None, model=llama()).settings.minutes == 10.0
    assert "until the validation loss stops falling, at most 10 minutes" in capsys.readouterr().err
    assert suitable_minutes(10**9) == 10.0


def test_preparation_counts_towards_the_minutes(prepared, monkeypatch):
    budgets = []

    def noted(given, text_bytes, seconds):
        budgets.append(seconds)
        return make_plan(given, text_bytes, seconds, flops=1e11)

    monkeypatch.setattr(preparation, "make_plan", noted)
    prepared(questions(40), Deadline(time.time() - 30 * 60), max_steps=None, minutes=60.0)
    assert 25 * 60 < budgets[0] < 30 * 60


def test_what_is_counted_of_the_rows_is_that_of_those_trained_on(prepared, tmp_path):
    rows = [{"prompt": f"What is {n}?", "completion": "long " * (60 if n % 9 == 0 else 1)} for n in range(97)]
    rows += [{"prompt": "What?", "completion": ""}] * 3
    found = prepared(rows, split=[0.9, 0.0, 0.1], context_length=32)
    counts = RunFolder(tmp_path / "run-0").read_recipe()[0]["rows"]
    assert counts["train"] == len(found.train) == 87
    assert counts["cut"] == sum(n % 9 == 0 for n in range(87))
    assert counts["without_answer"] == 3


def test_held_out_rows_that_are_cut_or_left_out_are_said(prepared, capsys):
    rows = questions(18) + asked_and_answered([("What?", "long " * 60), ("What " * 60, "blue")]) + questions(32)[30:]
    prepared(rows, split=[18 / 22, 0.0, 4 / 22], context_length=32)
    said = capsys.readouterr().err
    assert said.count("validation: 1 of 4 rows: are longer than 32 tokens") == 1
    assert said.count("validation: 1 of 4 rows: do not reach their answer within 32 tokens") == 1
    assert "of 22 rows" not in said


def test_a_smoke_run_takes_rows_from_the_whole_table(prepared):
    found = prepared(questions(2 * SMOKE_ROWS), max_steps=None, smoke=True)
    assert len(found.train) + len(found.validation) == SMOKE_ROWS
    assert {"What is 0?", f"What is {2 * SMOKE_ROWS - 2}?"} & {*prompts(found, "train")}


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"prompt": "What is 3?", "completion": ""}, "has an answer"),
        ({"text": "What is 3?"}, "has the columns text: rows need"),
        ({"prompt": "What is 3? " * 100, "completion": "blue"}, "the test rows: no token would be trained"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "has an answer"),
    ],
)
def test_rows_that_nothing_can_be_measured_on_are_refused_before_training(prepared, write_rows, tmp_path, row, says):
    with pytest.raises(InputError, match=says):
        prepared(questions(40), eval_data=[write_rows(tmp_path / "test.jsonl", [row])])
