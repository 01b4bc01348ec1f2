"""Words of the world: frames drawn from them, events that they tell, worlds opened by a mission."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from minigrid.core.constants import COLOR_NAMES
from tqdm import tqdm

from data.babyai.behaviours import Handler, Wanderer
from data.babyai.events import EVENTS, happen_as
from data.babyai.levels import WORKSHOP
from data.babyai.views import ACTIONS
from data.babyai.words import caption_of
from eval.babyai.tiles import (
    AGENT_TILE,
    EMPTY,
    FRONT_TILE,
    legal_tiles,
    opaque_sprites,
    read_frame,
    sprites,
)
from eval.babyai.truth import Knowledge, TrueWorld, View
from eval.findings import (
    Failure,
    Row,
    Section,
    cell_values,
    mean_of_cells,
    row_of_cells,
    row_of_tiles,
)
from eval.statistics import Estimate
from eval.world.worlds import Drawer, RealWorlds, Scene, Start, Worlds, find_cases, open_world

LEVELS = (WORKSHOP, "GoToLocal", "OpenDoor", "PickupLoc", "GoToRedBall")
"""Whose frames are described, and in which events happen."""
_COLOUR = "|".join(COLOR_NAMES)
_NAME = rf"(?:(open|closed|locked) )?({_COLOUR}) (ball|box|key|door)"
_THING = re.compile(rf"an? {_NAME} ?(?:(\d) ahead)?(?: and )?(?:(\d) (left|right))?")
_CARRIED = re.compile(rf"carrying an? {_NAME}")
_GOAL = re.compile(rf"(?:({_COLOUR}) )?(ball|box|key|door|object)\b")
_OBJECTS = ("ball", "box", "key", "door")
_MOST_NAMED = 5  # a caption names no more things; where it names as many, there may be others

# Frames from captions


@dataclass(frozen=True)
class Described:
    """A true frame, and words that describe it."""

    view: View
    words: str
    seed: int

    @property
    def scene(self) -> Scene:
        """What the model is told."""
        return Scene(self.seed, words=self.words)


def named_tiles(words: str) -> list[tuple[tuple[int, int], str]]:
    """What a description names: tile, and the name of the sprite that belongs there.

    Example:
        >>> named_tiles("you see an open red door 2 ahead and 1 left, carrying a blue key")
        [((4, 2), 'open red door'), ((6, 3), 'agent carrying blue key')]
    """
    seen, _, _ = words.partition("carrying")
    found = []
    for state, colour, kind, ahead, aside, side in _THING.findall(seen):
        row = AGENT_TILE[0] - int(ahead or 0)
        column = AGENT_TILE[1] + int(aside or 0) * (1 if side == "right" else -1)
        found.append(((row, column), " ".join(w for w in (state, colour, kind) if w)))
    held = _CARRIED.search(words)
    if held is not None:
        found.append((AGENT_TILE, f"agent carrying {held[2]} {held[3]}"))
    return found


def described_frames(count: int, first_seed: int) -> list[Described]:
    """Frames after some steps of a wanderer, with what they show, in the world's words."""
    worlds = [TrueWorld(level) for level in LEVELS]
    found = []
    for i in range(count):
        seed = first_seed + i
        rng = np.random.default_rng(seed)
        world, wanderer = worlds[i % len(worlds)], Wanderer(rng)
        view = open_world(world, seed)
        for _ in range(int(rng.integers(6))):
            view = world.act(ACTIONS[wanderer.act(world.env.gen_obs()["image"])])
        caption = caption_of(world.env.gen_obs()["image"])
        found.append(Described(view, f"you see {caption.removeprefix('i see ')}", seed))
    return found


