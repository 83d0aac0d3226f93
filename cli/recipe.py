"""A recipe's file: which stages there are, what each depends on, and which of them are already done."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup import __version__
from groundup.cli.main import VERBS, find
from groundup.common.errors import InputError, near
from groundup.common.files import atomic_write
from groundup.common.settings import check_names, read_yaml

LEDGER_FILE = "stages.json"
DEFAULT_PROMPTS = ("", "The ")
OPENING = ("name", "stages", "prompts")


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe: its name, which is its folder's too, its verb and the options given."""

    name: str
    verb: str
    options: dict[str, Any]

    def references(self) -> Iterator[str]:
        """The earlier stages whose folders the options name, as in "{pretrain}/checkpoints"."""
        values = [
            value for option in self.options.values() for value in (option if isinstance(option, list) else [option])
        ]
        for value in values:
            if isinstance(value, str) and value.startswith("{") and "}" in value:
                yield value[1:].split("}", 1)[0]

    def filled(self, out: Path) -> dict[str, Any]:
        """The options with `{stage}` replaced by that stage's folder under `out`."""

        def fill(value: Any) -> Any:
            if isinstance(value, list):
                return [fill(item) for item in value]
            if isinstance(value, str) and value.startswith("{") and "}" in value:
                name, rest = value[1:].split("}", 1)
                return str(out / name) + rest
            return value

        return {name: fill(value) for name, value in self.options.items()}


@dataclass(frozen=True)
class Recipe:
    """A recipe that makes sense: its name, its stages in order, and the prompts shown at the end."""

    name: str
    stages: list[Stage]
    prompts: tuple[str, ...]


def find_recipe(name: str) -> Path:
    """A recipe's file: the path given, or the package's own of that name. Raises `InputError` if there is none."""
    if Path(name).is_file():
        return Path(name)
    folder = Path(__file__).parent.parent / "recipes"
    own = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    stem = Path(name).stem.replace("-", "_")
    if stem in own:
        return own[stem]
    raise InputError(f"no recipe {name}{near(stem, own)}: give a YAML file or one of {', '.join(own)}")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe, its verbs, options and references checked. Raises `InputError` naming what is wrong."""
    values = read_yaml(path)
    for key in values:
        if key not in OPENING:
            raise InputError(f"{path} has an unknown key {key!r}{near(key, OPENING)}")
    if not isinstance(values.get("stages"), dict) or not values["stages"]:
        raise InputError(f"{path} names no stages: write `stages:` and under it verbs with their settings")
    stages: list[Stage] = []
    for name, options in values["stages"].items():
        if options is not None and not isinstance(options, dict):
            raise InputError(f"{path}, stage {name}: settings are wanted under it, not {options!r}")
        options = dict(options or {})
        verb = options.pop("verb", name)
        if verb not in VERBS or verb == "run":
            raise InputError(f"{path}, stage {name}: unknown verb {verb!r}{near(verb, VERBS)}: add `verb:`")
        stage = Stage(name, verb, check_names(options, find(VERBS[verb].settings)))
        earlier = [known.name for known in stages]
        for reference in stage.references():
            if reference not in earlier:
                raise InputError(f"{path}, stage {name}: {{{reference}}} is no earlier stage{near(reference, earlier)}")
        stages.append(stage)
    return Recipe(values.get("name", path.stem), stages, tuple(values.get("prompts", DEFAULT_PROMPTS)))


class Ledger:
    """What is known of the stages under a folder, kept in `stages.json`: how each was keyed, and what it took.

    A stage's key is a hash of all that decides what it gives: verb, options, the files these name, the keys of the
    stages it builds on, and this package's version.
    """

    def __init__(self, out: Path, smoke: bool):
        self.path, self.smoke = out / LEDGER_FILE, smoke
        self._known: dict[str, dict[str, Any]] = {}
        if self.path.is_file():
            self._known = json.loads(self.path.read_text(encoding="utf-8"))

    def key(self, stage: Stage) -> str:
        """The key that `stage` has now; those of the stages it names must be done."""
        inputs = {name: self._identity(value) for name, value in stage.options.items()}
        built_on = {name: self._known.get(name, {}).get("key") for name in stage.references()}
        content = json.dumps([stage.verb, inputs, built_on, self.smoke, __version__], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def _identity(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._identity(item) for item in value]
        path = Path(value) if isinstance(value, str) and value else None
        if path is not None and path.exists():
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            return [value, *([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
        return value

    def is_done(self, stage: Stage) -> bool:
        """Whether the stage is finished with the key that it has now."""
        return self._known.get(stage.name, {}).get("key") == self.key(stage)

    def has_begun(self, stage: Stage) -> bool:
        """Whether the stage was begun with the key that it has now, and not finished."""
        return self._known.get(stage.name, {}).get("begun") == self.key(stage)

    def seconds(self, stage: Stage) -> float | None:
        """What the stage took when it was done, None if it never was."""
        return self._known.get(stage.name, {}).get("seconds")

    def begin(self, stage: Stage) -> None:
        """Note that the stage begins."""
        self._note(stage, {"begun": self.key(stage)})

    def finish(self, stage: Stage, seconds: float) -> None:
        """Note that the stage is done."""
        self._note(stage, {"key": self.key(stage), "seconds": round(seconds, 1)})

    def _note(self, stage: Stage, values: dict[str, Any]) -> None:
        self._known[stage.name] = values
        atomic_write(self.path, (json.dumps(self._known, indent=2) + "\n").encode())
