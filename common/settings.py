"""Settings: one dataclass a verb, the same for the command line, a YAML file, a recipe and Python.

A setting is declared once: its type, its choices and its range in the annotation, its help in the string under the
field, units with it. `Settings` holds every caller to that. Beside `--resume` a run goes on with the settings it began
with; others are obeyed or refused by name. Importing this costs nothing; checking imports pydantic.
"""

import contextlib
import dataclasses
import functools
import inspect
import numbers
import os
import time
import types
import typing
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

import yaml

from groundup.common.errors import InputError, near, public_name, user_path
from groundup.common.files import atomic_write


@dataclass(frozen=True)
class Deadline:
    """The end of a budget of `minutes` that counts from `began` [s since 1970]; without minutes there is no end."""

    began: float = field(default_factory=time.time)
    minutes: float | None = None

    def after(self, minutes: float | None) -> "Deadline":
        """Return the end of a budget of `minutes` with the same beginning."""
        return dataclasses.replace(self, minutes=minutes)

    def seconds_left(self, reserved: float = 0.0) -> float | None:
        """Return the seconds until the end, less those that are reserved, but at least one; None without an end."""
        if self.minutes is None:
            return None
        return max(1.0, self.began + 60 * self.minutes - reserved - time.time())


S = TypeVar("S", bound="Settings")
R = TypeVar("R")
OBVIOUS = 2**20  # an upper bound from here on is named only to who goes beyond it
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", dict: "a mapping of names to values"}
_BOUNDS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


class SettingError(InputError):
    """A value that a setting cannot have. The message names the setting; `named` gives it the door's own name."""

    def __init__(self, setting: str, said: str, shown: str | None = None):
        self.setting, self.said = setting, said
        super().__init__(f"{shown or setting} {said}")

    def named(self, name: str) -> "SettingError":
        """Return the same error under another name: `--max-steps`, or the file's before the setting's."""
        return SettingError(self.setting, self.said, name)


@dataclasses.dataclass(kw_only=True)
class Settings:
    """What the settings of every verb have in common: each value is checked, and it is known which were given."""

    meaning: ClassVar[dict[str, str]] = {}  # help of shared settings that mean something narrower to this verb
    _given: ClassVar[frozenset[str]] = frozenset()

    def __new__(cls, **given: Any) -> Self:
        """Note the settings that were given: a default that was asked for is not the same as none."""
        self = super().__new__(cls)
        self.__dict__["_given"] = frozenset(given)
        return self

    def __post_init__(self) -> None:
        """Bring every value into its type. Raises `SettingError` for the first that its declaration does not allow."""
        for name, hint in hints_of(type(self)).items():
            setattr(self, name, checked(name, getattr(self, name), hint))

    def given(self) -> set[str]:
        """Return the names of the settings that were given when this was made, or set since."""
        usual = {field.name: default_of(field) for field in dataclasses.fields(self)}
        return {name for name in usual if name in self._given or getattr(self, name) != usual[name]}


def verb(settings_class: type[S]) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Make a function of one settings object also take the settings by keyword: `pretrain(data=["x.txt"])`.

    A function that takes a `Deadline` too gets the one of the command line, else one that begins with the call.

    Raises `InputError` for a keyword that is no setting, naming the nearest one, and for a value that is not allowed.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        is_timed = "deadline" in inspect.signature(function).parameters

        @functools.wraps(function)
        def call(settings: S | None = None, /, *, deadline: Deadline | None = None, **options: Any) -> R:
            if settings is None:
                settings = settings_class(**check_names(options, settings_class))
            elif options:
                raise TypeError(f"{function.__name__}() takes a {settings_class.__name__} or keywords, not both")
            elif not isinstance(settings, settings_class):
                wanted = f"a {settings_class.__name__} or keywords"
                raise InputError(f"{function.__name__}() takes {wanted}, not a {type(settings).__name__}")
            settings.__post_init__()  # it may have been changed since it was made
            return function(settings, deadline or Deadline()) if is_timed else function(settings)

        return call

    return decorate


@functools.cache
def hints_of(settings_class: type) -> dict[str, Any]:
    """Return the declared type of each setting, its range included."""
    hints = typing.get_type_hints(settings_class, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(settings_class)}


