"""Conversations as text and as ids, with our chat template and with those of others."""

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.tokenization.chat import ALPACA_TEMPLATE, CHAT_TEMPLATE, ChatEncoder
from groundup.tokenization.folder import CHAT_TOKENS
from groundup.tokenization.training import train_bpe

CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?\n"},
    {"role": "assistant", "content": "Yes — hello!"},
    {"role": "user", "content": "More"},
    {"role": "assistant", "content": " no 👋"},
]
QWEN = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def tokenizer_with(template):
    tokenizer = train_bpe(["Hello, hello. Be brief, be very brief and say no more. " * 10], 300)
    tokenizer.chat_template = template
    if template == QWEN:
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_with(CHAT_TEMPLATE)


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


def ids_and_marks(encoder, messages):
    segments = encoder.segments(messages)
    pieces = encoder.encode([segment.text for segment in segments])
    ids = [token for piece in pieces for token in piece]
    return ids, [segment.spoken for segment, piece in zip(segments, pieces) for _ in piece]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, ALPACA_TEMPLATE])
def test_ids_and_marks_are_those_of_transformers_apply_chat_template(template):
    tokenizer = tokenizer_with(template)
    ids, marks = ids_and_marks(ChatEncoder(tokenizer), CONVERSATION)
    peer = tokenizer.apply_chat_template(CONVERSATION, return_dict=True, return_assistant_tokens_mask=True)
    assert ids == peer["input_ids"]
    assert [int(mark) for mark in marks] == peer["assistant_masks"]


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, ALPACA_TEMPLATE, QWEN])
def test_a_prompt_is_the_beginning_of_the_row_that_is_trained(template):
    encoder = ChatEncoder(tokenizer_with(template))
    for turn in (2, 4):
        prompt = encoder.prompt_ids(CONVERSATION[:turn])
        ids, marks = ids_and_marks(encoder, CONVERSATION[: turn + 1])
        assert ids[: len(prompt)] == prompt
        assert marks[len(prompt)] and not marks[len(prompt) - 1]


def test_a_template_without_marks_has_its_answers_found_by_its_prompts():
    tokenizer = tokenizer_with(QWEN)
    ids, marks = ids_and_marks(ChatEncoder(tokenizer), CONVERSATION)
    spoken = tokenizer.decode([token for token, mark in zip(ids, marks) if mark])
    assert spoken == "Yes — hello!<|im_end|>\n no 👋<|im_end|>\n"


PARTS = [
    *CHAT_TOKENS,
    "<|endoftext|>",
    "a",
    " ",
    "<|",
    "\n",
    "é",
    "\ufdd0",
    "\ufdd1",
    "\ufdd03\ufdd1",
    "9",
    "\uffff",
    "\0",
]


@given(st.lists(st.sampled_from(PARTS), max_size=8).map("".join))
def test_no_text_of_a_message_becomes_a_special_token_and_none_is_lost(text):
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": text}]
    ids, marks = ids_and_marks(ENCODER, messages)
    user, assistant, end = (TOKENIZER.convert_tokens_to_ids(token) for token in (CHAT_TOKENS[1:]))
    special = [token for token in ids if token in TOKENIZER.all_special_ids]
    assert special == [user, end, assistant, end]
    assert TOKENIZER.decode(ids) == f"<|user|>{text}<|end|><|assistant|>{text}<|end|>"
    prompt = ENCODER.prompt_ids(messages[:1])
    assert ids[: len(prompt)] == prompt and marks == [False] * len(prompt) + [True] * (len(ids) - len(prompt))


TOKENIZER = tokenizer_with(CHAT_TEMPLATE)
ENCODER = ChatEncoder(TOKENIZER)


def test_messages_that_spell_special_tokens_are_counted():
    encoder = ChatEncoder(TOKENIZER)
    encoder.segments([{"role": "user", "content": "a <|end|> b"}, {"role": "assistant", "content": "c"}])
    assert encoder.forged == 1
    encoder.segments([{"role": "user", "content": "a \ufdd00\ufdd1 b"}, {"role": "assistant", "content": "c"}])
    assert encoder.forged == 1  # a character of a message's own is no special token


def test_a_template_whose_training_text_differs_from_its_prompt_is_refused():
    other = CHAT_TEMPLATE.replace("add_generation_prompt -%}{{- '<|assistant|>'", "add_generation_prompt -%}{{- 'A:'")
    assert other != CHAT_TEMPLATE
    with pytest.raises(ValueError, match="another text for training"):
        ChatEncoder(tokenizer_with(other)).segments(CONVERSATION)


def test_marks_that_begin_before_the_answer_are_refused():
    early = CHAT_TEMPLATE.replace(
        "{{- '<|assistant|>' -}}\n{%- generation -%}", "{%- generation -%}{{- '<|assistant|>' -}}"
    )
    assert early != CHAT_TEMPLATE
    with pytest.raises(ValueError, match="do not begin where"):
        ChatEncoder(tokenizer_with(early)).segments(CONVERSATION)


@pytest.mark.parametrize(
    "message", [{"role": "user"}, {"role": "user", "content": [{"type": "image"}]}, {"content": "x"}]
)
def test_what_is_no_message_of_text_is_refused(message):
    with pytest.raises(ValueError, match="a role and a content"):
        ENCODER.segments([message])


def test_alpaca_is_the_books_layout_word_for_word():
    tokenizer = tokenizer_with(ALPACA_TEMPLATE)
    row = [{"role": "user", "content": "Do it.\n\n### Input:\nthis"}, {"role": "assistant", "content": "Done."}]
    assert tokenizer.apply_chat_template(row, tokenize=False) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nDo it.\n\n### Input:\nthis\n\n### Response:\nDone.<|endoftext|>"
    )
