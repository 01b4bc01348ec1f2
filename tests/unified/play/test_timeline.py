"""Random timelines: whatever was played is played again, to the last bit."""

import numpy as np

from tests.unified.play.stage import ACTIONS, Player, house


def wander(player, rng, steps):
    """Plays, rewinds and forks at random; returns frames by node, with how they came about."""
    player.open("dream", level="Count", seed=int(rng.integers(1000)))
    root = player.timeline.now.number
    seen = {}
    for _ in range(steps):
        nodes = [root, *(n for n, (_, _, header) in seen.items() if not header["is_over"])]
        if rng.random() < 0.4:
            player.say("goto", node=int(rng.choice(nodes)))
        if player.timeline.now.is_over:
            player.say("goto", node=root)
        parent = player.timeline.now.number
        ((header, files),) = player.say("step", action=str(rng.choice(ACTIONS)))
        seen[header["node"]] = (parent, files["view"], header)
    return seen


def test_random_timelines_repeat_themselves_bit_by_bit(engine):
    rng = np.random.default_rng(0)
    player = Player(house(engine))
    for _ in range(6):
        seen = wander(player, rng, 8)
        timeline = player.timeline
        for parent, view, header in seen.values():
            player.say("goto", node=parent)
            moment = timeline.now.moment
            turn = engine.turn(header["action"], None, None)
            again = engine.step(moment, turn).result()
            kept = timeline.get(header["node"])
            assert np.array_equal(again.pixels, kept.pixels)
            assert len(view)
