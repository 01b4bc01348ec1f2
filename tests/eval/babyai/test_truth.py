import gymnasium
import numpy as np
import pytest
from minigrid.core.world_object import Ball, Box, Door, Key, Wall
from minigrid.wrappers import RGBImgPartialObsWrapper

from eval.babyai.tiles import AGENT_TILE, EMPTY, FRONT_TILE, UNSEEN, WALL, read_frame, sprites
from eval.babyai.truth import ACTIONS, Knowledge, TrueWorld, classify_tiles

SEED = 1_000_000
LEVELS = ["GoToLocal", "PickupLoc", "OpenDoor", "UnlockLocal", "KeyInBox", "GoToObjMaze"]
OFTEN = [0.15, 0.15, 0.35, 0.12, 0.08, 0.15, 0.0]  # left, right, forward, pickup, drop, toggle
FILLINGS = {
    "nothing": lambda _: None,
    "walls": lambda _: Wall(),
    "balls": lambda _: Ball("purple"),
    "anything": lambda generator: [
        None,
        Wall(),
        Ball("red"),
        Key("blue"),
        Box("green", Key("grey")),
        Door("red"),
        Door("blue", is_open=True),
    ][generator.integers(7)],
}


def random_actions(seed, count):
    generator = np.random.default_rng(seed)
    return [str(name) for name in generator.choice(ACTIONS, size=count, p=OFTEN)]


def as_set(cells):
    return {(int(x), int(y)) for x, y in cells.reshape(-1, 2)}


def hidden_cells(world, context):
    """Cells of the world whose content no frame of the context shows."""
    shown = {view.cell(AGENT_TILE) for view in context}
    for view in context:
        visible = view.visible.copy()
        visible[AGENT_TILE] = False
        shown |= as_set(view.cells[visible])
    grid = world.env.grid
    return {(x, y) for x in range(grid.width) for y in range(grid.height)} - shown


def replay_with_other_hidden_content(level, seed, actions, hidden, fill, opened, generator):
    """Sprites of the same actions in a world that differs only where nobody looked.

    That is in the `hidden` cells, and in boxes with something in them, unless one was `opened`.
    """
    world = TrueWorld(level)
    world.reset(seed)
    env = world.env
    for x, y in hidden:
        env.grid.set(x, y, fill(generator))
    for item in env.grid.grid:
        if isinstance(item, Box) and item.contains is not None and not opened:
            item.contains = Key("yellow")
    frames = [env.get_frame(tile_size=8, agent_pov=True)]
    for action in actions:
        env.step(ACTIONS.index(action))
        frames.append(env.get_frame(tile_size=8, agent_pov=True))
    return read_frame(np.stack(frames))[0]


@pytest.mark.parametrize("level", LEVELS)
def test_frames_are_those_of_the_wrapped_environment(level):
    env = RGBImgPartialObsWrapper(gymnasium.make(f"BabyAI-{level}-v0"), tile_size=8)
    world = TrueWorld(level)
    observation, _ = env.reset(seed=SEED)
    np.testing.assert_array_equal(world.reset(SEED).frame, observation["image"])
    assert world.mission == observation["mission"]
    for action in random_actions(0, 40):
        observation, reward, terminated, truncated, _ = env.step(ACTIONS.index(action))
        view = world.step(action)
        np.testing.assert_array_equal(view.frame, observation["image"])
        ended = "failure" if terminated or truncated else "ongoing"
        assert view.outcome == ("success" if float(reward) > 0 else ended)
        if view.outcome != "ongoing":
            break


@pytest.mark.parametrize("level", LEVELS)
def test_views_agree_with_the_picture(level):
    world = TrueWorld(level)
    for view in world.replay(SEED + 1, random_actions(1, 60)):
        ids, distance = read_frame(view.frame)
        assert distance.max() == 0
        np.testing.assert_array_equal(ids, view.sprites)
        np.testing.assert_array_equal(ids != UNSEEN, view.visible)
        shown = view.visible.copy()
        shown[AGENT_TILE] = False
        np.testing.assert_array_equal(ids[shown], view.contents[shown])


