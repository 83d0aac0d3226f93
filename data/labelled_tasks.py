"""Built-in labelled texts, so that a classifier can be trained with no file at hand.

Which area of the standard library does this documentation describe? The texts are docstrings of the built-in corpus;
the label is the area that the library's reference manual files the module under.
"""

import functools
import re
from typing import Any

import datasets

from groundup.data import python_docs
from groundup.data.example_rows import same_text

LIBRARY_AREAS = "library-areas"

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
def library_areas() -> datasets.DatasetDict:
    """Columns `text` and `label`; `train` and `test` are the corpus's training and validation documents.

    So a model pretrained on `python-docs` has seen no test text either. The module's name would give the answer away:
    it is taken out of every heading, and a text that is then the same as an earlier one, capitals aside, is left out.
    """
    seen: set[str] = set()
    splits = {}
    for name, split in (("train", "train"), ("test", "validation")):
        rows: dict[str, list[str]] = {"text": [], "label": []}
        documents: Any = python_docs.load()[split]
        for document in documents:
            area, text = _AREA_OF.get(document["area"]), without_module(document["name"], document["text"])
            if area is None or same_text(text) in seen:
                continue
            seen.add(same_text(text))
            rows["text"].append(text)
            rows["label"].append(area)
        splits[name] = datasets.Dataset.from_dict(rows)
    return datasets.DatasetDict(splits)


def source() -> dict[str, Any]:
    """What a recipe keeps of this task: its name and the corpus that it is made from."""
    return python_docs.source() | {"name": f"{LIBRARY_AREAS}, from {python_docs.source()['name']}"}


def without_module(name: str, text: str) -> str:
    """A document's text, of whose heading's dotted name the last part alone is left.

    >>> without_module("json.dumps", "json.dumps(obj)\\n\\nSerialize obj.")
    'dumps(obj)\\n\\nSerialize obj.'
    """
    heading, _, body = text.partition("\n")
    if heading == f"module {name}":
        return body.lstrip("\n")
    prefix = re.escape(name.rpartition(".")[0] + ".")
    return re.sub(rf"^((?:class )?){prefix}", r"\1", heading) + "\n" + body