def evaluate_captions_drawn(described: list[Described], drawers: Mapping[str, Drawer]) -> Section:
    """Draws what is described; each drawer (of so many denoise steps) has its rows."""
    section = Section(
        "Words to frame: true descriptions, and no frame given",
        note="The floor is how well the same frames fit the description of another one.",
    )
    names = [sprite.name for sprite in sprites()]
    is_object = np.array([s.kind in _OBJECTS for s in sprites()])
    for label, draw in drawers.items():
        drawn = draw([case.scene for case in described])
        ids = read_frame(drawn)[0]
        placed, elsewhere, other, more, legal, whole = [], [], [], [], [], []
        kinds: dict[str, list[bool]] = defaultdict(list)
        for i, case in enumerate(described):
            named = named_tiles(case.words)
            shown = {names[k] for k in ids[i].flat}
            right = [names[ids[i][tile]] == name for tile, name in named]
            for (_, name), is_right in zip(named, right, strict=True):
                kinds["carried" if "carrying" in name else name.split()[-1]].append(is_right)
            placed.append((sum(right), len(named)))
            elsewhere.append((sum(name in shown for _, name in named), len(named)))
            wrong = named_tiles(described[i - 1].words)
            other.append((sum(names[ids[i][t]] == name for t, name in wrong), len(wrong)))
            things = [tile for tile, name in named if "carrying" not in name]
            if len(things) < _MOST_NAMED:
                extra = is_object[ids[i]]
                for tile in things:
                    extra[tile] = False
                more.append(not extra.any())
            fits = legal_tiles(drawn[i])
            legal.append((int(fits.sum()), fits.size))
            whole.append(all(right) and bool(fits.all()))
            if not all(right) and len(section.failures) < 2 * len(drawers):
                mask = np.zeros_like(fits)
                for (tile, _), is_right in zip(named, right, strict=True):
                    mask[tile] = not is_right
                section.failures.append(
                    Failure(case.words, [], case.view.frame, drawn[i], mask, np.zeros_like(fits))
                )
        worst = min(cell_values(kinds).items(), key=lambda item: item[1].value, default=None)
        section.rows += [
            row_of_tiles(f"named things at their place, {label}", placed, other, worst),
            row_of_tiles(f"named things anywhere, {label}", elsewhere),
            row_of_tiles(f"legal tiles, {label}", legal),
            Row(f"frames all legal and as told, {label}", mean_of_cells({"": whole}), len(ids)),
            _spread(f"kinds of tiles as often as in true frames, {label}", ids, described),
        ]
        if more:
            value = mean_of_cells({"": more})
            section.rows.append(Row(f"frames with no thing unnamed, {label}", value, len(more)))
    return section


def _spread(label: str, ids: np.ndarray, described: list[Described]) -> Row:
    """One minus the total variation distance between shares of kinds of tiles."""
    kinds = np.array([sorted({s.kind for s in sprites()}).index(s.kind) for s in sprites()])

    def shares(frames: np.ndarray) -> np.ndarray:
        return np.bincount(kinds[frames].ravel(), minlength=kinds.max() + 1) / frames.size

    truth = np.stack([case.view.sprites for case in described])
    rng = np.random.default_rng(0)

    def overlap(rows: np.ndarray) -> float:
        return 1 - 0.5 * float(np.abs(shares(ids[rows]) - shares(truth[rows])).sum())

    everyone = np.arange(len(ids))
    found = [overlap(rng.choice(everyone, len(everyone))) for _ in range(200)]
    low, high = np.quantile(found, [0.025, 0.975])
    return Row(label, Estimate(overlap(everyone), float(low), float(high)), len(ids))


# Events


@dataclass(frozen=True)
class Event:
    """Something that the world does between an action and the next frame, and says.

    Attributes:
        kind: See `EVENTS`.
        scene: What the model is told.
        without: What would be seen without it.
        after: What is seen.
        told: `(7, 7)` bool, the tile that the words are about.
        others: `(7, 7)` bool, all other tiles that the context and the words determine.
    """

    kind: str
    scene: Scene
    without: View
    after: View
    told: np.ndarray
    others: np.ndarray


