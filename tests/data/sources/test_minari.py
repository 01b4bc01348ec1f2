"""Minari datasets come in from its own writer, and go out to its own reader, bit by bit."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from data.dataset import EpisodeDataset
from data.record import RecordArguments, record
from data.recording import record_babyai
from data.sources.minari import MinariReader, export_minari, import_minari
from tests.data.preparing import prepare
from unified.media.action_space import ActionSpace

minari = pytest.importorskip("minari")
BABYAI = Path(__file__).parents[3] / "tokenizers_cfg" / "actions" / "babyai.json"
SHAPE = (32, 40, 3)


class Pictures(gymnasium.Env):
    """Shows noise, and ends after five steps with a reward."""

    observation_space = spaces.Dict(
        {"view": spaces.Box(0, 255, SHAPE, np.uint8), "state": spaces.Box(-1, 1, (2,))}
    )
    action_space = spaces.Box(-2.0, 2.0, (3,))
    steps = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.look(), {}

    def look(self):
        view = self.np_random.integers(0, 256, SHAPE, np.uint8)
        return {"view": view, "state": np.zeros(2, np.float32)}

    def step(self, action):
        self.steps += 1
        is_over = self.steps == 5
        return self.look(), float(is_over), is_over, False, {}


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Two episodes that Minari's own writer wrote; what was seen and done."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    env = Pictures()
    buffers, views, actions = [], [], []
    for seed in range(2):
        seen = [env.reset(seed=seed)[0]]
        env.action_space.seed(seed)
        actions.append([env.action_space.sample() for _ in range(5)])
        steps = [env.step(action) for action in actions[-1]]
        seen += [step[0] for step in steps]
        views.append([observation["view"] for observation in seen])
        buffers.append(
            EpisodeBuffer(
                observations={key: [one[key] for one in seen] for key in ("view", "state")},
                actions=actions[-1],
                rewards=[step[1] for step in steps],
                terminations=[step[2] for step in steps],
                truncations=[step[3] for step in steps],
            )
        )
    minari.create_dataset_from_buffers(
        "pictures/noise-v0",
        buffers,
        observation_space=env.observation_space,
        action_space=env.action_space,
        jpeg_encoding=False,
    )
    return tmp_path / "minari" / "pictures" / "noise-v0", views, actions


def test_what_minari_recorded_comes_in(recorded, tmp_path):
    folder, views, actions = recorded
    import_minari(folder, tmp_path / "data", task="look", outcome="reward>0")
    dataset = EpisodeDataset(tmp_path / "data")
    space = ActionSpace.from_config(tmp_path / "data" / "action_space.json")
    assert len(dataset) == 2
    for index in range(2):
        np.testing.assert_array_equal(dataset.frames(index), views[index])
        for written, action in zip(dataset[index].actions, actions[index], strict=True):
            assert space.encode(written) == space.encode(action)
        assert dataset[index].task == "look"
        assert dataset[index].outcomes == ["ongoing"] * 5 + ["success"]


def test_babyai_goes_out_to_minaris_reader_and_comes_back_bit_by_bit(babyai_folder, tmp_path):
    export_minari(babyai_folder, tmp_path / "out", actions=BABYAI)
    ours = EpisodeDataset(babyai_folder)
    for index, episode in enumerate(minari.MinariDataset(tmp_path / "out" / "data")):
        np.testing.assert_array_equal(episode.observations["image"], ours.frames(index))
        assert episode.observations["mission"][0] == ours[index].task
        assert (episode.rewards[-1] == 1) == (ours[index].outcomes[-1] == "success")
    import_minari(tmp_path / "out", tmp_path / "back")
    back = EpisodeDataset(tmp_path / "back")
    for index in range(len(ours)):
        assert back.pngs(index) == ours.pngs(index)
        for name in ("task", "actions", "outcomes"):
            assert getattr(back[index], name) == getattr(ours[index], name), name


@pytest.mark.parametrize("kind", ["box", "multi"])
def test_other_action_spaces_go_out_and_come_back(kind, tmp_path):
    options = {"actions": kind}
    record(
        RecordArguments(
            env="tests.data.dot:Dot-v0",
            out=tmp_path / "data",
            episodes=2,
            max_steps=4,
            options=options,
        )
    )
    export_minari(tmp_path / "data", tmp_path / "out")
    import_minari(tmp_path / "out", tmp_path / "back")
    space = ActionSpace.from_config(tmp_path / "back" / "action_space.json")
    ours, back = EpisodeDataset(tmp_path / "data"), EpisodeDataset(tmp_path / "back")
    for index in range(2):
        for one, other in zip(ours[index].actions, back[index].actions, strict=True):
            assert space.encode(one) == space.encode(other)


def test_what_cannot_be_read_is_refused(recorded, tmp_path):
    folder, _, _ = recorded
    with pytest.raises(ValueError, match="is no Minari dataset"):
        MinariReader(tmp_path)
    with pytest.raises(ValueError, match=r"pictures under \['view'\], not 'state'"):
        MinariReader(folder, image="state")
    file = folder / "data" / "main_data.hdf5"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match="episode 0 is damaged"):
        import_minari(folder, tmp_path / "data")
    with pytest.raises(ValueError, match="not complete"):
        EpisodeDataset(tmp_path / "data")


def test_an_export_that_fails_leaves_no_dataset(tmp_path, babyai_folder):
    other = tmp_path / "other.json"
    other.write_text('{"name": "two", "kind": "discrete", "actions": ["up", "down"]}')
    with pytest.raises(ValueError, match=r"step 0: Unknown action .* use one of up, down"):
        export_minari(babyai_folder, tmp_path / "out", actions=other)
    with pytest.raises(ValueError, match="is no Minari dataset"):
        MinariReader(tmp_path / "out")


def test_the_command_line_takes_it_in_and_out(babyai_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out, back = "out", "back"
    command = ["export-minari", "--data", str(babyai_folder), "--out", out]
    assert prepare([*command, "--actions", str(BABYAI), "--name", "babyai/few-v0"]) == 0
    assert prepare(["minari", "--folder", out, "--out", back]) == 0
    assert "16 episodes of babyai/few-v0" in capsys.readouterr().out
    assert prepare([*command, "--actions", str(BABYAI), "--name", "babyai/few-v0"]) == 0
    assert "out is complete" in capsys.readouterr().out
    assert prepare([*command, "--actions", str(BABYAI)]) == 2
    assert "was begun with" in capsys.readouterr().err


def test_an_export_that_was_cut_off_is_no_dataset_and_begins_anew(
    babyai_folder, tmp_path, monkeypatch
):
    frames = EpisodeDataset.frames

    def cut_off(self, index):
        if index == 3:
            raise KeyboardInterrupt
        return frames(self, index)

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeDataset, "frames", cut_off)
        with pytest.raises(KeyboardInterrupt):
            export_minari(babyai_folder, tmp_path / "out", actions=BABYAI)
    with pytest.raises(ValueError, match="is no Minari dataset"):
        MinariReader(tmp_path / "out")
    export_minari(babyai_folder, tmp_path / "out", actions=BABYAI)
    assert len(MinariReader(tmp_path / "out")) == 16


class Coded(Pictures):
    """Shows a grid of codes under the key that pictures have elsewhere."""

    observation_space = spaces.Dict({"image": spaces.Box(0, 255, (7, 7, 3), np.uint8)})
    action_space = spaces.Discrete(3, start=-1)

    def look(self):
        return {"image": self.np_random.integers(0, 11, (7, 7, 3), np.uint8)}


class Signed(Pictures):
    """Has actions from minus one on, and a task that changes."""

    observation_space = spaces.Dict(
        {"view": spaces.Box(0, 255, SHAPE, np.uint8), "mission": spaces.Text(9)}
    )
    action_space = spaces.Discrete(3, start=-1)

    def look(self):
        mission = "go" if self.steps < 3 else "stop"
        return {"view": super().look()["view"], "mission": mission}


def collected(env, name, monkeypatch, tmp_path, actions, infos=None):
    """Two episodes of the same actions that Minari's own writer wrote."""
    from minari.data_collector.episode_buffer import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    buffers = []
    for seed in range(2):
        seen = [env.reset(seed=seed)[0]]
        steps = [env.step(action) for action in actions]
        seen += [step[0] for step in steps]
        buffers.append(
            EpisodeBuffer(
                observations={key: [one[key] for one in seen] for key in seen[0]},
                actions=actions,
                rewards=[step[1] for step in steps],
                terminations=[step[2] for step in steps],
                truncations=[step[3] for step in steps],
                infos=infos,
            )
        )
    minari.create_dataset_from_buffers(
        name,
        buffers,
        observation_space=env.observation_space,
        action_space=env.action_space,
        jpeg_encoding=False,
    )
    return tmp_path / "minari" / name


