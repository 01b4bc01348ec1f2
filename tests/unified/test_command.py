"""Whatever goes wrong with input or disk, a command ends in one line, with status 2."""

import errno
import os

import pytest

from unified.command import chosen_device, command


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (ValueError("size 3\n is odd; give an even one"), "size 3 is odd; give an even one"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.bin"), "free some space"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "a.bin"), "a place that can be written"),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "a"), "that can be written"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "free some space"),
        (RuntimeError("PytorchStreamWriter failed: file write failed"), "free some space"),
    ],
)
def test_bad_input_and_a_full_disk_end_in_one_line(error, advice, capsys):
    with pytest.raises(SystemExit) as stopped, command("train.codec"):
        raise error
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("train.codec: ")
    assert advice in said
    assert said.count("\n") == 1


def test_one_who_stops_a_command_sees_no_traceback(capsys):
    with pytest.raises(SystemExit) as stopped, command("data.prepare"):
        raise KeyboardInterrupt
    assert stopped.value.code == 130  # as a shell has it
    assert stopped.value.__suppress_context__
    assert capsys.readouterr().err == "\ndata.prepare: stopped\n"


def test_a_fault_of_ours_keeps_its_traceback():
    for error in (RuntimeError("shapes differ"), KeyError("x"), OSError(errno.EIO, "broken")):
        with pytest.raises(type(error)), command("train.codec"):
            raise error


def test_a_device_that_is_not_there_is_named():
    assert chosen_device("cpu") == "cpu"
    with pytest.raises(ValueError, match="device 'gpu' cannot be used"):
        chosen_device("gpu")
