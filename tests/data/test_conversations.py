import csv
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groundup.common.errors import InputError
from groundup.data.conversations import Conversation, RowCounts, load_conversations
from groundup.data.encoding import encode_conversations
from groundup.tokenization.chat import CHAT_TEMPLATE, ChatEncoder
from groundup.tokenization.training import train_bpe

ANSWERED = [{"role": "user", "content": "Hello\nyou"}, {"role": "assistant", "content": "Yes"}]


@pytest.fixture
def write(tmp_path):
    def rows(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return [str(path)]

    return rows


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "Hello", "input": "you", "output": "Yes"},
        {"instruction": "Hello\nyou", "output": "Yes"},
        {"prompt": "Hello\nyou", "completion": "Yes"},
        {"prompt": ANSWERED[:1], "completion": ANSWERED[1:]},
        {"messages": ANSWERED},
    ],
)
def test_rows_of_every_form_become_the_same_messages(write, row):
    conversations, counts, sources = load_conversations(write(row), "\n")
    assert [conversation.messages for conversation in conversations] == [ANSWERED]
    assert counts == RowCounts(rows=1)
    assert sources[0]["name"] == "rows.jsonl" and len(sources[0]["sha256"]) == 64


def test_rows_without_an_answer_are_left_out_and_counted(write):
    rows = [{"instruction": "a", "output": answer} for answer in ("b", "", "  ", None)]
    conversations, counts, _ = load_conversations(write(*rows), "\n")
    assert (len(conversations), counts.rows, counts.without_answer) == (1, 4, 3)
    assert counts.warnings(8) == ["3 of 4 rows: have no answer and are left out"]


def test_data_in_which_nothing_is_answered_is_an_error(write):
    with pytest.raises(InputError, match="has an answer: there is nothing to learn"):
        load_conversations(write({"instruction": "a", "output": ""}), "\n")


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, "has the columns text: rows need messages .or conversations.; prompt and completion"),
        ({"messages": [{"user": "a"}]}, "line 1: a message needs a role and a content .*this one has user"),
        ({"messages": [{"role": "user"}]}, "line 1: a message needs a role and a content .*this one has role"),
        ({"messages": "hello"}, "line 1: messages must be a list"),
        ({"messages": [*ANSWERED, {"role": "assistant", "content": "a", "weight": 0.5}]}, "line 1: .* the weight 0.5"),
        ({"instruction": "a", "output": "b", "history": [["one"]]}, "line 1: history must be a list of pairs"),
    ],
)
def test_rows_of_another_form_are_refused_in_one_sentence(write, row, says):
    with pytest.raises(InputError, match=says):
        load_conversations(write(row), "\n")


def test_capitals_and_white_space_around_it_do_not_make_another_question():
    def key(text, answer="Yes", role="user"):
        return Conversation([{"role": role, "content": text}, {"role": "assistant", "content": answer}]).key

    assert key("What is it?") == key(" what IS it?\n") == key("What is it?", "No")
    assert key("What is it?") != key("What is this?") and key("What is it?") != key("What is it?", role="system")