def default_of(field: dataclasses.Field) -> Any:
    """Return a field's default, made anew where it is a list or a mapping."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def checked(name: str, value: Any, hint: Any) -> Any:
    """Return a value as its declared type has it. Raises `SettingError`.

    Text that spells a number, a list or a mapping becomes that, since a command line has nothing but text and YAML
    takes 1e-3 for text; a path becomes its text, and one item stands for a list of one.
    """
    import pydantic  # a tenth of a second that `--help` need not wait for

    found = _read(value, hint)
    try:
        return _validator(hint).validate_python(found)
    except pydantic.ValidationError as error:
        where = error.errors()[0]["loc"]
        if isinstance(found, list) and where:
            found, hint = found[int(where[0])], parts_of(hint)[1]
        kind, choices, _ = parts_of(hint)
        meant = near(found, choices) if kind is typing.Literal and isinstance(found, str) else ""
        shown = repr(found) if len(repr(found)) <= 80 else repr(found)[:77] + "..."
        raise SettingError(name, f"{shown}: {wanted_by(hint, found)} is wanted{meant}") from error


@functools.cache
def _validator(hint: Any) -> Any:
    from pydantic import ConfigDict, JsonValue, TypeAdapter

    plain = dict[str, JsonValue] if hint == dict[str, Any] else hint  # what a config's file can hold
    return TypeAdapter(plain, config=ConfigDict(strict=True, allow_inf_nan=False))


def _read(value: Any, hint: Any) -> Any:
    """Return a value in Python's own types: numpy's and pathlib's are converted, and text becomes what it spells."""
    kind, inner, _ = parts_of(hint)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    elif isinstance(value, numbers.Integral):
        value = int(value)
    elif isinstance(value, numbers.Real):
        value = float(value)
    if kind is list:
        return [_read(item, inner) for item in items_of(value, hint)]
    if not isinstance(value, str) or kind in (str, typing.Literal):
        return value
    if value == "null" and type(None) in typing.get_args(hint):
        return None
    if kind is bool:
        return _WORDS.get(value.lower(), value)
    if kind is dict:
        return _yaml_or_text(value)
    for number in (int, float):
        try:
            return number(value)
        except ValueError:
            continue
    return value


def items_of(value: Any, hint: Any) -> list[Any]:
    """Return the items of a list, which may be written as one item, as text in brackets or as numbers with commas."""
    if isinstance(value, tuple | list):
        return list(value)
    if not isinstance(value, str):
        return [value]
    is_text, exists = parts_of(parts_of(hint)[1])[0] in (str, typing.Literal), False
    with contextlib.suppress(OSError, ValueError):
        exists = Path(value).exists()
    if value.startswith("[") and value.endswith("]") and not (is_text and exists):
        found = _yaml_or_text(value)
        if isinstance(found, list):
            return found
    return [value] if is_text else [part.strip() for part in value.split(",")]


