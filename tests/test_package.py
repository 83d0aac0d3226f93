"""The house: what is imported when, what is in the wheel, and which room may use which."""

import ast
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_USE = {
    "common": set(),
    "modeling": set(),
    "tokenization": {"common", "modeling"},
    "data": {"common", "modeling", "tokenization"},
    "inference": {"common", "modeling", "tokenization"},
    "evaluation": {"common", "modeling", "tokenization", "data", "inference"},
    "publishing": {"common", "modeling", "tokenization", "inference", "evaluation"},
    "training": {"common", "modeling", "tokenization", "data", "inference", "evaluation", "publishing"},
    "cli": {"common", "modeling", "tokenization", "data", "inference", "evaluation", "publishing", "training"},
}
ROOMS = tuple(MAY_USE)


def imported_rooms(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            parts = name.split(".")
            if parts[0] == "groundup" and len(parts) > 1:
                yield parts[1]


def test_imports_point_one_way():
    for room in ROOMS:
        for path in (ROOT / room).rglob("*.py"):
            assert set(imported_rooms(path)) <= MAY_USE[room] | {room}, path


def test_files_that_travel_with_a_checkpoint_import_only_from_their_own_folder():
    for path in (ROOT / "modeling").glob("*_groundup.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1
                assert (ROOT / "modeling" / f"{node.module}.py").is_file()
            elif isinstance(node, ast.Import | ast.ImportFrom):
                assert "groundup." not in ast.unparse(node)


def test_every_room_is_listed_in_the_build():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert set(packages) == {"groundup", "groundup.recipes", *(f"groundup.{room}" for room in ROOMS)}


def in_a_new_process(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_neither_torch_nor_transformers():
    assert in_a_new_process("import sys, groundup; print({'torch', 'transformers'} & set(sys.modules))") == "set()"


def test_help_imports_neither_torch_nor_transformers():
    code = "import sys; from groundup.cli.main import main; main(['--help']); main(['pretrain', '--help']);"
    assert in_a_new_process(code + "print('torch' in sys.modules)").splitlines()[-1] == "False"


def test_a_process_that_only_writes_text_imports_nothing_that_reads_or_measures_it():
    heavy = {"datasets", "pandas", "pyarrow", "lm_eval", "sklearn", "matplotlib", "evaluate", "peft"}
    code = f"import sys, groundup.inference.generation, groundup.inference.loading; print({heavy} & set(sys.modules))"
    assert in_a_new_process(code) == "set()"


def test_public_names_resolve_and_a_model_registers_itself():
    code = (
        "import groundup; [getattr(groundup, name) for name in groundup.__all__];"
        "from transformers import AutoConfig; print(type(AutoConfig.for_model('groundup')).__name__)"
    )
    assert in_a_new_process(code) == "GroundupConfig"
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        __import__("groundup").nothing  # noqa: B018


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else_and_works_where_it_is_installed(tmp_path):
    built = tmp_path / "built"  # the source archive, and the wheel made of it alone
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", built, ROOT], check=True, capture_output=True
    )
    (wheel,), (archive,) = built.glob("*.whl"), built.glob("*.tar.gz")
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", wheel, archive], check=True)
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {f"groundup/{path.relative_to(ROOT)}" for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    data = ("recipes/*.yaml", "evaluation/tasks/*", "cli/*.*[!y]", "evaluation/*.css", "publishing/*.jinja")
    expected |= {f"groundup/{path.relative_to(ROOT)}" for pattern in data for path in ROOT.glob(pattern)}
    expected |= {f"groundup/{name}" for name in ("__init__.py", "__main__.py", "hub_upload.py", "py.typed")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)
    place = tmp_path / "installed"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", place, wheel],
        check=True, capture_output=True,
    )  # fmt: skip
    code = f"import sys; sys.path.insert(0, {str(place)!r}); import groundup; print(groundup.__file__)"
    assert in_a_new_process(code + "; from groundup.cli.main import main; main(['--version'])").splitlines() == [
        str(place / "groundup" / "__init__.py"),
        "0.1.0",
    ]