PAIR = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
SYSTEM = {"role": "system", "content": "Be brief."}
EARLIER = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
HUMAN, GPT = {"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}


def load(path, *rows, mode="lines"):
    text = json.dumps(rows) if mode == "list" else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file = path / ("rows.json" if mode == "list" else "rows.jsonl")
    file.write_text(text, encoding="utf-8")
    return load_conversations([str(file)], "\n")


FORMS = {
    "OpenAI": ({"messages": PAIR}, PAIR),
    "OpenAI, parts of text": (
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "y?"}]},
                PAIR[1],
            ]
        },
        PAIR,
    ),
    "OpenAI, developer": ({"messages": [{"role": "developer", "content": "Be brief."}, *PAIR]}, [SYSTEM, *PAIR]),
    "OpenAI, keys beside": ({"messages": [{**PAIR[0], "name": "kim"}, {**PAIR[1], "refusal": None}]}, PAIR),
    "ShareGPT": ({"id": "c0", "conversations": [HUMAN, GPT]}, PAIR),
    "ShareGPT, one conversation": ({"conversation": [HUMAN, GPT]}, PAIR),
    "ShareGPT in messages": ({"messages": [HUMAN, GPT]}, PAIR),
    "ShareGPT, system": ({"conversations": [{"from": "system", "value": "Be brief."}, HUMAN, GPT]}, [SYSTEM, *PAIR]),
    "ShareGPT, system beside": ({"conversations": [HUMAN, GPT], "system": "Be brief."}, [SYSTEM, *PAIR]),
    "ShareGPT, other names": ({"conversations": [{**HUMAN, "from": "User"}, {**GPT, "from": "chatgpt"}]}, PAIR),
    "Alpaca": ({"instruction": "Why", "input": "?", "output": "So."}, [{"role": "user", "content": "Why\n?"}, PAIR[1]]),
    "Alpaca, no input": ({"instruction": "Why?", "input": None, "output": "So."}, PAIR),
    "Alpaca, system and history": (
        {"instruction": "Why?", "output": "So.", "system": "Be brief.", "history": [["Who?", "Me."]]},
        [SYSTEM, *EARLIER, *PAIR],
    ),
    "Alpaca, empty system and history": ({"instruction": "Why?", "output": "So.", "system": "", "history": []}, PAIR),
    "Alpaca, capitals": ({"Instruction": "Why?", "Input": "", "Output": "So."}, PAIR),
    "Dolly": (
        {"instruction": "Why?", "context": "It is so.", "response": "So.", "category": "qa"},
        [{"role": "user", "content": "Why?\nIt is so."}, PAIR[1]],
    ),
    "question and answer": ({"question": "Why?", "answer": "So."}, PAIR),
    "prompt and response": ({"prompt": "Why?", "response": "So."}, PAIR),
    "input and output": ({"input": "Why?", "output": "So."}, PAIR),
    "preference, texts": ({"prompt": "Why?", "chosen": "So.", "rejected": "No."}, PAIR),
    "preference, messages": ({"prompt": PAIR[:1], "chosen": PAIR[1:], "rejected": EARLIER[1:]}, PAIR),
    "preference, whole": ({"chosen": PAIR, "rejected": EARLIER}, PAIR),
    "preference, prompt and whole": ({"prompt": "Why?", "chosen": PAIR, "rejected": EARLIER}, PAIR),
    "one text in a list": ({"prompt": "Why?", "completion": ["So."]}, PAIR),
}


@pytest.mark.parametrize("mode", ["lines", "list"])
@pytest.mark.parametrize("kind", FORMS)
def test_a_row_is_read_as_the_conversation_that_it_is(tmp_path, kind, mode):
    row, messages = FORMS[kind]
    conversations, counts, _ = load(tmp_path, row, mode=mode)
    assert [conversation.messages for conversation in conversations] == [messages]
    assert counts == RowCounts(rows=1)


@pytest.mark.parametrize("kind", FORMS)
def test_every_column_is_read_or_told_and_kept_as_one_that_is_not(tmp_path, kind, capsys):
    row = FORMS[kind][0] | {"extra_id": "7"}
    _, _, (source,) = load(tmp_path, row)
    assert sorted([*source["columns"].values(), *source["columns_not_read"]]) == sorted(row)
    assert "extra_id" in source["columns_not_read"]
    said = capsys.readouterr().err
    assert all(column in said for column in row)


def test_keys_of_messages_that_are_not_read_are_told(tmp_path, capsys):
    _, _, (source,) = load(
        tmp_path, {"messages": [{**PAIR[0], "name": "kim"}, {**PAIR[1], "tool_calls": [{"id": "c"}]}]}
    )
    assert "of messages not name, tool_calls" in capsys.readouterr().err
    assert source["message_keys_not_read"] == ["name", "tool_calls"]


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize(
    ("odd", "read"), [(8, "8"), (-2.5, "-2.5"), (True, "true"), (False, "false"), (10**18, str(10**18))]
)
def test_one_cell_of_another_kind_changes_no_other_cell_and_is_read_as_written(tmp_path, odd, read, place):
    answers: list = ['It is "it".\nAll.', "007", "null", '{"a": 1}', "1.0"]
    answers[place] = odd
    conversations, _, _ = load(tmp_path, *({"instruction": "Why?", "output": answer} for answer in answers))
    expected = [read if number == place else answer for number, answer in enumerate(answers)]
    assert [row.answer for row in conversations] == expected


