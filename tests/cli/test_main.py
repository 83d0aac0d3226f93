"""The command line from outside and from inside."""

import json
import os
import signal
import subprocess
import sys

import pytest

from groundup.cli import main as command_line
from groundup.cli.main import main, parse
from groundup.common.errors import InputError


def test_options_take_dashes_repeat_and_stand_alone():
    settings = parse("pretrain", ["--data", "a", "--data", "b", "--max-steps", "3", "--resume", "--minutes=0.5"])
    assert (settings.data, settings.max_steps, settings.resume, settings.minutes) == (["a", "b"], 3, True, 0.5)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["generate", "m", "--prompt", "x"], {"model": "m", "prompt": "x"}),
        (["generate", "--prompt", "x", "m"], {"model": "m", "prompt": "x"}),
        (["chat", "--model", "m"], {"model": "m"}),
        (["evaluate", "m", "n", "--data", "a", "b"], {"model": ["m", "n"], "data": ["a", "b"]}),
        (["evaluate", "--data", "a", "b", "--model", "m", "n"], {"model": ["m", "n"], "data": ["a", "b"]}),
        (["classify", "--data", "a", "b"], {"model": None, "data": ["a", "b"]}),
        (["classify", "m", "--predict", "win a prize"], {"model": "m", "predict": "win a prize"}),
        (["publish", "--checkpoint", "c", "me/it"], {"checkpoint": "c", "repo_id": "me/it"}),
        (["publish", "--language", "en", "c", "me/it"], {"checkpoint": "c", "repo_id": "me/it", "language": ["en"]}),
    ],
)
def test_a_word_alone_is_the_model_and_lists_keep_their_words(arguments, expected):
    settings = parse(arguments[0], arguments[1:])
    assert {name: getattr(settings, name) for name in expected} == expected


def test_help_and_version_are_found_however_they_are_asked_for(capsys):
    for arguments in (["help"], ["-h"], []):
        assert main(arguments) == 0
        assert "First steps:" in capsys.readouterr().out
    for arguments in (["help", "chat"], ["chat", "-h"], ["chat", "my_model", "--help"]):
        assert main(arguments) == 0
        assert "usage: groundup chat MODEL [OPTIONS]" in capsys.readouterr().out
    for verb, usage in (("classify", "[MODEL]"), ("playground", "MODEL...")):
        assert main(["help", verb]) == 0
        assert f"usage: groundup {verb} {usage} [OPTIONS]" in capsys.readouterr().out
    assert main(["-V"]) == 0


def test_a_flag_can_be_switched_off_again(tmp_path):
    (tmp_path / "settings.yaml").write_text("smoke: true\n")
    config = str(tmp_path / "settings.yaml")
    assert parse("pretrain", ["--config", config]).smoke is True
    assert parse("pretrain", ["--config", config, "--smoke", "false"]).smoke is False


