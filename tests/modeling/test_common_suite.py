"""transformers' own model tests, from its source distribution, run against our networks in every configuration."""

import os
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


def fetch(folder):
    """The test files of the installed version's source distribution, as a package in `folder`."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers",
            "--no-build-isolation", "--dest", folder, f"transformers=={transformers.__version__}",
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
def test_transformers_own_tests_pass(tmp_path):
    fetch(tmp_path)
    ours = Path(__file__).parent / "common_suite.py"
    (tmp_path / "tests" / "test_groundup.py").write_bytes(ours.read_bytes())
    report = tmp_path / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    done = subprocess.run(
        [*command, "tests/test_groundup.py"],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
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
