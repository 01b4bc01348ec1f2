"""Oracles, cheats and simple rules go through every evaluation: what is right is told apart."""

import numpy as np
import pytest

from data.babyai.recorder import Recorder
from eval.babyai.agent import play_level
from eval.babyai.episodes import lasting_episodes, recorded_episodes, wandering_episodes
from eval.babyai.floors import MapSimulator, effect, fitting_action, simulators
from eval.babyai.joint import evaluate_joint
from eval.babyai.language import evaluate_captions
from eval.babyai.scripted import RandomAgent, ScriptedAgent, symbolic
from eval.babyai.simulator import (
    evaluate_codec,
    evaluate_inverse,
    evaluate_next_frame,
    evaluate_rollout,
)
from eval.babyai.tally import Tally
from eval.babyai.tiles import KINDS, Sprite, read_frame, sprite_id, sprite_kinds
from eval.babyai.truth import ACTIONS, Knowledge, TrueWorld
from eval.game import shown
from eval.report import Report, balance
from tests.eval.babyai.oracles import AntiOracle, Boaster, Echo, Oracle, ScriptOf, StandsStill

SEED = 1_000_100
LEVELS = ("GoToLocal", "PickupLoc", "OpenDoor")


@pytest.fixture(scope="module")
def episodes():
    return [e for level in LEVELS for e in recorded_episodes(level, 3, SEED)]


@pytest.fixture(scope="module")
def lasting():
    return lasting_episodes("GoToLocal", 3, SEED, 7)


def share(tally, figure):
    estimate = tally.estimate(figure)
    assert estimate is not None, figure
    return estimate.value


def next_frames(player, episodes):
    tally = Tally()
    answers = evaluate_next_frame(player, episodes, tally, num_inference_steps=1, seed=0)
    return tally, answers


def rollouts(player, episodes, context=3, horizon=5):
    tally = Tally()
    evaluate_rollout(
        player,
        episodes,
        tally,
        context_frames=context,
        horizon=horizon,
        num_inference_steps=1,
        seed=0,
    )
    return tally


def joint(player, episodes, max_turns=6):
    report = Report({})
    report.imagined = evaluate_joint(
        player,
        episodes,
        report.tally,
        max_turns=max_turns,
        temperature=1.0,
        num_inference_steps=1,
        seed=0,
    )
    return report


# The oracle has full marks everywhere, the anti-oracle none.


def test_next_frames_of_the_oracle_are_all_right_and_of_the_anti_oracle_all_wrong(episodes):
    for player, mark in ((Oracle(), 1.0), (AntiOracle(), 0.0)):
        tally, answers = next_frames(player, episodes)
        for group in ("determined", "changed", "frame", "all", "object", "door", "wall", "black"):
            assert share(tally, f"next/{group}/model") == mark
        assert len(answers.truth) == sum(len(e.actions) for e in episodes)
        assert balance(answers).value == mark  # pyright: ignore[reportOptionalMemberAccess]


def test_rollouts_of_the_oracle_are_all_right_and_of_the_anti_oracle_all_wrong(lasting):
    for player, mark in ((Oracle(), 1.0), (AntiOracle(), 0.0)):
        tally = rollouts(player, lasting)
        for h in range(1, 6):
            assert share(tally, f"rollout/{h}/determined/model") == mark
            assert share(tally, f"rollout/{h}/all/model") == mark


def test_the_oracle_names_every_action_and_the_anti_oracle_none(episodes):
    for player, mark in ((Oracle(), 1.0), (AntiOracle(), 0.0)):
        answers = evaluate_inverse(player, episodes, seed=0)
        found = balance(answers)
        assert found.value == mark  # pyright: ignore[reportOptionalMemberAccess]
        assert {"left", "right", "forward"} <= set(found.recalls)  # pyright: ignore[reportOptionalMemberAccess]


def test_captions_that_miss_one_letter_are_wrong(episodes):
    for player, mark in ((Oracle(), 1.0), (AntiOracle(), 0.0)):
        tally = Tally()
        misses = evaluate_captions(player, episodes, tally)
        assert share(tally, "caption") == mark
        assert bool(misses) == (mark == 0)
    assert 0 < share(tally, "caption/majority") < 0.5


def test_the_codec_is_scored_by_what_comes_back(episodes):
    for player, mark in ((Oracle(), 1.0), (AntiOracle(), 0.0)):
        tally = Tally()
        evaluate_codec(player, episodes[:2], tally)
        assert share(tally, "codec/tiles") == mark
        assert (tally.mean("codec/psnr").value == 60.0) == bool(mark)  # pyright: ignore[reportOptionalMemberAccess]


def test_imagined_episodes_of_the_oracle_are_confirmed_and_of_the_anti_oracle_none(episodes):
    for player, mark in ((Oracle(), 1.0), (AntiOracle(), 0.0)):
        report = joint(player, episodes)
        for figure in ("frame", "changing", "whole"):
            assert share(report.tally, f"joint/{figure}/model") == mark
        assert balance(report.imagined).value == mark  # pyright: ignore[reportOptionalMemberAccess]