def test_a_grid_of_codes_is_refused_with_the_wrapper_to_use(monkeypatch, tmp_path):
    folder = collected(Coded(), "codes/noise-v0", monkeypatch, tmp_path, [-1, 0, 1, 0, 0])
    with pytest.raises(ValueError, match=r"frame 0 is 7 x 7 pixels.*RGBImgPartialObsWrapper"):
        import_minari(folder, tmp_path / "data")
    with pytest.raises(ValueError, match="not complete"):
        EpisodeDataset(tmp_path / "data")


def test_integers_from_minus_one_and_a_task_that_changes_come_in_as_they_are(monkeypatch, tmp_path):
    taken = [-1, 0, 1, 1, -1]
    folder = collected(Signed(), "signed/noise-v0", monkeypatch, tmp_path, taken)
    import_minari(folder, tmp_path / "data", action_names=["left", "stay", "right"])
    space = ActionSpace.from_config(tmp_path / "data" / "action_space.json")
    for episode in EpisodeDataset(tmp_path / "data"):
        assert [space.to_environment(action) for action in episode.actions] == taken
        assert episode.actions[0] == "left"
        assert episode.task == "go"
        assert [[w.text for w in said] for said in episode.said] == [[], [], [], ["stop"], [], []]
    export_minari(tmp_path / "data", tmp_path / "out")
    (first, _) = minari.MinariDataset(tmp_path / "out" / "data")
    assert first.actions.tolist() == taken
    import_minari(folder, tmp_path / "rule", outcome="terminated")
    assert EpisodeDataset(tmp_path / "rule")[0].outcomes[-1] == "success"
    tasks = tmp_path / "tasks.json"
    tasks.write_text('{"1": "walk"}')
    import_minari(folder, tmp_path / "tasks", tasks=tasks)
    assert [episode.task for episode in EpisodeDataset(tmp_path / "tasks")] == ["go", "walk"]


