"""Writing and talking in the terminal."""

import io
import json

import pytest
from transformers import GenerationConfig

from groundup.cli.chat import CHAT_TEMPERATURE, Conversation, sampling_of
from groundup.cli.main import main
from groundup.common.errors import InputError
from groundup.common.verbs import ChatSettings
from groundup.inference.generation import Sampling, complete, encode_prompt
from groundup.inference.loading import load_model
from groundup.inference.writing import Writing, can_converse, conversation_ids

STEADY = Sampling(max_new_tokens=6, temperature=0)


@pytest.fixture
def talk(taught):
    return Conversation(*load_model(taught), STEADY, "Be short.", answers=True)


def read(*lines):
    """Return a stand-in for `input` that gives lines, then the end of the input."""
    left = list(lines)

    def input_(prompt):
        if not left:
            raise EOFError
        return left.pop(0)

    return input_


def test_a_model_converses_if_it_has_a_template_and_was_trained_further(pretrained, taught):
    tokenizer = load_model(taught)[1]
    assert can_converse(str(taught), tokenizer) and not can_converse(str(pretrained), tokenizer)
    assert can_converse("owner/on-the-hub", tokenizer)
    tokenizer.chat_template = None
    assert not can_converse(str(taught), tokenizer)


def test_the_end_of_the_context_is_said_in_one_line(pretrained, capsys):
    command = ["generate", "--model", str(pretrained), "--prompt", "The cat", "--seed", "3", "--max-new-tokens"]
    assert main([*command, "400"]) == 0
    full = capsys.readouterr()
    assert "longer than the model's context of 48 tokens: after that it saw only the latest 24 to 48" in full.err
    assert len(full.err.strip().splitlines()) == 1 and len(full.out) > 100
    assert main([*command[:4], "The cat sat. " * 40, *command[5:], "4"]) == 0
    assert "tokens: only the last 48, the model's context, were read" in capsys.readouterr().err
    assert main([*command, "4"]) == 0
    assert capsys.readouterr().err == ""


def test_a_text_that_ends_by_itself_or_as_long_as_asked_has_no_such_line(pretrained):
    model, tokenizer = load_model(pretrained)
    ids = encode_prompt(tokenizer, "The cat")
    for sampling, ends in (
        (Sampling(max_new_tokens=49 - len(ids), temperature=0, stop_ids=(-1,)), False),
        (Sampling(max_new_tokens=50 - len(ids), temperature=0, stop_ids=(-1,)), True),
    ):
        writing = Writing(model, tokenizer, ids, sampling)
        assert "".join(writing) == writing.text == complete(model, tokenizer, "The cat", sampling)
        assert bool(writing.ending) == ends
        assert "tokens/s" in writing.summary


def test_an_answer_is_drawn_from_the_whole_conversation(talk, capsys):
    talk.answer("The dog?")
    talk.answer("And the cat?")
    asked = talk.messages[:-1]
    assert [message["role"] for message in asked] == ["system", "user", "assistant", "user"]
    ids, _ = conversation_ids(talk.tokenizer, asked, 48, 6)
    said = "".join(Writing(talk.model, talk.tokenizer, ids, STEADY))
    assert talk.messages[-1]["content"] == said
    assert said in capsys.readouterr().out


def test_the_oldest_exchanges_leave_a_full_context_and_the_system_stays(talk):
    messages = [{"role": "system", "content": "Be short."}]
    for number in range(8):
        messages += [{"role": "user", "content": f"cat {number}"}, {"role": "assistant", "content": "mat"}]
    messages.append({"role": "user", "content": "dog"})
    ids, left_out = conversation_ids(talk.tokenizer, messages, 48, 12)
    assert len(ids) <= 36 and left_out % 2 == 0 and 0 < left_out < 16
    text = talk.tokenizer.decode(ids)
    assert "Be short." in text and "dog" in text and "cat 0" not in text and "cat 7" in text
    assert conversation_ids(talk.tokenizer, messages, 1000, 12)[1] == 0


def test_a_template_that_refuses_is_the_users_error(talk):
    with pytest.raises(InputError, match="refuses this conversation"):
        conversation_ids(talk.tokenizer, [{"role": "nobody", "content": "x"}], 48, 4)


@pytest.mark.parametrize(
    ("own", "given", "expected"),
    [
        ({}, {}, {"temperature": 0.7, "top_k": 50, "top_p": 0.95}),
        ({"do_sample": True, "temperature": 0.2, "top_p": 0.9}, {}, {"temperature": 0.2, "top_k": 50, "top_p": 0.9}),
        ({"do_sample": True, "top_k": 20}, {}, {"temperature": 1.0, "top_k": 20, "top_p": 1.0}),
        ({"do_sample": True}, {}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}),
        ({"temperature": 0.6}, {"top_p": 0.5}, {"temperature": 0.6, "top_k": 50, "top_p": 0.5}),
        ({"do_sample": True, "temperature": 0.2}, {"temperature": 0}, {"temperature": 0, "top_k": 50, "top_p": 1.0}),
    ],
)
def test_a_model_is_sampled_as_its_own_settings_say_unless_told_otherwise(own, given, expected, talk, monkeypatch):
    monkeypatch.setattr(talk.model, "generation_config", GenerationConfig(**own))
    sampling = sampling_of(ChatSettings(model="m", **given), talk.model, temperature=CHAT_TEMPERATURE)
    assert {name: getattr(sampling, name) for name in expected} == expected


