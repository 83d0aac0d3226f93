"""The house does not grow back: no circle, folders that can be overlooked, a short way to text, few ways in."""

import ast
import runpy
from pathlib import Path

HOUSE = runpy.run_path(str(Path(__file__).with_name("house.py")))
LARGEST_FOLDER = 18
LONGEST_FILE = 400  # lines
LONG = {"modeling/modeling_groundup.py": 980}  # the network travels as one file
BOOK = 480  # lines of it, in which the network of the book ends
MOST_FILES = 109


def test_no_folder_holds_more_modules_than_can_be_overlooked():
    for folder, modules in HOUSE["modules_by_folder"]().items():
        assert modules <= LARGEST_FOLDER, folder


def test_no_file_is_longer_than_a_sitting():
    for file, lines in HOUSE["lines_by_file"]().items():
        assert lines <= LONG.get(file, LONGEST_FILE), file


def test_the_network_of_the_book_comes_first():
    tree = ast.parse((HOUSE["ROOT"] / "modeling/modeling_groundup.py").read_text(encoding="utf-8"))
    ends = {node.name: node.end_lineno for node in tree.body if isinstance(node, ast.ClassDef)}
    assert ends["GroundupForCausalLM"] <= BOOK


def test_there_are_no_more_files_than_there_were():
    assert len(HOUSE["product_files"]()) <= MOST_FILES


def test_no_module_imports_itself_through_others():
    assert HOUSE["circles"]() == []


def test_a_process_that_only_writes_text_loads_few_modules():
    assert HOUSE["loaded_to_write"]() <= 8


def test_training_takes_little_from_evaluation():
    assert HOUSE["uses"]("training", "evaluation") < 70
