"""Keep each part of an evaluation as soon as it is done: once stopped, it resumes; one failure costs one part.

OUT/recipe.yaml      the settings, without a path of this machine
OUT/work/            what a resumed evaluation needs and nobody else: settings with paths, shards, scores, parts
OUT/metrics.json     at the end
"""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from groundup.common.console import say
from groundup.common.errors import InputError, Interrupted, first_line, is_disk_full
from groundup.common.files import METRICS_FILE, RECIPE_FILE, atomic_write, digest, remove
from groundup.common.settings import (
    default_of,
    differing,
    public_settings,
    read_yaml,
    refuse,
    settings_from,
    write_yaml,
)
from groundup.common.verbs import EvaluateSettings
from groundup.data.files import refuse_other_content

VERB = "evaluate"
PATHS = ("model", "data", "train_data", "compare_tokenizer", "tasks")

NEEDING = {"data": ("text_column", "train_data", "stride", "by_document"), "tasks": ("num_fewshot", "limit")}
CHANGEABLE = ("batch_rows", "trust_remote_code")  # no score depends on these

Part = dict[str, Any]  # "rows" for metrics.json and what a later part needs, in types that JSON has


@dataclasses.dataclass(frozen=True)
class Key:
    """The name of a part, and a hash of all that decides its result: the contents of its model and its texts."""

    name: str
    inputs: str


class Parts:
    """The parts of the evaluation in a folder, by their names."""

    def __init__(self, out: Path) -> None:
        self.out, self.work = out, out / "work"
        self.failures: dict[str, str] = {}
        self._is_new = False

    @property
    def is_finished(self) -> bool:
        """Return whether everything that was asked for is done."""
        return (self.out / METRICS_FILE).is_file() and not self.work.exists()

    def begin(self, settings: EvaluateSettings) -> EvaluateSettings:
        """Make the folder, or find the settings of the evaluation that was stopped in it. Raises `InputError`."""
        kept = self.work / "settings.json"
        if settings.resume and kept.is_file():
            known = json.loads(kept.read_text(encoding="utf-8"))
            others = differing(settings, settings.given(), known, public=False)
            now = {name: others.pop(name) for name in CHANGEABLE if name in others}
            refuse(others, known, self.out, "goes on with the settings that it began with", "choose a new --out")
            now |= {"quiet": settings.quiet, "resume": True, "out": settings.out}
            return settings_from(kept, known | now, EvaluateSettings)
        if not settings.model or not (settings.data or settings.tasks):
            empty = f"{self.out} holds nothing to resume"
            missing = empty if settings.resume else "evaluate needs a model and test data"
            raise InputError(f"{missing}: give --model, and --data or --tasks")
        _refuse_unused(settings)
        self._is_new = True
        (self.work / "parts").mkdir(parents=True, exist_ok=True)
        values, public = dataclasses.asdict(settings), public_settings(settings, PATHS)
        write_yaml(self.out / RECIPE_FILE, {"verb": VERB} | public | {"out": None})
        atomic_write(kept, json.dumps(values, indent=2).encode())  # last: with it the evaluation has begun
        return settings

    def refuse_changes(self, settings: EvaluateSettings) -> None:
        """Raise `InputError` if anything is asked of an evaluation that is finished."""
        known = read_yaml(self.out / RECIPE_FILE)
        others = differing(settings, settings.given(), known, public=True)
        refuse(others, known, self.out, "is finished", "choose a new --out")
        if "data" in settings.given():
            refuse_other_content(known.get("sources"), settings.data, "data", self.out)

    def note_sources(self, sources: Sequence[Mapping[str, Any]]) -> None:
        """Keep in the recipe what the text came from, by name, size and sha256."""
        write_yaml(self.out / RECIPE_FILE, read_yaml(self.out / RECIPE_FILE) | {"sources": [*map(dict, sources)]})

    def give_up(self) -> None:
        """Remove what `begin` wrote if nothing is done yet: the command can be mended and given again."""
        if self._is_new and not any((self.work / "parts").glob("*.json")):
            remove(self.work)
            remove(self.out / RECIPE_FILE)

    def has(self, key: Key) -> bool:
        """Return whether a part is done, with the inputs that it has now."""
        return self.get(key) is not None

    def get(self, key: Key) -> Part | None:
        """Return what a part gave, None if it is not done or was done with other inputs."""
        known = self._known(key)
        return known["part"] if known is not None and known["inputs"] == key.inputs else None

    def is_old(self, key: Key) -> bool:
        """Return whether a part was done with other inputs than it has now."""
        known = self._known(key)
        return known is not None and known["inputs"] != key.inputs

    def do(self, key: Key, work: Callable[[], Part]) -> None:
        """Do a part unless it is done; if it fails, print and keep the reason, and continue."""
        if self.has(key):
            return
        try:
            part = work()
        except Interrupted:
            raise
        except Exception as error:
            if is_disk_full(error):
                raise
            self.fail(key.name, error)
        else:
            kept = {"name": key.name, "inputs": key.inputs, "part": part}
            atomic_write(self._path(key.name), json.dumps(kept, allow_nan=True).encode())

    def fail(self, name: str, error: Exception) -> None:
        """Note that a part failed, and why, in one line."""
        self.failures[name] = first_line(error)
        say(f"{name} failed: {self.failures[name]}")

    @property
    def failed(self) -> str:
        """Return what failed and why, in one line."""
        return "; ".join(f"{part}: {reason}" for part, reason in self.failures.items())

    def end(self) -> None:
        """Remove what only `--resume` needs, unless a part failed."""
        if not self.failures:
            remove(self.work)

    def _known(self, key: Key) -> dict[str, Any] | None:
        path = self._path(key.name)
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    def _path(self, name: str) -> Path:
        """Return the file of a part: no two names share one, whatever letters they have."""
        return self.work / "parts" / f"{digest(name)}.json"


def _refuse_unused(settings: EvaluateSettings) -> None:
    """Raise `InputError` for a setting of the text, or of the tasks, where there are none."""
    for needed, names in NEEDING.items():
        for option in dataclasses.fields(settings):
            is_asked = option.name in names and getattr(settings, option.name) != default_of(option)
            if is_asked and not getattr(settings, needed):
                name = option.name.replace("_", "-")
                raise InputError(f"--{name} has nothing to do without --{needed}: add that, or leave --{name} out")