CELLS = st.one_of(st.text(min_size=1), st.integers(), st.booleans(), st.none())


@given(st.lists(CELLS, min_size=1, max_size=6))
def test_answers_are_those_of_the_file_whatever_kinds_stand_beside_them(tmp_path_factory, answers):
    texts = [json.dumps(value) if isinstance(value, bool) else str(value) for value in answers if value is not None]
    expected = [text for text in texts if text.strip()]
    rows = [{"prompt": "Why?", "completion": answer} for answer in [*answers, "last"]]
    conversations, _, _ = load(tmp_path_factory.mktemp("rows"), *rows)
    assert [row.answer for row in conversations] == [*expected, "last"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, PAIR[1]]},
            "image_url",
        ),
        ({"messages": [PAIR[0], {"role": "assistant", "content": {"parts": ["So."]}}]}, "an object"),
        ({"question": "Why?", "answers": None, "answer": {"text": ["So."], "answer_start": [3]}}, "an object"),
        ({"prompt": "Why?", "completion": ["So.", "No."]}, "a list of 2 texts"),
        ({"prompt": "Why?", "completion": [1, 2]}, "a list of 2 texts"),
    ],
)
def test_what_is_no_text_is_never_trained_but_counted_with_its_place(tmp_path, row, says):
    with pytest.raises(
        InputError, match=f"no row .* has an answer.*1 of 1 rows: hold something else.*line 1: .*{says}"
    ):
        load(tmp_path, row)
    answer = "answer" if "answer" in row else "completion"
    whole = (
        {"messages": PAIR}
        if "messages" in row
        else dict.fromkeys(row, None) | {"question": "Why?", "prompt": "Why?", answer: "So."}
    )
    conversations, counts, _ = load(tmp_path, {name: whole[name] for name in row}, row)
    assert [conversation.messages for conversation in conversations] == [PAIR]
    assert (counts.rows, counts.no_text) == (2, 1)


def test_messages_in_csv_are_a_list_written_as_json(tmp_path):
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["id", "messages"], ["1", json.dumps([SYSTEM, *PAIR])], ["2", ""]])
    conversations, counts, _ = load_conversations([str(tmp_path / "rows.csv")], "\n")
    assert [row.messages for row in conversations] == [[SYSTEM, *PAIR]] and counts.without_answer == 1
    (tmp_path / "rows.csv").write_text("messages\n\"[{'role': 'user'}]\"\n")
    with pytest.raises(InputError, match=r"line 2: messages must be a list .* written as JSON"):
        load_conversations([str(tmp_path / "rows.csv")], "\n")


def test_a_row_without_a_question_is_said(tmp_path):
    _, counts, _ = load(tmp_path, {"prompt": "", "completion": "So."}, {"prompt": "Why?", "completion": "So."})
    assert counts.warnings() == [
        "1 of 2 rows: have an answer and no question: trained on as they are (the first: rows.jsonl, line 1)"
    ]


# ---------------------------------------------------------------------------------------------------------------------
# What is learnt of them


@pytest.fixture(scope="module")
def tokenizer():
    made = train_bpe(["Why? So. Be brief. Who? Me. No. " * 10], 300)
    made.chat_template = CHAT_TEMPLATE
    return made


def learnt(tokenizer, conversations):
    rows, _, _ = encode_conversations(conversations, tokenizer, 200, RowCounts())
    return [tokenizer.decode(ids[trained]) for ids, trained in map(rows.row, range(len(rows)))]


SILENT = [*EARLIER[:1], {**EARLIER[1], "weight": 0}, *PAIR]


@pytest.mark.parametrize(
    ("messages", "trained"),
    [
        ([*EARLIER, *PAIR], "Me.<|end|>So.<|end|>"),
        (SILENT, "So.<|end|>"),
        ([{**message, "weight": 1} for message in [*EARLIER, *PAIR]], "Me.<|end|>So.<|end|>"),
        ([{**message, "weight": 0} for message in EARLIER] + PAIR, "So.<|end|>"),
        ([*EARLIER, PAIR[0], {**PAIR[1], "weight": 0}], "Me.<|end|>"),
        ([*EARLIER, PAIR[0], {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}], "Me.<|end|>"),
        ([EARLIER[0], {"role": "assistant", "content": ""}, *PAIR], "So.<|end|>"),
    ],
)
def test_what_has_weight_0_or_no_text_is_read_and_not_learnt(tmp_path, tokenizer, messages, trained):
    conversations, _, _ = load(tmp_path, {"messages": messages})
    assert learnt(tokenizer, conversations) == [trained]