def test_cells_turn_and_move_with_the_agent():
    world = TrueWorld("GoToLocal")
    world.reset(SEED)
    for direction, forward, right in [
        (0, (1, 0), (0, 1)),
        (1, (0, 1), (-1, 0)),
        (2, (-1, 0), (0, -1)),
        (3, (0, -1), (1, 0)),
    ]:
        world.env.agent_dir = (direction - 1) % 4
        view = world.step("right")
        x, y = (int(n) for n in world.env.agent_pos)
        assert view.cell(AGENT_TILE) == (x, y)
        assert view.cell(FRONT_TILE) == (x + forward[0], y + forward[1])
        beside = (AGENT_TILE[0], AGENT_TILE[1] + 2)
        assert view.cell(beside) == (x + 2 * right[0], y + 2 * right[1])
        for tile in np.ndindex(7, 7):
            column_row = world.env.get_view_coords(*view.cell(tile))
            assert tuple(column_row) == (tile[1], tile[0])


def test_outside_of_the_world_is_wall():
    view = TrueWorld("GoToLocal").reset(SEED)
    outside = (view.cells < 0).any(-1)
    assert outside.any()
    assert (view.contents[outside] == WALL).all()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("horizon", [1, 8])
def test_determined_tiles_do_not_depend_on_what_nobody_saw(level, horizon):
    generator, compared = np.random.default_rng(2), 0
    for seed in range(SEED, SEED + 4):
        world = TrueWorld(level)
        actions = random_actions(seed, 4 + horizon)
        views = world.replay(seed, actions)
        context, rollout = views[:5], views[5:]
        classes = classify_tiles(context, rollout)
        world.reset(seed)
        grid = world.env.grid
        inner = {(x, y) for x in range(1, grid.width - 1) for y in range(1, grid.height - 1)}
        hidden = hidden_cells(world, context) & inner  # nobody may leave the world
        opened = "toggle" in [view.action for view in context]
        for fill in FILLINGS.values():
            other = replay_with_other_hidden_content(
                level, seed, actions[: len(views) - 1], hidden, fill, opened, generator
            )
            for view, ids in zip(context, other, strict=False):
                np.testing.assert_array_equal(ids, view.sprites)
            for view, ids, tiles in zip(rollout, other[5:], classes, strict=True):
                np.testing.assert_array_equal(ids[tiles.determined], view.sprites[tiles.determined])
                compared += int(tiles.determined.sum())
    assert compared > 400


@pytest.mark.parametrize("level", LEVELS)
def test_tiles_of_the_next_frame_that_are_not_determined_could_be_otherwise(level):
    generator, compared = np.random.default_rng(3), 0
    for seed in range(SEED, SEED + 12):
        world = TrueWorld(level)
        actions = random_actions(seed, 3)
        views = world.replay(seed, actions)
        *context, last = views
        (tiles,) = classify_tiles(context, [last])
        world.reset(seed)
        hidden = hidden_cells(world, context)
        opened = "toggle" in [view.action for view in context]
        otherwise = np.zeros((7, 7), dtype=bool)
        for fill in FILLINGS.values():
            other = replay_with_other_hidden_content(
                level, seed, actions[: len(views) - 1], hidden, fill, opened, generator
            )
            otherwise |= other[-1] != last.sprites
        # What the agent stood on at first and what lies outside of the world cannot be varied here.
        grid, walked = world.env.grid, {view.cell(AGENT_TILE) for view in context}
        inside = [
            0 <= x < grid.width and 0 <= y < grid.height for x, y in last.cells.reshape(-1, 2)
        ]
        new = [view_cell not in walked for view_cell in map(tuple, last.cells.reshape(-1, 2))]
        varied = (np.array(inside) & np.array(new)).reshape(7, 7)
        assert not (varied & ~tiles.determined & ~otherwise).any()
        compared += int((varied & ~tiles.determined).sum())
    assert compared > 10