def _yaml_or_text(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text


def parts_of(hint: Any) -> tuple[Any, Any, list[Any]]:
    """Take a declared type apart: list, dict, Literal or a plain type; its items or choices; its bounds."""
    bounds: list[Any] = []
    while True:
        origin, arguments = typing.get_origin(hint), typing.get_args(hint)
        if origin is typing.Annotated:
            hint = arguments[0]
            for bound in arguments[1:]:
                bounds += list(bound) if isinstance(bound, Iterable) else [bound]
        elif origin in (types.UnionType, typing.Union):
            hint = next(argument for argument in arguments if argument is not type(None))
        elif origin is list:
            return list, arguments[0], bounds
        else:
            return origin or hint, arguments, bounds


def wanted_by(hint: Any, value: Any = None) -> str:
    """Return what a setting takes, in words: "a whole number of at least 1", "muon or adamw"."""
    kind, inner, bounds = parts_of(hint)
    if kind is list:
        return f"a list of which each item is {wanted_by(inner)}"
    if kind is typing.Literal:
        return " or ".join(", ".join(map(str, inner)).rsplit(", ", 1))
    limits = []
    if kind is str and value:
        limits = ["that can be a name"] if isinstance(value, str) else []
    elif kind is str and bounds:
        limits = ["that is not empty"]
    for bound in bounds:
        for name, words in _BOUNDS.items():
            limit = getattr(bound, name, None)
            beyond = isinstance(value, int | float) and limit is not None and value > limit
            if limit is not None and (abs(limit) < OBVIOUS or beyond):
                limits.append(f"{words} {limit:,}")
    of = "of " if limits and limits[0].startswith("at ") else ""
    return _KINDS.get(kind, "text") + (f" {of}{' and '.join(limits)}" if limits else "")


def check_names(options: dict[str, Any], settings_class: type) -> dict[str, Any]:
    """Return `options` unchanged if every key is a field of `settings_class`, else raise `InputError`."""
    known = [field.name for field in dataclasses.fields(settings_class)]
    for name in options:
        if name not in known:
            raise InputError(f"unknown setting {name!r}{near(str(name), known)}: {settings_class.__name__} has none")
    return options


def settings_from(path: Path | str, values: Any, settings_class: type[S]) -> S:
    """Read the settings that a file holds. Raises `InputError` that names the file, and what in it is wrong."""
    if not isinstance(values, dict):
        raise InputError(f"{path} holds no settings for {settings_class.__name__}: they are damaged")
    try:
        return settings_class(**check_names(spelt(values), settings_class))
    except SettingError as error:
        raise error.named(f"{path}: {error.setting}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def spelt(values: dict[Any, Any]) -> dict[str, Any]:
    """Return the settings of a file, whose names may be spelt as on the command line: `max-steps`."""
    return {str(name).replace("-", "_"): value for name, value in values.items()}


def public_settings(settings: Any, paths: Container[str]) -> dict[str, Any]:
    """Return all settings as they may be published: of those named in `paths` the last part of each path."""

    def public(value: Any) -> Any:
        if isinstance(value, list):
            return [public(item) for item in value]
        return public_name(value) if value else value

    values = dataclasses.asdict(settings)
    return {name: public(value) if name in paths else value for name, value in values.items()}


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write `values` as YAML in their own order, readable by a person."""
    atomic_write(path, yaml.safe_dump(values, sort_keys=False, allow_unicode=True).encode())


class _EachKeyOnce(yaml.SafeLoader):
    """Refuse a key that occurs twice in a mapping; PyYAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node. Raises `ConstructorError` where it has a key twice."""
        known: set[Any] = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.tag != "tag:yaml.org,2002:merge":
                if (key_node.tag, key_node.value) in known:
                    problem = f"{key_node.value!r} occurs twice: leave one out"
                    raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
                known.add((key_node.tag, key_node.value))
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises `InputError` when the file is missing, no YAML, or no mapping of names to values."""
    try:
        values = _EachKeyOnce(path.read_text(encoding="utf-8")).get_single_data()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date such as 2024-13-45
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise InputError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of names to values, not {type(values).__name__}")
    for name in values:
        if not isinstance(name, str):
            raise InputError(f"{path}: {name!r} is no name of a setting: each line is a name, a colon and a value")
    return values


OF_THE_CALL = ("out", "resume", "quiet")
BUDGETS = ("minutes", "max_steps", "epochs")
NOTHING = (None, [], {})


def differing(settings: Settings, given: Container[str], kept: Mapping[str, Any], *, public: bool) -> dict[str, Any]:
    """Return the settings in `given` that are not what a run has kept, with their values.

    A value that asks for nothing (None, an empty list) differs from nothing. `public` says that of paths only the last
    parts were kept, as in a finished run's recipe.
    """
    return {
        name: value
        for name, value in vars(settings).items()
        if name in given and name not in OF_THE_CALL and value not in NOTHING
        if not _same(value, kept.get(name), public)
    }


def is_longer(name: str, value: Any, kept: Mapping[str, Any]) -> bool:
    """Return whether a setting is the budget that a run has, and more of it."""
    return name in BUDGETS and kept.get(name) is not None and value > kept[name]


def refuse(others: Mapping[str, Any], kept: Mapping[str, Any], out: Path, why: str, instead: str) -> None:
    """Raise `InputError` if there are settings that the run in `out` cannot take, naming each and what the run has."""
    if others:
        named = [
            f"--{name.replace('_', '-')} {_said(value)} (it has {_said(kept.get(name))})"
            for name, value in others.items()
        ]
        raise InputError(f"{out} {why}: leave out {', '.join(named)}, or {instead}")


def _same(value: Any, kept: Any, public: bool) -> bool:
    if isinstance(value, list) and isinstance(kept, list):
        return len(value) == len(kept) and all(_same(one, other, public) for one, other in zip(value, kept))
    if value == kept or not (isinstance(value, str) and isinstance(kept, str)):
        return value == kept
    return public_name(value) == kept if public else user_path(value).resolve() == user_path(kept).resolve()


def _said(value: Any) -> str:
    return "none" if value in NOTHING else " ".join(map(str, value)) if isinstance(value, list) else str(value)