def test_a_row_that_has_only_answers_of_weight_0_has_none(tmp_path):
    rows = [{"messages": [PAIR[0], {**PAIR[1], "weight": weight}]} for weight in (0, 1)]
    conversations, counts, _ = load(tmp_path, *rows)
    assert len(conversations) == 1 and counts.without_answer == 1


@pytest.mark.parametrize(
    "after",
    [
        [EARLIER[0]],
        [SYSTEM],
        [EARLIER[0], {"role": "assistant", "content": " "}],
        [EARLIER[0], {**EARLIER[1], "weight": 0}],
        [
            EARLIER[0],
            {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]},
            {"role": "tool", "content": "1"},
        ],
    ],
)
def test_what_follows_the_last_answer_that_is_learnt_is_counted(tmp_path, after):
    conversations, counts, _ = load(tmp_path, {"messages": PAIR}, {"messages": [*PAIR, *after]})
    assert [row.messages for row in conversations] == [PAIR, PAIR]
    assert counts.after_last_answer == len(after)
    (said,) = counts.warnings()
    assert said.startswith(f"{len(after)} in 2 rows: messages in them follow the last answer")


def test_where_no_row_is_left_only_true_causes_are_given(tmp_path, tokenizer):
    tool = [PAIR[0], {"role": "tool", "content": "12"}, PAIR[1]]
    refused, _, _ = load(tmp_path, {"messages": tool})
    with pytest.raises(InputError, match="1 of 1 rows: are refused") as error:
        encode_conversations(refused, tokenizer, 200, RowCounts(rows=1))
    assert "reach" not in str(error.value)
    with pytest.raises(InputError, match="do not reach their answer within 2 tokens") as error:
        encode_conversations(load(tmp_path, {"messages": PAIR})[0], tokenizer, 2, RowCounts(rows=1))
    assert "refused" not in str(error.value)


@pytest.mark.parametrize(
    ("own", "read", "count"),
    [("Be long.", "Be long.", 1), ("Be brief. ", "Be brief. ", 0), (" ", "Be brief.", 0), (None, "Be brief.", 0)],
)
def test_a_system_column_gives_way_to_a_system_message_of_the_row_and_that_is_counted(tmp_path, own, read, count):
    messages = ([{"role": "system", "content": own}] if own else []) + PAIR
    (conversation,), counts, _ = load(tmp_path, {"system": "Be brief.", "messages": messages})
    assert conversation.messages == [{"role": "system", "content": read}, *PAIR]
    assert counts.system_not_read == count == len(counts.warnings())


def test_texts_beside_tables_are_passed_over_and_counted(tmp_path, capsys):
    load(tmp_path, {"messages": PAIR})
    (tmp_path / "README.md").write_text("# What these are", encoding="utf-8")
    conversations, _, _ = load_conversations([str(tmp_path)], "\n")
    assert len(conversations) == 1
    assert "skipped 1 of 2 files, texts beside tables (README.md)" in capsys.readouterr().err


def test_rows_that_the_template_refuses_are_left_out_and_the_first_is_named(tmp_path, tokenizer):
    tool = [PAIR[0], {"role": "tool", "content": "12"}, PAIR[1]]
    conversations, _, _ = load(tmp_path, {"messages": PAIR}, {"messages": tool}, {"messages": PAIR})
    counts = RowCounts(rows=3)
    _, places, _ = encode_conversations(conversations, tokenizer, 200, counts)
    assert places == [0, 2]
    (said,) = counts.warnings(200)
    assert said.startswith("1 of 3 rows: are refused by the chat template") and "rows.jsonl, line 2" in said
    with pytest.raises(InputError, match=r"refused by the chat template .*line 2, .*not 'tool'"):
        encode_conversations(conversations[1:2], tokenizer, 200, RowCounts(rows=1))


