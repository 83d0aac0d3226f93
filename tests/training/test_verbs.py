"""`--resume` goes on with the run's own settings: others are obeyed where it can still change, or refused by name."""

import json
import shutil

import pytest

import groundup as package
from groundup.cli.main import main
from groundup.common.errors import InputError
from groundup.common.files import sha256_of
from groundup.common.settings import differing, read_yaml, write_yaml
from groundup.training.loop import Loop
from groundup.training.settings import ClassifySettings, PretrainSettings

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 1, "context_length": 16, "vocab_size": 300, "batch_tokens": 64,
}  # fmt: skip
BEGUN = {"max_steps": 6, "save_every": 2, "quiet": True} | SIZES


@pytest.fixture(scope="module")
def runs(tmp_path_factory, story_text, cut_off):
    """Return a folder with a text, a run of it that is finished, and one that was cut off after four of six steps."""
    home = tmp_path_factory.mktemp("runs")
    for name in ("story.txt", "other.txt"):
        (home / name).write_text(story_text[:5000])
    package.pretrain(data=[str(home / "story.txt")], out=str(home / "finished"), **BEGUN)
    with cut_off(5):
        package.pretrain(data=[str(home / "story.txt")], out=str(home / "cut"), **BEGUN)
    return home


@pytest.fixture
def home(runs, tmp_path, monkeypatch):
    """Return the same, to be changed."""
    shutil.copytree(runs, tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    recipes = [tmp_path / "home" / "cut" / "work" / "private.yaml"]
    for path in recipes:  # as if it had been begun here
        path.write_text(path.read_text().replace(str(runs), str(tmp_path / "home")))
    return tmp_path / "home"


def content(folder):
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


OTHERS = [
    ({"batch_tokens": 128}, "--batch-tokens 128 (it has 64)"),
    ({"data": ["other.txt"]}, "--data other.txt (it has"),
    ({"data": ["story.txt", "other.txt"]}, "--data story.txt other.txt"),
    ({"eval_data": ["other.txt"]}, "--eval-data other.txt (it has none)"),
    ({"seed": 1}, "--seed 1 (it has 0)"),
    ({"minutes": 5.0}, "--minutes 5.0 (it has none)"),
    ({"max_steps": 5}, "--max-steps 5 (it has 6)"),
    ({"optimizer": "adamw"}, "--optimizer adamw (it has muon)"),
    ({"model_config": {"qk_norm": False}}, "--model-config {'qk_norm': False} (it has none)"),
    ({"lora": True}, "--lora True (it has False)"),
    ({"tokenizer": "finished"}, "--tokenizer finished (it has none)"),
    (
        {"hidden_size": 64, "learning_rate_scale": 2.0},
        "--hidden-size 64 (it has 32), --learning-rate-scale 2.0 (it has 1.0)",
    ),
]


@pytest.mark.parametrize("folder", ["finished", "cut"])
@pytest.mark.parametrize(("others", "named"), OTHERS)
def test_a_changed_setting_is_refused_by_name_on_resume_however_it_is_given(home, folder, others, named, capsys):
    before = content(home / folder)
    words = [f"--{name.replace('_', '-')}={json.dumps(value).strip(chr(34))}" for name, value in others.items()]
    assert main(["pretrain", "--out", folder, "--resume", *words]) == 2
    assert named in capsys.readouterr().err
    (home / "settings.yaml").write_text(json.dumps(others))
    assert main(["pretrain", "--out", folder, "--resume", "--config", "settings.yaml"]) == 2
    assert named in capsys.readouterr().err
    for settings in ([], [PretrainSettings(out=folder, resume=True, **others)]):
        with pytest.raises(InputError) as error:
            package.pretrain(*settings, **({} if settings else {"out": folder, "resume": True} | others))
        assert named in str(error.value) and str(error.value).startswith(f"{folder} ")
    assert content(home / folder) == before


def test_the_same_command_again_goes_on_and_then_changes_nothing(home, capsys):
    words = [f"--{name.replace('_', '-')}={value}" for name, value in BEGUN.items() if name != "quiet"]
    command = ["pretrain", "--data", "story.txt", "--out", "cut", "--resume", *words]
    assert main(command) == 0
    before = content(home / "cut")
    assert main([*command, "--seed", "0", "--optimizer", "muon"]) == 0  # as they are
    assert "nothing to do" in capsys.readouterr().err and content(home / "cut") == before
    assert (home / "cut" / "model.safetensors").read_bytes() == (home / "finished" / "model.safetensors").read_bytes()


def test_a_run_that_is_not_finished_takes_a_longer_budget_saves_and_tracking(home, capsys):
    out = package.pretrain(out="cut", resume=True, max_steps=12, save_every=4, track="tensorboard", quiet=True)
    kept = read_yaml(out / "recipe.yaml")["settings"]
    assert (kept["max_steps"], kept["save_every"], kept["track"]) == (12, 4, "tensorboard")
    steps = [row["step"] for row in map(json.loads, (out / "log.jsonl").read_text().splitlines())]
    assert steps[-1] == 12 and (out / "checkpoints" / "step-12").is_dir() and (out / "tracking").is_dir()
    assert main(["pretrain", "--out", "cut", "--resume", "--max-steps", "12"]) == 0


def test_a_finished_run_says_what_to_do_for_more(home):
    with pytest.raises(
        InputError, match=r"--max-steps 60 \(it has 6\), or start from its weights: --init-from finished"
    ):
        package.pretrain(out="finished", resume=True, max_steps=60)
    with pytest.raises(InputError, match=r"publish it: groundup publish finished"):
        package.pretrain(out="finished", resume=True, push_to="me/it")


def test_a_push_that_will_not_do_is_said_before_the_recipe_knows_it(home):
    before = content(home / "cut")
    with pytest.raises(InputError, match="--push-to"):
        package.pretrain(out="cut", resume=True, push_every=2)
    assert content(home / "cut") == before


def test_more_minutes_are_more_seconds_of_training(story, tmp_path, cut_off, monkeypatch):
    options = {"data": [str(story)], "out": str(tmp_path / "out"), "save_every": 1, "quiet": True} | SIZES
    with cut_off(3):
        package.pretrain(minutes=1, **options)
    seconds = []

    def note(loop):
        seconds.append(loop.budget.seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "run", note)
    for more in ({}, {"minutes": 3}, {}, {"minutes": 3.0}):
        with pytest.raises(KeyboardInterrupt):
            package.pretrain(out=options["out"], resume=True, quiet=True, **more)
    assert seconds == [seconds[0], *[pytest.approx(seconds[0] + 120)] * 3]
    with pytest.raises(InputError, match=r"--minutes 2.0 \(it has 3.0\)"):
        package.pretrain(out=options["out"], resume=True, minutes=2)


@pytest.mark.parametrize("verb", ["classify", "instruct", "evaluate", "prepare"])
def test_a_folder_of_another_verb_is_named_after_it(home, verb, capsys):
    data = ["--data", "story.txt", *(["--tokenizer", "finished"] if verb == "prepare" else [])]
    for folder in ("finished", "cut"):
        before = content(home / folder)
        assert main([verb, "--out", folder, "--resume", *data]) == 2
        assert f"{folder} was made by `groundup pretrain`" in capsys.readouterr().err
        assert content(home / folder) == before


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda text: text[: len(text) // 4] + "\n  - {", "recipe.yaml"),
        (lambda text: text.replace("settings:", "setting:"), "recipe.yaml"),
        (lambda text: text.replace("  seed: 0", "  seed: -1"), "seed -1"),
        (lambda text: text.replace("  seed: 0", "  a_setting_of_the_future: 0"), "'a_setting_of_the_future'"),
        (lambda text: text.replace("plan:", "plans:"), "damaged"),
        (lambda text: text.replace("  decay: 0.6\n", ""), "damaged"),
        (lambda text: text.replace("  warmup:", "  warming:"), "'warming'"),
        (lambda text: "settings: 5\nverb: pretrain\n", "recipe.yaml"),
        (lambda text: "verb: pretrain\n", "recipe.yaml"),
        (lambda text: "", "recipe.yaml"),
        (lambda text: "\0", "recipe.yaml"),
    ],
)
def test_a_recipe_that_is_damaged_or_of_another_version_is_said_in_one_line(home, break_it, words, capsys):
    recipe = home / "cut" / "recipe.yaml"
    text = recipe.read_text()
    recipe.write_text(break_it(text))
    assert recipe.read_text() != text
    before = content(home / "cut")
    assert main(["pretrain", "--out", "cut", "--resume"]) == 2
    message = capsys.readouterr().err
    assert words in message and "cut" in message and message.count("\n") <= 2
    assert content(home / "cut") == before


