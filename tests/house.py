"""Count what the house is made of: files, lines, folders, circles, closures and names that rooms take from each other.

    python tests/house.py

`test_house.py` holds the counts that may not grow back.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("common", "modeling", "tokenization", "data", "inference", "evaluation", "publishing", "training", "cli")


def product_files() -> list[Path]:
    """Return every Python file of the package, tests and benchmarks left out."""
    return sorted([*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))])


def lines_by_file() -> dict[str, int]:
    """Return how many lines each file of the package has."""
    return {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in product_files()
    }


def modules_by_folder() -> Counter[str]:
    """Return how many modules lie in each folder."""
    return Counter(str(path.parent.relative_to(ROOT)) for path in product_files() if path.name != "__init__.py")


def imports(path: Path, everywhere: bool = True) -> Iterator[tuple[str, str]]:
    """Yield each (module, name) of `groundup` that a file imports; without `everywhere` only at its top."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("groundup."):
            for alias in node.names:
                yield str(node.module).removeprefix("groundup."), alias.name


def _module_of(module: str, name: str) -> str | None:
    for candidate in (f"{module}.{name}", module):
        if (ROOT / f"{candidate.replace('.', '/')}.py").is_file():
            return candidate
    return None


def circles() -> list[tuple[str, ...]]:
    """Return the groups of modules that import each other in a circle, imports inside functions counted too."""
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): {
            found for module, name in imports(path) if (found := _module_of(module, name))
        }
        for path in product_files()
    }

    def reachable(start: str) -> set[str]:
        seen, waiting = set(), [start]
        while waiting:
            for following in graph.get(waiting.pop(), ()):
                if following not in seen:
                    seen.add(following)
                    waiting.append(following)
        return seen

    far = {module: reachable(module) for module in graph}
    found = {
        tuple(sorted({module, *(other for other in far[module] if module in far[other])}))
        for module in graph
        if module in far[module]
    }
    return sorted(found)


def loaded_by(code: str) -> int:
    """Return how many modules of the package a new process has loaded after `code`."""
    told = (
        code
        + "\nimport sys; print(sum(name.startswith('groundup.') and '.' in name[9:] and "
        + "bool(getattr(module, '__file__', '')) for name, module in list(sys.modules.items())))"
    )
    done = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def loaded_to_write() -> int:
    """Return how many modules are loaded where text is written and nothing else."""
    return loaded_by("import groundup.inference.generation, groundup.inference.loading")


def uses(user: str, used: str) -> int:
    """Return how often the files of one room name something that they import from another room."""
    count = 0
    for path in (ROOT / user).rglob("*.py"):
        names = {name for module, name in imports(path) if module.split(".")[0] == used}
        tree = ast.parse(path.read_text(encoding="utf-8"))
        count += sum(isinstance(node, ast.Name) and node.id in names for node in ast.walk(tree))
    return count


def private_helpers() -> tuple[int, int]:
    """Return how many private functions are named exactly once beyond their definition, and how many there are."""
    once = total = 0
    for path in product_files():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        own = [
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef) and node.name.startswith("_") and not node.name.startswith("__")
        ]
        named = Counter(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        named.update(node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute))
        total += len(own)
        once += sum(named[name] == 1 for name in own)
    return once, total


def main() -> None:
    """Print every count."""
    once, total = private_helpers()
    lines = lines_by_file()
    print(f"files {len(lines)}, lines {sum(lines.values()):,}")
    print("modules by folder:", dict(modules_by_folder().most_common()))
    print("circles:", circles() or "none")
    print(f"modules loaded to write text: {loaded_to_write()}")
    print(f"uses of evaluation in training: {uses('training', 'evaluation')}")
    print(f"private helpers used once: {once} of {total}")


if __name__ == "__main__":
    main()
