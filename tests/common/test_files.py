"""Files and folders that are whole or not there, however often their writer was killed."""

import pytest

from groundup.common.files import atomic_folder, atomic_write


def test_what_a_killed_writer_left_is_gone_when_the_next_has_written(tmp_path):
    (tmp_path / ".file.partial").write_text("half")
    for name in ("part", "part.old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "half").write_text("half")
    for content in ("first", "second"):
        atomic_write(tmp_path / "file", content.encode())
        with atomic_folder(tmp_path / "folder", tmp_path / "part") as new:
            (new / content).write_text(content)
        found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
        assert found - {"part.old", "part.old/half"} == {"file", "folder", f"folder/{content}"}
        assert (tmp_path / "file").read_text() == content
    assert not (tmp_path / "part.old").exists()


def test_an_error_leaves_what_was_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "folder", tmp_path / "part") as new:
        (new / "x").write_text("x")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "old"]
