"""What the agent sees: 7x7 cells of (type, colour, state), and the frame that they are drawn as."""

import functools

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, IDX_TO_OBJECT, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import WorldObj

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle", "done")
"""Action names in the order of minigrid's integer actions."""
VIEW_SIZE = 7
TILE_SIZE = 8
AGENT = (VIEW_SIZE // 2, VIEW_SIZE - 1)
"""Column and row of the agent, where the view holds what it carries."""
FRONT = (VIEW_SIZE // 2, VIEW_SIZE - 2)
"""Column and row of the cell ahead of it."""
UNSEEN, EMPTY, WALL = (OBJECT_TO_IDX[name] for name in ("unseen", "empty", "wall"))
DOOR, BOX, KEY = (OBJECT_TO_IDX[name] for name in ("door", "box", "key"))
PORTABLE = (OBJECT_TO_IDX["ball"], BOX, KEY)
OPEN, CLOSED, LOCKED = range(3)
"""States of a door."""
_NUM_STATES = 3


@functools.cache
def tile_table() -> np.ndarray:
    """Return the sprites of every cell as seen by the agent.

    Returns:
        uint8 (2, codes, TILE_SIZE, TILE_SIZE, 3): ordinary cells, then cells with the agent on
        top; the code of a cell is (type * colours + colour) * states + state.
    """
    num_types = max(OBJECT_TO_IDX.values()) + 1
    shape = (2, num_types, len(COLOR_TO_IDX), _NUM_STATES, TILE_SIZE, TILE_SIZE, 3)
    table = np.zeros(shape, np.uint8)
    for kind in range(num_types):
        if IDX_TO_OBJECT[kind] == "agent":
            continue
        for colour in range(len(COLOR_TO_IDX)):
            for state in range(_NUM_STATES):
                cell = WorldObj.decode(kind, colour, state)
                for agent in (False, True):
                    table[int(agent), kind, colour, state] = Grid.render_tile(
                        cell,
                        agent_dir=3 if agent else None,
                        highlight=kind != UNSEEN,
                        tile_size=TILE_SIZE,
                    )
    return table.reshape(2, -1, TILE_SIZE, TILE_SIZE, 3)


def render_view(view: np.ndarray) -> np.ndarray:
    """Draw the agent's view, bit-equal to minigrid's RGBImgPartialObsWrapper(tile_size=8).

    Args:
        view: uint8 (7, 7, 3), the environment's `obs["image"]`: columns, rows, (type, colour,
            state), the agent at column 3 of row 6.

    Returns:
        uint8 frame (56, 56, 3).
    """
    cells = view.astype(np.int64)
    codes = (cells[..., 0] * len(COLOR_TO_IDX) + cells[..., 1]) * _NUM_STATES + cells[..., 2]
    table = tile_table()
    tiles = table[0, codes]
    tiles[AGENT] = table[1, codes[AGENT]]
    size = VIEW_SIZE * TILE_SIZE
    return np.ascontiguousarray(tiles.transpose(1, 2, 0, 3, 4)).reshape(size, size, 3)


def is_free(cell: np.ndarray) -> bool:
    """Whether one can step on a cell."""
    return cell[0] == EMPTY or (cell[0] == DOOR and cell[2] == OPEN)
