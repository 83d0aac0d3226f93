"""The command line: one verb, its settings from options and a YAML file, one exit status.

Exit status: 0 done; 2 what the user gave is wrong, said in one line; 130 interrupted, state saved; 1 anything else.
"""

import dataclasses
import importlib
import os
import re
import sys
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup import __version__
from groundup.cli import help
from groundup.common import clock
from groundup.common.errors import Diverged, InputError, Interrupted, Unavailable, near
from groundup.common.settings import check_names, read_yaml


@dataclass(frozen=True)
class Verb:
    """Where a verb's settings and function are; nothing is imported before the verb is used."""

    settings: str  # module:class, a module that imports nothing heavy
    function: str  # module:function
    positional: tuple[str, ...] = ()
    example: str = ""  # commands to copy, one a line


VERBS = {
    "run": Verb(
        "groundup.cli.settings:RunSettings",
        "groundup.cli.run:run",
        ("recipe",),
        "groundup run recipes/python_docs.yaml",
    ),
    "tokenizer": Verb(
        "groundup.data.settings:TokenizerSettings",
        "groundup.data.preparation:train_tokenizer",
        example="groundup tokenizer --data my_texts --vocab-size 8192 --out my_tokenizer",
    ),
    "prepare": Verb(
        "groundup.data.settings:PrepareSettings",
        "groundup.data.preparation:prepare",
        example="groundup prepare --data my_texts --tokenizer my_tokenizer --out my_shards",
    ),
    "pretrain": Verb(
        "groundup.training.settings:PretrainSettings",
        "groundup.training.pretraining:pretrain",
        example="groundup pretrain --data my_texts --minutes 10\n"
        "groundup pretrain --data 'books/*.txt' --preset micro --epochs 3 --out my_model\n"
        "groundup pretrain --out my_model --resume\n"
        "groundup pretrain --init-from openai-community/gpt2 --data my_domain --lora",
    ),
    "classify": Verb(
        "groundup.training.classification_settings:ClassifySettings",
        "groundup.training.classification:classify",
        example="groundup classify --data my_labelled_rows.csv",
    ),
    "instruct": Verb(
        "groundup.training.instruction_settings:InstructSettings",
        "groundup.training.instruction:instruct",
        example="groundup instruct --model runs/pretrain-my_texts --data my_rows.jsonl",
    ),
    "plan": Verb(
        "groundup.training.planning_settings:PlanSettings",
        "groundup.training.planning:plan",
        example="groundup plan --data my_texts --minutes 60",
    ),
    "evaluate": Verb(
        "groundup.evaluation.settings:EvaluateSettings",
        "groundup.evaluation.measuring:evaluate",
        example="groundup evaluate --model runs/pretrain-my_texts --data other_texts",
    ),
    "merge": Verb(
        "groundup.training.lora_settings:MergeSettings",
        "groundup.training.merging:merge",
        ("adapter",),
        "groundup merge runs/pretrain-my_texts --out my_model",
    ),
    "import-gpt2": Verb(
        "groundup.training.conversion_settings:ImportGpt2Settings",
        "groundup.training.conversion:import_gpt2",
        ("source",),
        "groundup import-gpt2 openai-community/gpt2 --out gpt2",
    ),
    "export": Verb(
        "groundup.training.conversion_settings:ExportSettings",
        "groundup.training.conversion:export",
        ("checkpoint",),
        "groundup export runs/pretrain-my_texts --to qwen3",
    ),
    "publish": Verb(
        "groundup.evaluation.settings:PublishSettings",
        "groundup.hub_upload:publish",
        ("checkpoint", "repo_id"),
        "groundup publish runs/pretrain-my_texts my-name/my-model --license apache-2.0",
    ),
    "generate": Verb(
        "groundup.cli.settings:GenerateSettings",
        "groundup.cli.chat:generate",
        example='groundup generate --model runs/pretrain-my_texts --prompt "Once upon a time"\n'
        "groundup generate --model runs/pretrain-my_texts --temperature 0 --max-new-tokens 50",
    ),
    "chat": Verb(
        "groundup.cli.settings:ChatSettings",
        "groundup.cli.chat:chat",
        example='groundup chat --model runs/instruct-my_rows --system "Answer in one sentence."',
    ),
    "playground": Verb(
        "groundup.cli.settings:PlaygroundSettings",
        "groundup.cli.playground:playground",
        example="groundup playground --model runs/pretrain-my_texts\n"
        "groundup playground --model runs/pretrain-my_texts runs/another",
    ),
    "doctor": Verb(
        "groundup.cli.settings:DoctorSettings",
        "groundup.cli.doctor:doctor",
        example="groundup doctor",
    ),
    "completion": Verb(
        "groundup.cli.settings:CompletionSettings",
        "groundup.cli.completion:completion",
        ("shell",),
        'eval "$(groundup completion bash)"      # in ~/.bashrc; zsh alike, in ~/.zshrc\n'
        "groundup completion fish > ~/.config/fish/completions/groundup.fish",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # OpenMP's threads wait for each other by spinning; with any other program on the cores each wait lasts until the
    # scheduler's next turn: a small model trains many times slower (docs/performance.md). Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # offline its client would warn of each retry, tens of lines
    name = arguments[0] if arguments else ""
    try:
        if name in ("", "-h", "--help"):
            print(overview())
            return 0
        if name == "--version":
            print(__version__)
            return 0
        if name not in VERBS:
            raise InputError(f"unknown verb {name!r}{near(name, VERBS)}: there are {', '.join(VERBS)}")
        settings = parse(name, arguments[1:])
        if settings is not None:
            with clock.counting_from_process_start():
                find(VERBS[name].function)(settings)
        return 0
    except InputError as error:
        complain(name, error)
        return 2
    except (Interrupted, KeyboardInterrupt) as error:
        complain(name, error if str(error) else "interrupted")
        return 130
    except (Diverged, Unavailable) as error:
        complain(name, error)
        return 1
    except BrokenPipeError:  # `groundup ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def complain(name: str, error: Any) -> None:
    """One line on standard error, even where `--quiet` silences the rest; of several processes the first one's."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"groundup {name}: {' '.join(str(error).split())}".replace("groundup : ", "groundup: "), file=sys.stderr)


def overview() -> str:
    """What `groundup --help` prints: each verb with the first line of its settings' description, and first steps."""
    return help.overview({name: (find(verb.settings).__doc__ or "").split("\n")[0] for name, verb in VERBS.items()})


def find(place: str) -> Any:
    """The class or function that "module:name" means."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def parse(name: str, arguments: list[str]) -> Any:
    """Options, and a YAML file under `--config`, to the verb's settings; None after `--help`.

    Raises `InputError` for an unknown or malformed option, naming the nearest known one.
    """
    verb = VERBS[name]
    settings_class = find(verb.settings)
    if "-h" in arguments or "--help" in arguments:
        print(help.verb_help(name, verb.positional, verb.example, settings_class))
        return None
    parser = make_parser(settings_class)
    arguments, config = spell_out(arguments, settings_class, verb.positional)
    if config is not None:
        parser.set_defaults(read_config(Path(config), settings_class))
    try:
        values = parser.parse_args(arguments)
    except Exception as error:  # jsonargparse raises many kinds, all about what was typed
        raise InputError(plain_message(error)) from error
    return settings_class(**{field.name: values[field.name] for field in dataclasses.fields(settings_class)})


def make_parser(settings_class: type) -> Any:
    """A jsonargparse parser whose options are the fields of the settings."""
    import jsonargparse  # a tenth of a second that `groundup --help` need not wait for

    parser = jsonargparse.ArgumentParser(exit_on_error=False, print_config=None, add_help=False)
    parser.add_class_arguments(settings_class, None)
    return parser


def spell_out(arguments: list[str], settings_class: type, positional: tuple[str, ...]) -> tuple[list[str], str | None]:
    """Bring options into the form that jsonargparse reads, and take `--config FILE` out.

    `--max-steps 3` becomes `--max_steps=3`, a bare `--resume` `--resume=true`, `--data X --data Y` and `--data X Y`
    both `--data+=X --data+=Y`, and a leading word the first positional setting. Raises `InputError` for a name that is
    no setting.
    """
    hints = typing.get_type_hints(settings_class)
    known = ["--" + name.replace("_", "-") for name in (*hints, "config")]
    left, spelt, config, waiting = list(arguments), [], None, list(positional)
    open_list: str | None = None  # the setting that further words belong to: `--data a b`
    while left:
        word = left.pop(0)
        if not word.startswith("--"):
            if waiting:
                spelt.append(f"--{waiting.pop(0)}={word}")
            elif open_list:
                spelt.append(f"--{open_list}+={word}")
            else:
                raise InputError(f"unexpected {word!r}: options begin with --")
            continue
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        if option not in known:
            raise InputError(f"unknown option {option}{near(option, known)}")
        field = option[2:].replace("-", "_")
        if not equals:
            if hints.get(field) is bool and (not left or left[0].lower() not in ("true", "false")):
                value = "true"
            elif left:
                value = left.pop(0)
            else:
                raise InputError(f"{option} needs a value")
        if field == "config":
            config = value
        else:
            is_list = typing.get_origin(hints[field]) is list
            open_list = field if is_list else None
            if hints[field] == list[int] and not value.startswith("["):
                value = f"[{value}]"  # 0,1,2
            spelt.append(f"--{field}{'+' if is_list and not value.startswith('[') else ''}={value}")
    return spelt, config


def read_config(path: Path, settings_class: type) -> dict[str, Any]:
    """The settings of a YAML file, its keys checked."""
    values = {key.replace("-", "_"): value for key, value in read_yaml(path).items()}
    return check_names(values, settings_class)


_KINDS = {"<class 'int'>": "a whole number", "<class 'float'>": "a number", "<class 'bool'>": "true or false"}


def plain_message(error: Exception) -> str:
    """What jsonargparse says of a value, in one line and with the option's own name."""
    text = " ".join(str(error).split())
    text = re.sub(r'Parser key "(\w+)":', lambda match: f"--{match[1].replace('_', '-')}:", text)
    given = re.search(r"(?:Got|Given) value: (.*)$", text)
    expected = re.search(r"(--[\w-]+:).*?Expected (?:an?|one of) (.*?)(?: -|\.(?= |$)| Given| Got|$)", text)
    if not given or not expected:
        return text
    wanted = _KINDS.get(expected[2], re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", expected[2]))
    return f"{expected[1]} {wanted} is wanted, not {given[1]!r}"