def test_an_agent_wins_where_its_actions_win_and_standing_by_is_no_success():
    seeds, scripts = [], []
    for seed in range(SEED, SEED + 30):
        record = Recorder("GoToLocal").record(seed)
        if record.behaviour == "expert" and record.segments[-1].outcome == "success":
            seeds.append(seed)
            scripts.append([s.action for s in record.segments if s.kind == "action"])
    assert len(seeds) > 5
    won = play_level(ScriptOf(scripts), "GoToLocal", seeds, max_steps=64)
    assert (won.success.value, won.failures) == (1.0, [])
    assert won.steps == np.mean([len(script) for script in scripts])
    stands = play_level(ScriptOf([[] for _ in seeds]), "GoToLocal", seeds, max_steps=5)
    assert (stands.success.value, stands.failures, stands.steps) == (0.0, seeds, None)
    half = [script if i % 2 else [] for i, script in enumerate(scripts)]
    mixed = play_level(ScriptOf(half), "GoToLocal", seeds, max_steps=64)
    assert mixed.failures == seeds[::2]


# Cheats.


def test_who_stands_still_is_confirmed_for_nothing(episodes):
    report = joint(StandsStill(), episodes)
    assert share(report.tally, "joint/frame/model") == 1.0  # the old figure, and no merit
    assert report.tally.estimate("joint/changing/model") is None
    assert share(report.tally, "joint/changes") == 0.0
    rows = {name.split(" (")[0]: value for name, value, _ in report.rows()}
    assert rows["joint: changing transitions confirmed"] == "none to confirm: it stands still"
    assert not any("**" in value for value in rows.values())


def test_false_successes_are_counted_and_printed(episodes):
    report = joint(Boaster(), episodes)
    real = sum(truth == "success" for truth in report.imagined.truth)
    assert share(report.tally, "joint/success") == real / len(episodes)
    rows = dict((name, value) for name, value, _ in report.rows())
    printed = rows["joint: false successes; real ones that it missed"]
    assert printed == f"{len(episodes) - real}; 0"


def test_transitions_that_nobody_can_judge_are_counted(episodes):
    report = joint(Oracle(), episodes, max_turns=12)
    judged = report.tally.counts["joint/judged"]
    assert sum(cell[1] for cell in judged.values()) == len(report.imagined.truth)
    assert sum(cell[0] for cell in judged.values()) == report.tally.total("joint/frame/model")
    assert share(report.tally, "joint/tiles") < 1.0


def test_a_rollout_is_never_fed_the_truth(lasting):
    tally = rollouts(Echo(), lasting)
    for episode in lasting:
        last = episode.views[2].sprites  # of three true frames
        for h in range(1, 6):
            right = (last == episode.views[2 + h].sprites).sum()
            assert tally.counts[f"rollout/{h}/all/model"][episode.name] == [right, 49]
            assert tally.counts[f"rollout/{h}/all/repeat"][episode.name] == [right, 49]


def test_the_next_frame_is_drawn_from_the_true_history(episodes):
    tally, _ = next_frames(Echo(), episodes)
    for figure in ("all", "determined", "changed"):
        assert tally.counts[f"next/{figure}/model"] == tally.counts[f"next/{figure}/repeat"]
    assert share(tally, "next/changed/model") == 0.0


def test_rollouts_are_of_the_same_episodes_at_every_frame(lasting):
    tally = rollouts(Oracle(), lasting)
    names = {episode.name for episode in lasting}
    assert all(set(tally.counts[f"rollout/{h}/all/model"]) == names for h in range(1, 6))
    short = wandering_episodes("GoToLocal", 1, SEED, 3)
    with pytest.raises(ValueError, match="needs 8; take lasting_episodes"):
        rollouts(Oracle(), [*lasting, *short])


def test_tiles_are_counted_apart_by_what_they_truly_show(episodes):
    tally, _ = next_frames(Oracle(), episodes)
    expected = dict.fromkeys(KINDS, 0)
    for episode in episodes:
        knowledge = Knowledge()
        knowledge.see(episode.views[0])
        for view in episode.views[1:]:
            tiles = knowledge.fork().imagine(view).determined
            for kind in sprite_kinds()[view.sprites[tiles]]:
                expected[KINDS[kind]] += 1
            knowledge.see(view)
    assert {kind: tally.total(f"next/{kind}/model") for kind in KINDS} == expected
    assert sum(expected.values()) == tally.total("next/determined/model")


