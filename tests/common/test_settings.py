"""A setting is declared once and holds for every door: command line, YAML, recipe and Python, and in every spelling."""

import ast
import dataclasses
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from groundup.cli.main import VERBS, main, parse
from groundup.cli.recipe import read_recipe
from groundup.common.errors import InputError
from groundup.common.settings import SettingError, checked, hints_of, parts_of, wanted_by
from groundup.modeling.configuration_groundup import PRESETS
from groundup.training.settings import ClassifySettings, LoraOptions, PretrainSettings

ROOT = Path(__file__).resolve().parents[2]
NEVER = {  # values that no setting of such a type may have, whatever its range
    int: [True, 1.5, 3.0, math.nan, math.inf, -1, 2**63, 10**400, "many", [1], {"a": 1}, ""],
    float: [True, math.nan, math.inf, -math.inf, -1, -0.5, 10**400, "much", "", [0.5], {}],
    bool: [0, 1, 2.0, "maybe", "", [], None],
    str: [1, 2.5, True, ["x"], {"x": 1}],
}


def every_setting():
    for verb, entry in VERBS.items():
        for name, hint in hints_of(entry.settings).items():
            yield verb, name, hint


def bad_values(hint):
    kind, inner, _ = parts_of(hint)
    if kind is list:
        return [[value] for value in bad_values(inner)] + [{"a": 1}, [None], [[]]]
    if kind is dict:
        return ["text", 3, [1], {1: "x"}, {None: 1}]
    values = NEVER.get(kind, ["nothing of it", "", 3, True, 1.5, ["x"]])
    return values if type(None) in getattr(hint, "__args__", ()) else [*values, None]


@pytest.mark.parametrize(("verb", "name", "hint"), every_setting())
def test_no_setting_of_any_verb_takes_what_its_type_and_range_exclude(verb, name, hint):
    for value in bad_values(hint):
        with pytest.raises(SettingError) as error:
            VERBS[verb].settings(**{name: value})
        message = str(error.value)
        assert message.startswith(f"{name} ") and message.count("\n") == 0 and "is wanted" in message, value


@pytest.mark.parametrize(("verb", "name", "hint"), every_setting())
def test_the_default_of_every_setting_is_allowed_and_has_its_type(verb, name, hint):
    value = getattr(VERBS[verb].settings(), name)
    assert checked(name, value, hint) == value


DOORS = [
    ("optimizer", "adam", "muon or adamw is wanted (did you mean 'adamw'?)"),
    ("packing", "document", "contiguous or documents is wanted (did you mean 'documents'?)"),
    ("precision", "fp16", "auto, fp32 or bf16 is wanted"),
    ("preset", "gpt3", "gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano, micro or small is wanted (did you mean 'gpt2'?)"),
    ("micro_batch_rows", -1, "a whole number of at least 1 is wanted"),
    ("max_steps", 0, "a whole number of at least 1 is wanted"),
    ("learning_rate", -1.0, "a number above 0"),
    ("minutes", math.nan, "a number above 0 is wanted"),
    ("epochs", math.inf, "a number above 0 and at most 1,000,000"),
    ("seed", -1, "a whole number of at least 0 is wanted"),
    ("lora_dropout", 1.5, "a number of at least 0 and below 1 is wanted"),
    ("batch_tokens", 2**40, "a whole number of at least 1 and at most 2,147,483,647 is wanted"),
    ("gradient_checkpointing", "perhaps", "true or false is wanted"),
    ("tokenizer", "", "text that is not empty is wanted"),
    ("model_config", "qk_norm", "a mapping of names to values is wanted"),
]


@pytest.mark.parametrize(("name", "value", "wanted"), DOORS)
def test_the_message_is_the_same_through_every_door_and_names_the_place(name, value, wanted, tmp_path, capsys):
    shown = repr(value)
    option = "--" + name.replace("_", "-")
    assert main(["pretrain", f"{option}={value}"]) == 2
    assert f"groundup pretrain: {option} {shown}: {wanted}" in capsys.readouterr().err

    config, recipe = tmp_path / "settings.yaml", tmp_path / "recipe.yaml"
    config.write_text(yaml.safe_dump({name: value}))
    assert main(["pretrain", "--config", str(config)]) == 2
    assert f"groundup pretrain: {config}: {name} {shown}: {wanted}" in capsys.readouterr().err

    recipe.write_text(yaml.safe_dump({"stages": {"first": {"verb": "pretrain", name: value}}}))
    assert main(["run", str(recipe)]) == 2
    assert f"groundup run: {recipe}, stage first: {name} {shown}: {wanted}" in capsys.readouterr().err

    import groundup

    settings = PretrainSettings()
    setattr(settings, name, value)
    for call in (
        lambda: PretrainSettings(**{name: value}),
        lambda: dataclasses.replace(PretrainSettings(), **{name: value}),
        lambda: groundup.pretrain(**{name: value}),
        lambda: groundup.pretrain(settings),  # changed after it was made
    ):
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value).startswith(f"{name} {shown}: {wanted}")


