"""The page of doors names tests that are there, and says of each whether it is a slow one."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent
LINES = (TESTS.parent / "docs" / "doors.md").read_text(encoding="utf-8").splitlines()
NAMED = [(*found.groups(), line) for line in LINES if (found := re.search(r"`(\w+/\w+\.py)::(\w+)`", line))]


def is_slow(function):
    return any(ast.unparse(mark) == "pytest.mark.slow" for mark in function.decorator_list)


@pytest.mark.parametrize(("file", "name", "line"), NAMED, ids=[name for _, name, _ in NAMED])
def test_each_door_has_its_test(file, name, line):
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert name in functions
    assert is_slow(functions[name]) == line.endswith("| slow |")


def test_all_eight_traps_are_there():
    assert [line[2:4] for line in LINES if re.match(r"\| P\d", line)] == [f"P{number}" for number in range(1, 9)]
