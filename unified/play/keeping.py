"""Keeping what was played: a recording to train on, and a recipe that repeats it."""

import io
import json
import zipfile
from typing import Any

from unified.media.action_space import ACTIONS_FILE, ActionSpace
from unified.play.pictures import picture_file
from unified.play.protocol import Move, Opening, Recipe, WorldSeat
from unified.play.timeline import Node, digest_of

LINES_FILE = "episodes.jsonl"
README = """Played with Unified. To train on it:

    python -m data.prepare jsonl --file episodes.jsonl --actions action_space.json --out runs/played
    python -m data.inspect --data runs/played
    python -m train.finetune --model babyai --data runs/played --out runs/lora
"""
_LEARNED = ("human", "expert")
"""Whose actions are worth imitating."""


def recording(lane: list[Node], opening: Opening, actions: ActionSpace) -> bytes:
    """A lane as a zip file: JSON lines and PNG frames, as `data.prepare jsonl` reads them.

    Actions of humans and experts are learned, those of the model and of chance only shown. Where
    reality was beside the dream, its frames are kept.
    """
    segments: list[dict[str, Any]] = []
    files: dict[str, bytes] = {}
    root = lane[0]
    if root.task:
        segments.append({"kind": "text", "role": "task", "text": root.task, "weight": 0.0})
    for place, node in enumerate(lane):
        for words in node.heard:
            segments.append({"kind": "text", "role": "task", "text": words, "weight": 0.0})
        weight = float(node.agent in _LEARNED)
        if node.said:
            segments.append({"kind": "text", "role": "agent", "text": node.said, "weight": weight})
        if place:
            action = {"kind": "action", "role": "agent", "action": node.action, "weight": weight}
            segments.append(action)
        if node.told:
            segments.append({"kind": "text", "role": "world", "text": node.told})
        name = f"frames/{place:05d}.png"
        files[name] = picture_file(node.pixels if node.truth is None else node.truth, True)[1]
        outcome = node.truth_outcome or node.outcome
        segments.append({"kind": "frame", "role": "world", "frame": name, "outcome": outcome})
    episode = {
        "id": f"played/{opening.level or 'own'}/{opening.seed}/{digest_of(lane)[:12]}",
        "level": opening.level or "played",
        "seed": min(opening.seed, 2**62),
        "behaviour": "human",
        "segments": segments,
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(LINES_FILE, json.dumps(episode) + "\n")
        archive.writestr(ACTIONS_FILE, json.dumps(actions.to_config(), indent=2) + "\n")
        archive.writestr("README.txt", README)
        for name, content in files.items():
            archive.writestr(name, content, zipfile.ZIP_STORED)
    return out.getvalue()


def recipe_of(
    lane: list[Node], opening: Opening, world: WorldSeat, model: str, steps: int
) -> Recipe:
    """All inputs of a lane."""
    moves = [
        Move(
            action=node.action,
            said=node.said,
            heard=list(node.heard),
            told=node.told,
            world=node.world,
            agent=node.agent,
        )
        for node in lane[1:]
    ]
    return Recipe(
        model=model,
        steps=steps,
        opening=opening,
        world=world,
        moves=moves,
        digest=digest_of(lane),
    )
