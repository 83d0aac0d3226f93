"""Make the built-in corpus, `python-docs`, and labelled texts of it, so that a first run needs no file.

The corpus is the documentation of the running Python: topics of the language reference (`pydoc_data.topics`) and the
docstrings of the standard library's modules, classes and functions, read from their source with `ast`; nothing is
imported. The label of such a text, `library-areas`, is the area under which the library's manual files the module.
"""

import ast
import functools
import hashlib
import importlib
import inspect
import itertools
import platform
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets

from groundup.data.documents import same_text

LIBRARY_AREAS = "library-areas"

SHORTEST = 30  # characters: shorter docstrings say nothing ("See the base class.")
KEPT_BACK = 0.1  # share of documents for validation

_LEFT_OUT = {"test", "tests", "idlelib", "idle_test", "lib2to3", "turtledemo", "site-packages", "dist-packages"}

# The chapters of the library reference, the nearest of them taken together so that each has rows enough to learn from.
_MODULES = {
    "concurrency": """_threading_local asyncio asynchat asyncore concurrent multiprocessing queue sched selectors
        subprocess threading""",
    "data structures": """_collections_abc _py_abc _weakrefset abc array bisect calendar collections copy copyreg
        dataclasses datetime _strptime enum graphlib heapq pprint reprlib types weakref zoneinfo""",
    "files": """_compression _pyio bz2 configparser csv dbm filecmp fileinput fnmatch genericpath glob gzip io linecache
        lzma netrc ntpath os pathlib pickle pickletools plistlib posixpath shelve shutil sqlite3 stat tarfile tempfile
        tomllib xdrlib zipfile""",
    "interface": "argparse cmd code codeop curses getopt getpass optparse rlcompleter shlex tkinter turtle webbrowser",
    "internet": """_markupbase base64 binhex cgi cgitb email ftplib html http imaplib ipaddress json mailbox mailcap
        mimetypes nntplib poplib quopri smtpd smtplib socket socketserver ssl telnetlib urllib uu uuid wsgiref xml
        xmlrpc""",
    "language": """ast compileall dis imp importlib inspect keyword modulefinder opcode pkgutil py_compile pyclbr runpy
        symtable tabnanny token tokenize traceback typing zipimport""",
    "numbers": "_pydecimal colorsys decimal fractions hashlib hmac numbers random secrets statistics",
    "packaging": "_aix_support _osx_support distutils ensurepip platform site sysconfig venv zipapp",
    "testing": "bdb cProfile doctest logging pdb profile pstats pydoc timeit trace tracemalloc unittest warnings",
    "text": "codecs difflib encodings gettext locale re _sre string stringprep textwrap",
}
_AREA_OF = {module: area for area, modules in _MODULES.items() for module in modules.split()}


@functools.lru_cache(maxsize=1)
def load() -> datasets.DatasetDict:
    """Return the documents in a fixed order: splits `train` and `validation`, columns `name`, `area` (module), `text`.

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
    """Return what a recipe keeps of this corpus: its name with the Python it came from, its size and sha256."""
    texts = [text for split in load().values() for text in split["text"]]
    content = "\0".join(texts).encode()
    python = platform.python_version()
    return {
        "name": f"python-docs ({python})",
        "bytes": sum(len(text.encode()) for text in texts),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def split_of(name: str) -> str:
    """Return `validation` for a tenth of all names, by their sha256, else `train`."""
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
    """Yield the docstrings of a module, its classes and functions, in the order of the source."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node, clean=False)
        if text:
            heading = f"module {name}"
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                heading = f"{name}({ast.unparse(node.args)})"
            elif isinstance(node, ast.ClassDef):
                heading = f"class {name}" + (f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else "")
            yield name, heading, inspect.cleandoc(text).strip()
    blocks = (getattr(node, block, []) for block in ("body", "handlers", "orelse", "finalbody"))
    for child in itertools.chain.from_iterable(block for block in blocks if isinstance(block, list)):
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _walk(child, f"{name}.{child.name}" if named else name)


@functools.lru_cache(maxsize=1)
def library_areas() -> datasets.DatasetDict:
    """Return the columns `text` and `label`; `train` and `test` are the corpus's training and validation documents.

    So a model pretrained on `python-docs` has seen no test text either. The module's name would give the answer away:
    it is removed from every heading, and a text that then equals an earlier one, capitals aside, is left out.
    """
    seen: set[str] = set()
    splits = {}
    for name, split in (("train", "train"), ("test", "validation")):
        rows: dict[str, list[str]] = {"text": [], "label": []}
        for document in load()[split].to_list():
            area, text = _AREA_OF.get(document["area"]), without_module(document["name"], document["text"])
            if area is None or same_text(text) in seen:
                continue
            seen.add(same_text(text))
            rows["text"].append(text)
            rows["label"].append(area)
        splits[name] = datasets.Dataset.from_dict(rows)
    return datasets.DatasetDict(splits)


def library_areas_source() -> dict[str, Any]:
    """Return what a recipe keeps of this task: its name and the corpus that it is made from."""
    corpus = source()
    return corpus | {"name": f"{LIBRARY_AREAS}, from {corpus['name']}"}


def without_module(name: str, text: str) -> str:
    """Return a document's text with only the last part of the dotted name in its heading.

    >>> without_module("json.dumps", "json.dumps(obj)\\n\\nSerialize obj.")
    'dumps(obj)\\n\\nSerialize obj.'
    """
    heading, _, body = text.partition("\n")
    if heading == f"module {name}":
        return body.lstrip("\n")
    prefix = re.escape(name.rpartition(".")[0] + ".")
    return re.sub(rf"^((?:class )?){prefix}", r"\1", heading) + "\n" + body
