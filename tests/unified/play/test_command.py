"""`unified play` from its start to its end."""

import importlib.util
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from websockets.sync.client import connect

from unified.cli import main

ROOT = Path(__file__).parents[3]


def refused(capsys, *options):
    with pytest.raises(SystemExit) as ended:
        main(["play", "--no-browser", *options])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
    return line


def test_a_port_that_is_taken_is_told_of_before_anything_is_loaded(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        line = refused(capsys, "--port", str(taken.getsockname()[1]))
    assert line.startswith("unified: cannot listen at 127.0.0.1:")
    assert line.endswith("choose another --port, or 0 for any")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "no/such-folder-here"), "no/such-folder-here"),
        (("--host", "0.0.0.0"), "lets other machines in; give a --token"),
        (("--steps", "0"), "--steps must be more than 0"),
        (("--max-sessions", "-1"), "--max-sessions must be more than 0"),
        (("--env", "NoSuch-v0"), "environment 'NoSuch-v0' cannot be made"),
        (("--env", "no_module:here"), "environment 'no_module:here' cannot be found"),
    ],
)
def test_what_cannot_be_served_is_told_of_in_one_line(capsys, options, message):
    assert message in refused(capsys, "--port", "0", *options)


def test_a_package_that_is_missing_is_named_with_what_installs_it(capsys, monkeypatch):
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "fastapi" else there(name)
    )
    line = refused(capsys)
    assert "the page needs fastapi" in line
    assert "pip install 'unified-tav[play]'" in line


def test_the_embedded_checkpoint_is_served_until_sigterm_which_ends_it_without_an_error():
    command = [sys.executable, "-m", "unified.cli", "play", "--port", "0", "--no-browser"]
    process = subprocess.Popen(
        [*command, "--level", "OpenDoor"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("play babyai at http://127.0.0.1:")
        with connect(f"ws://127.0.0.1:{line.split(':')[2].split('/')[0]}/ws") as player:
            opening = {"level": "OpenDoor", "seed": 1_000_000}
            for message in (
                {"type": "hello", "id": 1, "protocol": 1},
                {"type": "open", "id": 2, "opening": opening},
            ):
                player.send(json.dumps(message))
                player.recv(timeout=60)
            player.send(json.dumps({"type": "step", "id": 3, "action": "left"}))
            assert isinstance(player.recv(timeout=60), bytes)
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
