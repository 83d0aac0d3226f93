"""Many prompts at once, from a file, and one from standard input."""

import json

import pytest

from groundup.cli import chat
from groundup.cli.main import main
from groundup.inference.writing import complete_all

LINES = ["The cat", "The dog sat", "für 你好", "", "The frog in the bog", "One more"]
FIVE = ["--max-new-tokens", "5", "--temperature", "0"]


@pytest.fixture
def lines(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return tmp_path / "prompts.txt"


def rows_in(text):
    return [json.loads(line) for line in text.splitlines()]


def alone(model, prompt, capsys, *options):
    assert main(["generate", str(model), "--prompt", prompt, *FIVE, *options]) == 0
    return capsys.readouterr().out.removeprefix(prompt).removesuffix("\n")


def test_each_line_becomes_a_row_with_the_text_that_it_gets_alone(lines, pretrained, capsys):
    command = ["generate", str(pretrained), "--prompts", str(lines), "--batch-prompts", "4", *FIVE]
    assert main(command) == 0
    rows = rows_in(capsys.readouterr().out)
    assert [row["prompt"] for row in rows] == LINES and [row["seed"] for row in rows] == list(range(6))
    for row in rows:
        assert row["generated_text"] == alone(pretrained, row["prompt"], capsys)
        assert row["finish_reason"] in ("stop", "length") and row["tokens"] <= 5


def test_a_drawn_row_is_repeated_alone_by_the_seed_that_it_names(lines, pretrained, capsys):
    assert main(["generate", str(pretrained), "--prompts", str(lines), "--seed", "8", *FIVE, "--temperature", "2"]) == 0
    for row in rows_in(capsys.readouterr().out)[:3]:
        drawn = alone(pretrained, row["prompt"], capsys, "--temperature", "2", "--seed", str(row["seed"]))
        assert row["generated_text"] == drawn


def test_rows_keep_their_other_columns_and_messages_go_through_the_template(lines, taught, capsys):
    rows = [{"id": 7, "prompt": "The cat", "more": {"a": [1.5, None]}}, {"id": "x", "prompt": "The dog"}]
    path = lines.with_name("prompts.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["generate", str(taught), "--prompts", str(path), "--as-message", *FIVE]) == 0
    found = rows_in(capsys.readouterr().out)
    assert [(row["id"], row["prompt"], row["more"]) for row in found] == [
        (7, "The cat", {"a": [1.5, None]}),
        ("x", "The dog", None),
    ]
    assert main(["generate", str(taught), "--prompt", "The dog", "--as-message", *FIVE]) == 0
    assert capsys.readouterr().out == found[1]["generated_text"] + "\n"


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_killed_run_goes_on_with_the_rows_that_it_lacks(cut, lines, pretrained, monkeypatch, capsys):
    command = ["generate", str(pretrained), "--prompts", str(lines), "--batch-prompts", "2", *FIVE]
    assert main(command) == 0
    whole, batches = capsys.readouterr().out, []

    def stopped(*given, **options):
        batches.append(given)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return complete_all(*given, **options)

    monkeypatch.setattr(chat, "complete_all", stopped)
    assert main([*command, "--out", "out.jsonl"]) == 130
    assert "stopped after 4 of 6 prompts: give the command again with --resume" in capsys.readouterr().err
    out = lines.with_name("out.jsonl")
    out.write_bytes(out.read_bytes()[: out.stat().st_size - cut])  # a kill may leave a part of a line
    assert main([*command, "--out", "out.jsonl"]) == 2
    assert "add --resume to go on with it" in capsys.readouterr().err
    assert main([*command, "--out", "out.jsonl", "--resume", "--seed", "1"]) == 2
    assert "was begun with another seed" in capsys.readouterr().err
    assert main([*command, "--out", "out.jsonl", "--resume"]) == 0
    assert out.read_text(encoding="utf-8") == whole
    assert f"{4 if not cut else 3} of 6 prompts are done already" in capsys.readouterr().err
    assert sorted(path.name for path in out.parent.iterdir()) == ["out.jsonl", "prompts.txt"]
    assert main([*command, "--out", "out.jsonl", "--resume"]) == 0
    assert "is finished: nothing to do" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "options", "said"),
    [
        ("", [], "holds no prompt"),
        ("x\n", ["--prompt", "y"], "give one of them"),
        ("x\n", ["--out", "."], "is a folder: name a file"),
        ("x\n", ["--out", "no/where.jsonl"], "no is no folder"),
        ("x\n", ["--resume"], "--resume needs --out"),
        ("x\n" + "word " * 100, ["--as-message"], "prompt 2 has"),
    ],
)
def test_what_will_not_do_is_said_in_one_line(content, options, said, lines, taught, capsys):
    lines.write_text(content)
    assert main(["generate", str(taught), "--prompts", str(lines), *options]) == 2
    found = capsys.readouterr()
    assert said in found.err.splitlines()[-1] and not found.out
    assert [path.name for path in lines.parent.iterdir()] == ["prompts.txt"]


def test_a_column_that_the_output_has_too_is_refused(lines, pretrained, capsys):
    (lines.parent / "rows.csv").write_text("prompt,tokens\nThe cat,3\n")
    assert main(["generate", str(pretrained), "--prompts", "rows.csv"]) == 2
    assert "has a column 'tokens', which the output has too: rename it" in capsys.readouterr().err


def test_out_and_resume_are_for_many_prompts(pretrained, capsys):
    for options in (["--out", "x"], ["--resume"]):
        assert main(["generate", str(pretrained), *options]) == 2
        assert "are for --prompts FILE" in capsys.readouterr().err


def test_a_prompt_comes_from_standard_input(pretrained, lines, monkeypatch, capsys):
    (lines.parent / "prompt").write_bytes(b"The cat\r\n")
    with (lines.parent / "prompt").open(encoding="utf-8") as file:
        monkeypatch.setattr("sys.stdin", file)
        assert main(["generate", str(pretrained), *FIVE]) == 0
    assert capsys.readouterr().out.removesuffix("\n") == "The cat" + alone(pretrained, "The cat", capsys)
