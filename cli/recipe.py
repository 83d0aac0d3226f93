"""Read recipes: the stages of a file, their dependencies, and which of them are done."""

import json
import platform
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from groundup import __version__
from groundup.cli.help import lead
from groundup.cli.main import ALIASES, VERBS
from groundup.common.errors import InputError, near, one_line, user_path
from groundup.common.files import CARD_FILE, KEPT_APART, PAGE_FILE, atomic_write, content_of, digest, files_of
from groundup.common.options import what_is_read
from groundup.common.settings import Settings, hints_of, read_yaml, settings_from, spelt

LEDGER_FILE = "stages.json"
RUN_FILES = (LEDGER_FILE, PAGE_FILE, CARD_FILE)
_MARKS = ("begun", "key")  # an entry of ours has one of them
NO_STAGES = ("run", "generate", "chat", "playground", "serve", "doctor", "completion")
OF_THE_RUN = ("out", "resume", "smoke", "quiet")  # settings of a stage that `run` decides


@dataclass(kw_only=True)
class RecipeSettings(Settings):
    """The content of a recipe file."""

    name: str | None = None
    stages: dict[str, object] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=lambda: ["", "The "])


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe: its name (also that of its folder), its verb and its options."""

    name: str
    verb: str
    options: dict[str, Any]

    def read_as(self, option: str) -> str | None:
        """Return what an option names: a "file", a "dataset", a "model", or None for nothing that is read."""
        return what_is_read(hints_of(VERBS[self.verb].settings)[option])

    def references(self) -> Iterator[str]:
        """Yield the earlier stages that the options name, as in "{pretrain}/checkpoints"."""
        for option in self.options.values():
            for value in option if isinstance(option, list) else [option]:
                if isinstance(value, str) and value.startswith("{") and "}" in value:
                    yield value[1:].split("}", 1)[0]

    def filled(self, out: Path) -> dict[str, Any]:
        """Return the options with `{stage}` replaced by that stage's folder under `out`."""

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
    """A checked recipe: its name, its stages in order, the prompts for the last model, and its file."""

    name: str
    stages: list[Stage]
    prompts: tuple[str, ...]
    file: Path


def find_recipe(name: str) -> Path:
    """Return the file of a recipe: the given path, or the package's recipe of that name. Raises `InputError`."""
    if (path := user_path(name)).is_file():
        return path
    folder = Path(__file__).parent.parent / "recipes"
    own = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    stem = Path(name).stem.replace("-", "_")
    if stem in own:
        return own[stem]
    raise InputError(f"no recipe {name}{near(stem, own)}: give a YAML file or one of {', '.join(own)}")


def read_recipe(path: Path) -> Recipe:
    """Read a recipe, its verbs, options and references checked. Raises `InputError` naming what is wrong."""
    given = settings_from(path, read_yaml(path), RecipeSettings)
    if not given.stages:
        raise InputError(f"{path} names no stages: write `stages:` and under it verbs with their settings")
    require_folder_name(given.name or "recipe", f"{path}: name")
    stages: list[Stage] = []
    for name, options in given.stages.items():
        stage = _read_stage(path, name, options)
        earlier = [known.name for known in stages]
        if taken := _same_name(name, [LEDGER_FILE, PAGE_FILE, *earlier]):
            alike = f"{taken} has almost the same name, and some disks ignore case"
            raise InputError(f"{path}, stage {name}: {alike}: rename one")
        for reference in stage.references():
            if reference not in earlier:
                hint = near(reference, earlier)
                raise InputError(f"{path}, stage {name}: {{{reference}}} is not an earlier stage{hint}")
        stages.append(stage)
    return Recipe(given.name or path.stem, stages, tuple(given.prompts), path)


def _same_name(name: str, taken: list[str]) -> str | None:
    """Return the name in `taken` that some disks do not tell from `name`: equal except for case or composed accents."""

    def plain(text: str) -> str:
        return unicodedata.normalize("NFC", text).casefold()

    return next((other for other in taken if plain(other) == plain(name)), None)


def _read_stage(path: Path, name: str, options: Any) -> Stage:
    """Return one stage, with its verb and the values of its options checked."""
    require_folder_name(name, f"{path}: stage")
    if options is not None and not isinstance(options, dict):
        raise InputError(f"{path}, stage {name}: it must hold settings, not {options!r}")
    options = dict(options or {})
    verb = options.pop("verb", name)
    verb = ALIASES.get(verb, verb) if isinstance(verb, str) else verb
    if verb in NO_STAGES:
        raise InputError(f"{path}, stage {name}: {verb} leaves no folder and cannot be a stage: leave it out")
    if not isinstance(verb, str) or verb not in VERBS:
        raise InputError(
            f"{path}, stage {name}: unknown verb {verb!r}{lead(str(verb)) or near(str(verb), VERBS)}: add `verb:`"
        )
    for option in OF_THE_RUN:
        if option in spelt(options):
            raise InputError(f"{path}, stage {name}: `{option}` is set by `groundup run`: leave it out")
    settings = settings_from(f"{path}, stage {name}", options, VERBS[verb].settings)
    return Stage(name, verb, {option: getattr(settings, option) for option in spelt(options)})