def test_turning_about_determines_everything_that_was_seen_before():
    world = TrueWorld("GoToLocal")
    views = world.replay(SEED, ["left", "left", "left", "left", "right"])
    *context, last = views
    (tiles,) = classify_tiles(context, [last])
    assert tiles.determined.all()
    assert not tiles.revealed.any()
    np.testing.assert_array_equal(tiles.changed, last.sprites != context[-1].sprites)


def test_a_first_turn_reveals_the_new_side():
    world = TrueWorld("GoToObjMaze")
    first, second = world.replay(SEED, ["left"])
    (tiles,) = classify_tiles([first], [second])
    seen = as_set(first.cells[first.visible])
    fresh = np.array([second.cell(tile) not in seen for tile in np.ndindex(7, 7)]).reshape(7, 7)
    assert (tiles.revealed == (fresh & second.visible)).all()
    assert tiles.revealed.any()
    assert not tiles.determined[tiles.revealed].any()


def put(world, tile, item):
    world.env.grid.set(*world.view.cell(tile), item)
    return world.env


def test_what_comes_out_of_a_box_is_revealed_and_an_empty_box_is_determined():
    for contains, expected in [(Key("red"), True), (None, False)]:
        world = TrueWorld("GoToLocal")
        world.reset(SEED)
        put(world, FRONT_TILE, Box("blue", contains))
        views = [world.step("done"), world.step("toggle")]
        (tiles,) = classify_tiles(views[:1], views[1:])
        assert tiles.revealed[FRONT_TILE] == expected
        assert tiles.determined[FRONT_TILE] != expected


def test_carrying_is_determined_by_the_pickup_that_the_context_allows():
    world = TrueWorld("GoToLocal")
    world.reset(SEED)
    put(world, FRONT_TILE, Ball("red"))
    views = [world.step("done"), world.step("pickup"), world.step("drop")]
    up, down = classify_tiles(views[:1], views[1:])
    assert sprites()[views[1].sprites[AGENT_TILE]].name == "agent carrying red ball"
    assert views[1].sprites[FRONT_TILE] == EMPTY
    assert up.changed[AGENT_TILE]
    assert up.changed[FRONT_TILE]
    assert down.changed[AGENT_TILE]
    assert down.changed[FRONT_TILE]


def test_nothing_is_determined_after_an_imagined_step_into_the_unknown():
    world = TrueWorld("GoToObjMaze")
    world.reset(SEED)
    env = put(world, FRONT_TILE, None)
    first = world.step("done")
    behind = np.asarray(env.agent_pos) - np.asarray(env.dir_vec)
    env.grid.set(int(behind[0]), int(behind[1]), None)
    turned = [world.step("left"), world.step("left")]
    moved = [*turned, world.step("forward")]
    *before, after = classify_tiles([first], moved)
    assert before[1].determined.any()
    assert not after.determined.any()
    np.testing.assert_array_equal(after.revealed, moved[-1].visible)


def test_an_object_that_was_never_seen_stays_unknown_in_the_hands_and_when_put_down():
    world = TrueWorld("GoToObjMaze")
    world.reset(SEED)
    first = world.step("done")
    behind = np.asarray(world.env.agent_pos) - np.asarray(world.env.dir_vec)
    world.env.grid.set(int(behind[0]), int(behind[1]), Key("green"))
    rollout = [world.step(action) for action in ["left", "left", "pickup", "drop"]]
    assert sprites()[rollout[2].sprites[AGENT_TILE]].name == "agent carrying green key"
    _, before, up, down = classify_tiles([first], rollout)
    assert before.determined[AGENT_TILE]
    for tiles in (up, down):
        assert not tiles.determined[AGENT_TILE]
        assert not tiles.determined[FRONT_TILE]


def test_where_the_agent_walked_it_can_walk_back_though_it_never_saw_the_floor():
    world = TrueWorld("GoToLocal")
    world.reset(SEED)
    put(world, FRONT_TILE, None)
    context = [world.step("done"), world.step("forward")]
    _, turned, back = classify_tiles(context, [world.step(a) for a in ["left", "left", "forward"]])
    assert turned.revealed[FRONT_TILE]  # the agent stood on it in all of the context
    assert back.determined.any()


