"""How rows are split before a model learns to answer, and how gently it is moved."""

from groundup.data.conversations import Conversation, ConversationRows
from groundup.training.instruction_preparation import FINE_TUNING, _plan, _split
from groundup.training.instruction_settings import InstructSettings


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


def test_a_model_that_was_trained_before_is_moved_more_gently_and_an_adapter_is_not():
    rows = ConversationRows.from_lists([([1] * 100, [True] * 100), ([1] * 20, [True] * 20)])

    def rates(model):
        return _plan(settings_of(model=model, max_steps=10), rows, 512, 384, 10**6, None).rates

    gentle = {name: rate if name == "adapter" else FINE_TUNING * rate for name, rate in rates(None).items()}
    assert rates("somewhere") == gentle and "adapter" in gentle