def require_folder_name(name: str, what: str) -> None:
    """Raise `InputError` for a name that is not a plain folder name, or that is a file of the run."""
    if not name or "\0" in name or Path(name).name != name or name in (*RUN_FILES, "..") or len(name.encode()) > 200:
        raise InputError(f"{what} {name!r} cannot name a folder: give a plain name without slashes")


class Ledger:
    """The record of a run's stages in `stages.json`: the key, duration and files of each.

    A stage's key is a hash of everything that determines its output: verb, options, the content of the files and
    stages that they name, and the versions of this package and of Python (from which the built-in corpora are made). A
    stage is done as long as its key and its files are unchanged.
    """

    def __init__(self, out: Path, smoke: bool):
        self.out, self.path, self.smoke = out, out / LEDGER_FILE, smoke
        self._known: dict[str, dict[str, Any]] = {}
        self._commits: dict[tuple[str, str], Any] = {}
        if is_ledger_in(out):
            self._known = json.loads(self.path.read_text(encoding="utf-8"))

    def key(self, stage: Stage) -> str:
        """Return the current key of `stage`; the stages that it names must be done."""
        inputs = {name: self._identity(stage.read_as(name), value) for name, value in stage.options.items()}
        return digest([stage.verb, inputs, self.smoke, __version__, platform.python_version()])

    def _identity(self, kind: str | None, value: Any) -> Any:
        """Return a value and, if it names data or a model, a hash of its content (`kind`: see `Stage.read_as`)."""
        if isinstance(value, list):
            return [self._identity(kind, item) for item in value]
        if not isinstance(value, str) or not value:
            return value
        if value.startswith("{") and "}" in value:
            name, rest = value[1:].split("}", 1)
            made = self._known.get(name, {}).get("files")
            return [value, made if made is None or not rest else content_of(str(self.out / name) + rest)]
        return value if kind is None else [value, self._content(value, kind)]

    def _content(self, name: str, kind: str) -> Any:
        """Return a hash of the content of a name. The Hub is asked only once per run for each name."""
        if (name, kind) in self._commits:
            return self._commits[name, kind]
        content = content_of(name, kind)
        if isinstance(content, str):
            self._commits[name, kind] = content
        return content

    def knows(self, stage: Stage) -> bool:
        """Return whether a stage of that name was ever started."""
        return stage.name in self._known

    def is_done(self, stage: Stage) -> bool:
        """Return whether the stage is done with its current key and its files are unchanged."""
        return self._known.get(stage.name, {}).get("key") == self.key(stage) and self.changed(stage) is None

    def changed(self, stage: Stage) -> str | None:
        """Return the first file of a finished stage that is missing or changed, or None.

        Files added later do not count.
        """
        made = self._known.get(stage.name, {}).get("files")
        now = self._made(stage) if made else {}
        return next((name for name, content in (made or {}).items() if now.get(name) != content), None)

    def _made(self, stage: Stage) -> dict[str, str]:
        return files_of(self.out / stage.name, KEPT_APART)

    def has_begun(self, stage: Stage) -> bool:
        """Return whether the stage was started with its current key and not finished."""
        return self._known.get(stage.name, {}).get("begun") == self.key(stage)

    def seconds(self, stage: Stage) -> float | None:
        """Return the duration of the stage, or None if it was never done."""
        return self._known.get(stage.name, {}).get("seconds")

    def begin(self, stage: Stage) -> None:
        """Record the start of the stage."""
        self._note(stage, {"begun": self.key(stage)})

    def finish(self, stage: Stage, seconds: float) -> None:
        """Record that the stage is done, with its files and the key it was started with."""
        key = self._known[stage.name]["begun"]
        self._note(stage, {"key": key, "seconds": round(seconds, 1), "files": self._made(stage)})

    def forget(self, stage: Stage) -> None:
        """Remove the record of a stage that failed before it made anything."""
        del self._known[stage.name]
        self._write()

    def _note(self, stage: Stage, values: dict[str, Any]) -> None:
        self._known[stage.name] = values
        self._write()

    def _write(self) -> None:
        if self._known:
            atomic_write(self.path, (json.dumps(self._known, indent=2) + "\n").encode())
        else:
            self.path.unlink(missing_ok=True)


def is_ledger_in(folder: Path) -> bool:
    """Return whether a folder holds a ledger of ours. Raises `InputError` for one that cannot be read."""
    path = folder / LEDGER_FILE
    if not path.is_file():
        return False
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged ({one_line(error)}): restore it, or choose a new --out") from error
    entries = known.values() if isinstance(known, dict) else ()
    return bool(entries) and all(isinstance(entry, dict) and not entry.keys().isdisjoint(_MARKS) for entry in entries)
