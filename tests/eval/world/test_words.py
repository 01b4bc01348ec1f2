"""Words of the world: what they name, events that they tell, goals that they promise."""

import numpy as np
import pytest

from data.babyai.events import EVENTS
from eval.babyai.tiles import AGENT_TILE, draw_frame, sprites
from eval.world.words import (
    Explorer,
    described_frames,
    evaluate_captions_drawn,
    evaluate_events,
    evaluate_missions,
    explore,
    goals,
    hidden_starts,
    holds_goal,
    make_events,
    named_tiles,
)
from eval.world.worlds import RealWorlds, starts_of

SEED = 1_500_000


def test_what_words_name_is_what_the_frame_shows_there() -> None:
    names = [sprite.name for sprite in sprites()]
    count = 0
    for case in described_frames(40, SEED):
        for tile, name in named_tiles(case.words):
            assert names[case.view.sprites[tile]] == name
            count += 1
    assert count > 80
    assert named_tiles("you see a closed grey door 3 right, carrying an open blue door") == [
        ((6, 6), "closed grey door"),
        (AGENT_TILE, "agent carrying blue door"),
    ]
    assert named_tiles("you see nothing") == []


def test_true_frames_fit_their_words_and_those_of_others_only_the_floor() -> None:
    cases = described_frames(20, SEED)
    truth = np.stack([case.view.frame for case in cases])
    rows = evaluate_captions_drawn(cases, {"right": lambda s: truth}).rows
    assert all(row.value.value == 1 for row in rows)
    shifted = np.roll(truth, 1, 0)
    section = evaluate_captions_drawn(cases, {"shifted": lambda s: shifted})
    assert rows[0].floor is not None
    assert section.rows[0].value.value == pytest.approx(rows[0].floor.value, abs=0.15)
    assert section.rows[0].floor is not None
    assert section.rows[0].floor.value == 1
    assert section.failures


def test_an_empty_room_fits_no_words_and_is_said_to_be_uncommon() -> None:
    cases = described_frames(20, SEED)
    empty = np.full((len(cases), 7, 7), 1)
    empty[(slice(None), *AGENT_TILE)] = [s.name for s in sprites()].index("agent")
    rows = evaluate_captions_drawn(cases, {"empty": lambda s: draw_frame(empty)}).rows
    by_label = {row.label: row.value.value for row in rows}
    assert by_label["named things at their place, empty"] == 0
    assert by_label["legal tiles, empty"] == 1
    assert by_label["kinds of tiles as often as in true frames, empty"] < 0.9


def test_an_event_changes_one_tile_as_it_says() -> None:
    events = make_events(3, SEED)
    assert [event.kind for event in events] == [kind for kind in EVENTS for _ in range(3)]
    for event in events:
        assert event.told.sum() == 1
        tile = tuple(np.argwhere(event.told)[0])
        after = sprites()[event.after.sprites[tile]]
        words = str(event.scene.words)
        if event.kind == "take":
            assert after.name == "agent"
        elif event.kind == "give":
            assert f"{after.name.removeprefix('agent carrying ')} is in your hands" in words
        elif event.kind == "vanish":
            assert after.name == "empty"
        elif event.kind == "appear":
            assert f"{after.name} appears" in words
        elif event.kind == "recolour":
            assert words.endswith(f"turns {after.colour}")
        else:
            assert after.state == {"open": "open", "close": "closed", "lock": "locked"}[event.kind]


def test_the_truth_does_what_events_say_and_deaf_players_do_not() -> None:
    events = make_events(2, SEED)
    heard = evaluate_events(events, lambda s: np.stack([e.after.frame for e in events]))
    assert all(row.value.value == 1 for row in heard.rows)
    deaf = evaluate_events(events, lambda s: np.stack([e.without.frame for e in events]))
    both, happens, stays = deaf.rows[:3]
    assert both.value.value == happens.value.value == 0
    assert stays.floor is not None
    assert stays.value.value == stays.floor.value
    assert len(deaf.failures) == len(events)


def test_goals_are_what_a_mission_names() -> None:
    assert goals("pick up the grey key behind you") == [("grey", "key")]
    assert goals("put a box next to the red object") == [(None, "box"), ("red", "object")]
    ids = np.ones((7, 7), dtype=np.int64)
    names = [sprite.name for sprite in sprites()]
    ids[0, 0] = names.index("locked grey door")
    assert holds_goal(ids, "open the grey door")
    assert not holds_goal(ids, "open the red door")
    assert holds_goal(ids, "go to the grey object")
    assert not holds_goal(ids, "pick up the grey key")


def test_the_explorer_finds_the_goal_in_the_real_environment_mostly() -> None:
    starts = hidden_starts(starts_of("GoToLocal", 30, SEED))
    assert starts
    assert all(not holds_goal(s.view.sprites, s.task) for s in starts if s.view)
    found = explore(RealWorlds(starts), starts, 30)
    assert sum(step is not None for step in found) >= 0.8 * len(starts)
    assert all(step is None or step > 0 for step in found)


def test_real_worlds_hold_what_the_mission_needs_as_often_as_themselves() -> None:
    shown = starts_of("GoToRedBall", 12, SEED)
    hidden = hidden_starts(shown)
    rows = evaluate_missions(hidden, shown, RealWorlds(hidden), RealWorlds(shown), 30).rows
    assert all(row.floor is not None and row.value == row.floor for row in rows)


def test_a_world_that_never_shows_the_goal_is_found_out() -> None:
    class Still(RealWorlds):
        def step(self, actions: list[str]) -> None:
            pass

    shown = starts_of("GoToRedBall", 12, SEED)
    hidden = hidden_starts(shown)
    rows = evaluate_missions(hidden, shown, Still(hidden), RealWorlds(shown), 5).rows
    assert rows[0].value.value == 0


def test_the_explorer_looks_about_first_and_walks_only_where_it_is_free() -> None:
    ids = np.ones((7, 7), dtype=np.int64)
    explorer = Explorer(0)
    assert [explorer.act(ids) for _ in range(3)] == ["left"] * 3
    ids[5, 3] = 2
    assert {explorer.act(ids) for _ in range(50)} <= {"left", "right"}
