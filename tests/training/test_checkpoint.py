"""A run's folder at its end, and what somebody put into it meanwhile."""

import pytest

from groundup.common.errors import InputError
from groundup.training.checkpoint import RunFolder, pretrained_elsewhere


def test_the_final_checkpoint_overwrites_no_file_that_someone_else_put_there(tmp_path):
    run = RunFolder(tmp_path)
    run.final.mkdir(parents=True)
    for name in ("README.md", "recipe.yaml", "log.jsonl", "metrics.json"):
        (run.final / name).write_text("ours")
    (tmp_path / "recipe.yaml").write_text("ours, from the beginning")
    for name in ("README.md", "README.md.old-1", "notes", "final/thesis", "checkpoints/mine"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("theirs")
    run.promote()
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    theirs = {"README.md.old-1", "README.md.old-2", "notes", "final/thesis", "checkpoints/mine"}
    ours = {"README.md", "recipe.yaml", "log.jsonl", "metrics.json"}
    assert found == dict.fromkeys(theirs, "theirs") | dict.fromkeys(ours, "ours")
    assert run.is_finished and not run.work.exists()


def test_what_a_killed_run_half_saved_or_half_removed_is_gone_at_its_end(tmp_path):
    run = RunFolder(tmp_path)
    run.write_recipe({"verb": "pretrain"}, {})
    for step in (1, 2, 3, 4):
        (tmp_path / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (tmp_path / "checkpoints" / f"step-{step}" / "config.json").write_text("{}")
    run.remove_old_steps(best_step=2)
    assert run.saved_steps() == [4, 3, 2]
    for folder in ("new", "new.old", "step-1"):
        (tmp_path / "checkpoints" / ".partial" / folder / "state").mkdir(parents=True)
    run.final.mkdir(parents=True)
    (run.final / "metrics.json").write_text("{}")
    run.promote()
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"step-2", "step-3", "step-4"}


def test_of_a_finished_run_only_the_work_folder_that_is_its_own_is_removed(tmp_path):
    run = RunFolder(tmp_path)
    run.work.mkdir()
    (run.work / "notes").write_text("theirs")
    (tmp_path / ".groundup").mkdir()
    run.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["work"]
    run.write_recipe({}, {})
    run.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.yaml"]


def test_preparing_anew_keeps_of_a_killed_command_only_what_it_can_check(tmp_path):
    run = RunFolder(tmp_path)
    for name in ("train", "folded", "validation"):
        (run.work / name).mkdir(parents=True)
    with run.being_prepared(kept=("train",)):
        assert [path.name for path in run.work.iterdir()] == ["train"]


def test_a_run_without_what_it_needs_to_go_on_says_so(tmp_path):
    run = RunFolder(tmp_path)
    (tmp_path / "recipe.yaml").write_text("verb: pretrain\n")
    with pytest.raises(InputError, match=r"holds no run to resume: its work/ is missing: choose a new --out"):
        run.read_recipe()


@pytest.mark.parametrize(
    ("recipe", "elsewhere"),
    [
        ("verb: pretrain\nplan: {optimizer: muon}\n", False),
        ("verb: classify\nplan: {from_elsewhere: false}\n", False),
        ("verb: instruct\nplan: {from_elsewhere: true}\n", True),  # trained on from somebody else's
        ("verb: import\nsettings: {}\n", True),
        ("pretrain", True),
        ("verb: [", True),
        (None, True),
    ],
)
def test_a_model_is_ours_by_the_recipe_of_its_training_alone(tmp_path, recipe, elsewhere):
    if recipe is not None:
        (tmp_path / "recipe.yaml").write_text(recipe)
    assert pretrained_elsewhere(tmp_path) is elsewhere


def test_a_name_on_a_hub_that_cannot_be_reached_is_somebody_elses():
    assert pretrained_elsewhere("somebody/model")
