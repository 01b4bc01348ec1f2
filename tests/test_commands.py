"""What all commands have in common, found by walking over all of them."""

import re
import runpy
import sys
from pathlib import Path

import pytest

from data.prepare import SOURCES
from unified.cli import COMMANDS

ROOT = Path(__file__).parents[1]
RUNS_NOTHING = {"train.export": "copies weights", "unified.cli info": "counts weights"}
"""Commands that are told a model or a codec and do not run it."""


def commands():
    """Every command as one types it after `python -m`, with its subcommand if it has some."""
    for folder in ("data", "eval", "train", "unified"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name == "__main__.py" or 'if __name__ == "__main__"' in path.read_text():
                place = path.relative_to(ROOT).with_suffix("").parts
                name = ".".join(place[:-1] if place[-1] == "__main__" else place)
                parts = {"data.prepare": SOURCES, "unified.cli": COMMANDS}.get(name)
                yield from [name] if parts is None else [f"{name} {one}" for one in parts]


def options_of(name, monkeypatch, capsys):
    """What `--help` lists."""
    module, *rest = name.split()
    monkeypatch.setattr(sys, "argv", [module, *rest, "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    assert not ended.value.code
    told = capsys.readouterr().out
    return {*re.findall(r"--[a-z][a-z-]*", told), *re.findall(r"\[MODEL\]", told)}


def test_the_walk_finds_the_commands():
    found = set(commands())
    assert {"train.codec", "eval.memory", "data.prepare latents", "unified.cli play"} <= found
    assert RUNS_NOTHING.keys() <= found


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("name", list(commands()))
def test_a_command_that_runs_a_model_or_a_codec_takes_a_device(name, monkeypatch, capsys):
    if name == "eval.play_load.screenshots":
        pytest.importorskip("playwright")
    options = options_of(name, monkeypatch, capsys)
    assert "--help" in options
    runs = options & {"--model", "--codec", "--init", "[MODEL]"} and name not in RUNS_NOTHING
    if runs or name == "train.codec":
        assert "--device" in options
