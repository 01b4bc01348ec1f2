"""Trips: one looks, leaves, and comes back after k frames, in the real environment.

A trip has a trunk, on which the agent stays away, and for each k a branch from it that leads back.
So all k of a trip share the frames on the way, in the real environment and in the dream.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.babyai.tiles import AGENT_TILE, EMPTY, sprites
from eval.babyai.truth import Knowledge, TrueWorld, View
from eval.world.worlds import open_world

AWAY = (4, 8, 16, 32, 64, 128, 256, 512)
"""Frames from the last true one to the return."""
LOOK = ("right",) * 4
"""What is done in true frames, so that one knows where one may walk."""
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # by minigrid's direction, clockwise
_FEWEST = 6
"""Cells that one has to know to walk about in."""

Cell = tuple[int, int]
Pose = tuple[int, int, int]


@dataclass(frozen=True)
class Branch:
    """The way back of a trip.

    Attributes:
        start: Frames of the trunk before it.
        views: What is truly seen on it; the last one is scored.
        mask: `(7, 7)` bool, tiles of the last one that the context determines.
    """

    start: int
    views: list[View]
    mask: np.ndarray


@dataclass(frozen=True)
class Trip:
    """One episode that leaves a place and comes back to it.

    Attributes:
        name: Kind of trip, and seed.
        seed: Of the environment and the noise.
        context: True views, which are told.
        trunk: What is truly seen while one is away.
        branches: By k, the frames that were dreamed when one is back.
        task: In words; None where none is told.
    """

    name: str
    seed: int
    context: list[View]
    trunk: list[View]
    branches: dict[int, Branch]
    task: str | None = None


class Traveller:
    """Acts in the real environment, and knows where it may go."""

    def __init__(self, world: TrueWorld, seed: int):
        """Opens an episode."""
        self.world = world
        self.views = [open_world(world, seed)]

    @property
    def pose(self) -> Pose:
        """Cell and direction."""
        env: Any = self.world.env
        return int(env.agent_pos[0]), int(env.agent_pos[1]), int(env.agent_dir)

    def act(self, *actions: str) -> None:
        """Takes actions in which nothing is won or lost."""
        self.views += [self.world.act(action) for action in actions]

    def known(self) -> set[Cell]:
        """Cells that were seen and on which one can walk, closed doors too."""
        cells = {self.pose[:2]}
        for view in self.views:
            for tile in np.ndindex(view.visible.shape):
                sprite = sprites()[int(view.contents[tile])]
                walks = sprite.kind == "empty" or (sprite.kind == "door" and not _is_locked(sprite))
                if view.visible[tile] and walks:
                    cells.add(view.cell(tile))
        return cells

    def route(self, target: Pose, cells: set[Cell]) -> list[str] | None:
        """The shortest way there through some cells; None if there is none."""
        came: dict[Pose, tuple[Pose, str]] = {}
        queue = deque([self.pose])
        while queue:
            here = queue.popleft()
            if here == target:
                way = []
                while here != self.pose:
                    here, action = came[here]
                    way.append(action)
                return way[::-1]
            x, y, facing = here
            ahead = (x + _STEPS[facing][0], y + _STEPS[facing][1])
            nexts = [((x, y, (facing + 1) % 4), "right"), ((x, y, (facing - 1) % 4), "left")]
            if ahead in cells:
                nexts.append(((*ahead, facing), "forward"))
            for pose, action in nexts:
                if pose not in came and pose != self.pose:
                    came[pose] = here, action
                    queue.append(pose)
        return None

    def go(self, way: list[str]) -> None:
        """Walks it, and opens doors that are closed."""
        for action in way:
            env: Any = self.world.env
            ahead = env.grid.get(*env.front_pos)
            if action == "forward" and ahead is not None and ahead.type == "door":
                self.act(*(() if ahead.is_open else ("toggle",)))
            self.act(action)

    def stroll(self, rng: np.random.Generator, cells: set[Cell]) -> None:
        """One step at random that stays in these cells."""
        x, y, facing = self.pose
        ahead = (x + _STEPS[facing][0], y + _STEPS[facing][1])
        if ahead in cells and rng.random() < 0.6:
            self.act("forward")
        else:
            self.act(str(rng.choice(["left", "right"])))


def _is_locked(sprite: Any) -> bool:
    return sprite.state == "locked"


def _finish(
    name: str,
    seed: int,
    traveller: Traveller,
    told: int,
    back: Callable[[], list[str] | None],
    stay: Callable[[], None],
    longest: int,
) -> Trip | None:
    """Stays away, and tries the way back after each step.

    Args:
        name: Of the trip.
        seed: Of its environment.
        traveller: Has been where the context ends.
        told: Views of the context.
        back: The way back from where one is; None where there is none.
        stay: Takes one step away from it.
        longest: Largest k.
    """
    ways: dict[int, int] = {}  # k -> the latest step from which the way back is not too long
    wanted = [k for k in AWAY if k <= longest]
    moments: dict[int, tuple[Any, list[View]]] = {}
    world, out = traveller.world, list(traveller.views)
    for step in range(longest):
        way = back()
        for k in wanted:
            if way is not None and way and step + len(way) <= k:
                ways[k] = step
        for k in (k for k, at in ways.items() if at == step):
            moments[k] = world.snapshot(), list(traveller.views)
        stay()
    trunk = traveller.views[told:]
    branches = {}
    for k, step in ways.items():
        snapshot, views = moments[k]
        world.restore(snapshot)
        traveller.views = views
        way = back()
        assert way is not None
        traveller.go(way)
        branch = traveller.views[told + step :]
        branches[k] = Branch(step, branch, _determined(out[:told], trunk[:step] + branch))
    last = max((b.start for b in branches.values()), default=0)
    return Trip(name, seed, out[:told], trunk[:last], branches) if branches else None


def _determined(context: list[View], after: list[View]) -> np.ndarray:
    """Tiles of the last view that the context determines, and that one sees."""
    knowledge = Knowledge()
    for view in context:
        knowledge.see(view)
    mask = [knowledge.imagine(view) for view in after][-1].determined & after[-1].visible
    mask[AGENT_TILE] = False
    return mask


def turn(seed: int, world: TrueWorld, longest: int) -> Trip | None:
    """One room: one turns round, waits with the back to all, and turns back."""
    traveller = Traveller(world, seed)
    start = traveller.pose

    def back() -> list[str] | None:
        return ["right"] * 2 if len(traveller.views) >= 3 else None

    def stay() -> None:
        traveller.act("left" if (traveller.pose[2] - start[2]) % 4 != 2 else "done")

    return _finish(f"turn/{seed}", seed, traveller, 1, back, stay, longest)


def walk(seed: int, world: TrueWorld, longest: int) -> Trip | None:
    """One room: one looks about, and walks about on what was seen."""
    traveller = Traveller(world, seed)
    start = traveller.pose
    traveller.act(*LOOK)
    cells, rng = traveller.known(), np.random.default_rng(seed)
    if len(cells) < _FEWEST:
        return None
    return _finish(
        f"walk/{seed}",
        seed,
        traveller,
        len(traveller.views),
        lambda: traveller.route(start, cells),
        lambda: traveller.stroll(rng, cells),
        longest,
    )


def rooms(seed: int, world: TrueWorld, longest: int) -> Trip | None:
    """Two rooms joined by a door: one looks about in the first, and is away in the second."""
    traveller = Traveller(world, seed)
    start = traveller.pose
    traveller.act(*LOOK)
    if not _go_through(traveller):
        return None
    door, facing = _behind(traveller.pose), traveller.pose[2]
    traveller.act(*LOOK)
    everywhere = traveller.known()
    there, rng = _beyond(everywhere, door, facing), np.random.default_rng(seed)
    if len(there) < _FEWEST:
        return None
    return _finish(
        f"rooms/{seed}",
        seed,
        traveller,
        len(traveller.views),
        lambda: traveller.route(start, everywhere),
        lambda: traveller.stroll(rng, there),
        longest,
    )


def _go_through(traveller: Traveller) -> bool:
    """Goes through the first door that one can get to, and stands behind it."""
    world, known = traveller.world, traveller.known()
    doors = {cell for cell in known if _is_door(world, cell)}
    for door in sorted(doors):
        cells = known - (doors - {door})
        for facing, (dx, dy) in enumerate(_STEPS):
            before, after = (door[0] - dx, door[1] - dy), (door[0] + dx, door[1] + dy)
            if before not in cells or after in cells or _content(world, after) is not None:
                continue
            way = traveller.route((*before, facing), cells)
            if way is not None:
                traveller.go([*way, "forward", "forward"])
                return True
    return False


def _behind(pose: Pose) -> Cell:
    """The cell at one's back."""
    x, y, facing = pose
    return x - _STEPS[facing][0], y - _STEPS[facing][1]


