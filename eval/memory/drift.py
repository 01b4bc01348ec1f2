"""Drift: a long dream of which nothing is determined, judged by what it says of itself.

Whatever one does, a frame has to be one that the environment could draw (*legal*), and it has to
agree with the frames before (*map*): odometry and BabyAI's rules say which cell each tile is, and
a cell that nobody touched shows what it showed when it was last in view.
"""

import time
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.babyai.floors import UNKNOWN, MapSimulator
from eval.babyai.tiles import (
    AGENT_TILE,
    EMPTY,
    FRONT_TILE,
    UNSEEN,
    legal_tiles,
    read_frame,
    sprites,
)
from eval.babyai.truth import ACTIONS, TrueWorld
from eval.findings import Row, Section, row_of_tiles
from eval.memory.dreams import Dreamer
from eval.statistics import Estimate, mean_over_episodes
from eval.world.worlds import open_world

LEVEL = "GoToLocal"
_CHANCES = (0.2, 0.2, 0.4, 0.05, 0.05, 0.05, 0.05)
SPAN = 100
"""Frames that are counted together."""
BEHAVIOURS = ("random", "walker")


class Watcher:
    """Follows one dream, and counts what is legal and what agrees with the map."""

    def __init__(self, frame: np.ndarray):
        """Knows the first frame."""
        self.map = MapSimulator(frame)
        self.ids = read_frame(frame)[0]

    def act(self, behaviour: str, rng: np.random.Generator) -> str:
        """What is done next: at random, or by one who walks on until something is in the way."""
        if behaviour == "random":
            return str(rng.choice(ACTIONS, p=_CHANCES))
        front = sprites()[int(self.ids[FRONT_TILE])]
        if front.kind == "empty" or front.state == "open":
            return "forward" if rng.random() < 0.85 else str(rng.choice(["left", "right"]))
        return "toggle" if front.state == "closed" else str(rng.choice(["left", "right"]))

    def see(self, action: str, frame: np.ndarray) -> dict[str, list[int]]:
        """Right and all, of legal tiles and of those on the map; things that came and went."""
        ids = read_frame(frame)[0]
        expected = self.map.turn_to(action)
        told = (expected != UNKNOWN) & (ids != UNSEEN)
        told[AGENT_TILE] = False
        things = np.array([s.kind in ("ball", "box", "key", "door") for s in sprites()])
        agrees = (expected == ids) & told
        came = int((told & ~agrees & things[ids]).sum())
        went = int((told & ~agrees & things[np.where(told, expected, EMPTY)]).sum())
        self.map.follow(action, frame)
        self.ids = ids
        legal = legal_tiles(frame)
        return {
            "legal": [int(legal.sum()), legal.size],
            "whole": [int(legal.all()), 1],
            "map": [int(agrees.sum()), int(told.sum())],
            "changed": [came + went, 1],
        }


def drift(
    dreamer: Dreamer, behaviour: str, episodes: int, first_seed: int, frames: int
) -> dict[str, Any]:
    """Dreams, and counts by spans of `SPAN` frames."""
    world = TrueWorld(LEVEL)
    seeds = list(range(first_seed, first_seed + episodes))
    views = [open_world(world, seed) for seed in seeds]
    session = dreamer.begin([[view] for view in views], seeds)
    watchers = [Watcher(view.frame) for view in views]
    randoms = [np.random.default_rng(seed) for seed in seeds]
    counts: dict[str, dict[str, list[list[int]]]] = {}
    keys, seconds = [], []
    label = f"drift, {behaviour}, {dreamer.memory}"
    for step in tqdm(range(frames), desc=label, leave=False):
        actions = [w.act(behaviour, rng) for w, rng in zip(watchers, randoms, strict=True)]
        start = time.perf_counter()
        drawn = dreamer.draw(session, list(actions))
        seconds.append(round((time.perf_counter() - start) / len(seeds), 5))
        keys.append(int(session.state.length.max()))
        span = str(SPAN * (step // SPAN + 1))
        for row, (watcher, action) in enumerate(zip(watchers, actions, strict=True)):
            for figure, found in watcher.see(action, drawn[row]).items():
                rows = counts.setdefault(figure, {}).setdefault(span, [[0, 0] for _ in seeds])
                rows[row] = [a + b for a, b in zip(rows[row], found, strict=True)]
    return {"counts": counts, "keys": keys, "seconds": seconds}


def lines_of(
    counts: dict[str, dict[str, list[list[int]]]], figure: str
) -> list[tuple[int, Estimate]]:
    """A curve over the frames of a dream."""
    return [
        (int(span), row_of_tiles("", [(a, b) for a, b in found]).value)
        for span, found in sorted(counts[figure].items(), key=lambda item: int(item[0]))
        if sum(b for _, b in found)
    ]


def section_of(records: dict[str, dict[str, dict[str, Any]]]) -> Section:
    """The table: behaviour -> memory -> what was counted."""
    section = Section(
        "Drift: a long dream, judged by what it says of itself",
        note="Legal: tiles that the environment could draw there. Map: tiles whose cell was in "
        "view before, and that show what they showed then, or what was done to them since. The map "
        "itself, drawn, is right in all of them; the first frame, repeated, is always legal.",
    )
    for behaviour, by_memory in records.items():
        for memory, record in by_memory.items():
            spans = sorted(map(int, record["counts"]["legal"]))
            for span in dict.fromkeys([spans[0], spans[len(spans) // 2], spans[-1]]):
                for figure, name in (
                    ("legal", "legal tiles"),
                    ("whole", "frames that are legal as a whole"),
                    ("map", "tiles that agree with the map"),
                ):
                    found = [(a, b) for a, b in record["counts"][figure][str(span)]]
                    if sum(b for _, b in found):
                        label = f"{behaviour}, {memory}: {name}, up to frame {span}"
                        section.rows.append(row_of_tiles(label, found))
                rates = [[a / max(1, b)] for a, b in record["counts"]["changed"][str(span)]]
                label = f"{behaviour}, {memory}: things that came or went a frame, to {span}"
                value = mean_over_episodes(rates)
                section.rows.append(Row(label, value, len(rates), is_share=False))
    return section
