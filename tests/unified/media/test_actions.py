"""Action spaces: names and indices to tokens and back."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

from unified.media.actions import (
    ActionSpace,
    ContinuousActions,
    KeyboardMouseActions,
    MultiDiscreteActions,
    NamedActions,
)

BABYAI = Path(__file__).resolve().parents[3] / "tokenizers_cfg" / "actions" / "babyai.json"
NAMES = ("left", "right", "forward", "pickup", "drop", "toggle", "done")


def test_every_action_survives_encode_and_decode():
    space = ActionSpace.from_config(BABYAI)
    assert isinstance(space, NamedActions)
    assert space.names == NAMES
    for name in NAMES:
        assert space.encode(name) == [f"<{name}>"]
        assert space.decode(space.encode(name)) == name
        assert len(space.encode(name)) == space.num_tokens == 1


def test_an_index_means_the_environments_action():
    from minigrid.core.actions import Actions

    space = ActionSpace.from_config(BABYAI)
    assert isinstance(space, NamedActions)
    for action in Actions:
        assert space.decode(space.encode(int(action))) == action.name
        assert space.encode(np.int64(action)) == space.encode(action.name)
        assert space.index(action.name) == int(action)


def test_a_space_is_rebuilt_from_its_config():
    space = ActionSpace.from_config(BABYAI)
    again = ActionSpace.from_config(space.to_config())
    assert again.tokens == space.tokens == space.choices(0)
    assert space.to_config() == json.loads(BABYAI.read_text())


@pytest.mark.parametrize("action", ["fly", "", "<left>", -1, 7, True, 1.5, None])
def test_an_unknown_action_is_refused_with_the_legal_ones_or_range(action):
    with pytest.raises(ValueError, match="use"):
        ActionSpace.from_config(BABYAI).encode(action)


@pytest.mark.parametrize("tokens", [[], ["<fly>"], ["<left>", "<left>"], "<left>", ["left"]])
def test_tokens_that_are_no_action_are_refused(tokens):
    with pytest.raises(ValueError, match="<left>"):
        ActionSpace.from_config(BABYAI).decode(tokens)


def test_a_position_outside_the_action_is_refused():
    with pytest.raises(ValueError, match="use 0"):
        ActionSpace.from_config(BABYAI).choices(1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "x", "kind": "juggling"}, "known kinds"),
        ({"name": "x", "kind": "discrete"}, "Bad keys"),
        ({"name": "x", "kind": "discrete", "actions": []}, "non-empty"),
        ({"name": "x", "kind": "discrete", "actions": ["a", "a"]}, "differ"),
        ({"name": "x", "kind": "discrete", "actions": "left"}, "list"),
        ("missing.json", "No action space file"),
        ("broken.json", "not valid JSON"),
    ],
)
def test_bad_configs_are_refused(tmp_path, config, message):
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=message):
        ActionSpace.from_config(tmp_path / config if isinstance(config, str) else config)


ARM = MultiDiscreteActions("arm", {"move": ["left", "stay", "right"], "grip": 2})
GAME = KeyboardMouseActions("game", ["w", "a", "space"], mouse=180.0, bins=11)
VECTORS = {
    spacing: ContinuousActions.between("v", ["x", "y"], [-1, 0], [1, 5], spacing=spacing)
    for spacing in ("uniform", "mu_law")
}
SPACES = {"multi_discrete": ARM, "keyboard_mouse": GAME, **VECTORS}


@pytest.mark.parametrize("kind", SPACES)
def test_every_kind_of_space_is_rebuilt_from_a_file(kind, tmp_path):
    space = SPACES[kind]
    (tmp_path / "space.json").write_text(json.dumps(space.to_config()))
    again = ActionSpace.from_config(tmp_path / "space.json")
    assert type(again) is type(space)
    assert again.tokens == space.tokens
    assert again.to_config() == space.to_config()
    assert again.num_tokens == space.num_tokens


@pytest.mark.parametrize("kind", SPACES)
def test_ranges_are_the_choices_at_each_position(kind):
    space = SPACES[kind]
    assert len(space.ranges) == space.num_tokens
    for position, (start, stop) in enumerate(space.ranges):
        assert space.tokens[start:stop] == space.choices(position)
    with pytest.raises(ValueError, match="use 0 to"):
        space.choices(space.num_tokens)


@given(move=st.integers(0, 2), grip=st.integers(0, 1))
def test_several_choices_come_back_exactly(move, grip):
    action = {"move": ("left", "stay", "right")[move], "grip": str(grip)}
    assert ARM.encode([move, grip]) == ARM.encode(action) == ARM.encode(json.dumps(action))
    assert ARM.decode(ARM.encode(action)) == action
    assert ARM.indices(action) == [move, grip]
    assert ARM.encode(np.array([move, grip])) == ARM.encode([move, grip])


@given(x=st.floats(-1, 1), y=st.floats(0, 5), spacing=st.sampled_from(list(VECTORS)))
def test_numbers_come_back_within_half_a_bin(x, y, spacing):
    space = VECTORS[spacing]
    back = space.decode(space.encode([x, y]))
    assert (np.abs(np.array(back) - [x, y]) <= space.resolution + 1e-9).all()
    assert space.encode(back) == space.encode([x, y])


def test_uniform_bins_are_as_wide_as_one_computes_and_mu_law_bins_finest_at_rest():
    np.testing.assert_allclose(VECTORS["uniform"].resolution, [1 / 256, 5 / 512])
    widths = np.diff(VECTORS["mu_law"].edges[0])
    assert widths.argmin() in (127, 128)
    assert widths[0] > 5 * widths.min()


@given(seed=st.integers(0, 99), share=st.floats(0, 0.9))
def test_fitted_bins_hold_every_recorded_action_and_keep_frequent_values_exact(seed, share):
    rng = np.random.default_rng(seed)
    actions = rng.normal(size=(300, 2)) * [1, 50]
    actions[rng.random(300) < share] = 0.0
    actions[:, 1] = np.round(actions[:, 1])
    space = ContinuousActions.fit("v", ["x", "y"], actions, bins=64)
    for action in actions[:40]:
        back = np.array(space.decode(space.encode(action)))
        assert (np.abs(back - action) <= space.resolution + 1e-9).all()
    if share > 0.1:
        assert space.decode(space.encode([0.0, 0.0])) == [0.0, 0.0]


def test_a_dimension_that_never_moves_comes_back_exactly():
    space = ContinuousActions.fit("v", ["x"], np.full((9, 1), 0.3))
    assert space.decode(space.encode([0.3])) == [0.3]


@pytest.mark.parametrize("share", [0.0005, 0.002, 0.005, 0.3, 0.9, 0.9995])
@pytest.mark.parametrize("bins", [3, 64, 256])
def test_the_least_and_the_greatest_value_come_back_exactly_however_seldom(share, bins):
    rng = np.random.default_rng(0)
    flags = (np.arange(20_000) < share * 20_000).astype(float)
    numbers = rng.normal(size=20_000)
    space = ContinuousActions.fit("v", ["end", "x"], np.stack([flags, numbers], 1), bins=bins)
    for end in (0.0, 1.0):
        for x in (numbers.min(), numbers.max()):
            assert space.decode(space.encode([end, x])) == [end, x]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([1.0, 2.0], r"have shape \(2,\); give rows of 2: x, y"),
        ([[1.0], [2.0]], r"have shape \(2, 1\); give rows of 2: x, y"),
        (np.zeros((0, 2)), r"have shape \(0, 2\)"),
        ([["a", "b"]], "the numbers of 'v' cannot be read .*could not convert string"),
        ([[10**400, 0]], "the numbers of 'v' cannot be read"),
        (torch.zeros(3, 2, requires_grad=True), "the numbers of 'v' cannot be read"),
        (None, "the numbers of 'v'"),
    ],
)
def test_bins_are_not_fitted_to_what_is_no_table_of_numbers(rows, words):
    with pytest.raises(ValueError, match=words):
        ContinuousActions.fit("v", ["x", "y"], rows)


@pytest.mark.parametrize("bins", [0, -1, True, 2.5])
def test_bins_are_a_whole_number(bins):
    with pytest.raises(ValueError, match="must be a whole number of at least 1; 256 is usual"):
        ContinuousActions.fit("v", ["x"], np.ones((2, 1)), bins=bins)
    with pytest.raises(ValueError, match="must be a whole number of at least 1; 256 is usual"):
        ContinuousActions.between("v", ["x"], [0], [1], bins=bins)
    with pytest.raises(ValueError, match=r"shape \(1, 1\); give one list of bins \+ 1 numbers"):
        ContinuousActions("v", ["x"], [[0.0]])


def test_integers_beyond_all_floats_are_refused():
    with pytest.raises(ValueError, match="a number that is too large; clip it"):
        VECTORS["uniform"].encode([10**400, 0])
    with pytest.raises(ValueError, match="is not between"):
        VECTORS["uniform"].encode([2**70, 0])
    with pytest.raises(ValueError, match="is not between|too large"):
        GAME.encode({"keys": [], "mouse": [10**400, 0]})
    with pytest.raises(ValueError, match="outside"):
        ARM.encode([2**70, 0])
    with pytest.raises(ValueError, match=r"'\[9{198}\.\.\. is not JSON"):
        VECTORS["uniform"].encode("[" + "9" * 5000 + "]")
    with pytest.raises(ValueError, match=r"\[\.\.\. is not JSON"):
        VECTORS["uniform"].encode("[" * 100_000)


@pytest.mark.parametrize("form", [list, tuple, np.array])
def test_keys_may_be_told_as_a_zero_or_one_for_each(form):
    told = GAME.encode({"keys": form([0, 1, 1]), "mouse": [0, 0]})
    assert told == GAME.encode({"keys": ["a", "space"], "mouse": [0, 0]})
    assert GAME.encode({"keys": form([0, 0, 0]), "mouse": np.zeros(2)}) == (
        GAME.encode({"keys": [], "mouse": [0, 0]})
    )


def test_a_chunk_is_written_vector_by_vector():
    one = VECTORS["uniform"]
    space = ContinuousActions("v", one.dimensions, one.edges.tolist(), chunk=3)
    chunk = [[0.1, 0.2], [-0.5, 4.0], [1.0, 0.0]]
    assert space.num_tokens == 6
    assert space.encode(chunk) == [t for vector in chunk for t in one.encode(vector)]
    assert space.decode(space.encode(chunk)) == [one.decode(one.encode(v)) for v in chunk]


@given(
    keys=st.sets(st.sampled_from(GAME.keys)),
    mouse=st.tuples(st.floats(-180, 180), st.floats(-180, 180)),
)
def test_keys_come_back_exactly_and_the_mouse_within_its_bin(keys, mouse):
    back = GAME.decode(GAME.encode({"keys": sorted(keys), "mouse": list(mouse)}))
    assert set(back["keys"]) == keys
    assert (np.abs(np.array(back["mouse"]) - mouse) <= GAME.resolution + 1e-9).all()


def test_a_mouse_at_rest_stays_at_rest():
    assert GAME.decode(GAME.encode({"keys": [], "mouse": [0, 0]}))["mouse"] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("space", "action", "message"),
    [
        (ARM, [0], "must have 2 parts: move, grip"),
        (ARM, {"move": "left"}, "must name move, grip"),
        (ARM, [3, 0], "outside"),
        (ARM, "left", "is not JSON"),
        (VECTORS["uniform"], [0.0], "has shape"),
        (VECTORS["uniform"], [np.nan, 0.0], "x=nan of 'v' is not between"),
        (VECTORS["uniform"], [0.0, 5.1], r"y=5.1 of 'v' is not between 0.0 and 5.0; clip it"),
        (VECTORS["uniform"], ["a", "b"], "is no vector"),
        (GAME, {"keys": ["x"], "mouse": [0, 0]}, "'x' is none of 'game'; use w, a, space"),
        (GAME, {"keys": [], "mouse": [0]}, "must be two numbers"),
        (GAME, {"keys": [], "mouse": [0, 999]}, "is not between"),
        (GAME, ["w"], "a mapping with keys and mouse"),
        (GAME, {"keys": [1, 0], "mouse": [0, 0]}, "key 1 is none of .* each of these 3"),
        (GAME, {"keys": [2, 0, 0], "mouse": [0, 0]}, "key 2 is none of"),
        (GAME, {"keys": 5, "mouse": [0, 0]}, "must be a list: of the names"),
        (GAME, {"keys": "wa", "mouse": [0, 0]}, "must be a list: of the names"),
        (GAME, {"keys": [], "mouse": 3}, "must be two numbers"),
    ],
)
def test_what_is_no_action_of_a_space_is_refused(space, action, message):
    with pytest.raises(ValueError, match=message):
        space.encode(action)


@pytest.mark.parametrize("kind", SPACES)
def test_tokens_of_another_space_are_refused(kind):
    with pytest.raises(ValueError, match="is no action of"):
        SPACES[kind].decode(["<left>"] * SPACES[kind].num_tokens)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiDiscreteActions("a", {}), "are empty"),
        (lambda: KeyboardMouseActions("a", ["w"], 1.0, bins=4), "must be odd"),
        (lambda: ContinuousActions.between("a", ["x"], [-np.inf], [1]), "must be finite"),
        (lambda: ContinuousActions("a", ["x"], [[0, 2, 1]]), "never fall"),
        (lambda: ContinuousActions("a", ["x", "y"], [[0, 1]]), "one list of bins"),
        (lambda: ContinuousActions("a", ["x"], [[0, 1]], chunk=0), "must be at least 1"),
        (
            lambda: ContinuousActions.fit("a", ["x"], np.array([[0.0], [np.nan]])),
            "action 1 .*x=nan",
        ),
    ],
)
def test_a_space_that_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [(0, 10, "int64"), (0, 255, "uint8"), (-128, 127, "int8"), (-3, 3, "int32"), (5, 6, "uint64")],
)
def test_integers_between_bounds_come_back_as_they_are_in_the_type_of_the_environment(
    low, high, dtype
):
    made = ContinuousActions.between("a", ["x", "y"], [low] * 2, [high] * 2, dtype=dtype)
    space = ActionSpace.from_config(json.loads(json.dumps(made.to_config())))
    box = spaces.Box(low, high, (2,), np.dtype(dtype).type)
    for value in range(low, high + 1):
        back = space.to_environment([value, low + high - value])
        assert back.tolist() == [value, low + high - value]
        assert back.dtype == dtype
        assert box.contains(back)
    assert made.resolution.tolist() == [0, 0]
    with pytest.raises(ValueError, match=rf"x={low + 0.5} of 'a' is no integer, as {dtype} holds"):
        space.encode([low + 0.5, low])


def test_integers_of_more_values_than_bins_are_rounded_within_their_bounds():
    space = ContinuousActions.between("a", ["x"], [-1000], [1000], bins=7, dtype="int16")
    for value in (-1000, -999, -3, 0, 501, 1000):
        (back,) = space.to_environment([value])
        assert -1000 <= back <= 1000
        assert abs(back - value) <= space.resolution[0] == 143


@pytest.mark.parametrize(
    "values", [[0] * 900 + [1, 2, 4], [0] * 500 + [7, 5000, -5000], list(range(-50, 200)), [3]]
)
def test_recorded_integers_come_back_exactly_however_rare_they_are(values):
    space = ContinuousActions.fit("a", ["x"], np.array(values)[:, None], dtype="int64")
    assert [space.decode(space.encode([value]))[0] for value in values] == values


def test_choices_come_back_in_the_integer_type_of_the_environment():
    made = MultiDiscreteActions("a", {"x": 3, "y": 2}, [-1, 5], dtype="int32")
    space = ActionSpace.from_config(made.to_config())
    box = spaces.MultiDiscrete([3, 2], np.int32, start=np.array([-1, 5]))
    assert box.contains(space.to_environment([1, 5]))
    assert space.to_environment([1, 5]).tolist() == [1, 5]


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: ContinuousActions("a", ["x"], [[0, 1]], dtype="str"), "dtype='str' of 'a' is no"),
        (lambda: ContinuousActions("a", ["x"], [[0, 300]], dtype="uint8"), "within 0 and 255"),
        (
            lambda: ContinuousActions.between("a", ["x"], [-(2**63)], [2**62], dtype="int64"),
            "clip them, or name narrower bounds",
        ),
        (lambda: ContinuousActions("a", ["x"], [[0.2, 0.8]], dtype="int8"), "lies no integer"),
        (lambda: MultiDiscreteActions("a", {"x": 2}, dtype="float32"), "use one such as int64"),
        (
            lambda: ContinuousActions.fit("a", ["x"], np.array([[1.7e308], [-1.7e308]])),
            "as float32 they must stay within",
        ),
        (
            lambda: MultiDiscreteActions("a", {"a:b": ["c"], "a": ["b:c"]}),
            "two parts of 'a' write an option as <a:b:c>; rename a part",
        ),
        (lambda: NamedActions("a", ["x"]).encode(np.array([0])), r"got array\(\[0\]\); use one"),
        (
            lambda: ContinuousActions("a", ["x"], [[0, 1]]).encode(torch.ones(1).requires_grad_()),
            r"'a' is no vector \(Can't call numpy\(\) on Tensor that requires grad",
        ),
        (
            lambda: KeyboardMouseActions("a", ["w"], 3).encode({"keys": [], "mouse": np.array(1)}),
            "must be two numbers",
        ),
        (lambda: MultiDiscreteActions("a", {"x": 2, "y": 2}).encode(np.array(1)), "have 2 parts"),
    ],
)
def test_what_no_action_space_can_hold_is_refused_in_words(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_a_value_that_takes_more_than_three_bins_comes_back_exactly():
    rng = np.random.default_rng(0)
    for share in (0.0125, 0.02, 0.1):
        values = rng.normal(size=10_000)
        values[: int(share * len(values))] = 0.123
        space = ContinuousActions.fit("a", ["x"], values[:, None])
        assert space.decode(space.encode([0.123])) == [0.123]
