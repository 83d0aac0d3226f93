"""The command line: one verb, its settings from options and a YAML file, one exit status.

Exit status: 0 done; 2 what the user gave is wrong, said in one line; 130 interrupted, state saved; 1 anything else.
"""

import contextlib
import dataclasses
import importlib
import logging
import os
import signal
import sys
import typing
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from groundup import __version__
from groundup.cli import help
from groundup.common import verbs
from groundup.common.errors import Diverged, InputError, Interrupted, Unavailable, causes, is_disk_full, near, user_path
from groundup.common.settings import (
    Deadline,
    SettingError,
    check_names,
    hints_of,
    items_of,
    parts_of,
    read_yaml,
    spelt,
    verb,
)
from groundup.training import settings as training


@dataclass(frozen=True)
class Verb:
    """A verb's settings, whose modules import nothing heavy, and its function, imported when the verb is used."""

    settings: type
    function: str  # module:function
    positional: tuple[str, ...] = ()
    example: str = ""  # commands to copy, one a line


VERBS = {
    "run": Verb(verbs.RunSettings, "groundup.cli.run:run", ("recipe",), "groundup run recipes/python_docs.yaml"),
    "tokenizer": Verb(
        verbs.TokenizerSettings,
        "groundup.data.preparation:train_tokenizer",
        example="groundup tokenizer --data my_texts --vocab-size 8192 --out my_tokenizer",
    ),
    "prepare": Verb(
        verbs.PrepareSettings,
        "groundup.data.preparation:prepare",
        example="groundup prepare --data my_texts --tokenizer my_tokenizer --out my_shards",
    ),
    "pretrain": Verb(
        training.PretrainSettings,
        "groundup.training.pretraining:pretrain",
        example="groundup pretrain --data my_texts --minutes 10\n"
        "groundup pretrain --data 'books/*.txt' --preset micro --epochs 3 --out my_model\n"
        "groundup pretrain --out my_model --resume\n"
        "groundup pretrain --init-from openai-community/gpt2 --data my_domain --lora",
    ),
    "classify": Verb(
        training.ClassifySettings,
        "groundup.training.classification:classify",
        ("model",),
        "groundup classify --data my_labelled_rows.csv\n"
        "groundup classify runs/classify-my_labelled_rows --predict new_texts.csv\n"
        'groundup classify runs/classify-my_labelled_rows --predict "win a prize"',
    ),
    "instruct": Verb(
        training.InstructSettings,
        "groundup.training.instruction:instruct",
        ("model",),
        "groundup instruct runs/pretrain-my_texts --data my_rows.jsonl",
    ),
    "plan": Verb(
        training.PlanSettings, "groundup.training.forecast:plan", example="groundup plan --data my_texts --minutes 60"
    ),
    "evaluate": Verb(
        verbs.EvaluateSettings,
        "groundup.evaluation.evaluating:evaluate",
        ("model",),
        "groundup evaluate runs/pretrain-my_texts --data other_texts\n"
        "groundup evaluate runs/pretrain-my_texts runs/another --data other_texts",
    ),
    "merge": Verb(
        verbs.MergeSettings,
        "groundup.publishing.conversion:merge",
        ("adapter",),
        "groundup merge runs/pretrain-my_texts --out my_model",
    ),
    "import": Verb(
        verbs.ImportSettings,
        "groundup.publishing.importing:import_model",
        ("source",),
        "groundup import openai-community/gpt2 --out gpt2\n"
        "groundup import Qwen/Qwen3-0.6B --out qwen3\n"
        "groundup import SmolLM2-135M-Instruct.Q4_1.gguf --out smollm2",
    ),
    "export": Verb(
        verbs.ExportSettings,
        "groundup.publishing.conversion:export",
        ("checkpoint",),
        "groundup export runs/pretrain-my_texts --to qwen3",
    ),
    "publish": Verb(
        verbs.PublishSettings,
        "groundup.hub_upload:publish",
        ("checkpoint", "repo_id"),
        "groundup publish runs/pretrain-my_texts my-name/my-model --license apache-2.0",
    ),
    "generate": Verb(
        verbs.GenerateSettings,
        "groundup.cli.chat:generate",
        ("model",),
        'groundup generate runs/pretrain-my_texts --prompt "Once upon a time"\n'
        "groundup generate runs/pretrain-my_texts --temperature 0 --max-new-tokens 50 < prompt.txt\n"
        "groundup generate runs/pretrain-my_texts --prompts prompts.jsonl --out generated.jsonl",
    ),
    "chat": Verb(
        verbs.ChatSettings,
        "groundup.cli.chat:chat",
        ("model",),
        'groundup chat runs/instruct-my_rows --system "Answer in one sentence."',
    ),
    "playground": Verb(
        verbs.PlaygroundSettings,
        "groundup.cli.playground:playground",
        ("model",),
        "groundup playground runs/pretrain-my_texts\ngroundup playground runs/pretrain-my_texts runs/another",
    ),
    "serve": Verb(
        verbs.ServeSettings,
        "groundup.cli.serve:serve",
        ("model",),
        "groundup serve runs/instruct-my_rows\ngroundup serve my_model.gguf --port 8081 --parallel 8",
    ),
    "doctor": Verb(verbs.DoctorSettings, "groundup.cli.doctor:doctor", example="groundup doctor"),
    "completion": Verb(
        verbs.CompletionSettings,
        "groundup.cli.main:completion",
        ("shell",),
        'eval "$(groundup completion bash)"      # in ~/.bashrc; zsh alike, in ~/.zshrc\n'
        "groundup completion fish > ~/.config/fish/completions/groundup.fish",
    ),
}