def test_settings_change_on_the_fly_and_keep_their_ranges(talk, capsys):
    talk.obey("/set temperature 1.5")
    talk.obey("/set max-new-tokens 9")
    assert talk.sampling == Sampling(max_new_tokens=9, temperature=1.5)
    for line, words in (
        ("/set temperture 1", "'temperature'"),
        ("/set top_k many", "a whole number"),
        ("/set top_p 2", "above 0 and at most 1"),
        ("/set temperature nan", "temperature nan: a number of at least 0 is wanted"),
        ("/set temperature inf", "temperature inf"),
        ("/set temperature -1", "temperature -1"),
        ("/set seed -1", "seed -1"),
        ("/set max-new-tokens 0", "max_new_tokens 0"),
        ("/set top_k 1e999", "top_k inf"),
        ("/set", "/set NAME VALUE"),
        ("/rset", "'/reset'"),
        ("/retry", "no message to answer"),
    ):
        with pytest.raises(InputError, match=words):
            talk.obey(line)
    assert talk.sampling == Sampling(max_new_tokens=9, temperature=1.5)


def test_reset_forgets_and_retry_answers_again_with_the_next_seed(talk):
    talk.obey("/set temperature 2")
    talk.answer("The dog?")
    first = talk.messages
    talk.obey("/retry")
    assert talk.messages[:2] == first[:2] and len(talk.messages) == 3 and talk.messages != first
    assert talk.sampling.seed == 1
    talk.obey("/reset")
    assert talk.messages == [{"role": "system", "content": "Be short."}]


def test_a_saved_conversation_is_a_training_row_and_no_file_is_written_over(talk, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talk.answer("The dog?")
    talk.obey("/save mine.jsonl")
    assert json.loads((tmp_path / "mine.jsonl").read_text()) == {"messages": talk.messages}
    with pytest.raises(InputError, match="already"):
        talk.obey("/save mine.jsonl")
    talk.obey("/save")
    talk.obey("/save")
    assert (tmp_path / "chat-2.jsonl").is_file()
    with pytest.raises(InputError, match="cannot write"):
        talk.obey("/save no/such/folder.jsonl")


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(talk, monkeypatch, capsys):
    pieces = iter(["The", " mat"])

    def interrupted(*_, **__):
        yield next(pieces)
        yield next(pieces)
        raise KeyboardInterrupt

    monkeypatch.setattr("groundup.inference.writing.stream_text", interrupted)
    talk.answer("The dog?")
    assert talk.messages[-1] == {"role": "assistant", "content": "The mat"}
    assert "stopped" in capsys.readouterr().err


def test_a_talk_goes_on_after_a_mistake_and_an_empty_line_and_ends_at_quit(taught, monkeypatch, capsys):
    monkeypatch.setattr("builtins.input", read("/nothing", "word " * 100, "", "The cat", "/quit", "not read"))
    assert main(["chat", "--model", str(taught), "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr().err
    assert "unknown command /nothing" in said and "the model takes 1 to 48" in said and said.count("tokens/s") == 1


@pytest.mark.parametrize("verb", [["generate"], ["generate", "--as-message"]])
def test_a_prompt_with_a_bad_byte_is_the_users_error(verb, taught, capsys):
    assert (
        main([*verb, "--model", str(taught), "--prompt", "caf\udce9 x"]) == 2
    )  # how Python hands on a byte it cannot read
    said = capsys.readouterr().err
    assert "is not UTF-8: byte 0xe9 after 3 characters" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("folder", ["pretrained", "taught"])
def test_a_bad_byte_in_a_message_ends_no_talk(folder, folders, monkeypatch, capsys):
    lines = io.TextIOWrapper(
        io.BytesIO(b"caf\xe9 x\nThe cat\n\xff\xfe\na\xef\xb7\x90b\n"), "utf-8"
    )  # the last is U+FDD0
    monkeypatch.setattr("sys.stdin", lines)
    assert main(["chat", "--model", str(folders / folder), "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr().err
    assert said.count("is not UTF-8: byte 0x") == 2 and said.count("tokens/s") + said.count("nothing written") == 2


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_what_a_terminal_cannot_show_ends_no_text(encoding, pretrained, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["generate", "--model", str(pretrained), "--prompt", "für 你好", "--max-new-tokens", "3"]) == 0
    screen.flush()
    assert b" ??" in screen.buffer.getvalue()


def test_a_prompt_that_ends_in_a_space_is_said_and_no_other(pretrained, capsys):
    for prompt, said in (("The cat ", True), ("The cat", False), ("", False), ("The cat\n", False)):
        assert main(["generate", "--model", str(pretrained), "--prompt", prompt, "--max-new-tokens", "1"]) == 0
        assert ("the prompt ends in a space" in capsys.readouterr().err) == said


def test_a_stop_sequence_ends_the_text_that_is_printed(pretrained, capsys):
    greedy = ["generate", "--model", str(pretrained), "--prompt", "The cat", "--temperature", "0"]
    assert main(greedy) == 0
    whole = capsys.readouterr().out.removesuffix("\n")
    stop = whole[12:15]
    assert main([*greedy, "--stop", stop]) == 0
    assert capsys.readouterr().out == whole[: whole.index(stop, len("The cat"))] + "\n"


def test_a_setting_out_of_range_is_said_before_the_model_is_loaded(capsys):
    assert main(["generate", "--model", "nowhere", "--top-p", "3"]) == 2
    assert "--top-p 3: a number above 0 and at most 1 is wanted" in capsys.readouterr().err