def test_the_command_line_wins_over_the_file_whatever_their_order(tmp_path):
    (tmp_path / "settings.yaml").write_text("max_steps: 7\nseed: 5\ndata: [x]\n")
    config = str(tmp_path / "settings.yaml")
    for arguments in (["--config", config, "--seed", "1"], ["--seed", "1", "--config", config]):
        settings = parse("pretrain", arguments)
        assert (settings.max_steps, settings.seed, settings.data) == (7, 1, ["x"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretran"], "'pretrain'"),
        (["pretrain", "--minuts", "3"], "'--minutes'"),
        (["pretrain", "--minutes", "soon"], "--minutes 'soon': a number above 0 is wanted"),
        (["pretrain", "--max-steps", "1.5"], "--max-steps 1.5: a whole number of at least 1 is wanted"),
        (["pretrain", "--optimizer", "sgd"], "--optimizer"),
        (["pretrain", "--minutes"], "--minutes needs a value"),
        (["pretrain", "stray"], "unexpected 'stray': give it by its option, --data stray"),
        (["completion", "bash", "more"], "unexpected 'more': options begin with --"),
        (["train", "--data", "x"], "(here: pretrain learns from a text, classify and instruct from rows)"),
        (["finetune"], "(here: classify or instruct for rows"),
        (["predict"], "(here: classify MODEL --predict FILE labels"),
        (["help", "nothing"], "unknown verb 'nothing'"),
        (["pretrain", "--lr", "1"], "unknown option --lr (did you mean '--learning-rate'?)"),
        (["pretrain", "--batch-size", "1"], "'--batch-tokens'"),
        (["classify", "--batch_size", "1"], "'--batch-rows'"),
        (["generate", "-m", "x"], "unknown option -m (did you mean '--model'?)"),
        (["generate", "x", "--max-tokens", "1"], "'--max-new-tokens'"),
        (["generate", "x", "--model", "y"], "--model y: x is given as the model already"),
        (["chat", "x", "y"], "unexpected 'y'"),
        (["pretrain", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["generate"], "groundup generate my_model"),
        (["generate", "--model", "./nowhere"], "nowhere"),
        (["chat"], "groundup chat my_model"),
        (["run"], "recipe"),
        (["run", "nothing"], "python_docs"),
    ],
)
def test_mistakes_end_with_status_2_and_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert words in message
    assert "\n" not in message


def test_unknown_keys_in_a_file_name_the_nearest(tmp_path):
    (tmp_path / "settings.yaml").write_text("max_step: 7\n")
    with pytest.raises(InputError, match="max_steps"):
        parse("pretrain", ["--config", str(tmp_path / "settings.yaml")])


@pytest.mark.parametrize("verb", ["run", "tokenizer", "prepare", "pretrain", "evaluate", "generate", "chat"])
def test_every_verb_explains_itself_with_an_example(verb, capsys):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"groundup {verb}" in text
    assert "Example" in text


def test_generate_writes_the_prompt_and_goes_on_and_the_same_seed_writes_the_same(pretrained, capsys):
    def written(*options):
        command = ["generate", "--model", str(pretrained), "--prompt", "The cat", "--max-new-tokens", "12"]
        assert main([*command, *options]) == 0
        return capsys.readouterr().out

    first, again, other = written(), written(), written("--seed", "1")
    assert first.startswith("The cat")
    assert first == again != other
    assert written("--temperature", "0") == written("--temperature", "0", "--seed", "1")


def test_the_command_writes_in_a_process_of_its_own(groundup, pretrained):
    talk = groundup("chat", "--model", pretrained, "--max-new-tokens", 5, stdin=None, input="the king\n\n")
    assert "not trained on conversations" in talk.stderr and talk.stdout.startswith("> ")


@pytest.mark.slow
def test_the_demo_recipe_walks_its_path_proves_the_model_elsewhere_and_keeps_what_is_done(groundup, tmp_path):
    first = groundup("run", "python_docs", "--smoke")
    assert "logits equal" in first.stderr
    assert "xz -9e" in first.stderr
    assert first.stderr.count("seed ") == 3
    out = tmp_path / "runs" / "python-docs-smoke"
    before = (out / "pretrain" / "model.safetensors").stat().st_mtime_ns
    again = groundup("run", "python_docs", "--smoke")
    assert again.stderr.count("skipped, nothing has changed") == 2
    assert (out / "pretrain" / "model.safetensors").stat().st_mtime_ns == before
    assert set(json.loads((out / "stages.json").read_text())) == {"tokenizer", "pretrain"}
    assert "<h2>Samples</h2>" in (out / "report.html").read_text()


def test_a_recipe_is_checked_before_anything_is_done(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for text, words in (
        ("stages: {pretrain: {minuts: 3}}", "recipe.yaml, stage pretrain: unknown setting 'minuts'"),
        ("stages: {first: {verb: pretrain, minutes: soon}}", "recipe.yaml, stage first: minutes 'soon'"),
        ("stages: {train: {}}", "recipe.yaml, stage train: unknown verb 'train' (here: pretrain learns"),
        ("stages: {pretrain: {data: [none.txt]}}", "recipe.yaml, stage pretrain: no file or folder none.txt"),
        ("stages:\n  pretrain:\n    data: [x\n", "recipe.yaml, line"),
        ("stages: {pretrian: {}}", "pretrain"),
        ("stage: {}", "stages"),
        ("name: x", "names no stages"),
        ("stages: {pretrain: {data: [x.txt], tokenizer: '{tokenizer}'}}", "not an earlier stage"),
        ("stages: [", "YAML"),
    ):
        (tmp_path / "recipe.yaml").write_text(text)
        assert main(["run", "recipe.yaml"]) == 2
        assert words in capsys.readouterr().err


def called(command, cwd, **environment):
    """Return status and standard error of a shell's command, in which `groundup` is this package's."""
    return_of = f'groundup() {{ "{sys.executable}" -m groundup "$@"; }}; '
    paths = filter(os.path.isabs, sys.path)  # where the folder is gone Python cannot begin with any other
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment}
    found = subprocess.run(
        ["bash", "-c", return_of + command], cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True
    )
    return found.returncode, found.stderr


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        ("groundup --help > /dev/full", 2, "no space left where the output goes"),
        ("groundup --version > /dev/full", 2, "no space left where the output goes"),  # seen when it is flushed
        ("groundup --help >&-", 0, ""),
        ("groundup completion bash >&-", 0, ""),
        ("groundup nothing 2>&-", 2, ""),
        ("mkdir gone; cd gone; rmdir ../gone; groundup completion bash", 2, "is gone: change to another one"),
        ("set -o pipefail; groundup --help | true", 0, ""),
        ("set -o pipefail; groundup completion bash | head -c 1 > first", 0, ""),
    ],
)
def test_an_output_or_a_folder_that_is_gone_gives_one_line_or_none(command, status, said, tmp_path):
    found, error = called(command, tmp_path)
    assert found == status
    assert len(error.splitlines()) == bool(said) and said in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_verb_that_is_told_to_stop_ends_in_one_line_with_status_130(number, monkeypatch, capsys):
    def begin(*_):
        os.kill(os.getpid(), number)
        raise AssertionError("it went on")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(command_line, "_do", begin)
    assert main(["tokenizer"]) == 130
    assert capsys.readouterr().err == "groundup tokenizer: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_stop_that_a_library_takes_for_a_failure_of_its_own_is_still_a_stop(monkeypatch, capsys):
    def begin(*_):
        try:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            except KeyboardInterrupt:
                raise RuntimeError("failed to import") from None
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module") from error

    monkeypatch.setattr(command_line, "_do", begin)
    assert main(["tokenizer"]) == 130
    assert capsys.readouterr().err == "groundup tokenizer: interrupted\n"
