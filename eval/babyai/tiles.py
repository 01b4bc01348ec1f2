"""Frames of BabyAI as tiles: 7x7 sprites of 8x8 pixels, from a finite set.

So any frame, a generated one too, reads back as an exact symbolic state. The agent stands at
`AGENT_TILE` and looks up. All `(7, 7)` arrays are indexed [row, column] of the picture.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, IDX_TO_COLOR, OBJECT_TO_IDX
from minigrid.core.grid import Grid
from minigrid.core.world_object import Wall, WorldObj

TILE_SIZE = 8  # pixels
VIEW_SIZE = 7  # tiles
FRAME_SIZE = TILE_SIZE * VIEW_SIZE
AGENT_TILE = (VIEW_SIZE - 1, VIEW_SIZE // 2)
FRONT_TILE = (VIEW_SIZE - 2, VIEW_SIZE // 2)
LEGAL_DISTANCE = 0.1

UNSEEN, EMPTY, WALL = 0, 1, 2
_DOOR_STATES = ("open", "closed", "locked")
_TILES_AT_ONCE = 1 << 14  # bounds the memory of read_frame
_UP = 3  # the agent's direction in its own view


@dataclass(frozen=True)
class Sprite:
    """One tile that BabyAI can draw.

    `kind` is "unseen", "empty", "wall", "door", "key", "ball", "box" or "agent"; an agent's
    `carries` is the sprite it holds.
    """

    kind: str
    colour: str | None = None
    state: str | None = None
    carries: "Sprite | None" = None

    @property
    def name(self) -> str:
        """What the tile shows, in words."""
        if self.kind == "agent":
            return "agent" if self.carries is None else f"agent carrying {self.carries.name}"
        return " ".join(word for word in (self.state, self.colour, self.kind) if word)

    @property
    def see_behind(self) -> bool:
        """Whether the tiles behind this one can be seen."""
        return self.kind != "wall" and (self.kind != "door" or self.state == "open")


@cache
def sprites() -> tuple[Sprite, ...]:
    """Every sprite, in the order of its id.

    Example:
        >>> len(sprites()), [sprites()[i].name for i in (UNSEEN, EMPTY, WALL, 4)]
        (58, ['unseen', 'empty', 'wall', 'closed red door'])
    """
    colours = list(COLOR_TO_IDX)
    doors = [Sprite("door", colour, state) for colour in colours for state in _DOOR_STATES]
    objects = [Sprite(kind, colour) for kind in ("key", "ball", "box") for colour in colours]
    agents = [Sprite("agent", carries=carried) for carried in (None, *objects)]
    return (Sprite("unseen"), Sprite("empty"), Sprite("wall"), *doors, *objects, *agents)


@cache
def _sprite_ids() -> dict[Sprite, int]:
    return {sprite: i for i, sprite in enumerate(sprites())}


@cache
def sprite_tiles() -> np.ndarray:
    """Pixels of every sprite, `(58, 8, 8, 3)` uint8, drawn by minigrid itself."""
    tiles = []
    for sprite in sprites():
        agent = sprite.kind == "agent"
        drawn = Grid.render_tile(
            _world_object(sprite.carries if agent else sprite),
            agent_dir=_UP if agent else None,
            highlight=sprite.kind != "unseen",
            tile_size=TILE_SIZE,
        )
        tiles.append(drawn)
    return np.stack(tiles).astype(np.uint8)  # rounds down, as writing a tile into a frame does


def _world_object(sprite: Sprite | None) -> WorldObj | None:
    if sprite is None or sprite.kind in ("unseen", "empty"):
        return None
    colour = COLOR_TO_IDX[sprite.colour or "grey"]
    state = _DOOR_STATES.index(sprite.state) if sprite.state else 0
    return WorldObj.decode(OBJECT_TO_IDX[sprite.kind], colour, state)


def object_sprite(item: WorldObj | None, *, carried: bool = False) -> int:
    """Sprite id of a world cell's content, or of the agent when it carries this."""
    sprite = None
    if item is not None:
        _, colour, state = item.encode()
        door = _DOOR_STATES[state] if item.type == "door" else None
        sprite = Sprite(item.type, None if item.type == "wall" else IDX_TO_COLOR[colour], door)
    if carried:
        sprite = Sprite("agent", carries=sprite)
    if sprite is None:
        return EMPTY
    return sprite_id(sprite)


def sprite_id(sprite: Sprite) -> int:
    """Id of a sprite.

    Raises:
        ValueError: If BabyAI has no such thing.
    """
    if sprite not in _sprite_ids():
        raise ValueError(f"BabyAI draws no {sprite.name!r}; evaluate a BabyAI level")
    return _sprite_ids()[sprite]


