import numpy as np
import pytest

from data.babyai.events import EVENTS, happen_as
from data.babyai.recorder import Recorder
from data.babyai.views import AGENT, DOOR, PORTABLE
from data.babyai.words import name_of, place_of


def scenes(count):
    """A furnished room, again and again: environment and view."""
    recorder = Recorder("Workshop")
    for seed in range(count):
        view = recorder.env.reset(seed=seed)[0]["image"]
        yield recorder.env, view


def named(view):
    """Words for every thing in view with its place, as somebody else might put them."""
    found = {}
    for column in range(7):
        for row in range(7):
            if (column, row) != AGENT and view[column, row, 0] in (*PORTABLE, DOOR):
                place = place_of(AGENT[1] - row, column - AGENT[0])
                found[column, row] = f"{name_of(view[column, row]).split(' ', 1)[1]} {place}"
    return found


@pytest.mark.parametrize("kind", EVENTS)
def test_an_event_changes_what_its_words_say_and_nothing_else(kind):
    rng = np.random.default_rng(0)
    happened = 0
    for env, before in scenes(40):
        event = happen_as(env, before, rng, kind)
        after = env.gen_obs()["image"]
        if event is None:
            np.testing.assert_array_equal(before, after)
            continue
        happened += 1
        words = event[1]
        if kind in ("give", "take"):
            assert (after[AGENT][0] in PORTABLE) == (kind == "give")
            assert kind == "take" or name_of(after[AGENT]) in words
            before[AGENT] = after[AGENT]
            np.testing.assert_array_equal(before, after)
            continue
        changed = [tuple(cell) for cell in np.argwhere((before != after).any(-1)).tolist()]
        (place,) = [cell for cell in changed if place_of(6 - cell[1], cell[0] - 3) in words][:1]
        told_of = after if kind == "appear" else before
        thing = named(told_of)[place]
        colour = thing.split()[1] if told_of[place][0] == DOOR else thing.split()[0]
        assert colour in words
        # Behind a door that opens or closes, something comes into view or leaves it.
        if kind in ("appear", "vanish", "recolour"):
            blocks = told_of[place][0] == DOOR
            assert blocks or changed == [place]
    assert happened > 5


def test_events_are_told_before_the_frame_that_shows_them():
    episodes = [Recorder("Workshop").record(seed) for seed in range(12)]
    told = 0
    for episode in episodes:
        for a, b, c in zip(
            episode.segments, episode.segments[1:], episode.segments[2:], strict=False
        ):
            if b.role == "world" and b.kind == "text":
                told += 1
                assert (a.kind, c.kind) == ("action", "frame")
    assert told > 5