@pytest.mark.parametrize(
    ("name", "spellings", "meant"),
    [
        ("data", ["x.txt", ["x.txt"], ("x.txt",), Path("x.txt"), [Path("x.txt")], "[x.txt]"], ["x.txt"]),
        ("lora_targets", ["q_proj", ["q_proj"], '["q_proj"]'], ["q_proj"]),
        ("out", ["a b", Path("a b")], "a b"),
        ("max_steps", [3, "3", np.int64(3)], 3),
        ("learning_rate", [1, 1.0, "1", "1e0", np.float32(1), np.float64(1)], 1.0),
        ("minutes", ["1e-1", 0.1, "0.1"], 0.1),
        ("minutes", ["null", None], None),
        ("resume", [True, "true", "yes", "ON"], True),
        ("model_config", ['{"qk_norm": false}', "{qk_norm: false}", {"qk_norm": False}], {"qk_norm": False}),
    ],
)
def test_what_can_only_be_meant_in_one_way_is_taken(name, spellings, meant):
    for spelling in spellings:
        value = getattr(PretrainSettings(**{name: spelling}), name)
        assert value == meant and type(value) is type(meant), spelling


def test_numbers_may_stand_with_commas_in_one_word():
    for verb, option, word in (("evaluate", "num_fewshot", "0,1,2"), ("instruct", "split", "0.85,0.1,0.05")):
        numbers = [float(part) for part in word.split(",")]
        for spelling in (word, f"[{word}]", numbers if option == "split" else [0, 1, 2]):
            assert getattr(VERBS[verb].settings(**{option: spelling}), option) == numbers
        assert getattr(parse(verb, [f"--{option.replace('_', '-')}", word]), option) == numbers


def test_a_file_whose_name_looks_like_a_list_is_that_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "[1, 2]").write_text("text")
    assert PretrainSettings(data="[1, 2]").data == parse("pretrain", ["--data", "[1, 2]"]).data == ["[1, 2]"]
    assert PretrainSettings(data="[v2] notes.txt").data == ["[v2] notes.txt"]


LISTS = [(verb, name) for verb, name, hint in every_setting() if parts_of(hint)[0] is list]


@pytest.mark.parametrize(("verb", "name"), LISTS)
def test_the_command_line_replaces_a_list_of_the_file_and_collects_its_own(verb, name, tmp_path):
    choices = parts_of(parts_of(hints_of(VERBS[verb].settings)[name])[1])
    a, b, c = {int: (1, 2, 3), float: (0.5, 0.25, 0.125)}.get(choices[0], ("x", "y", "z"))
    if choices[1]:  # a choice of words
        a, b, c = choices[1][:3]
    config = tmp_path / "settings.yaml"
    config.write_text(yaml.safe_dump({name: [a]}))
    option = "--" + name.replace("_", "-")
    alone = ["--config", str(config)]
    assert getattr(parse(verb, alone), name) == [a]
    together = [] if VERBS[verb].positional else [[option, str(b), str(c)]]  # elsewhere a bare word is the positional
    for typed in ([option, str(b), option, str(c)], [f"{option}={b}", f"{option}={c}"], *together):
        assert getattr(parse(verb, [*alone, *typed]), name) == getattr(parse(verb, [*typed, *alone]), name) == [b, c]


def test_which_settings_were_given_is_known_though_they_equal_their_defaults():
    assert PretrainSettings().given() == set()
    assert PretrainSettings(seed=0, data=["x"]).given() == {"seed", "data"}
    assert parse("pretrain", ["--seed", "0", "--quiet", "false"]).given() == {"seed", "quiet"}
    settings = PretrainSettings()
    settings.max_steps = 5
    assert settings.given() == {"max_steps"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max_steps: 3\nmax_steps: 5", "'max_steps' occurs twice"),
        ("model_config: {qk_norm: true, qk_norm: false}", "'qk_norm' occurs twice"),
        ("1: x", "1 is no name of a setting"),
        ("2024-01-01: x", "no name of a setting"),
        ("yes: 1", "True is no name of a setting"),
        ("? [1]\n: 2", "not valid YAML"),
        ("a: 2024-13-45", "not valid YAML"),
        ("x: *nothing", "not valid YAML"),
        ("!!python/object/apply:os.getcwd []", "not valid YAML"),
        ("[" * 3000, "not valid YAML"),
        ("- a\n- b", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("data: &x [*x]", "data [[...]]"),
        ("model_config: {1: x}", "model_config {1: 'x'}"),
        ("model_config: {a: {b: 2024-01-01}}", "model_config"),
        ("model_config: {a: &x {b: *x}}", "model_config"),
        ("data: {a: b}", "data {'a': 'b'}: text"),
        ("data: [a, 3]", "data 3: text"),
        ("max-step: 3", "did you mean 'max_steps'?"),
        ('out: "a\\0b"', "out 'a\\x00b'"),
    ],
)
def test_a_file_of_settings_that_makes_no_sense_is_said_in_one_line(text, words, tmp_path, capsys):
    config, recipe = tmp_path / "settings.yaml", tmp_path / "recipe.yaml"
    config.write_text(text)
    assert main(["pretrain", "--config", str(config)]) == 2
    message = capsys.readouterr().err
    assert words in message and str(config) in message and message.count("\n") == 1
    lines = "\n".join("    " + line for line in text.splitlines()) or "    []"
    recipe.write_text(f"stages:\n  pretrain:\n{lines}\n")
    assert main(["run", str(recipe)]) == 2
    message = capsys.readouterr().err
    assert str(recipe) in message and message.count("\n") == 1


