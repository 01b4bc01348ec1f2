"""Cost: how many keys are kept, and how long a frame takes, early and late in a dream."""

from typing import Any

import numpy as np

from eval.findings import Row, Section
from eval.statistics import Estimate

EARLY, LATE = 100, 1000
_AROUND = 10


def section_of(costs: dict[str, dict[str, Any]]) -> Section:
    """The table: memory -> part -> its keys, and the seconds of its frames."""
    section = Section(
        "Cost: keys that are kept, and milliseconds of a frame",
        note="Keys of the longest row. Milliseconds for a row of the batch, on this machine as "
        "busy as it was.",
    )
    for memory, parts in costs.items():
        for part, record in parts.items():
            keys, seconds = np.array(record["keys"]), 1000 * np.array(record["seconds"])
            for frame in (f for f in (EARLY, LATE) if f <= len(keys)):
                near = slice(max(0, frame - 2 * _AROUND), frame)
                value = float(keys[frame - 1])
                label = f"{memory}, {part}: keys at frame {frame}"
                section.rows.append(Row(label, Estimate(value, value, value), 1, is_share=False))
                low, middle, high = (
                    float(x) for x in np.quantile(seconds[near], [0.25, 0.5, 0.75])
                )
                label = f"{memory}, {part}: ms a frame at {frame}: median [quartiles]"
                row = Row(label, Estimate(middle, low, high), len(seconds[near]), is_share=False)
                section.rows.append(row)
    return section
