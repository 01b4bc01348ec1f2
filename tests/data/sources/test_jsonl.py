import json

import numpy as np
import pytest
from PIL import Image

from data.dataset import EpisodeDataset
from data.sources import jsonl
from data.sources.jsonl import import_jsonl, inferred_actions
from tests.data.preparing import prepare
from unified.media.action_space import ActionSpace
from unified.media.actions import ContinuousActions, KeyboardMouseActions, NamedActions

FRAME = {"kind": "frame", "frame": "images/0.png", "outcome": "ongoing"}
EPISODE = {
    "level": "demo",
    "segments": [
        {"kind": "text", "role": "task", "text": "wave"},
        FRAME,
        {"kind": "action", "action": None, "weight": 0},
        {"kind": "frame", "frame": "images/1.png"},
        {"kind": "text", "text": "i see an arm"},
        {"kind": "text", "role": "task", "text": "raise it"},
        {"kind": "text", "text": "i raise the arm"},
        {"kind": "action", "action": "up", "weight": 0.5, "motion": [0.5, 2, 0]},
        {"kind": "frame", "frame": "images/0.png", "caption": "an arm", "outcome": "success"},
        {"kind": "action", "action": "up", "hindsight": True},
        {"kind": "text", "text": "done", "weight": 0},
    ],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 256, (16, 32, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    return tmp_path


def write(folder, *lines):
    file = folder / "episodes.jsonl"
    file.write_text(
        "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    )
    return file


HALF = "half \ud83d"


@pytest.mark.parametrize(
    "episode",
    [
        {"segments": [{"kind": "text", "role": "task", "text": HALF}, FRAME]},
        {"segments": [{**FRAME, "caption": HALF}]},
        {"segments": [FRAME, {"kind": "action", "action": HALF}, {**FRAME, "outcome": None}]},
        {"id": HALF, "segments": [FRAME]},
        {"level": HALF, "segments": [FRAME]},
        {HALF: 1, "segments": [FRAME]},
    ],
    ids=["text", "caption", "action", "id", "level", "key"],
)
def test_half_a_character_is_refused_by_its_line_and_a_whole_one_is_not(episode, folder):
    file = write(folder, EPISODE, episode)
    with pytest.raises(ValueError, match=r"episodes.jsonl:2: \\ud83d is half of a character"):
        import_jsonl(file, folder / "out")
    assert not (folder / "out" / "info.json").exists()
    words = "whole \U0001f6aa, and \\ud83d spelled out"
    task = {"kind": "text", "role": "task", "text": words}
    file = write(folder, {"segments": [task, FRAME]})
    import_jsonl(file, folder / "whole")
    assert EpisodeDataset(folder / "whole")[0].task == words


def test_any_interleaving_comes_back_as_it_was_written(folder):
    file = write(folder, EPISODE, "", {"segments": [FRAME]})
    assert prepare(["jsonl", "--file", str(file), "--out", str(folder / "out")]) == 0
    dataset = EpisodeDataset(folder / "out")
    assert dataset.lengths.tolist() == [3, 1]
    segments = dataset.sequence(0, pixels=True).segments
    assert [segment.kind for segment in segments] == [one["kind"] for one in EPISODE["segments"]]
    assert [segment.text for segment in segments] == [
        one.get("text") for one in EPISODE["segments"]
    ]
    assert [segment.weight for segment in segments] == [0, 1, 0, 1, 1, 0, 1, 0.5, 1, 1, 0]
    assert [segment.hindsight for segment in segments] == [False] * 9 + [True, False]
    assert segments[3].outcome is None
    pixels = np.asarray(Image.open(folder / "images" / "1.png"))
    np.testing.assert_array_equal(segments[3].frame, pixels)
    assert dataset[0].task == "wave"
    assert dataset[0].actions == [None, "up"]
    assert dataset[0].motions == [None, (0.5, 2.0, 0.0)]
    assert [segment.motion for segment in segments] == [*[None] * 7, (0.5, 2, 0), *[None] * 3]
    said = [[(words.role, words.text) for words in after] for after in dataset[0].said]
    exchange = [("agent", "i see an arm"), ("task", "raise it"), ("agent", "i raise the arm")]
    assert said == [[], exchange, [("agent", "done")]]
    assert dataset[0].captions == [None, None, "an arm"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ([1], "the line is .*give dict"),
        ({"segments": []}, "segments holds no frame"),
        ({"segments": [FRAME], "reward": 1}, "key 'reward' is unknown"),
        ({"segments": [FRAME, {"kind": "frame", "frame": "no.png"}]}, "segment 1: .*not exist"),
        ({"segments": [{"text": "a"}]}, "segment 0: a segment has no kind"),
        ({"segments": [{"kind": "text", "words": "a"}]}, "segment 0: segment key 'words'"),
        (
            {"segments": [{"kind": "action", "action": 0.5}]},
            "segment 0: action is 0.5; give str or int or list or dict",
        ),
        ('{"segments": [{"kind": "action", "action": [NaN]}]}', "NaN is no number"),
        ({"segments": [{"kind": "text", "text": "a", "weight": "x"}]}, "weight is 'x'"),
        ({"segments": [{"kind": "action", "motion": [1, 2]}]}, "give it to actions, as three"),
        ({"segments": [{"kind": "action", "motion": 1}]}, "motion is 1; give list"),
        ({"segments": [{"kind": "frame", "frame": "episodes.jsonl"}]}, "cannot be read"),
        ({"segments": [FRAME, FRAME]}, "segment 1: a frame follows a frame; put an action between"),
    ],
)
def test_a_wrong_line_is_named_and_nothing_is_written(folder, line, message):
    file = write(folder, EPISODE, line)
    with pytest.raises(ValueError, match=f"episodes.jsonl:2: .*{message}"):
        import_jsonl(file, folder / "out")
    assert not (folder / "out").exists()


def test_repeated_ids_a_used_folder_and_a_missing_file_are_refused(folder):
    file = write(folder, {"id": "a", "segments": [FRAME]}, {"id": "a", "segments": [FRAME]})
    with pytest.raises(ValueError, match="'a' occurs twice"):
        import_jsonl(file, folder / "out")
    file = write(folder, EPISODE)
    with pytest.raises(ValueError, match="holds something else"):
        import_jsonl(file, folder)
    with pytest.raises(ValueError, match="does not exist; give a JSON lines file"):
        import_jsonl(folder / "none.jsonl", folder / "out")
    with pytest.raises(ValueError, match="holds no episodes"):
        import_jsonl(write(folder, ""), folder / "out")


def episode(*actions):
    shown = [{"kind": "action", "action": action} for action in actions]
    segments = [FRAME, *[part for action in shown for part in (action, FRAME)]]
    return {"segments": segments}


def test_vectors_of_integers_stay_integers_however_rare_and_others_do_not():
    vectors = [[0, -2]] * 900 + [[1, 7], [2, 900], [4, 5]]
    space = inferred_actions("a", vectors)
    assert space is not None
    assert [space.decode(space.encode(vector)) for vector in vectors] == vectors
    assert space.to_environment([2, 900]).dtype == np.int64
    fractions = inferred_actions("a", [[0.0, 1], [2, 3]])
    assert fractions is not None
    assert fractions.to_environment([0.5, 2]).dtype == np.float32


@pytest.mark.parametrize(
    ("actions", "kind"),
    [
        (["open", "pull", "open"], NamedActions),
        ([[0.5, -1], [1, 2.25]], ContinuousActions),
        ([{"keys": ["w"], "mouse": [0, 3]}, {"keys": [], "mouse": [-1, 0]}], KeyboardMouseActions),
    ],
)
def test_actions_tell_their_own_space(folder, actions, kind):
    import_jsonl(write(folder, episode(*actions)), folder / "out")
    space = ActionSpace.from_config(folder / "out" / "action_space.json")
    assert isinstance(space, kind)
    for action in EpisodeDataset(folder / "out")[0].actions:
        assert space.decode(space.encode(action)) is not None


def test_actions_are_held_against_the_space_that_is_given(folder):
    arm = ContinuousActions.between("arm", ["x"], [-1], [1])
    (folder / "arm.json").write_text(json.dumps(arm.to_config()))
    file = write(folder, episode([0.5]), episode([0.5], [3]))
    with pytest.raises(ValueError, match=r"jsonl:2: segment 3: x=3.0 of 'arm' is not between"):
        import_jsonl(file, folder / "out", actions=folder / "arm.json")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("actions", "message"),
    [([[1], [1, 2]], "equally long"), (["up", [1]], "neither all names"), ([["a"]], "equally")],
)
def test_actions_of_several_kinds_are_refused(folder, actions, message):
    with pytest.raises(ValueError, match=message):
        import_jsonl(write(folder, episode(*actions)), folder / "out")


def test_frames_of_several_sizes_are_refused(folder):
    Image.fromarray(np.zeros((17, 32, 3), np.uint8)).save(folder / "images" / "9.png")
    other = {"kind": "frame", "frame": "images/9.png"}
    file = write(folder, episode("up"), {"segments": [other]})
    with pytest.raises(ValueError, match=r"16 x 32 in 0.png, 17 x 32 in 9.png"):
        import_jsonl(file, folder / "out")


def test_an_import_that_was_cut_off_goes_on_and_a_changed_file_is_refused(folder, monkeypatch):
    monkeypatch.setattr(jsonl, "EPISODES_PER_SHARD", 2)
    lines = [{**EPISODE, "id": str(number)} for number in range(5)]
    file, out = write(folder, *lines), folder / "out"
    import_jsonl(file, folder / "whole")
    whole = jsonl._import_shard

    def cut_off(options, shard):
        if shard.first_seed == 2:
            raise KeyboardInterrupt
        return whole(options, shard)

    with monkeypatch.context() as patch:
        patch.setattr(jsonl, "_import_shard", cut_off)
        with pytest.raises(KeyboardInterrupt):
            import_jsonl(file, out)
    with pytest.raises(ValueError, match="not complete"):
        EpisodeDataset(out)
    first = out / "episodes" / "episodes-000000.parquet"
    written = first.stat().st_mtime_ns
    import_jsonl(file, out)
    assert first.stat().st_mtime_ns == written
    ours, other = EpisodeDataset(out), EpisodeDataset(folder / "whole")
    assert [episode.id for episode in ours] == list("01234")
    assert all(ours.pngs(i) == other.pngs(i) and ours[i] == other[i] for i in range(5))
    write(folder, *lines[:4])
    with pytest.raises(ValueError, match="was begun with"):
        import_jsonl(file, out)


def test_the_report_says_what_was_taken(folder, capsys):
    import_jsonl(write(folder, EPISODE, episode("open")), folder / "out")
    report = capsys.readouterr().out
    assert "2 episodes, 5 frames of 16 x 32" in report
    assert "actions: 3, NamedActions, 1 tokens each" in report
    assert "words: 2 times of the task, 3 of the agent" in report


def test_integers_are_actions_as_the_space_numbers_them(folder):
    import_jsonl(write(folder, episode(-1, 1, 0)), folder / "own")
    space = ActionSpace.from_config(folder / "own" / "action_space.json")
    actions = EpisodeDataset(folder / "own")[0].actions
    assert actions == ["action-1", "action1", "action0"]
    assert [space.to_environment(action) for action in actions] == [-1, 1, 0]
    named = NamedActions("pad", ["left", "stay", "right"])
    (folder / "pad.json").write_text(json.dumps(named.to_config()))
    import_jsonl(write(folder, episode(0, "right")), folder / "pad", actions=folder / "pad.json")
    assert EpisodeDataset(folder / "pad")[0].actions == ["left", "right"]
    with pytest.raises(ValueError, match=r"jsonl:1: segment 1: Action index 3 is outside \[0, 3\)"):
        import_jsonl(write(folder, episode(3)), folder / "none", actions=folder / "pad.json")


def test_a_slip_of_the_pen_stands_in_the_report_with_its_count(folder, capsys):
    import_jsonl(write(folder, episode("left", "go left", "left")), folder / "out")
    assert "left (2), go left (1)" in capsys.readouterr().out


def test_one_slip_of_the_mouse_does_not_take_all_bins(folder, capsys):
    moved = [0.4, 1.0, 3.0, 0.8, 2.0, 1.2, 0.6, 2.5, -180.0]
    told = [{"keys": ["w"], "mouse": [x, 0]} for x in moved]
    import_jsonl(write(folder, episode(*told)), folder / "out")
    assert "1 of 9 movements clipped to it (farthest 180)" in capsys.readouterr().out
    space = ActionSpace.from_config(folder / "out" / "action_space.json")
    actions = EpisodeDataset(folder / "out")[0].actions
    back = [space.decode(space.encode(action))["mouse"][0] for action in actions]
    assert np.abs(np.array(back) - [*moved[:-1], -3.0]).max() <= 0.6
    assert json.loads(str(actions[-1]))["mouse"] == [-3.0, 0.0]


def test_a_frame_outside_of_the_files_folder_is_refused_unless_allowed(folder):
    (folder / "lines").mkdir()
    file = folder / "lines" / "episodes.jsonl"
    file.write_text(json.dumps({"segments": [{"kind": "frame", "frame": "../images/0.png"}]}))
    with pytest.raises(ValueError, match=r"jsonl:1: segment 0: .* lies outside of .*allow-outside"):
        import_jsonl(file, folder / "out")
    assert not (folder / "out").exists()
    command = ["jsonl", "--file", str(file), "--out", str(folder / "out"), "--allow-outside"]
    assert prepare(command) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"segments": ' + "[" * 10_000, "nested too deeply"),
        ('{"seed": 9223372036854775808, "segments": []}', "9223372036854775808 does not fit"),
        ('{"seed": 1' + "0" * 5000 + ', "segments": []}', r"0\.\.\. does not fit into 64 bits"),
        ('{"segments": [{"kind": "action", "action": [1e999]}]}', "1e999 is too large"),
        ('{"segments": [{"kind": "frame", "frame": "a\\u0000b.png"}]}', "is no path"),
    ],
)
def test_json_that_no_number_or_stack_holds_is_named(text, message, folder):
    file = write(folder, EPISODE, text)
    with pytest.raises(ValueError, match=f"episodes.jsonl:2: .*{message}"):
        import_jsonl(file, folder / "out")
    assert not (folder / "out").exists()