@pytest.mark.parametrize(
    "text",
    [
        "stages: {../x: {verb: pretrain}}",
        "stages: {/tmp/x: {verb: pretrain}}",
        "stages: {a/b: {verb: pretrain}}",
        "stages: {'': {verb: pretrain}}",
        "stages: {..: {verb: pretrain}}",
        "stages: {stages.json: {verb: pretrain}}",
        "stages: {1: {verb: pretrain}}",
        "stages: {pretrain: {out: elsewhere}}",
        "stages: {pretrain: {resume: true}}",
        "stages: {pretrain: {smoke: true}}",
        "stages: {pretrain: {verb: [a]}}",
        "stages: [pretrain]",
        "name: ../x\nstages: {pretrain: {}}",
        "name: 5\nstages: {pretrain: {}}",
        "prompts: 5\nstages: {pretrain: {}}",
        "prompts: [a, 5]\nstages: {pretrain: {}}",
    ],
)
def test_a_recipe_stays_in_its_folder_and_decides_only_what_is_its_own(text, tmp_path):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        read_recipe(tmp_path / "recipe.yaml")


def test_a_recipes_single_prompt_is_one_prompt(tmp_path):
    (tmp_path / "recipe.yaml").write_text("prompts: Once upon\nstages: {pretrain: {data: x.txt}}")
    recipe = read_recipe(tmp_path / "recipe.yaml")
    assert recipe.prompts == ("Once upon",) and recipe.stages[0].options == {"data": ["x.txt"]}


@pytest.mark.parametrize("word", ["--out", "--seed", "--seed=3", "--max_steps", "--data"])
def test_an_option_is_not_taken_for_the_value_of_the_one_before(word):
    with pytest.raises(InputError, match="--data needs a value"):
        parse("pretrain", ["--data", word])
    assert parse("pretrain", [f"--data={word}"]).data == [word]
    assert parse("generate", ["--prompt", "-h"]).prompt == "-h"


def test_the_wrong_settings_are_refused_by_name():
    import groundup

    for given_ in (ClassifySettings(), {"data": ["x"]}, "x.txt"):
        with pytest.raises(InputError, match="PretrainSettings"):
            groundup.pretrain(given_)


def test_presets_are_those_of_the_network():
    assert set(parts_of(hints_of(PretrainSettings)["preset"])[1]) == set(PRESETS)


def test_no_setting_is_declared_twice_with_a_type_of_its_own():
    """Only what verbs mean differently stands twice: one model or several, a default of its own."""
    declared = Counter()
    for path in ("common/options.py", "common/verbs.py", "training/settings.py"):
        for node in ast.walk(ast.parse((ROOT / path).read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith(("Settings", "Options", "Option")):
                fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                declared.update(f.target.id for f in fields if not ast.unparse(f.annotation).startswith("ClassVar"))
    twice = {name: count for name, count in declared.items() if count > 1}
    assert set(twice) <= {"model", "batch_rows", "optimizer", "max_new_tokens", "temperature", "port"}


@given(st.one_of(st.integers(), st.floats(), st.text(), st.none(), st.booleans(), st.lists(st.integers(), max_size=3)))
def test_whatever_value_is_given_it_is_taken_in_its_type_or_refused_in_one_line(value):
    for name, hint in hints_of(LoraOptions).items():
        kind, _, bounds = parts_of(hint)
        try:
            taken = checked(name, value, hint)
        except SettingError as error:
            assert "\n" not in str(error) and wanted_by(hint) is not None
        else:
            assert isinstance(taken, kind) and all(getattr(b, "ge", taken) <= taken for b in bounds if kind is not list)


def test_the_settings_of_all_verbs_import_nothing_heavy():
    settings = "groundup.common.verbs, groundup.training.settings"
    code = f"import sys, {settings}; print(*{{'torch', 'transformers', 'datasets'}} & {{*sys.modules}})"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == ""
