"""Measures part after part, each under each memory, and goes on where it was stopped."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from eval.babyai.player import Player
from eval.findings import Section
from eval.memory import cost, drift, openloop, returning, unseen
from eval.memory.arguments import PARTS, MemoryArguments
from eval.memory.dreams import Dreamer
from eval.memory.pictures import curves, sheet, strips
from eval.memory.trips import AWAY, KINDS, Trip, make_trips
from eval.pages import page
from eval.report import load, machine
from eval.seeds import first_seed
from unified.files import atomic_path, write_json

SHOWN = 3
"""Trips of each kind whose frames are kept for the page."""
Records = dict[str, dict[str, Any]]
"""Memory -> what was counted under it."""


@dataclass
class Report:
    """All parts of a run.

    Attributes:
        settings: What was measured, and on what.
        sections: Part -> its table.
        pictures: Part -> HTML above its table.
        sheets: Part -> one trip as a picture, for parts that are trips.
    """

    settings: dict[str, Any]
    sections: dict[str, Section] = field(default_factory=dict)
    pictures: dict[str, str] = field(default_factory=dict)
    sheets: dict[str, np.ndarray] = field(default_factory=dict)

    def markdown(self) -> str:
        """Every table."""
        return "\n".join(section.markdown() for section in self.sections.values())

    def save(self, folder: Path) -> None:
        """Writes `memory.json`, `memory.md`, `memory.html` and a picture for each kind of trip."""
        for part, pixels in self.sheets.items():
            with atomic_path(folder / f"{part}.png") as draft:
                Image.fromarray(pixels).save(draft, format="PNG")
        parts = {
            name: [asdict(row) for row in section.rows] for name, section in self.sections.items()
        }
        write_json(folder / "memory.json", {"settings": self.settings, "parts": parts})
        with atomic_path(folder / "memory.md") as draft:
            draft.write_text(self.markdown())
        lead = (
            f"The model <code>{escape(self.settings['model'])}</code> under several memories, "
            "against the real environment, on seeds that training never saw."
        )
        parts = [
            (section.title, self.pictures.get(name, "") + section.html())
            for name, section in self.sections.items()
        ]
        with atomic_path(folder / "memory.html") as draft:
            draft.write_text(page.document("Is it still there?", lead, parts))


def measure(
    arguments: MemoryArguments, on_part: Callable[[Report], object] | None = None
) -> Report:
    """Runs the parts under all memories.

    Args:
        arguments: What to measure.
        on_part: Called with what there is so far, whenever a part is done.

    Raises:
        ValueError: If the model is missing, it cannot have a memory, or a number is out of range.
    """
    seed = first_seed(arguments.seed, final=arguments.final)
    for name, least, most in (
        ("episodes", 1, 1000),
        ("longest", AWAY[0], AWAY[-1]),
        ("frames", drift.SPAN, 100_000),
    ):
        value = getattr(arguments, name)
        if not least <= value <= most:
            raise ValueError(f"{name}={value} must be from {least} to {most}")
    if not arguments.memories:
        raise ValueError("no memory is named; give --memories window place")
    model, processor = load(arguments.model, arguments.device)
    for memory in arguments.memories:
        model.config.check_memory(memory)
    player = Player(model, processor)
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in vars(arguments).items()
    }
    report = Report({**settings, "seed": seed, "machine": machine()})
    store = Store(arguments, seed, model.device.type)
    for part in tqdm([part for part in PARTS if part in arguments.parts], desc="memory"):
        section, pictures = _RUNS.get(part, _travel)(part, player, store)
        report.sections[part], report.pictures[part] = section, pictures
        if part in store.trips:
            report.sheets[part] = sheet(store.trips[part])
        if on_part is not None:
            on_part(report)
    section = cost.section_of(store.costs)
    if section.rows:
        report.sections["cost"] = section
        if on_part is not None:
            on_part(report)
    return report


class Store:
    """What was measured, on disk, so that a run that was stopped goes on."""

    def __init__(self, arguments: MemoryArguments, seed: int, device: str):
        """Begins with nothing measured; files are read when they are asked for."""
        self.arguments, self.seed, self.device = arguments, seed, device
        self.costs: dict[str, dict[str, Any]] = {}
        self.trips: dict[str, Records] = {}

    def dreamers(self, player: Player) -> list[Dreamer]:
        """The model under each memory."""
        steps = self.arguments.num_inference_steps
        return [Dreamer(player, m, num_inference_steps=steps) for m in self.arguments.memories]

    def record(self, part: str, memory: str, run: Callable[[], Any], **settings: Any) -> Any:
        """What a run counted: now, or at an earlier time with the same settings."""
        a = self.arguments
        asked = {
            "model": a.model,
            "episodes": a.episodes,
            "seed": self.seed,
            "num_inference_steps": a.num_inference_steps,
            "device": self.device,
            **settings,
        }
        name = re.sub(r"[^a-z0-9]+", "-", f"{part} {memory}".lower())
        path = a.out / "measured" / f"{name}.json"
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["settings"] == asked:
                return kept["record"]
        found = run()
        write_json(path, {"settings": asked, "record": found})
        return found


def _travel(part: str, player: Player, store: Store) -> tuple[Section, str]:
    """Trips of a kind."""
    a = store.arguments

    @cache  # made once, and only where something is still to be measured
    def prepared() -> list[Trip]:
        trips = make_trips(part, a.episodes, store.seed, a.longest)
        if not trips:
            raise ValueError(
                f"none of the first seeds from {store.seed} on has a trip of the kind "
                f"{part!r}; choose another --seed or more --episodes"
            )
        return trips

    records: Records = {}
    for dreamer in store.dreamers(player):

        def run(dreamer: Dreamer = dreamer) -> dict[str, Any]:
            dreams = dreamer.travel(prepared(), part)
            counts = returning.count_returns(prepared(), dreams.frames)
            shown = returning.shown_frames(prepared(), dreams.frames, SHOWN)
            return {"counts": counts, "shown": shown, **dreams.cost()}

        record = store.record(part, dreamer.memory, run, longest=a.longest)
        records[dreamer.memory] = record
        store.costs.setdefault(dreamer.memory, {})[part] = record
    store.trips[part] = records
    lines = {m: returning.lines_of(r["counts"], "model/all") for m, r in records.items()}
    things = {m: returning.lines_of(r["counts"], "model/objects") for m, r in records.items()}
    pictures = curves(lines, "determined tiles right, by frames away") + curves(
        things, "objects among them"
    )
    return returning.section_of(part, records), pictures + strips(records)


def _loop(part: str, player: Player, store: Store) -> tuple[Section, str]:
    """The open loop of `eval.truth`, under each memory."""
    a = store.arguments
    records: Records = {}
    for dreamer in store.dreamers(player):

        def run(dreamer: Dreamer = dreamer) -> dict[str, Any]:
            return {"counts": openloop.count(dreamer, a.episodes, store.seed, a.longest)}

        records[dreamer.memory] = store.record(part, dreamer.memory, run, longest=a.longest)
    lines = {m: returning.lines_of(r["counts"], "model/all") for m, r in records.items()}
    return openloop.section_of(records), curves(lines, "determined tiles right, by frame")


def _unseen(part: str, player: Player, store: Store) -> tuple[Section, str]:
    """What goes on off screen, level after level."""
    a = store.arguments
    records: dict[str, Records] = {}
    pictures = ""

    @cache  # made once, and only where something is still to be measured
    def prepared(level: str) -> list[Trip]:
        return unseen.make_unseen(level, a.episodes, store.seed, a.longest)

    for level in unseen.LEVELS:
        for dreamer in store.dreamers(player):

            def run(dreamer: Dreamer = dreamer, level: str = level) -> dict[str, Any]:
                trips = prepared(level)
                dreams = dreamer.travel(trips, level)
                return {
                    "counts": unseen.count_unseen(trips, dreams.frames),
                    "shown": returning.shown_frames(trips, dreams.frames, 1),
                }

            record = store.record(f"{part} {level}", dreamer.memory, run, longest=a.longest)
            records.setdefault(level, {})[dreamer.memory] = record
        lines = {
            m: returning.lines_of(r["counts"], "model/state") for m, r in records[level].items()
        }
        counts = next(iter(records[level].values()))["counts"]
        lines["static"] = returning.lines_of(counts, "static/state")
        pictures += curves(lines, f"{level}: state right when seen again, by frames away")
        pictures += strips(records[level])
    return unseen.section_of(records), pictures


def _drift(part: str, player: Player, store: Store) -> tuple[Section, str]:
    """Long dreams."""
    a = store.arguments
    records: dict[str, Records] = {}
    for behaviour in drift.BEHAVIOURS:
        for dreamer in store.dreamers(player):

            def run(dreamer: Dreamer = dreamer, behaviour: str = behaviour) -> dict[str, Any]:
                count = max(2, a.episodes // 3)
                return drift.drift(dreamer, behaviour, count, store.seed, a.frames)

            record = store.record(f"{part} {behaviour}", dreamer.memory, run, frames=a.frames)
            records.setdefault(behaviour, {})[dreamer.memory] = record
            store.costs.setdefault(dreamer.memory, {})[f"drift, {behaviour}"] = record
    pictures = ""
    for behaviour, by_memory in records.items():
        for figure, title in (("legal", "legal tiles"), ("map", "tiles that agree with the map")):
            lines = {m: drift.lines_of(r["counts"], figure) for m, r in by_memory.items()}
            pictures += curves(lines, f"{behaviour}: {title}, by frame", is_log=False)
    return drift.section_of(records), pictures


_RUNS: dict[str, Callable[[str, Player, Store], tuple[Section, str]]] = {
    "loop": _loop,
    "unseen": _unseen,
    "drift": _drift,
}
assert {*_RUNS, *KINDS} == {*PARTS}
