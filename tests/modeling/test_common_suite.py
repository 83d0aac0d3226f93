"""transformers' own model tests, from its source distribution, run against our networks in every configuration."""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
import transformers

# What their test files import and the distribution leaves out.
STUBS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
CLASSES = 6
OURS_SKIPPED = {  # a reason given in common_suite.py -> tests
    "gives rows longer than the model's positions: an error by design": 3 * CLASSES,
    "learned positions leave rope_parameters None": 1,
    "two base models, none of which is the base": 2,
}


NEWEST = "5.24.0"  # the first that calls the cache of keys and values `cache`


@pytest.fixture(scope="module")
def newest(tmp_path_factory):
    """Return a folder with the newest transformers, to stand before the installed one."""
    folder = tmp_path_factory.mktemp("newest")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        folder,
        f"transformers=={NEWEST}",
    ]
    subprocess.run(pip, check=True, capture_output=True)
    return folder


def fetch(folder, version):
    """Return the test files of a version's source distribution, as a package in `folder`."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers",
            "--no-build-isolation", "--dest", folder, f"transformers=={version}",
        ],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (archive,) = folder.glob("transformers-*.tar.gz")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            path = Path(member.name)
            if path.match("*/tests/test_*.py"):
                member.name = f"tests/{path.name}"
                tar.extract(member, folder, filter="data")
    for name, text in STUBS.items():
        path = folder / "tests" / name
        path.parent.mkdir()
        path.write_text(text)
        (path.parent / "__init__.py").touch()
    (folder / "tests" / "__init__.py").touch()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_holds_for_our_networks_holds_under_the_newest_transformers_too(newest):
    here = Path(__file__).parent
    names = ("attention", "export", "generation_groundup", "heads", "peers", "seq2seq")
    files = [here / f"test_{name}.py" for name in names]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(newest)}
    asked = [sys.executable, "-c", "import transformers; print(transformers.__version__)"]
    assert subprocess.run(asked, env=env, capture_output=True, text=True).stdout.strip() == NEWEST
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *files]
    done = subprocess.run(command, env=env, cwd=here.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 250


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", [transformers.__version__, NEWEST])
def test_transformers_own_tests_pass(version, newest, tmp_path):
    fetch(tmp_path, version)
    path = {"PYTHONPATH": str(newest)} if version == NEWEST else {}
    ours = Path(__file__).parent / "common_suite.py"
    (tmp_path / "tests" / "test_groundup.py").write_bytes(ours.read_bytes())
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, "tests/test_groundup.py"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", **path}, capture_output=True, text=True,
    )  # fmt: skip
    suite = ElementTree.parse(report).getroot()[0]
    assert done.returncode == 0, done.stdout[-5000:]
    assert suite.get("failures") == suite.get("errors") == "0"
    skipped = [found.get("message") for found in suite.iter("skipped")]
    passed = sum(case.find("skipped") is None for case in suite.iter("testcase"))
    assert passed > 100 * CLASSES
    for reason, count in OURS_SKIPPED.items():
        assert sum(reason in message for message in skipped) == count
    assert sum("groundup: " in message for message in skipped) == sum(OURS_SKIPPED.values())