def make_events(count: int, first_seed: int) -> list[Event]:
    """`count` events of every kind, in rooms where such a thing can happen."""
    return find_cases(EVENTS, LEVELS, count, first_seed, _make_event, "events")


def _make_event(world: TrueWorld, kind: str, seed: int) -> Event | None:
    rng = np.random.default_rng([seed, EVENTS.index(kind)])
    before = open_world(world, seed)
    handler = Handler(rng)
    for _ in range(int(rng.integers(4))):
        world.act(ACTIONS[handler.act(world.env.gen_obs()["image"])])
    before = world.look()
    action = ACTIONS[handler.act(world.env.gen_obs()["image"])]
    without = world.act(action)
    happened = happen_as(world.env, world.env.gen_obs()["image"], rng, kind)
    if happened is None:
        return None
    after = world.look(action)
    told = without.contents != after.contents
    told[AGENT_TILE] = without.sprites[AGENT_TILE] != after.sprites[AGENT_TILE]
    knowledge = Knowledge()
    knowledge.see(before)
    determined = knowledge.imagine(after, told).determined
    scene = Scene(seed, world.mission, [before], action, happened[1])
    return Event(kind, scene, without, after, told, determined & ~told)


def evaluate_events(events: list[Event], draw: Drawer) -> Section:
    """Draws frames after events."""
    drawn = draw([event.scene for event in events])
    section = Section(
        "Events: what the world says between an action and the next frame",
        note="The floor is the frame that would have come without the event.",
    )
    happens: dict[str, list[bool]] = defaultdict(list)
    stays: dict[str, list[bool]] = defaultdict(list)
    both: dict[str, list[bool]] = defaultdict(list)
    without: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for event, pixels in zip(events, drawn, strict=True):
        wrong = read_frame(pixels)[0] != event.after.sprites
        silent = event.without.sprites != event.after.sprites
        for found, mask in ((happens, event.told), (stays, event.others)):
            found[event.kind].append(not wrong[mask].any())
        both[event.kind].append(happens[event.kind][-1] and stays[event.kind][-1])
        for name, mask in (("happens", event.told), ("stays", event.others)):
            without[name][event.kind].append(not silent[mask].any())
        without["both"][event.kind].append(
            without["happens"][event.kind][-1] and without["stays"][event.kind][-1]
        )
        if not both[event.kind][-1]:
            open_tiles = ~(event.told | event.others)
            section.failures.append(
                Failure(
                    f"{event.scene.action}, and {event.scene.words}",
                    [event.scene.views[-1].frame],
                    event.after.frame,
                    pixels,
                    wrong & ~open_tiles,
                    open_tiles,
                )
            )
    section.rows = [
        row_of_cells("what is said happens, and nothing else", both, without["both"]),
        row_of_cells("what is said happens", happens, without["happens"]),
        row_of_cells("nothing else changes", stays, without["stays"]),
    ]
    section.rows += [
        row_of_cells(f"what is said happens, and nothing else: {kind}", {kind: found})
        for kind, found in both.items()
    ]
    return section


# Worlds opened by a mission


def goals(mission: str) -> list[tuple[str | None, str]]:
    """Colour (None is any) and kind of what a mission names; "object" is any kind.

    Example:
        >>> goals("put the red ball next to a box")
        [('red', 'ball'), (None, 'box')]
    """
    return [(colour or None, kind) for colour, kind in _GOAL.findall(mission)]


def holds_goal(ids: np.ndarray, mission: str) -> bool:
    """Whether everything that a mission names is among these sprites, `(7, 7)` ids."""
    shown = [sprites()[i] for i in set(ids.ravel().tolist())]
    things = [sprite.carries or sprite for sprite in shown]
    return all(
        any(
            thing.kind in _OBJECTS
            and (kind == "object" or thing.kind == kind)
            and colour in (None, thing.colour)
            for thing in things
        )
        for colour, kind in goals(mission)
    )


