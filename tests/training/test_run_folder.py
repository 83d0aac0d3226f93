"""A run's folder at its end, and what somebody put into it meanwhile."""

from groundup.training.run_folder import RunFolder


def test_the_last_checkpoint_replaces_nothing_that_somebody_put_into_the_folder_meanwhile(tmp_path):
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
