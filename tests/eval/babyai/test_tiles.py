import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from minigrid.core.grid import Grid
from minigrid.core.world_object import Goal, Wall

from eval.babyai.tiles import (
    AGENT_TILE,
    EMPTY,
    UNSEEN,
    WALL,
    draw_frame,
    equal_tiles,
    legal_tiles,
    object_sprite,
    read_frame,
    sprite_tiles,
    sprites,
    visible_tiles,
)


def sprite_id(name):
    return [sprite.name for sprite in sprites()].index(name)


def empty_room():
    """Ids of a frame with the agent on an empty floor and nothing else."""
    ids = np.full((7, 7), EMPTY)
    ids[AGENT_TILE] = sprite_id("agent")
    return ids


def test_every_sprite_has_its_own_pixels_and_name():
    assert len({tile.tobytes() for tile in sprite_tiles()}) == len(sprites()) == 58
    assert len({sprite.name for sprite in sprites()}) == 58


def test_every_pair_of_sprites_is_far_apart():
    tiles = sprite_tiles().astype(int)
    gap = np.abs(tiles[:, None] - tiles[None]).max((2, 3, 4)) / 255
    assert gap[~np.eye(len(tiles), dtype=bool)].min() > 0.1


def test_drawing_and_reading_are_inverse():
    ids = np.random.default_rng(0).integers(len(sprites()), size=(3, 400, 7, 7))
    read, distance = read_frame(draw_frame(ids))
    np.testing.assert_array_equal(read, ids)
    assert distance.max() == 0


def test_reading_finds_the_nearest_sprite_as_a_double_loop_does():
    frame = np.random.default_rng(1).integers(256, size=(56, 56, 3), dtype=np.uint8)
    ids, distance = read_frame(frame)
    known = sprite_tiles().astype(int)
    for row in range(7):
        for column in range(7):
            tile = frame[8 * row : 8 * row + 8, 8 * column : 8 * column + 8].astype(int)
            errors = [((tile - sprite) ** 2).sum() for sprite in known]
            assert errors[ids[row, column]] == min(errors)
            worst = np.abs(tile - known[ids[row, column]]).max() / 255
            assert distance[row, column] == pytest.approx(worst)


def test_small_noise_does_not_change_what_is_read():
    generator = np.random.default_rng(2)
    ids = generator.integers(len(sprites()), size=(20, 7, 7))
    noise = generator.integers(-12, 13, size=(20, 56, 56, 3))
    noisy = np.clip(draw_frame(ids).astype(int) + noise, 0, 255).astype(np.uint8)
    read, distance = read_frame(noisy)
    np.testing.assert_array_equal(read, ids)
    assert 0 < distance.max() <= 12 / 255 + 1e-6


def test_equal_tiles_names_the_one_that_differs():
    ids = empty_room()
    other = ids.copy()
    other[2, 5] = sprite_id("red ball")
    different = np.argwhere(~equal_tiles(draw_frame(ids), draw_frame(other)))
    assert different.tolist() == [[2, 5]]


def test_the_wrapped_environment_shows_only_known_sprites():
    from minigrid.wrappers import RGBImgPartialObsWrapper

    env = RGBImgPartialObsWrapper(gymnasium.make("BabyAI-GoToObjMaze-v0"), tile_size=8)
    env.reset(seed=1_000_000)
    generator = np.random.default_rng(3)
    for _ in range(100):
        observation, *_ = env.step(generator.choice([0, 1, 2, 2, 2, 5]))
        assert read_frame(observation["image"])[1].max() == 0


@pytest.mark.parametrize(
    "frames",
    [np.zeros((56, 64, 3), np.uint8), np.zeros((56, 56, 3)), np.zeros((3, 56, 56), np.uint8)],
)
def test_a_frame_of_another_size_or_dtype_is_refused(frames):
    with pytest.raises(ValueError, match=r"must be \(\.\.\., 56, 56, 3\) uint8, got"):
        read_frame(frames)


def test_an_object_that_babyai_does_not_have_is_refused():
    with pytest.raises(ValueError, match="no 'green goal'; evaluate a BabyAI level"):
        object_sprite(Goal())


@given(st.lists(st.booleans(), min_size=49, max_size=49))
def test_visibility_is_the_environments_own(bits):
    opaque = np.array(bits).reshape(7, 7)
    opaque[AGENT_TILE] = False
    grid = Grid(7, 7)
    for row in range(7):
        for column in range(7):
            grid.set(column, row, Wall() if opaque[row, column] else None)
    np.testing.assert_array_equal(visible_tiles(opaque), grid.process_vis((3, 6)).T)


def test_legal_tiles_accepts_what_the_environment_could_draw():
    ids = empty_room()
    ids[3] = WALL
    ids[:3] = UNSEEN
    ids[5, 1] = sprite_id("blue key")
    assert legal_tiles(draw_frame(ids)).all()


def test_legal_tiles_refuses_agents_elsewhere_and_objects_in_its_place():
    ids = empty_room()
    ids[1, 1] = sprite_id("agent carrying red box")
    ids[AGENT_TILE] = sprite_id("red box")
    assert np.argwhere(~legal_tiles(draw_frame(ids))).tolist() == [[1, 1], list(AGENT_TILE)]


def test_legal_tiles_refuses_sprites_that_do_not_exist():
    frame = draw_frame(empty_room())
    frame[2, 3] = 255 - frame[2, 3]
    assert np.argwhere(~legal_tiles(frame)).tolist() == [[0, 0]]


def test_legal_tiles_refuses_what_a_wall_hides_and_holes_that_nothing_hides():
    ids = empty_room()
    ids[3] = WALL
    ids[:3] = UNSEEN
    ids[0, 6] = sprite_id("green ball")  # behind the wall
    ids[5, 5] = UNSEEN  # in plain sight
    assert np.argwhere(~legal_tiles(draw_frame(ids))).tolist() == [[0, 6], [5, 5]]