def test_whether_an_unseen_key_opens_a_locked_door_is_not_determined():
    world = TrueWorld("GoToObjMaze")
    world.reset(SEED)
    put(world, FRONT_TILE, Door("green", is_locked=True))
    first = world.step("done")
    behind = np.asarray(world.env.agent_pos) - np.asarray(world.env.dir_vec)
    world.env.grid.set(int(behind[0]), int(behind[1]), Key("green"))
    turn = ["left", "left"]
    rollout = [world.step(action) for action in [*turn, "pickup", *turn, "toggle"]]
    assert sprites()[rollout[-1].sprites[FRONT_TILE]].name == "open green door"
    *_, before, after = classify_tiles([first], rollout)
    assert before.determined[FRONT_TILE]
    assert not after.determined[FRONT_TILE]


def test_a_door_that_the_agent_stood_in_unseen_may_be_shut_afterwards():
    runs = []
    for stood_in in [Door("red", is_open=True), None]:
        world = TrueWorld("PickupLoc")
        world.reset(SEED)
        grid = world.env.grid
        for x, y in np.ndindex(grid.width - 2, grid.height - 2):
            grid.set(x + 1, y + 1, Wall() if y + 1 == 4 else None)
        grid.set(3, 4, stood_in)
        world.env.agent_pos, world.env.agent_dir = (3, 4), 1
        context = [world.step(action) for action in ["done", "left", "left", "forward"]]
        rollout = [world.step(action) for action in ["left", "left", "toggle"]]
        runs.append((rollout[-1].sprites, classify_tiles(context, rollout)[-1].determined))
    (shut, determined), (nothing, same) = runs
    assert (shut != nothing).sum() > 1  # the room behind the door is hidden, or not
    assert not determined[shut != nothing].any()
    np.testing.assert_array_equal(determined, same)


def test_a_fork_imagines_without_disturbing_the_original():
    world = TrueWorld("GoToLocal")
    views = world.replay(SEED, random_actions(5, 6))
    knowledge = Knowledge()
    knowledge.see(views[0])
    for i in range(1, len(views)):
        alone = classify_tiles(views[:i], views[i : i + 1])[0]
        step = knowledge.fork().imagine(views[i])
        np.testing.assert_array_equal(step.determined, alone.determined)
        np.testing.assert_array_equal(step.revealed, alone.revealed)
        knowledge.see(views[i])


def test_a_snapshot_can_be_restored_any_number_of_times():
    world = TrueWorld("PickupLoc")
    world.reset(SEED)
    world.step("forward")
    snapshot = world.snapshot()
    actions = random_actions(4, 10)
    runs = []
    for _ in range(2):
        world.restore(snapshot)
        runs.append([world.step(action).frame for action in actions])
    np.testing.assert_array_equal(runs[0], runs[1])


def test_replay_stops_where_the_episode_ends():
    world = TrueWorld("GoToLocal")
    world.reset(SEED)
    world.env.max_steps = 2
    assert [world.step("left").outcome, world.step("left").outcome] == ["ongoing", "failure"]
    with pytest.raises(ValueError, match=r"no episode is under way; call reset\(seed\)"):
        world.step("left")


def test_unknown_levels_and_actions_are_refused():
    with pytest.raises(ValueError, match="level 'GoToMars' is unknown; name a BabyAI level"):
        TrueWorld("GoToMars")
    world = TrueWorld("GoToLocal")
    with pytest.raises(ValueError, match="no episode is under way"):
        world.step("left")
    world.reset(SEED)
    with pytest.raises(ValueError, match="action 'jump' is unknown; use one of left, right"):
        world.step("jump")


def test_knowledge_wants_a_context_and_views_in_order():
    first, second = TrueWorld("GoToLocal").replay(SEED, ["left"])
    with pytest.raises(ValueError, match="see at least one view"):
        Knowledge().imagine(second)
    with pytest.raises(ValueError, match="check their order"):
        classify_tiles([second], [first])