@pytest.mark.parametrize("won", [[False] * 4 + [True, False], [False] * 3 + [True, False]])
def test_what_info_says_after_a_step_counts_there_whether_or_not_the_reset_has_one(
    won, monkeypatch, tmp_path
):
    infos = {"won": won, "odd": [0, 1], "deep": {"goal": [1] * 6}}
    taken = [0] * 5
    folder = collected(Signed(), "told/noise-v0", monkeypatch, tmp_path, taken, infos)
    import_minari(folder, tmp_path / "data", outcome="info:won")
    outcomes = ["ongoing"] * 4 + ["success", "failure"]
    assert EpisodeDataset(tmp_path / "data")[0].outcomes == outcomes
    with pytest.raises(
        ValueError, match=r"episode 0, step 0: .*tells no 'odd' in info, only deep, won"
    ):
        import_minari(folder, tmp_path / "odd", outcome="info:odd")


def test_enlarged_codes_are_no_picture_either(monkeypatch, tmp_path):
    folder = collected(Coded(), "codes/noise-v0", monkeypatch, tmp_path, [-1, 0, 1, 0, 0])
    message = r"noise-v0, episode 0: frame 0 is 7 x 7 pixels.*RGBImgPartialObsWrapper"
    with pytest.raises(ValueError, match=message):
        import_minari(folder, tmp_path / "data", size=(56, 56))


def test_babyai_goes_out_with_its_own_actions_and_spec(tmp_path):
    record_babyai(["GoToRedBall"], episodes=2, seed=40, out=tmp_path / "data")
    export_minari(tmp_path / "data", tmp_path / "out")
    found = minari.MinariDataset(tmp_path / "out" / "data")
    assert found.env_spec is not None
    assert found.env_spec.id == "BabyAI-GoToRedBall-v0"
    space = gymnasium.make(found.env_spec).action_space
    assert found.action_space == space == spaces.Discrete(7)


def test_what_was_recorded_of_an_environment_goes_out_with_its_spec(tmp_path):
    env = "tests.data.dot:LimitedDot-v0"
    record(RecordArguments(env=env, out=tmp_path / "data", episodes=3, max_steps=9))
    export_minari(tmp_path / "data", tmp_path / "out")
    spec = minari.MinariDataset(tmp_path / "out" / "data").env_spec
    assert spec is not None
    assert (spec.id, spec.max_episode_steps, spec.reward_threshold) == ("LimitedDot-v0", 2, 0.5)
    import_minari(tmp_path / "out", tmp_path / "back")
    ours, back = EpisodeDataset(tmp_path / "data"), EpisodeDataset(tmp_path / "back")
    assert [e.outcomes for e in back] == [e.outcomes for e in ours]


def test_unknown_ends_stay_unknown_on_the_way_out_and_back(tmp_path):
    env = "tests.data.dot:Dot-v0"
    record(RecordArguments(env=env, out=tmp_path / "data", episodes=4, max_steps=30))
    export_minari(tmp_path / "data", tmp_path / "out")
    import_minari(tmp_path / "out", tmp_path / "back")
    ours, back = EpisodeDataset(tmp_path / "data"), EpisodeDataset(tmp_path / "back")
    ends = [episode.outcomes[-1] for episode in ours]
    assert None in ends
    assert [episode.outcomes[-1] for episode in back] == ends
