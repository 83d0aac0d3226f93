"""Settings: one dataclass a verb, the same for the command line, a YAML file and Python.

A setting's help text is the string under its field, which jsonargparse reads; units stand in it.
"""

import dataclasses
import functools
from collections.abc import Callable, Container
from pathlib import Path
from typing import Any, TypeVar

import yaml

from groundup.common.errors import InputError, near
from groundup.common.files import public_name

S = TypeVar("S")
R = TypeVar("R")


def verb(settings_class: type[S]) -> Callable[[Callable[[S], R]], Callable[..., R]]:
    """Make a function of one settings object also take the settings by keyword: `pretrain(data=["x.txt"])`.

    Raises `InputError` for a keyword that is no setting, naming the nearest one.
    """

    def decorate(function: Callable[[S], R]) -> Callable[..., R]:
        @functools.wraps(function)
        def call(settings: S | None = None, /, **options: Any) -> R:
            if settings is None:
                settings = settings_class(**check_names(options, settings_class))
            elif options:
                raise TypeError(f"{function.__name__}() takes a {settings_class.__name__} or keywords, not both")
            return function(settings)

        return call

    return decorate


def check_names(options: dict[str, Any], settings_class: type) -> dict[str, Any]:
    """Return `options` unchanged if every key is a field of `settings_class`, else raise `InputError`."""
    known = [field.name for field in dataclasses.fields(settings_class)]
    for name in options:
        if name not in known:
            raise InputError(f"unknown setting {name!r} for {settings_class.__name__}{near(name, known)}")
    return options


def public_settings(settings: Any, paths: Container[str]) -> dict[str, Any]:
    """All settings as they may be published: of those named in `paths` the names of files, without their folders."""

    def public(value: Any) -> Any:
        if isinstance(value, list):
            return [public(item) for item in value]
        return public_name(value) if value else value

    values = dataclasses.asdict(settings)
    return {name: public(value) if name in paths else value for name, value in values.items()}


def write_yaml(path: Path, values: dict[str, Any]) -> None:
    """Write `values` as YAML in their own order, readable by a person."""
    path.write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping. Raises `InputError` when the file is missing, no YAML, or no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f", line {place.line + 1}" if place else ""
        raise InputError(f"{path}{line} is not valid YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of names to values, not {type(values).__name__}")
    return values