def _content(world: TrueWorld, cell: Cell) -> Any:
    env: Any = world.env
    return env.grid.get(*cell)


def _is_door(world: TrueWorld, cell: Cell) -> bool:
    content = _content(world, cell)
    return content is not None and content.type == "door"


def _beyond(cells: set[Cell], door: Cell, facing: int) -> set[Cell]:
    """Those on the other side of a door one went through."""
    dx, dy = _STEPS[facing]
    return {(x, y) for x, y in cells if (x - door[0]) * dx + (y - door[1]) * dy > 0}


def circle(seed: int, world: TrueWorld, longest: int) -> Trip | None:
    """One room: laps of a rectangle that lies in the first view; only that view is told."""
    traveller = Traveller(world, seed)
    start, cells = traveller.pose, traveller.known()
    lap = _lap(start, cells)
    if lap is None:
        return None

    def back() -> list[str] | None:
        done = (len(traveller.views) - 1) % len(lap)
        return lap[done:] if len(traveller.views) > 1 else None

    def stay() -> None:
        traveller.act(lap[(len(traveller.views) - 1) % len(lap)])

    return _finish(f"circle/{seed}", seed, traveller, 1, back, stay, longest)


def _lap(start: Pose, cells: set[Cell]) -> list[str] | None:
    """The longest way round a rectangle ahead of which every cell is known."""
    best: list[str] | None = None
    for long in range(1, 6):
        for wide in range(1, 4):
            for side in ("right", "left"):
                lap = []
                for length in (long, wide, long, wide):
                    lap += ["forward"] * length + [side]
                if _stays(start, lap, cells) and (best is None or len(lap) > len(best)):
                    best = lap
    return best


