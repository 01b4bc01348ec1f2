"""A small random model that is played."""

import pytest

from tests.unified.parts import babyai_parts, ongoing
from tests.unified.play.stage import Player, house
from unified.play.engine import Engine


@pytest.fixture(scope="session")
def engine():
    made = Engine(*ongoing(*babyai_parts()), steps=2)
    yield made
    made.close()


@pytest.fixture
def player(engine):
    return Player(house(engine))
