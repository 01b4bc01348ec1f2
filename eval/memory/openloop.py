"""The open loop of `eval.world.openloop` under a memory: frames far ahead, under true actions."""

from typing import Any

import numpy as np
from tqdm import tqdm

from eval.babyai.tiles import read_frame
from eval.findings import Section, row_of_tiles
from eval.memory.dreams import Dreamer
from eval.memory.returning import Counts, pairs
from eval.statistics import wilson_interval
from eval.world.openloop import Loop, make_loops, mapped_frame

HORIZONS = (16, 32, 64, 128, 256, 512)
BEHAVIOURS = ("handler", "expert")


def count(dreamer: Dreamer, episodes: int, first_seed: int, horizon: int) -> Counts:
    """Determined tiles that are right, at each horizon; half of the episodes of each behaviour."""
    horizon = min(horizon, HORIZONS[-1])
    loops: list[Loop] = []
    for behaviour in BEHAVIOURS:
        loops += make_loops(behaviour, max(1, episodes // 2), first_seed, horizon)
    session = dreamer.begin([loop.context for loop in loops], [loop.seed for loop in loops])
    counts: Counts = {}
    for step in tqdm(range(horizon), desc=f"open loop, {dreamer.memory}", leave=False):
        drawn = dreamer.draw(session, [loop.views[step].action for loop in loops])
        if step + 1 not in HORIZONS:
            continue
        ids = read_frame(np.stack([drawn[row] for row in range(len(loops))]))[0]
        for row, loop in enumerate(loops):
            truth, mask = loop.views[step].sprites, loop.classes[step].determined
            for who, guess in (("model", ids[row]), ("map", mapped_frame(loop, step))):
                found = [int((guess == truth)[mask].sum()), int(mask.sum())]
                counts.setdefault(f"{who}/all", {}).setdefault(str(step + 1), []).append(found)
    return counts


def section_of(records: dict[str, Any]) -> Section:
    """The table, memories side by side."""
    section = Section(
        "Open loop: the model goes on from its own frames, under true actions",
        note="Tiles that follow from five true frames and the actions. The floor: odometry, and "
        "every cell as it was last seen.",
    )
    for memory, record in records.items():
        for frame, found in record["counts"]["model/all"].items():
            shares = {
                f"episode {i}": wilson_interval(right, total)
                for i, (right, total) in enumerate(found)
                if total
            }
            worst = min(shares.items(), key=lambda item: item[1].value)
            floor = pairs(record["counts"]["map/all"][frame])
            label = f"{memory}: determined tiles at frame {frame}"
            section.rows.append(row_of_tiles(label, pairs(found), floor, worst))
    return section
