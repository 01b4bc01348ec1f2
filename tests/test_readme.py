"""What the README shows runs as it stands there."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.babyai.truth import TrueWorld
from unified.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def first_frame():
    return TrueWorld("OpenDoor").reset(1_000_000).frame


def test_the_python_examples_run(first_frame):
    names: dict[str, Any] = {"first_frame": first_frame}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    (message,) = names["reply"]
    assert message["role"] == "world"
    assert message["content"][0]["frame"].size == (56, 56)
    assert message["content"][1] == {"type": "outcome", "outcome": "ongoing"}
    assert names["frame"].shape == (56, 56, 3)
    assert names["action"] in names["processor"].action_space.names


def test_the_prompt_commands_run(first_frame, tmp_path, monkeypatch, capsys):
    lines = [line for line in "".join(blocks("bash")).splitlines() if "unified prompt" in line]
    monkeypatch.chdir(tmp_path)
    Image.fromarray(first_frame).save("a.png")
    task = {"role": "task", "content": [{"type": "text", "text": "open the red door"}]}
    shown = {"role": "world", "content": [{"type": "frame", "frame": "a.png"}]}
    Path("conversation.json").write_text(json.dumps([task, shown]))
    for line in lines:
        main(shlex.split(line, comments=True)[1:])
    assert len(lines) == 2
    assert sorted(path.name for path in Path("out").iterdir()) == ["frame_000.png", "reply.json"]
    assert "agent  acts" in capsys.readouterr().out