ALIASES = {"import-gpt2": "import"}  # other names of verbs


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb and return the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # OpenMP's threads wait for each other by spinning; with any other program on the cores each wait lasts until the
    # scheduler's next turn: a small model trains many times slower (docs/performance.md). Read when torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # offline its client would warn of each retry, tens of lines
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns of a home that it cannot write to
    for name in ("sklearn", "matplotlib"):  # what there is to say about scores and pictures is said by us
        warnings.filterwarnings("ignore", category=UserWarning, module=name)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this: `groundup ... >&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (to the end of the process)
    with contextlib.suppress(AttributeError):  # a stand-in of somebody's
        sys.stdout.reconfigure(errors="replace")  # a terminal that knows no é shows a ? for it
    name = ALIASES.get(arguments[0], arguments[0]) if arguments else ""
    try:
        with _sigterm_interrupts():
            _do(name, arguments[1:])
        sys.stdout.flush()  # what goes wrong with it is said here, not when Python ends
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
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and not is_disk_full(error):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `groundup ... | head`: the reader has seen enough
            return 0
        complain(name, "no space left where the output goes: make room, then give the command again")
        return 2
    except Exception as error:
        if not any(isinstance(cause, KeyboardInterrupt) for cause in causes(error)):
            raise
        complain(name, "interrupted")  # within an import, say, of a library that took it for a failure of its own
        return 130


def _do(name: str, options: list[str]) -> None:
    """Run a verb, or print its help or the version."""
    if name == "help" and options:
        name, options = ALIASES.get(options[0], options[0]), ["--help"]
    if name in ("", "-h", "--help", "help", "--version", "-V"):
        print(__version__ if name in ("--version", "-V") else overview())
        return
    if name not in VERBS:
        hint = help.lead(name) or near(name, VERBS)
        raise InputError(f"unknown verb {name!r}{hint}: there are {', '.join(VERBS)}")
    try:
        Path.cwd()
    except FileNotFoundError:
        raise InputError("the current folder is gone: change to another one") from None
    settings = parse(name, options)
    if settings is not None:
        began = psutil.Process().create_time()  # imports are a part of the minutes
        find(VERBS[name].function)(settings, deadline=Deadline(began))


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a verb as Ctrl-C does, so that it takes back what it has not finished."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread: whoever owns that one handles signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def complain(name: str, error: Any) -> None:
    """Print one line to standard error, even under `--quiet`; of several processes, only the first prints."""
    if os.environ.get("RANK", "0") != "0":
        return
    print(f"groundup {name}: {' '.join(str(error).split())}".replace("groundup : ", "groundup: "), file=sys.stderr)


def overview() -> str:
    """Return the text of `groundup --help`: each verb with the first line of its settings' docstring."""
    return help.overview({name: (entry.settings.__doc__ or "").split("\n")[0] for name, entry in VERBS.items()})


def find(place: str) -> Any:
    """Return the class or function that "module:name" names."""
    module, name = place.split(":")
    return getattr(importlib.import_module(module), name)


def parse(name: str, arguments: list[str]) -> Any:
    """Return a verb's settings from its options and the YAML file of `--config`; print the help and return None for
    `--help`.

    Raises `InputError` for an unknown or malformed option, naming the nearest known one.
    """
    entry = VERBS[name]
    settings_class = entry.settings
    typed = read_options(arguments, hints_of(settings_class), entry.positional)
    if typed is None:
        print(help.verb_help(name, entry.positional, entry.example, settings_class))
        return None
    config = typed.pop("config", None)
    from_file = {} if config is None else read_config(user_path(config), settings_class)
    try:
        return settings_class(**from_file | typed)
    except SettingError as error:
        known = option_of(error.setting) if error.setting in typed else f"{config}: {error.setting}"
        raise error.named(known) from error


def read_options(arguments: list[str], hints: dict[str, Any], positional: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the text typed for each setting and for `config` (a list of texts for a list), or None for `--help`.

    `--max-steps 3` and `--max-steps=3` are the same, a bare `--resume` is "true", `--data X --data Y` and `--data X Y`
    both ["X", "Y"]. A word alone is the first positional setting; behind a list a model is the list's. Raises
    `InputError` for a name that is no setting, and for an option without its value.
    """
    known = [option_of(name) for name in (*hints, "config")]
    left, typed, waiting = list(arguments), {}, list(positional)
    open_list: str | None = None  # the setting that further words belong to: `--data a b`
    while left:
        word = left.pop(0)
        if word in ("-h", "--help"):
            return None
        if len(word) < 2 or word[0] != "-":
            if waiting and not (open_list and waiting[0] == "model"):
                open_list = _take_word(word, waiting.pop(0), typed, hints) or open_list
            elif open_list:
                typed[open_list].append(word)
            else:
                data = f": give it by its option, --data {word}" if "data" in hints else ": options begin with --"
                raise InputError(f"unexpected {word!r}{data}")
            continue
        option, equals, value = word.partition("=")
        option = option.replace("_", "-")
        if option not in known:
            raise InputError(f"unknown option {option}{near(option, known)}")
        setting = option[2:].replace("-", "_")
        kind, _, _ = parts_of(hints.get(setting, str))
        if not equals:
            if kind is bool and (not left or left[0].lower() not in ("true", "false")):
                value = "true"
            elif not left or left[0].partition("=")[0].replace("_", "-") in known:
                raise InputError(f"{option} needs a value" + (f": {option}={left[0]} if that is it" if left else ""))
            else:
                value = left.pop(0)
        open_list = setting if kind is list else None
        if setting in positional:
            if setting in typed and setting not in waiting and kind is not list:
                raise InputError(f"{option} {value}: {typed[setting]} is given as the {setting} already")
            waiting = [name for name in waiting if name != setting]
        if kind is list:
            typed.setdefault(setting, []).extend(items_of(value, hints[setting]))
        else:
            typed[setting] = value
    return typed


def _take_word(word: str, setting: str, typed: dict[str, Any], hints: dict[str, Any]) -> str | None:
    """Take a word alone for a setting; return the setting if it is a list, which further words belong to."""
    if parts_of(hints[setting])[0] is not list:
        typed[setting] = word
        return None
    typed.setdefault(setting, []).append(word)
    return setting


def option_of(setting: str) -> str:
    """Return the option of a setting: `--max-steps` for `max_steps`."""
    return "--" + setting.replace("_", "-")


def read_config(path: Path, settings_class: type) -> dict[str, Any]:
    """Return the settings in a YAML file. Raises `InputError` for an unknown key."""
    values = read_yaml(path)
    try:
        return check_names(spelt(values), settings_class)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# The verb `completion`: a shell script, built from the settings, that completes verbs, options and choices

_ZSH = "autoload -U +X bashcompinit && bashcompinit\n"  # runs bash's script through zsh's own compatibility layer


@verb(verbs.CompletionSettings)
def completion(settings: verbs.CompletionSettings) -> str:
    """Print the completion script of a shell, and return it."""
    scripts = {"bash": _bash, "zsh": lambda: _ZSH + _bash(), "fish": _fish}
    script = scripts[settings.shell]()
    print(script, end="")
    return script


def _bash() -> str:
    options = [f"        {name}) offered='{' '.join(_options(name))}' ;;" for name in VERBS]
    choices = [
        f"    '{name} {option}') offered='{' '.join(values)}' ;;"
        for name in VERBS
        for option, values in _options(name).items()
        if values
    ]
    script = (Path(__file__).parent / "completion.bash").read_text(encoding="utf-8")
    filled = {"@VERBS@": " ".join(VERBS), "@CHOICES@": "\n".join(choices), "@OPTIONS@": "\n".join(options)}
    for mark, words in filled.items():
        script = script.replace(mark, words)
    return script


def _fish() -> str:
    lines = []
    for name, entry in VERBS.items():
        description = (entry.settings.__doc__ or "").split(".")[0].split(":")[0].replace("'", "\\'")
        description = " ".join(description.split())
        lines.append(f"complete -c groundup -n __fish_use_subcommand -a {name} -d '{description}'")
        for option, values in _options(name).items():
            line = f"complete -c groundup -n '__fish_seen_subcommand_from {name}' -l {option[2:]}"
            lines.append(line + (f" -xa '{' '.join(values)}'" if values else ""))
    return "\n".join(lines) + "\n"


def _options(name: str) -> dict[str, list[str]]:
    """Return the options of a verb, each with its choices (perhaps none)."""
    settings_class: Any = VERBS[name].settings
    hints = typing.get_type_hints(settings_class)
    options = {"--help": [], "--config": []}
    for field in dataclasses.fields(settings_class):
        kind = help.kind_of(hints[field.name]).removesuffix("...")
        options["--" + field.name.replace("_", "-")] = kind.split("|") if "|" in kind else []
    return options
