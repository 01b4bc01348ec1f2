"""Files appear whole or not at all."""

import errno
import os
import subprocess
import sys

import pytest

from unified import files
from unified.files import atomic_files, atomic_folder, atomic_path, check_whole, write_json


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


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "out"
    with atomic_folder(folder) as draft:
        (draft / "a.txt").write_text("old")
        (draft / "b.txt").write_text("old")
    with pytest.raises(KeyError):
        fail_within(atomic_folder(folder), lambda draft: draft / "a.txt")
    assert sorted(f.read_text() for f in folder.iterdir()) == ["old", "old"]
    with atomic_folder(folder) as draft:
        (draft / "a.txt").write_text("new")
        assert (folder / "a.txt").read_text() == "old"
    assert {f.name: f.read_text() for f in folder.iterdir()} == {"a.txt": "new"}
    assert [f.name for f in tmp_path.iterdir()] == ["out"]


def test_what_was_saved_before_and_has_no_successor_goes(tmp_path):
    for name in ("model-1.bin", "model-2.bin", "notes.txt"):
        (tmp_path / name).write_text("old")
    with atomic_files(tmp_path, replaces=("model-*.bin",)) as draft:
        (draft / "model-1.bin").write_text("new")
    found = {f.name: f.read_text() for f in tmp_path.iterdir()}
    assert found == {"model-1.bin": "new", "notes.txt": "old"}


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(ValueError, match="out is a file"), atomic_folder(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def refused(*_):
    raise OSError(errno.EBUSY, "a mount point")


def unknown(*_):
    raise OSError(errno.ENOSYS, "no renameat2")


@pytest.mark.parametrize("exchange", [None, unknown, refused])
def test_a_folder_is_replaced_on_every_file_system(tmp_path, monkeypatch, exchange):
    if exchange is not None:
        monkeypatch.setattr(files, "_exchange", exchange)
    folder = tmp_path / "out"
    (folder / "deep" / "er").mkdir(parents=True)
    (folder / "deep" / "er" / "old.txt").write_text("old")
    (folder / "a.txt").write_text("old")
    with atomic_files(folder) as draft:
        (draft / "a.txt").write_text("new")
    assert (folder / "deep" / "er" / "old.txt").read_text() == "old"
    with atomic_folder(folder) as draft:
        (draft / "deep").mkdir()
        (draft / "deep" / "b.txt").write_text("new")
    assert [str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()] == ["deep/b.txt"]
    assert [f.name for f in tmp_path.iterdir()] == ["out"]
    check_whole(folder)


def test_a_kill_while_files_are_moved_one_by_one_leaves_a_folder_that_is_refused(
    tmp_path, monkeypatch
):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "a.txt").write_text("old")
    monkeypatch.setattr(files, "_exchange", refused)
    monkeypatch.setattr(files.shutil, "move", lambda *_: (_ for _ in ()).throw(KeyError))
    with pytest.raises(KeyError):
        write_within(atomic_files(folder), "a.txt")
    with pytest.raises(ValueError, match="half old and half new"):
        check_whole(folder)
    monkeypatch.undo()
    write_within(atomic_files(folder), "a.txt")
    check_whole(folder)
    assert [f.name for f in folder.iterdir()] == ["a.txt"]


def write_within(context, name):
    with context as draft:
        (draft / name).write_text("new")


def test_what_a_killed_program_left_is_swept_and_what_it_moved_away_comes_back(tmp_path):
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    number = int(gone.stdout)
    (tmp_path / f".a.json.{number}.part").write_text("half")
    (tmp_path / f".out.{number}.part").mkdir()
    (tmp_path / f"..out.{number}.part.{number}.part").mkdir()
    (tmp_path / f".kept.{number}.old").mkdir()
    (tmp_path / f".kept.{number}.old" / "a.txt").write_text("old")
    (tmp_path / f".a.json.{os.getpid()}.part.txt").write_text("not ours")
    write_json(tmp_path / "a.json", {})
    for name in ("out", "kept"):
        with atomic_files(tmp_path / name):
            pass
    names = ["a.json", "kept", "out", f".a.json.{os.getpid()}.part.txt"]
    assert sorted(f.name for f in tmp_path.iterdir()) == sorted(names)
    assert (tmp_path / "kept" / "a.txt").read_text() == "old"


def test_a_file_that_another_process_adds_meanwhile_is_kept(tmp_path, monkeypatch):
    exchange = files._exchange

    def interrupted(draft, folder):
        (folder / "rng_state_1.pth").write_text("rank 1")
        exchange(draft, folder)

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.txt").write_text("old")
    monkeypatch.setattr(files, "_exchange", interrupted)
    write_within(atomic_files(tmp_path / "out"), "b.txt")
    assert sorted(os.listdir(tmp_path / "out")) == ["a.txt", "b.txt", "rng_state_1.pth"]
