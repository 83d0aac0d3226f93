"""Judge the settings beside `--resume`: the run goes on with its own; others are obeyed or refused by name.

Only settings that were given count. One that the run has anyway is fine; `quiet`, `out` and `resume` itself are of the
call, not of the run.
"""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import Any

from groundup.common.errors import InputError, public_name, user_path
from groundup.common.settings import Settings

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
        named = [f"{option} {_said(value)} (it has {_said(kept.get(name))})" for name, value, option in _named(others)]
        raise InputError(f"{out} {why}: leave out {', '.join(named)}, or {instead}")


def _named(settings: Mapping[str, Any]) -> list[tuple[str, Any, str]]:
    return [(name, value, f"--{name.replace('_', '-')}") for name, value in settings.items()]


def _same(value: Any, kept: Any, public: bool) -> bool:
    if isinstance(value, list) and isinstance(kept, list):
        return len(value) == len(kept) and all(_same(one, other, public) for one, other in zip(value, kept))
    if value == kept or not (isinstance(value, str) and isinstance(kept, str)):
        return value == kept
    return public_name(value) == kept if public else user_path(value).resolve() == user_path(kept).resolve()


def _said(value: Any) -> str:
    return "none" if value in NOTHING else " ".join(map(str, value)) if isinstance(value, list) else str(value)
