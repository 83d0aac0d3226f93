"""Build the playground as a Space: a repository that the Hub runs as a web page, for one model by its name there.

It holds app.py, the packages to install, a card, and of this package the files that the page uses: nobody has to have
groundup installed.
"""

import ast
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData

import groundup
from groundup.common.errors import InputError
from groundup.common.files import CARD_FILE

APP_FILE, NEEDS_FILE, CODE_FOLDER = "app.py", "requirements.txt", "groundup/"
_ROOT = Path(groundup.__file__).parent
_PAGE = "cli/playground.py"
_APP = '''\
"""The playground of the package groundup, for one model; the code beside this file is the package's own."""

from groundup.cli.playground import serve_as_space

serve_as_space({model!r}, {revision!r})
'''
_CARD = """\
# {title}

Write with [{model}](https://huggingface.co/{model}), talk with it, and see inside it, in the browser. For a private
model the Space needs a secret of the name `HF_TOKEN`, a token that may read it. The folder `groundup` is the part of
that package, version {version}, that the page uses.
"""


def build_space(folder: Path, model: str, license: str | None) -> None:
    """Write the files of a Space that shows one model, as it is on the main branch.

    Args:
        folder: an empty one.
        model: the name on the Hub of a causal language model, or of an adapter to one.
        license: the identifier on the Hub of the licence that the Space has.

    Raises:
        InputError: where gradio is not installed, whose version the Space must name.
    """
    for path in sorted(page_files()):
        copy = folder / CODE_FOLDER / path.relative_to(_ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    write_app(folder, model, "main")
    needs = needed_packages()
    gradio = needs.pop("gradio")
    (folder / NEEDS_FILE).write_text("".join(f"{name}=={needs[name]}\n" for name in sorted(needs)), encoding="utf-8")
    title = f"{model.split('/')[-1]} playground"
    looks = {"emoji": "🔤", "colorFrom": "blue", "colorTo": "gray"}
    runs = {"sdk": "gradio", "sdk_version": gradio, "python_version": "3.11", "app_file": APP_FILE}
    data = SpaceCardData(title=title, **looks, **runs, license=license, models=[model])
    text = _CARD.format(title=title, model=model, version=groundup.__version__)
    SpaceCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / CARD_FILE)


def write_app(folder: Path, model: str, revision: str) -> None:
    """Write the program that the Hub runs; it shows the model at `revision`, whatever comes after it."""
    (folder / APP_FILE).write_text(_APP.format(model=model, revision=revision), encoding="utf-8")


def is_of_a_space(name: str) -> bool:
    """Return whether a file of a Space is one that a push may replace or delete."""
    return name in (APP_FILE, NEEDS_FILE, CARD_FILE) or name.startswith(CODE_FOLDER)


def page_files() -> set[Path]:
    """Return the files of this package that the playground uses: all that it imports, and what those import."""
    waiting = [_ROOT / _PAGE]
    found = {path for path in (_ROOT / "cli").iterdir() if path.suffix in (".css", ".html", ".js")}
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [path.parent / "__init__.py", _ROOT / "__init__.py"]
        waiting += [file for name in _imported(path) if (file := _file_of(name)) is not None]
    return found


def needed_packages() -> dict[str, str]:
    """Return the packages that `page_files` import, of those that this one depends on, with their versions here.

    Raises `InputError` where gradio is not installed.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError("--space needs gradio: pip install 'groundup[playground]'")
    modules = {name.split(".")[0] for path in page_files() if path.suffix == ".py" for name in _imported(path)}
    owners = importlib.metadata.packages_distributions()
    used = {_plain(name) for module in modules for name in owners.get(module, [])}
    known = {_plain(re.split(r"[^\w.-]", line)[0]) for line in importlib.metadata.requires("groundup") or []}
    # A build for one kind of machine, as in 2.13.0+cpu, is no version that another can ask for.
    return {name: importlib.metadata.version(name).split("+")[0] for name in used & known - {"groundup"}}


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _imported(path: Path) -> Iterator[str]:
    """Yield the full names of all modules that a file may import, and of what it takes out of them."""
    room = ".".join(["groundup", *path.relative_to(_ROOT).parts[:-1]])
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = f"{room}.{node.module}" if node.level else node.module or ""
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _file_of(module: str) -> Path | None:
    """Return the file of a module of this package; None for what is no module of it."""
    first, *rest = module.split(".")
    place = _ROOT.joinpath(*rest)
    files = [place.with_suffix(".py"), place / "__init__.py"] if first == "groundup" and rest else []
    return next((file for file in files if file.is_file()), None)
