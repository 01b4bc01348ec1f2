"""What the README shows runs as it stands there."""

import re
import shlex
from pathlib import Path
from typing import Any

from unified import UnifiedModel, UnifiedProcessor, sample
from unified.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()
PROMPT = (Path(__file__).parents[1] / "docs" / "prompt.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_the_python_examples_run():
    names: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), names)
    (message,) = names["reply"]
    assert message["role"] == "world"
    assert message["content"][0]["frame"].size == (56, 56)
    assert message["content"][1] == {"type": "outcome", "outcome": "ongoing"}
    assert names["frame"].shape == (56, 56, 3)
    assert names["action"] in names["processor"].action_space.names


def test_the_prompt_commands_run_as_they_stand(tmp_path, monkeypatch, capsys):
    commands = ("unified sample", "unified prompt")
    lines = [line for line in "".join(blocks("bash")).splitlines() if line.startswith(commands)]
    monkeypatch.chdir(tmp_path)
    for line in lines:
        main(shlex.split(line, comments=True)[1:])
    assert len(lines) == 3
    assert sorted(path.name for path in Path("out").iterdir()) == ["frame_000.png", "reply.json"]
    printed = capsys.readouterr()
    assert "agent  acts" in printed.out
    (task,) = re.findall(r"task   (.*)", printed.out)
    assert f'--task "{task}"' in README
    assert "hint" not in printed.err


def test_the_examples_of_docs_prompt_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample("OpenDoor").save(Path("a.png"))
    names: dict[str, Any] = {
        "model": UnifiedModel.from_pretrained("babyai"),
        "processor": UnifiedProcessor.from_pretrained("babyai"),
    }
    for block in re.findall(r"```python\n(.*?)```", PROMPT, re.DOTALL):
        exec(compile(block, "docs/prompt.md", "exec"), names)
    assert names["reply"][0]["role"] == "world"
    assert Path("reply.gif").stat().st_size
    assert names["env"].reset(seed=0)[0].shape == (56, 56, 3)
    assert names["envs"].num_envs == 4


def test_the_tree_names_every_folder_and_no_other():
    root = Path(__file__).parents[1]
    tree = README.split("## Find your way")[1].split("```")[1]
    named, top = set(), ""
    for indent, name in re.findall(r"^( *)(\w+)/ ", tree, re.MULTILINE):
        top = top if indent else name
        named.add(f"{top}/{name}" if indent else name)
    tops = ("unified", "data", "train", "eval")
    found = {
        f"{one}/{folder.name}"
        for one in tops
        for folder in (root / one).iterdir()
        if folder.is_dir() and not folder.name.startswith(("__", "."))
    }
    assert found <= named
    assert all((root / name).is_dir() for name in named)
