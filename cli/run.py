"""A recipe: stages one after the other, each a verb in a folder of its own, and at the end the proof and samples.

A stage is done again only if its settings, its inputs or this package's version have changed; what stopped half way
goes on from its last saved state.
"""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from groundup import __version__
from groundup.cli.main import VERBS, find
from groundup.cli.settings import RunSettings
from groundup.common.console import console, say
from groundup.common.errors import InputError, near
from groundup.common.files import atomic_write
from groundup.common.settings import check_names, read_yaml, verb

KEYS_FILE = "stages.json"
DEFAULT_PROMPTS = ["", "The "]
OPENING = ("name", "stages", "prompts")


@dataclass(frozen=True)
class Stage:
    """A stage of a recipe: its name, which is its folder's too, its verb and the options given."""

    name: str
    verb: str
    options: dict[str, Any]


@verb(RunSettings)
def run(settings: RunSettings) -> Path:
    """Walk a recipe and return the folder of its stages. Raises `InputError` for a recipe that makes no sense."""
    if not settings.recipe:
        raise InputError("run needs a recipe: give a YAML file, for example recipes/python_docs.yaml")
    started = time.monotonic()
    recipe_path = find_recipe(settings.recipe)
    recipe = read_yaml(recipe_path)
    stages = read_stages(recipe, recipe_path)
    name = recipe.get("name", recipe_path.stem) + ("-smoke" if settings.smoke else "")
    out = Path(settings.out).expanduser() if settings.out else Path("runs") / name
    out.mkdir(parents=True, exist_ok=True)
    keys = _read_keys(out)
    for number, stage in enumerate(stages, 1):
        console.quiet = settings.quiet
        key = _key(stage, keys, settings.smoke)
        if keys.get(stage.name) == key:
            say(f"[{number}/{len(stages)}] {stage.name}: nothing has changed, kept")
            continue
        say(f"[{number}/{len(stages)}] {stage.name}")
        _do(stage, out, key, keys, settings)
    console.quiet = settings.quiet
    _show(out, stages, recipe.get("prompts", DEFAULT_PROMPTS), time.monotonic() - started)
    return out


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


def read_stages(recipe: dict[str, Any], path: Path) -> list[Stage]:
    """The stages of a recipe, their verbs and options checked. Raises `InputError` naming what is wrong."""
    for key in recipe:
        if key not in OPENING:
            raise InputError(f"{path} has an unknown key {key!r}{near(key, OPENING)}")
    if not isinstance(recipe.get("stages"), dict) or not recipe["stages"]:
        raise InputError(f"{path} names no stages: write `stages:` and under it verbs with their settings")
    stages = []
    for name, options in recipe["stages"].items():
        options = dict(options or {})
        of = options.pop("verb", name)
        if of not in VERBS or of == "run":
            raise InputError(f"{path}, stage {name}: unknown verb {of!r}{near(of, VERBS)}: add `verb:`")
        check_names(options, find(VERBS[of].settings))
        stages.append(Stage(name, of, options))
    return stages


def _do(stage: Stage, out: Path, key: str, keys: dict[str, str], settings: RunSettings) -> None:
    """Do one stage, from the beginning or, if it began with the same key, from where it stopped."""
    settings_class = find(VERBS[stage.verb].settings)
    fields = {field.name for field in dataclasses.fields(settings_class)}
    folder = out / stage.name
    options = {name: _filled(value, out) for name, value in stage.options.items()} | {"out": str(folder)}
    if "smoke" in fields:
        options["smoke"] = settings.smoke
    if "quiet" in fields:
        options["quiet"] = settings.quiet
    begun = keys.get(f"{stage.name} (begun)") == key
    if "resume" in fields:
        options["resume"] = begun
    if folder.exists() and not (begun and "resume" in fields):
        folder.rename(_retired(folder))
    _write_keys(out, keys, {f"{stage.name} (begun)": key, stage.name: None})
    find(VERBS[stage.verb].function)(settings_class(**options))
    _write_keys(out, keys, {f"{stage.name} (begun)": None, stage.name: key})


def _retired(folder: Path) -> Path:
    """A name for a folder that a changed stage leaves behind: nothing that was trained is thrown away."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    return old


def _filled(value: Any, out: Path) -> Any:
    """The value with `{stage}` replaced by that stage's folder."""
    if isinstance(value, list):
        return [_filled(item, out) for item in value]
    if isinstance(value, str) and value.startswith("{") and "}" in value:
        name, rest = value[1:].split("}", 1)
        return str(out / name) + rest
    return value


def _key(stage: Stage, keys: dict[str, str], smoke: bool) -> str:
    """A hash of all that decides what a stage gives: options, files named, the stages it builds on, our version."""

    def identity(value: Any) -> Any:
        if isinstance(value, list):
            return [identity(item) for item in value]
        if isinstance(value, str) and value.startswith("{") and "}" in value:
            name = value[1:].split("}", 1)[0]
            if name not in keys:
                raise InputError(f"stage {stage.name} refers to {{{name}}}, which is no earlier stage")
            return keys[name] + value
        path = Path(value) if isinstance(value, str) else None
        if path is not None and path.exists():
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            return [value, *([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files)]
        return value

    inputs = {name: identity(value) for name, value in stage.options.items()}
    content = json.dumps([stage.verb, inputs, smoke, __version__], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _read_keys(out: Path) -> dict[str, str]:
    path = out / KEYS_FILE
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _write_keys(out: Path, keys: dict[str, str], changes: dict[str, str | None]) -> None:
    for name, key in changes.items():
        if key is None:
            keys.pop(name, None)
        else:
            keys[name] = key
    atomic_write(out / KEYS_FILE, (json.dumps(keys, indent=2) + "\n").encode())


def _show(out: Path, stages: list[Stage], prompts: list[str], seconds: float) -> None:
    """The last model: proven to load elsewhere, its scores, what it writes, and what to type next."""
    from groundup.evaluation.generation import Sampling, complete
    from groundup.evaluation.loading import load_model
    from groundup.evaluation.proof import prove
    from groundup.evaluation.report import read_metrics, summary_table

    models = [out / stage.name for stage in stages if (out / stage.name / "model.safetensors").is_file()]
    if not models:
        say(f"done in {seconds:.0f} s: {out}")
        return
    folder = models[-1]
    proof = prove(folder, prompts[0])
    metrics = read_metrics(folder)
    model, tokenizer = load_model(folder)
    say()
    say(f"{folder}: a GPT of {model.num_parameters():,} parameters; {seconds:.0f} s for the whole recipe.")
    say("A process without this package loaded it by AutoModelForCausalLM: logits equal (largest difference")
    say(f"{proof.largest_difference:.0e}), the same greedy text.")
    say()
    console.print(summary_table(metrics))
    for seed, prompt in enumerate(prompts):
        text = complete(model, tokenizer, prompt, Sampling(max_new_tokens=80, seed=seed))
        say(f"\n--- {prompt!r}, seed {seed}")
        say(prompt + text)
    say()
    say("Next, your own text:  groundup pretrain --data your_folder --minutes 10")
