"""The built-in corpus: the documentation of the running Python's standard library, so that a first run needs no file.

Topics of the language reference (`pydoc_data.topics`) and the docstrings of the library's modules, classes and
functions, read from their source with `ast`: nothing is imported.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import itertools
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

SHORTEST = 30  # characters: shorter docstrings say nothing ("See the base class.")
KEPT_BACK = 0.1  # share of documents for validation

_LEFT_OUT = {"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "site-packages", "dist-packages"}


@functools.lru_cache(maxsize=1)
def load() -> datasets.DatasetDict:
    """The documents in a fixed order, split `train` and `validation`; columns `name`, `area` (module) and `text`.

    The split follows from the sha256 of each document's name, so it is the same on every machine and the same
    function stays on its side from one Python to the next.
    """
    seen: set[str] = set()
    splits: dict[str, list[dict[str, str]]] = {"train": [], "validation": []}
    for name, heading, text in [*_topics(), *_docstrings()]:
        if len(text) <= SHORTEST or text in seen:
            continue
        seen.add(text)
        row = {"name": name, "area": name.split(".")[0], "text": f"{heading}\n\n{text}\n"}
        splits[split_of(name)].append(row)
    return datasets.DatasetDict({split: datasets.Dataset.from_list(rows) for split, rows in splits.items()})


def source() -> dict[str, Any]:
    """What a recipe keeps of this corpus: its name, the Python it came from, size and sha256 of all documents."""
    texts = [text for split in load().values() for text in split["text"]]
    content = "\0".join(texts).encode()
    python = platform.python_version()
    return {
        "name": f"python-docs ({python})",
        "bytes": sum(len(text.encode()) for text in texts),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def split_of(name: str) -> str:
    """`validation` for a tenth of all names, by their sha256, else `train`."""
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return "validation" if number < KEPT_BACK * 2**64 else "train"


def _topics() -> Iterator[tuple[str, str, str]]:
    topics = importlib.import_module("pydoc_data.topics").topics  # data only: a dictionary of texts
    for name in sorted(topics):
        yield f"topics.{name}", f"Help on {name}:", topics[name].strip()


def _docstrings() -> Iterator[tuple[str, str, str]]:
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py"), key=lambda path: path.relative_to(library).parts):
        parts = path.relative_to(library).with_suffix("").parts
        if _LEFT_OUT.intersection(parts):
            continue
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):  # the library ships files that are broken on purpose
            continue
        yield from _walk(tree, module)


def _walk(node: ast.AST, name: str) -> Iterator[tuple[str, str, str]]:
    """The docstrings of a module, its classes and functions, in the order of the source."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            yield name, _heading(node, name), inspect.cleandoc(text).strip()
    blocks = (getattr(node, block, []) for block in ("body", "handlers", "orelse", "finalbody"))
    for child in itertools.chain.from_iterable(block for block in blocks if isinstance(block, list)):
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _walk(child, f"{name}.{child.name}" if named else name)


def _heading(node: ast.AST, name: str) -> str:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return f"{name}({ast.unparse(node.args)})"
    if isinstance(node, ast.ClassDef):
        return f"class {name}({', '.join(map(ast.unparse, node.bases))})" if node.bases else f"class {name}"
    return f"module {name}"