KINDS = ("black", "floor", "wall", "door", "object", "agent")
"""Kinds of tiles that are counted apart; keys, balls and boxes are objects."""


@cache
def sprite_kinds() -> np.ndarray:
    """The kind of every sprite as a place in `KINDS`, `(58,)` int64 by id."""
    names = {"unseen": "black", "empty": "floor"}
    kinds = [names.get(sprite.kind, sprite.kind) for sprite in sprites()]
    return np.array([KINDS.index(k if k in KINDS else "object") for k in kinds])


def read_frame(frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nearest sprite of every tile (least squared error over pixels), and how far off it is.

    Args:
        frames: `(..., 56, 56, 3)` uint8.

    Returns:
        Sprite ids `(..., 7, 7)` int64, and the largest error of any pixel and channel of the tile,
        `(..., 7, 7)` float32 as a share of the range (0 = exact, 1 = black for white).

    Raises:
        ValueError: If the frames have another size or dtype.
    """
    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.shape[-3:] != (FRAME_SIZE, FRAME_SIZE, 3):
        raise ValueError(
            f"frames must be (..., {FRAME_SIZE}, {FRAME_SIZE}, 3) uint8, got {frames.shape} "
            f"{frames.dtype}; convert with codec.frames_to_pixels"
        )
    grid = frames.reshape(-1, VIEW_SIZE, TILE_SIZE, VIEW_SIZE, TILE_SIZE, 3)
    tiles = grid.transpose(0, 1, 3, 2, 4, 5).reshape(-1, TILE_SIZE * TILE_SIZE * 3)
    known = sprite_tiles().reshape(len(sprites()), -1).astype(np.float32)
    ids = np.empty(len(tiles), dtype=np.int64)
    error = np.empty(len(tiles), dtype=np.float32)
    for start in range(0, len(tiles), _TILES_AT_ONCE):
        part = slice(start, start + _TILES_AT_ONCE)
        pixels = tiles[part].astype(np.float32)
        # Squared distance but for the tile's own norm. All sums < 2 ** 24: exact.
        ids[part] = ((known**2).sum(1) - 2 * pixels @ known.T).argmin(1)
        error[part] = np.abs(pixels - known[ids[part]]).max(1) / 255
    shape = (*frames.shape[:-3], VIEW_SIZE, VIEW_SIZE)
    return ids.reshape(shape), error.reshape(shape)


def draw_frame(ids: np.ndarray) -> np.ndarray:
    """The frame that shows these sprites: `(..., 7, 7)` ids to `(..., 56, 56, 3)` uint8."""
    tiles = np.moveaxis(sprite_tiles()[ids], -4, -3)  # (..., row, y, column, x, channel)
    return tiles.reshape(*np.shape(ids)[:-2], FRAME_SIZE, FRAME_SIZE, 3)


def equal_tiles(frames: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Which tiles of two frames (or batches) show the same sprite: `(..., 7, 7)` bool."""
    return read_frame(frames)[0] == read_frame(others)[0]


def visible_tiles(opaque: np.ndarray) -> np.ndarray:
    """Which tiles the agent sees past these opaque ones, by the environment's own process.

    Args:
        opaque: `(7, 7)` bool, tiles that hide what is behind them.

    Returns:
        `(7, 7)` bool.
    """
    grid = Grid(VIEW_SIZE, VIEW_SIZE)
    for row, column in np.argwhere(opaque):
        grid.set(int(column), int(row), Wall())
    return grid.process_vis((AGENT_TILE[1], AGENT_TILE[0])).T


@cache
def opaque_sprites() -> np.ndarray:
    """Which sprites hide what is behind them, `(58,)` bool by id."""
    return np.array([not sprite.see_behind for sprite in sprites()])


@cache
def _agent_sprites() -> np.ndarray:
    return np.array([sprite.kind == "agent" for sprite in sprites()])


def legal_tiles(frame: np.ndarray) -> np.ndarray:
    """Which tiles of a generated frame are legal sprites in legal places.

    Legal sprite: no pixel is off by more than a tenth of the range. Legal place: the agent (with or
    without what it carries) is drawn at its own tile and nowhere else; and a tile is shown exactly
    when the frame's own walls and doors let it be seen.

    Args:
        frame: `(56, 56, 3)` uint8.

    Returns:
        `(7, 7)` bool.
    """
    ids, distance = read_frame(frame)
    at_agent = np.zeros((VIEW_SIZE, VIEW_SIZE), dtype=bool)
    at_agent[AGENT_TILE] = True
    opaque = opaque_sprites()[ids]
    opaque[AGENT_TILE] = False  # the agent is not in its own way, whatever is drawn there
    in_sight = (ids != UNSEEN) == visible_tiles(opaque)
    return (distance < LEGAL_DISTANCE) & (_agent_sprites()[ids] == at_agent) & in_sight