@given(st.lists(st.tuples(st.text("<|end|>a"), st.text("<|user|>b", min_size=1)), min_size=1, max_size=5))
def test_rows_that_spell_special_tokens_are_never_more_than_there_are(rows):
    conversations = [
        [{"role": "user", "content": asked}, {"role": "assistant", "content": said}] for asked, said in rows
    ]
    encoder = ChatEncoder(TOKENIZER)
    for messages in conversations:
        encoder.segments(messages)
    spelling = sum("<|end|>" in asked or "<|user|>" in said for asked, said in rows)
    assert encoder.forged == spelling <= len(rows)


TOKENIZER = train_bpe(["Why? So. " * 10], 280)
TOKENIZER.chat_template = CHAT_TEMPLATE


@pytest.mark.parametrize("text", ["\ufdd0", "\ufdd1", "a\ufdd00\ufdd1<|end|>", "\ufdd0x\ufdd1 <|user|> \ufdd0"])
def test_characters_that_stand_for_special_tokens_inside_are_text_like_any(text):
    encoder = ChatEncoder(TOKENIZER)
    ids = encoder.prompt_ids([{"role": "user", "content": text}])
    assert TOKENIZER.decode(ids) == f"<|user|>{text}<|end|><|assistant|>"
    assert sum(token in TOKENIZER.all_special_ids for token in ids) == 3


def test_answers_that_are_labelled_as_not_wanted_are_left_out_and_counted(write):
    rows = [{"prompt": f"p{n}", "completion": f"c{n}", "label": n % 3 > 0} for n in range(9)]
    found, counts, (source,) = load_conversations(write(*rows), "\n")
    assert [one.answer for one in found] == [f"c{n}" for n in range(9) if n % 3]
    assert counts.not_wanted == 3 and source["columns"]["wanted"] == "label"
    assert "3 of 9 rows: have the label false" in counts.warnings()[0]


@pytest.mark.parametrize("labels", [["a", "b"], [0, 1], ["false", "true"], [True, "x"]])
def test_a_label_of_another_kind_says_nothing_of_answers(write, labels):
    found, _, (source,) = load_conversations(
        write(*({"prompt": f"p{n}", "completion": "c", "label": labels[n % 2]} for n in range(4))), "\n"
    )
    assert len(found) == 4 and source["columns_not_read"] == ["label"]


@pytest.mark.parametrize("gap", [{}, {"messages": None}])
def test_rows_without_a_conversation_are_read_in_the_form_of_their_other_columns(write, gap):
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [{"messages": said}, {"prompt": "q2", "completion": "a2"} | gap, {"messages": said}]
    found, counts, (source,) = load_conversations(write(*rows), "\n")
    assert [(one.prompt[0]["content"], one.answer) for one in found] == [("q", "a"), ("q2", "a2"), ("q", "a")]
    assert counts.without_answer == 0 and source["columns_not_read"] == []


def test_columns_that_no_row_needs_are_not_called_read(write):
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    _, _, (source,) = load_conversations(write(*[{"prompt": "q", "chosen": said, "messages": said}] * 2), "\n")
    assert source["columns"] == {"messages": "messages"} and source["columns_not_read"] == ["prompt", "chosen"]


def test_of_rows_in_which_no_assistant_speaks_the_roles_are_named(write):
    said = [{"role": "alice", "content": "q"}, {"role": "bob", "content": "a"}]
    with pytest.raises(InputError, match=r"2 of 2 rows: have no answer .*line 1: its roles are alice, bob"):
        load_conversations(write(*[{"messages": said}] * 2), "\n")


def test_an_instruction_over_the_question_of_each_row_keeps_the_question(write):
    rows = write(*({"instruction": "Answer.", "question": f"q{n}", "answer": "a"} for n in range(3)))
    found, _, (source,) = load_conversations(rows, "\n")
    assert [one.prompt[0]["content"] for one in found] == [f"Answer.\nq{n}" for n in range(3)]
    assert source["columns_not_read"] == []


@pytest.mark.parametrize("gap", ["nan", "None", " N/A "])
def test_answers_that_programs_write_for_a_gap_are_told_with_the_first_of_them(write, gap):
    found, counts, _ = load_conversations(
        write(*({"prompt": f"p{n}", "completion": gap if n % 2 else "None of them"} for n in range(6))), "\n"
    )
    assert len(found) == 6
    (line,) = counts.warnings()
    assert line.startswith("3 of 6 rows: have an answer such as nan or None") and "line 2" in line
