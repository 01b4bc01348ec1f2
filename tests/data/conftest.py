import pytest

from data import recording
from tests.data.lerobot_files import write_filmed, write_pictured


@pytest.fixture(scope="session")
def babyai_folder(tmp_path_factory):
    """A complete data folder: 2 levels of 8 episodes, in shards of 3."""
    folder = tmp_path_factory.mktemp("data") / "babyai"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "EPISODES_PER_SHARD", 3)
        recording.record_babyai(["GoToRedBall", "OpenDoor"], episodes=16, seed=40, out=folder)
    return folder


@pytest.fixture
def filmed(tmp_path):
    return write_filmed(tmp_path / "filmed")


@pytest.fixture
def pictured(tmp_path):
    return write_pictured(tmp_path / "pictured")