def _stays(start: Pose, way: list[str], cells: set[Cell]) -> bool:
    x, y, facing = start
    for action in way:
        if action == "forward":
            x, y = x + _STEPS[facing][0], y + _STEPS[facing][1]
            if (x, y) not in cells:
                return False
        else:
            facing = (facing + (1 if action == "right" else -1)) % 4
    return True


KINDS: dict[str, tuple[str, Callable[[int, TrueWorld, int], Trip | None]]] = {
    "turn": ("GoToLocal", turn),
    "walk": ("GoToLocal", walk),
    "rooms": ("GoTo", rooms),
    "circle": ("GoToLocal", circle),
}
"""Kind of trip -> level and how it is made."""
_TRIES = 40
"""Seeds that are tried for each trip."""


def make_trips(kind: str, count: int, first_seed: int, longest: int) -> list[Trip]:
    """The first trips of a kind that the seeds have.

    Args:
        kind: Key of `KINDS`.
        count: Of trips.
        first_seed: Of the environment.
        longest: Largest k.

    Raises:
        ValueError: If the kind is unknown.
    """
    if kind not in KINDS:
        raise ValueError(f"trip {kind!r} is unknown; use one of {', '.join(KINDS)}")
    level, make = KINDS[kind]
    world, trips = TrueWorld(level), []
    with tqdm(total=count, desc=f"{kind}: trips", leave=False) as bar:
        for seed in range(first_seed, first_seed + _TRIES * count):
            trip = make(seed, world, longest)
            if trip is not None:
                trips.append(trip)
                bar.update()
            if len(trips) == count:
                break
    return trips


def remembered(trip: Trip, k: int) -> np.ndarray:
    """A floor: odometry, and each cell as the context last showed it; `(7, 7)` sprite ids."""
    known: dict[Cell, int] = {}
    for view in trip.context:
        for tile in np.ndindex(view.visible.shape):
            if view.visible[tile] and tile != AGENT_TILE:
                known[view.cell(tile)] = int(view.sprites[tile])
    view = trip.branches[k].views[-1]
    ids = [known.get(view.cell(tile), EMPTY) for tile in np.ndindex(view.visible.shape)]
    return np.array(ids).reshape(view.visible.shape)