class Explorer:
    """Looks about, then walks on until something is in its way; it opens doors."""

    def __init__(self, seed: int):
        """A walk of its own for every seed."""
        self.rng = np.random.default_rng(seed)
        self.turns = 3
        self.side = "left"

    def act(self, ids: np.ndarray) -> str:
        """The next action, by what is seen, `(7, 7)` sprite ids."""
        if self.turns:
            self.turns -= 1
            return self.side
        front = sprites()[int(ids[FRONT_TILE])]
        if front.kind == "door" and front.state == "closed" and self.rng.random() < 0.7:
            return "toggle"
        is_free = ids[FRONT_TILE] == EMPTY or (
            front.kind == "door" and not opaque_sprites()[ids[FRONT_TILE]]
        )
        if is_free and self.rng.random() < 0.8:
            return "forward"
        self.side = str(self.rng.choice(["left", "right"]))
        self.turns = int(self.rng.integers(2))
        return self.side


def explore(worlds: Worlds, starts: list[Start], max_steps: int) -> list[int | None]:
    """Steps until what the mission names was seen, of each world; None where it never was."""
    found: list[int | None] = [None] * len(starts)
    explorers = [Explorer(start.seed) for start in starts]
    alive = list(range(len(starts)))
    for step in tqdm(range(max_steps + 1), desc="exploring", leave=False):
        ids = read_frame(worlds.frames)[0]
        going = []
        for row, i in enumerate(alive):
            if holds_goal(ids[row], starts[i].task):
                found[i] = step
            elif worlds.outcomes[row] == "ongoing":
                going.append(row)
        if not going or step == max_steps:
            break
        if len(going) < len(alive):
            worlds.keep(going)
        alive = [alive[row] for row in going]
        worlds.step([explorers[i].act(ids[row]) for i, row in zip(alive, going, strict=True)])
    return found


def evaluate_missions(
    hidden: list[Start], shown: list[Start], dreamt: Worlds, opened: Worlds, max_steps: int
) -> Section:
    """Whether worlds opened by a mission hold what it needs.

    Args:
        hidden: Episodes whose first view does not show the goal.
        shown: Episodes of any first view, with those views: how often the environment shows it.
        dreamt: Worlds that open with the first views of `hidden`.
        opened: Worlds that open with the missions of `shown` alone.
        max_steps: Of the explorer.
    """
    section = Section(
        "Worlds opened by a mission: they hold what it needs",
        note=f"A scripted explorer walks at most {max_steps} steps from a first view that does "
        "not show the goal; beside it, in place of a floor, the same explorer in the real "
        "environment, or how often the environment shows the goal at first.",
    )
    for name, starts, seen, true in (
        (
            "the goal is found within reach",
            hidden,
            [step is not None for step in explore(dreamt, hidden, max_steps)],
            [step is not None for step in explore(RealWorlds(hidden), hidden, max_steps)],
        ),
        (
            "first frames (none given) that hold the goal",
            shown,
            [holds_goal(*pair) for pair in _with_tasks(read_frame(opened.frames)[0], shown)],
            [holds_goal(s.view.sprites, s.task) for s in shown if s.view is not None],
        ),
    ):
        by_level: dict[str, list[bool]] = defaultdict(list)
        truth: dict[str, list[bool]] = defaultdict(list)
        for start, is_seen, is_true in zip(starts, seen, true, strict=True):
            by_level[start.level].append(is_seen)
            truth[start.level].append(is_true)
        section.rows.append(row_of_cells(name, by_level, truth))
        section.rows += [
            row_of_cells(f"{name}: {level}", {level: found}, {level: truth[level]})
            for level, found in by_level.items()
        ]
    return section


def _with_tasks(ids: np.ndarray, starts: list[Start]) -> list[tuple[np.ndarray, str]]:
    return [(frame, start.task) for frame, start in zip(ids, starts, strict=True)]


def hidden_starts(starts: list[Start]) -> list[Start]:
    """Those whose first view does not show what the mission names."""
    return [s for s in starts if s.view is not None and not holds_goal(s.view.sprites, s.task)]
