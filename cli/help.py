"""Write the text of `--help`: what a verb does, examples, and every option with its unit and default.

Read from the settings themselves: the string under each field is its help. Nothing heavy is imported for it.
"""

import ast
import dataclasses
import inspect
import itertools
import re
import shutil
import textwrap
import types
import typing
from typing import Any

FIRST_STEPS = {
    "groundup doctor": "what this machine has, and what to fix",
    "groundup run python_docs --smoke": "every stage in a minute, without data of your own",
    "groundup pretrain --data my_texts --minutes 10": "a model trained on your own text",
    "groundup playground runs/pretrain-my_texts": "generate text, chat, look inside the model",
}
# What verbs are called elsewhere, and the way to the same here.
_LEADS = {
    ("train", "training", "fit", "learn", "new"): "pretrain learns from a text, classify and instruct from rows",
    ("finetune", "fine-tune", "tune", "sft", "adapt"): "classify or instruct for rows, pretrain --init-from for a text",
    ("lora", "qlora", "adapter"): "pretrain --init-from, classify or instruct, with --lora",
    ("predict", "label", "infer", "inference"): "classify MODEL --predict FILE labels, generate writes",
    ("test", "eval", "score", "benchmark"): "evaluate, for text and tasks; classify tests on --eval-data",
    ("complete", "sample", "write", "prompt"): "generate",
    ("talk", "ask"): "chat",
    ("ui", "web", "gui", "app", "demo", "inspect"): "playground; the demo is run python_docs --smoke",
    ("convert", "gguf"): "import into our form, export out of it",
    ("push", "upload", "share", "deploy"): "publish, to the Hub",
    ("tokenize", "encode"): "prepare tokenizes a text, tokenizer trains on one",
    ("resume", "continue"): "the verb that was stopped, with --out FOLDER --resume",
    ("check", "info", "env", "version"): "doctor",
}
WORKED_ON = ("checkpoint", "model", "data", "eval_data", "text_column", "label_column")
OF_A_CALL = ("seed", "resume", "smoke", "quiet")  # they say how the verb is called, not what it does
_KINDS = {str: "TEXT", int: "N", float: "X", dict: "MAPPING"}


def overview(verbs: dict[str, str]) -> str:
    """Return the text of `groundup --help` for verbs and their descriptions: usage, verbs and first steps."""
    width = _width()
    lines = ["usage: groundup VERB [OPTIONS]     (groundup VERB --help says more)", ""]
    for name, description in verbs.items():
        lines += _beside(f"  {name}", description, 14, width)
    lines += ["", "First steps:"]
    for command, purpose in FIRST_STEPS.items():
        lines.append(f"  {command:<52}{purpose}")
    return "\n".join(lines)


def lead(word: str) -> str:
    """Return ` (here: ...)` for a word that other tools call a verb by, else an empty string."""
    plain = word.lower().replace("_", "-").lstrip("-")
    return next((f" (here: {way})" for words, way in _LEADS.items() if plain in words), "")


def verb_help(name: str, positional: tuple[str, ...], examples: str, settings_class: type) -> str:
    """Return the text of `groundup VERB --help`. `examples` holds one command per line."""
    width = _width()
    hints, documents = typing.get_type_hints(settings_class), field_documents(settings_class)
    places = "".join(f" {_place(field, hints.get(field))}" for field in positional)
    lines = [f"usage: groundup {name}{places} [OPTIONS]", ""]
    lines += textwrap.wrap(" ".join((settings_class.__doc__ or "").split()), width)
    commands = examples.splitlines()
    lines += ["", "Example:" if len(commands) == 1 else "Examples:", *(f"  {command}" for command in commands)]
    lines += ["", "Options:", *_beside("  --config FILE", "A YAML file with the same settings.", 26, width)]
    for field in in_order(settings_class):
        option = f"  --{field.name.replace('_', '-')} {kind_of(hints[field.name])}".rstrip()
        lines += _beside(option, documents.get(field.name, "") + _default(field), 26, width)
    return "\n".join(lines)


def _place(field: str, hint: Any) -> str:
    """Return a positional setting as usage shows it: a model in brackets where it may be left out."""
    name = field.upper()
    if field != "model":
        return name
    return f"[{name}]" if type(None) in typing.get_args(hint) else f"{name}..." if "..." in kind_of(hint) else name


def in_order(settings_class: type) -> list[dataclasses.Field]:
    """Return a verb's settings in reading order: its inputs, its own settings, the shared ones, those of every call."""
    own = settings_class.__annotations__

    def rank(field: dataclasses.Field) -> int:
        return 0 if field.name in WORKED_ON else 3 if field.name in OF_A_CALL else 1 if field.name in own else 2

    return sorted(dataclasses.fields(settings_class), key=rank)


def kind_of(hint: Any) -> str:
    """Return the placeholder of an option's value: N for an integer, X for a number, the choices, "" for a switch."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return kind_of(next(argument for argument in arguments if argument is not type(None)))
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin is list:
        return f"{kind_of(arguments[0])}..."
    return "" if hint is bool else _KINDS.get(origin or hint, "TEXT")


def field_documents(settings_class: type) -> dict[str, str]:
    """Return the string under each field of a dataclass and its bases, in one line."""
    documents: dict[str, str] = {}
    for owner in reversed(settings_class.__mro__):
        if not dataclasses.is_dataclass(owner):
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for field, text in itertools.pairwise(body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                documents[field.target.id] = " ".join(str(text.value.value).split())
    return documents | getattr(settings_class, "meaning", {})


def _default(field: dataclasses.Field) -> str:
    """Return the default in brackets, or "" for no value and for a switch that is off."""
    make: Any = field.default_factory
    value = field.default if make is dataclasses.MISSING else make()
    if value is None or value is False or value is dataclasses.MISSING or value in ("", [], {}):
        return ""
    return f" [{' '.join(map(str, value)) if isinstance(value, list) else 'on' if value is True else value}]"


def _beside(left: str, right: str, indent: int, width: int) -> list[str]:
    """Return the lines of a name and its wrapped description, beside the name or below a long one."""
    lines = textwrap.wrap(right, max(20, width - indent)) or [""]
    padded = [" " * indent + line for line in lines]
    if len(left) + 1 < indent:
        padded[0] = left.ljust(indent) + lines[0]
        return padded
    return [*_folded(left, indent, width), *padded]


def _folded(option: str, indent: int, width: int) -> list[str]:
    """Return the lines of an option whose choices may be too many for one."""
    folded = [""]
    for choice in re.findall(r"[^|]+[|]?", option):
        if len(folded[-1] + choice) > width:
            folded.append(" " * indent)
        folded[-1] += choice
    return folded


def _width() -> int:
    return max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