def test_a_value_is_bold_only_where_it_lies_above_every_floor():
    report = Report({})
    for i in range(60):
        for group, model, floor in (("all", 49, 40 + i % 3), ("changed", 10, 10), ("wall", 9, 9)):
            worst = 10 if group != "wall" else 9
            total = 49 if group == "all" else worst
            report.tally.add(f"next/{group}/model", f"e{i}", model - (i == 0), total)
            report.tally.add(f"next/{group}/map", f"e{i}", floor, total)
            report.tally.add(f"next/{group}/repeat", f"e{i}", 0, total)
    rows = {name.split(" (")[0]: row for name, *row in report.rows()}
    assert rows["next frame: all tiles"][0].startswith("**99.97 % [")
    assert not rows["next frame: determined tiles that changed"][0].startswith("**")
    assert not rows["next frame: determined wall"][0].startswith("**")
    assert rows["next frame: all tiles"][1].startswith("map 83.67 % [")


# Floors: what simple rules reach, and that they are what they say.


def test_a_map_of_seen_cells_draws_every_determined_tile(episodes):
    tally, _ = next_frames(Oracle(), episodes)
    assert share(tally, "next/determined/map") == 1.0
    assert share(tally, "next/changed/map") == 1.0
    assert 0.8 < share(tally, "next/all/map") < 1.0
    assert share(tally, "next/changed/repeat") == 0.0
    assert 0.6 < share(tally, "next/changed/shift") < 1.0
    assert share(tally, "next/determined/repeat") < share(tally, "next/determined/shift") < 1.0


def test_a_map_draws_rollouts_from_what_the_context_showed(lasting):
    tally = rollouts(Oracle(), lasting)
    for h in range(1, 6):
        assert share(tally, f"rollout/{h}/determined/map") == 1.0


def test_a_map_draws_the_environments_own_effects():
    world = TrueWorld("UnlockLocal")
    rng, compared = np.random.default_rng(0), 0
    for seed in range(SEED, SEED + 3):
        view = world.reset(seed)
        rule, knowledge = MapSimulator(view.frame), Knowledge()
        knowledge.see(view)
        for action in rng.choice(ACTIONS[:6], size=40, p=[0.2, 0.2, 0.3, 0.1, 0.05, 0.15]):
            view = world.step(str(action))
            if view.outcome != "ongoing":
                break
            tiles = knowledge.fork().imagine(view).determined
            drawn = read_frame(rule.fork().draw(str(action)))[0]
            np.testing.assert_array_equal(drawn[tiles], view.sprites[tiles])
            rule.follow(str(action), view.frame)
            knowledge.see(view)
            compared += int(tiles.sum())
    assert compared > 1000


def test_a_key_opens_its_own_door_only_and_full_hands_pick_up_nothing():
    locked = sprite_id(Sprite("door", "red", "locked"))
    ball = sprite_id(Sprite("ball", "blue"))
    red, grey = Sprite("key", "red"), Sprite("key", "grey")
    assert effect("toggle", locked, red) == (sprite_id(Sprite("door", "red", "open")), red)
    assert effect("toggle", locked, grey) == (locked, grey)
    assert effect("toggle", locked, None) == (locked, None)
    assert effect("pickup", ball, red) == (ball, red)
    assert effect("drop", ball, red) == (ball, red)


def test_the_action_whose_shift_fits_is_nearly_always_right(episodes):
    pairs = [
        (before, after)
        for episode in episodes
        for before, after in zip(episode.views, episode.views[1:], strict=False)
        if (before.sprites != after.sprites).any()
    ]
    named = [fitting_action(shown(before), shown(after), ACTIONS) for before, after in pairs]
    right = np.mean([name == after.action for name, (_, after) in zip(named, pairs, strict=True)])
    assert right > 0.95


def test_frames_read_back_as_the_environments_symbols():
    world = TrueWorld("PickupLoc")
    for view in world.replay(SEED, ["left", "forward", "forward", "pickup", "right", "forward"]):
        seen = symbolic(view.frame)
        assert seen.shape == (7, 7, 3)
    image = world.env.gen_obs()["image"]
    shows = image[..., 0] > 1  # minigrid gives bare and unseen cells no meaningful colour
    np.testing.assert_array_equal(symbolic(world.view.frame)[..., 0], image[..., 0])  # pyright: ignore[reportOptionalMemberAccess]
    np.testing.assert_array_equal(symbolic(world.view.frame)[shows], image[shows])  # pyright: ignore[reportOptionalMemberAccess]


def test_the_heuristic_without_memory_beats_random_actions_by_far():
    seeds = range(SEED, SEED + 16)
    scripted = play_level(ScriptedAgent(seeds), "GoToLocal", seeds, max_steps=64)
    by_chance = play_level(RandomAgent(seeds), "GoToLocal", seeds, max_steps=64)
    assert scripted.success.value > 0.85
    assert 0.2 < by_chance.success.value < 0.85


def test_floors_do_not_learn_from_what_they_are_asked():
    world = TrueWorld("GoToLocal")
    first = world.reset(SEED)
    rules = simulators(first.frame)
    before = {name: dict(rule.cells) for name, rule in rules.items()}
    for rule in rules.values():
        rule.fork().draw("forward")
    assert {name: dict(rule.cells) for name, rule in rules.items()} == before