def test_texts_to_label_are_not_among_the_settings_that_a_run_keeps():
    settings = ClassifySettings(out="x", resume=True, quiet=True, data=[], text_column=None, seed=0)
    assert differing(settings, settings.given(), {"seed": 0, "quiet": False, "data": ["a"]}, public=False) == {}


@pytest.mark.parametrize("folder", ["finished", "cut"])
@pytest.mark.parametrize("change", ["elsewhere", "here"])
def test_a_data_file_whose_content_has_changed_is_refused_on_resume(home, folder, change, capsys):
    other = {"elsewhere": home / "elsewhere" / "story.txt", "here": home / "story.txt"}[change]
    if folder == "cut" and change == "elsewhere":
        pytest.skip("another path is refused before it is read")
    other.parent.mkdir(exist_ok=True)
    other.write_text("another story " * 400)
    before = content(home / folder)
    assert main(["pretrain", "--out", folder, "--resume", "--data", str(other)]) == 2
    said = capsys.readouterr().err
    assert f"{folder} was made from another story.txt than --data {other} has" in said
    assert content(home / folder) == before
    assert main(["pretrain", "--out", folder, "--resume"]) == 0  # as the message says


def test_files_added_removed_or_renamed_in_the_data_are_noticed_on_resume(home):
    def write(**contents):
        (home / "texts").mkdir(exist_ok=True)
        for name, content in contents.items():
            (home / "texts" / name).write_text(content * 9)
        return [{"name": name, "sha256": sha256_of(home / "texts" / name)} for name in contents]

    def resumed(sources, data):
        """Go on with a run that has read these files of this data."""
        recipe = read_yaml(home / "finished" / "recipe.yaml")
        recipe["settings"]["data"] = data
        write_yaml(home / "finished" / "recipe.yaml", recipe | {"sources": sources})
        return package.pretrain(data=data, out="finished", resume=True, quiet=True)

    one, two = write(**{"a.txt": "a", "b.txt": "b"})
    write(**{"copy.txt": "a", "rows.csv": "x", ".hidden.txt": "h", "notes": "n"})
    old = {"name": "old.txt", "sha256": two["sha256"]}
    changed = {"name": "b.txt", "sha256": "b"}
    gone = {"name": "c.txt", "sha256": "c"}
    for data in (["texts"], ["texts/*.txt"]):
        assert resumed([one, two], data)
        assert resumed([one, two], [*data, "owner/name"])  # what lies on the Hub is known by its commit
        for sources, told in [
            ([one, two, gone], "was made with c.txt, which .* has no more"),
            ([one], "was made without b.txt, which .* has now"),
            ([old, one], "was made with old.txt, which .* has no more"),
            ([changed, one], "was made from another b.txt than .* has"),
        ]:
            with pytest.raises(InputError, match=told):
                resumed(sources, data)
