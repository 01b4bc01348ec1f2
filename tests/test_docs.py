"""What docs/finetune.md shows runs as it stands there, on fewer steps."""

import re
from pathlib import Path
from typing import Any

import pytest

from data.babyai.recorder import Recorder
from data.episode import decode_png

TEXT = (Path(__file__).parents[1] / "docs" / "finetune.md").read_text()


def recording(seed: int):
    segments = Recorder("GoToRedBall").record(seed).segments
    frames = [decode_png(s.frame) for s in segments if s.frame is not None][:3]
    actions = [s.action for s in segments if s.kind == "action"][: len(frames) - 1]
    return segments[0].text, frames, actions


def test_the_script_with_peft_and_trainer_runs(tmp_path, monkeypatch):
    pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"recordings": [recording(seed) for seed in range(4)]}
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL):
        few = block.replace("max_steps=400", "max_steps=2").replace("batch_size=6", "batch_size=2")
        exec(compile(few, "docs/finetune.md", "exec"), names)
    assert names["trainer"].state.global_step == 2
    assert names["model"].active_adapters() == ["again"]
