"""Files appear whole or not at all."""

import pytest

from unified.files import atomic_files, atomic_path, write_json


def fail_within(context, file_of):
    with context as temporary:
        file_of(temporary).write_text("half")
        raise KeyError


def test_a_file_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "new" / "a.txt"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def test_after_an_error_the_old_file_is_still_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    before = path.read_text()
    with pytest.raises(KeyError):
        fail_within(atomic_path(path), lambda temporary: temporary)
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_folders_files_appear_together_beside_what_was_there(tmp_path):
    (tmp_path / "other.txt").write_text("stays")
    (tmp_path / "a.txt").write_text("old")
    with atomic_files(tmp_path) as folder:
        (folder / "a.txt").write_text("new")
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text("deep")
        (folder / "sub" / "b.txt").chmod(0o600)
        assert (tmp_path / "a.txt").read_text() == "old"
    files = {str(f.relative_to(tmp_path)): f for f in tmp_path.rglob("*") if f.is_file()}
    assert {name: file.read_text() for name, file in files.items()} == {
        "other.txt": "stays",
        "a.txt": "new",
        "sub/b.txt": "deep",
    }
    assert files["sub/b.txt"].stat().st_mode & 0o777 == 0o644


def test_after_an_error_no_file_of_a_folder_has_changed(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError):
        fail_within(atomic_files(tmp_path), lambda folder: folder / "a.txt")
    assert [f.name for f in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
