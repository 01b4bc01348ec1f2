"""Action spaces: names and indices to tokens and back."""

import json
from pathlib import Path

import numpy as np
import pytest

from unified.actions import ActionSpace, NamedActions

BABYAI = Path(__file__).resolve().parents[2] / "tokenizers_cfg" / "actions" / "babyai.json"
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
