import jinja2
import pytest

from groundup.tokenization.training import train_bpe

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?\n"},
    {"role": "assistant", "content": "Yes — hello!"},
    {"role": "user", "content": "More"},
    {"role": "assistant", "content": " no 👋"},
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(["Hello, hello. Be brief, be very brief and say no more. " * 10], 300)


def test_a_conversation_is_written_with_one_mark_for_each_turn(tokenizer):
    assert tokenizer.apply_chat_template(CONVERSATION, tokenize=False) == (
        "<|system|>Be brief.<|end|><|user|>Hello?\n<|end|><|assistant|>Yes — hello!<|end|>"
        "<|user|>More<|end|><|assistant|> no 👋<|end|>"
    )


def test_the_mask_covers_the_answers_and_their_ends_and_nothing_else(tokenizer):
    row = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    answered = [token for token, mask in zip(row["input_ids"], row["assistant_masks"]) if mask]
    assert tokenizer.decode(answered) == "Yes — hello!<|end|> no 👋<|end|>"


def test_a_prompt_ends_where_the_assistant_begins(tokenizer):
    text = tokenizer.apply_chat_template(CONVERSATION[:2], tokenize=False, add_generation_prompt=True)
    assert text.endswith("<|end|><|assistant|>")


def test_a_prompt_is_the_beginning_of_the_whole_conversation(tokenizer):
    prompt = tokenizer.apply_chat_template(CONVERSATION[:2], return_dict=True, add_generation_prompt=True)["input_ids"]
    assert tokenizer.apply_chat_template(CONVERSATION[:3], return_dict=True)["input_ids"][: len(prompt)] == prompt


def test_each_mark_is_one_token(tokenizer):
    ids = tokenizer("<|system|><|user|><|assistant|><|end|>").input_ids
    assert len(ids) == 4


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(jinja2.TemplateError, match="'tool'"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)
