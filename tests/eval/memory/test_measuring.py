"""`python -m eval.memory`: any model is measured, what was measured stays, bad input is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from eval.memory.arguments import PARTS, MemoryArguments
from eval.memory.dreams import Dreamer
from eval.memory.measuring import Report, measure


def test_all_parts_run_under_two_memories_and_go_on_where_they_were_stopped(
    untrained: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval.memory.drift.SPAN", 4)
    monkeypatch.setattr("eval.memory.cost.EARLY", 8)
    places = {"path_layer": 0, "path_lattice": (4, 1.0), "head_dim": 16}
    model = untrained(**places, world_token_id=None)
    out = tmp_path / "memory"
    arguments = MemoryArguments(
        model=model,
        out=out,
        memories=("window", "place:recent=1"),
        parts=("turn", "loop", "drift"),
        episodes=2,
        longest=16,
        frames=8,
        num_inference_steps=1,
    )
    reports: list[Report] = []
    measure(replace(arguments, parts=("turn",)), reports.append)
    first = reports[-1]
    first.save(out)
    assert "| place:recent=1: all, k = 16 |" in (out / "memory.md").read_text()
    page = (out / "memory.html").read_text()
    assert "back after 16" in page
    assert "polyline" in page
    with Image.open(out / "turn.png") as picture:
        assert picture.size == (4 * 112 + 3 * 8, 2 * 112 + 8)  # seen, and back after 4, 8 and 16
    assert json.loads((out / "memory.json").read_text())["settings"]["episodes"] == 2

    drawn: list[Any] = []
    draw = Dreamer.draw

    def counted(self: Dreamer, *args: Any) -> Any:
        drawn.append(self.memory)
        return draw(self, *args)

    monkeypatch.setattr(Dreamer, "draw", counted)
    again = measure(replace(arguments, parts=("turn",)))
    assert again.markdown() == first.markdown()
    assert not drawn
    whole = measure(arguments)
    assert drawn.count("window") == drawn.count("place:recent=1") == 16 + 2 * 8
    assert list(whole.sections) == ["turn", "loop", "drift", "cost"]
    assert "| window, drift, random: keys at frame 8 |" in whole.markdown()


def test_there_is_a_part_for_each_promise() -> None:
    assert set(PARTS) == {"turn", "walk", "rooms", "circle", "loop", "unseen", "drift"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"longest": 513}, "longest=513 must be from 4 to 512"),
        ({"episodes": 0}, "episodes=0 must be from 1"),
        ({"frames": 10}, "frames=10 must be from 100"),
        ({"memories": ()}, "no memory is named"),
        ({"memories": ("attic",)}, "memory='attic' is unknown"),
        ({"seed": 999_999}, "belongs to training"),
    ],
)
def test_bad_input_is_refused_before_anything_is_measured(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        measure(replace(MemoryArguments(out=tmp_path / "out"), **changes))
    assert not (tmp_path / "out").exists()


def test_a_model_without_places_is_refused_a_memory_by_place(
    untrained: Callable[..., str], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="knows no places"):
        measure(MemoryArguments(model=untrained(), out=tmp_path / "out"))
