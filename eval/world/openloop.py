"""Open loop: frames drawn from the model's own frames, under true actions, far ahead."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from minigrid.envs.babyai.core.verifier import GoToInstr, ObjDesc, PickupInstr
from tqdm import tqdm

from data.babyai.behaviours import Handler
from data.babyai.expert import Expert
from data.babyai.levels import WORKSHOP
from data.babyai.views import ACTIONS
from eval.babyai.player import Player, first_frames
from eval.babyai.tiles import (
    AGENT_TILE,
    EMPTY,
    UNSEEN,
    opaque_sprites,
    read_frame,
    sprites,
    visible_tiles,
)
from eval.babyai.truth import Knowledge, TileClasses, TrueWorld, View
from eval.findings import Row, Section, row_of_tiles
from eval.statistics import Estimate
from eval.world.worlds import open_world
from unified.conversation.sequence import Sequence, action_segment
from unified.conversation.stream import place_tokens
from unified.sampling.futures import draw_frames, read_schedule
from unified.sampling.generation import Session
from unified.sampling.options import Options

HORIZONS = (1, 4, 8, 16, 32, 48, 64, 128, 256)
"""Frames at which tiles are counted."""
LOOK = ("right",) * 4
"""What is done in the true frames before: the agent looks about, so that much is determined."""
ROOMS = {"handler": (WORKSHOP, "GoToLocal", "PickupLoc", "OpenDoor"), "expert": ("GoToLocal",)}
"""Levels by who acts."""
_OBJECTS = ("ball", "box", "key")
TOGETHER = 8
"""Frames that are drawn together, or in chunks, before the next ones."""
_LOST_SHARE = 0.25  # of determined tiles wrong: not a thing but the place is


@dataclass(frozen=True)
class Loop:
    """An episode in which nothing is won or lost.

    Attributes:
        name: Who acts, where, and the seed.
        behaviour: Who acts.
        seed: Of the environment.
        context: True views, with the actions between.
        views: What truly follows.
        classes: What the context determines of each.
    """

    name: str
    behaviour: str
    seed: int
    context: list[View]
    views: list[View]
    classes: list[TileClasses]


def make_loops(behaviour: str, count: int, first_seed: int, horizon: int) -> list[Loop]:
    """Episodes of `horizon` frames after a look about.

    The expert is given another thing to go to, or to pick up, whenever it is done.
    """
    levels = ROOMS[behaviour]
    worlds = {level: TrueWorld(level) for level in levels}
    found = []
    for seed in tqdm(range(first_seed, first_seed + count), desc="open loop: cases", leave=False):
        level = levels[seed % len(levels)]
        world, rng = worlds[level], np.random.default_rng(seed)
        context = [open_world(world, seed), *(world.act(action) for action in LOOK)]
        actor = _Busy(world, rng) if behaviour == "expert" else Handler(rng)
        views = [
            world.act(ACTIONS[actor.act(world.env.gen_obs()["image"])]) for _ in range(horizon)
        ]
        knowledge = Knowledge()
        for view in context:
            knowledge.see(view)
        classes = [knowledge.imagine(view) for view in views]
        found.append(Loop(f"{behaviour}/{level}/{seed}", behaviour, seed, context, views, classes))
    return found


class _Busy:
    """The expert, who always has something to do."""

    def __init__(self, world: TrueWorld, rng: np.random.Generator):
        self.env, self.rng = world.env, rng
        self._assign()

    def _assign(self) -> None:
        """Another thing to go to, or to pick up where the hands are free."""
        env: Any = self.env  # its class knows of no instructions
        things = [cell for cell in env.grid.grid if cell is not None and cell.type in _OBJECTS]
        thing = things[self.rng.integers(len(things))]
        takes = env.carrying is None and self.rng.random() < 0.5
        instruction = PickupInstr if takes else GoToInstr
        env.instrs = instruction(ObjDesc(thing.type, thing.color))
        env.instrs.reset_verifier(env)
        self.expert, self.previous = Expert(env), None

    def act(self, view: np.ndarray) -> int:
        action, _ = self.expert.suggest(view, self.previous)
        if action in (None, "done"):
            self._assign()
            if self.env.carrying is not None:
                action = "drop" if self.rng.random() < 0.5 else "left"
            else:
                action = "left"
            return ACTIONS.index(action)
        self.previous = ACTIONS.index(action)
        return self.previous


Roller = Callable[[list[Loop]], np.ndarray]
"""Draws all frames of each loop, `(N, horizon, 56, 56, 3)` uint8."""


class ModelRoller:
    """The model, which sees the context and then its own frames.

    Attributes:
        seconds: That a frame took at the last call, all worlds in one batch.
    """

    def __init__(
        self,
        player: Player,
        *,
        memory: str | None = None,
        schedule: str = "autoregressive",
        **options: Any,
    ):
        """Keeps the player and the options.

        Args:
            player: The model.
            memory: What stays of frames that are past; None is the model's.
            schedule: How frames are drawn together, see `unified.sampling.futures`; all but
                the first kind draw `TOGETHER` of them at a time.
            **options: Of `Session.run`, such as `num_inference_steps`.
        """
        self.player, self.memory, self.options = player, memory, options
        self.schedule = read_schedule(schedule)
        self.seconds = 0.0

    def start(self, loops: list[Loop]) -> Session:
        """A session that was shown the context of each loop."""
        player, size = self.player, len(loops[0].context)
        shown = player.encode([view for loop in loops for view in loop.context])
        sequences = []
        for number, loop in enumerate(loops):
            segments = []
            for place, view in enumerate(loop.context):
                if place:
                    segments.append(action_segment(view.action))
                segments.append(shown[number * size + place])
            sequences.append(Sequence(segments))
        generators = [torch.Generator().manual_seed(loop.seed) for loop in loops]
        inputs = player.processor.encode(sequences)
        return player.model.start(**inputs, generator=generators, memory=self.memory)

    def __call__(self, loops: list[Loop]) -> np.ndarray:
        """All frames of each loop."""
        player, session = self.player, self.start(loops)
        count, began = len(loops[0].views), time.perf_counter()
        bar = tqdm(total=count, desc="open loop", leave=False)
        drawn = []
        while len(drawn) < count:
            if self.schedule.kind == "autoregressive":
                step = len(drawn)
                actions = [action_segment(loop.views[step].action) for loop in loops]
                session.append([player.stream(action) for action in actions])
                reply = session.run("forward", **self.options)
                drawn.append(player.pixels(first_frames(player.replies(reply))))
                bar.update()
                continue
            size = min(TOGETHER, count - len(drawn))
            turns = [self._turns(loop, len(drawn), size) for loop in loops]
            latents = draw_frames(session, turns, Options(**self.options), self.schedule)
            placed = place_tokens(latents, player.model.config)
            drawn += [player.processor.decode_latents(frames) for frames in placed.unbind(1)]
            bar.update(size)
        bar.close()
        self.seconds = (time.perf_counter() - began) / (count * len(loops))
        return np.stack(drawn, 1)

    def _turns(self, loop: Loop, first: int, count: int) -> list[torch.Tensor]:
        """Token ids before each of some frames: that things go on, the action, the marker."""
        config = self.player.model.config
        turns = []
        for step in range(first, first + count):
            ids = self.player.stream(action_segment(loop.views[step].action)).input_ids.tolist()
            goes_on = [config.ongoing_token_id] if step else []
            turns.append(torch.tensor([*goes_on, *ids, config.frame_token_id]))
        return turns


def mapped_frame(loop: Loop, step: int) -> np.ndarray:
    """A floor: the place by odometry, and every cell as the context last showed it.

    Returns:
        `(7, 7)` sprite ids.
    """
    known = _map_of(loop)
    view = loop.views[step]
    ids = np.array([known.get(view.cell(t), EMPTY) for t in np.ndindex(7, 7)]).reshape(7, 7)
    opaque = opaque_sprites()[ids]
    opaque[AGENT_TILE] = False
    ids = np.where(visible_tiles(opaque), ids, UNSEEN)
    ids[AGENT_TILE] = loop.context[-1].sprites[AGENT_TILE]
    return ids


def _map_of(loop: Loop) -> dict[tuple[int, int], int]:
    known: dict[tuple[int, int], int] = {}
    for view in loop.context:
        for tile in np.ndindex(view.visible.shape):
            if view.visible[tile] and tile != AGENT_TILE:
                known[view.cell(tile)] = int(view.sprites[tile])
    return known


def evaluate_loops(loops: list[Loop], roll: Roller) -> Section:
    """Compares every drawn frame with the environment's."""
    drawn = roll(loops)
    ids = read_frame(drawn)[0]
    section = Section(
        "Open loop: the model goes on from its own frames, under true actions",
        note="After five true frames in which the agent looks about; only tiles that follow from "
        "them and the actions. The floor: the place by odometry, every cell as it was last seen.",
    )
    horizon = len(loops[0].views)
    kinds = np.array([sprite.kind for sprite in sprites()])
    groups = {"all": None, "objects": _OBJECTS, "doors": ("door",)}
    counts: dict[tuple[int, str, str], list[tuple[int, int]]] = defaultdict(list)
    firsts: dict[str, list[int]] = defaultdict(list)
    causes: Counter[str] = Counter()
    for number, loop in enumerate(loops):
        first = None
        for step in range(horizon):
            truth, mask = loop.views[step].sprites, loop.classes[step].determined
            right = ids[number, step] == truth
            if first is None and not right[mask].all():
                first = step + 1
                causes[_cause(kinds[truth], mask, right)] += 1
            if step + 1 not in HORIZONS:
                continue
            floor = mapped_frame(loop, step) == truth
            for group, members in groups.items():
                chosen = mask if members is None else mask & np.isin(kinds[truth], members)
                for who, hits in (("model", right), ("map", floor)):
                    found = int(hits[chosen].sum()), int(chosen.sum())
                    counts[step + 1, group, who].append(found)
                    counts[step + 1, f"{group} of the {loop.behaviour}", who].append(found)
        firsts[loop.behaviour].append(first or horizon + 1)
    behaviours = list(firsts)
    for h in [h for h in HORIZONS if h <= horizon]:
        for group in groups:
            model, floor = counts[h, group, "model"], counts[h, group, "map"]
            if not sum(total for _, total in model):
                continue
            parts = {b: counts[h, f"{group} of the {b}", "model"] for b in behaviours}
            shares = {
                name: row_of_tiles("", found).value
                for name, found in parts.items()
                if sum(total for _, total in found)
            }
            worst = min(shares.items(), key=lambda item: item[1].value)
            section.rows.append(
                row_of_tiles(f"determined tiles at frame {h}: {group}", model, floor, worst)
            )
    everyone = [first for found in firsts.values() for first in found]
    low, middle, high = (float(q) for q in np.quantile(everyone, [0.25, 0.5, 0.75]))
    worst = min(
        ((name, float(np.median(found))) for name, found in firsts.items()), key=lambda x: x[1]
    )
    section.rows.append(
        Row(
            f"first wrong frame: median [quartiles]; {horizon + 1} is never",
            Estimate(middle, low, high),
            len(everyone),
            worst=(worst[0], Estimate(worst[1], worst[1], worst[1])),
            is_share=False,
        )
    )
    if causes:
        told = ", ".join(f"{name} {count}" for name, count in causes.most_common())
        section.words.append(f"What the first wrong frame has wrong: {told}.")
    return section


def _cause(kinds: np.ndarray, mask: np.ndarray, right: np.ndarray) -> str:
    """The kind of what is wrong at first: the place, where much is; else the commonest kind."""
    wrong = mask & ~right
    if wrong.sum() > _LOST_SHARE * mask.sum():
        return "the place"
    return Counter(kinds[wrong].tolist()).most_common(1)[0][0]
