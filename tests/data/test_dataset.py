import io
import json
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from data.dataset import EpisodeDataset
from data.episode import SegmentRecord, decode_png, encode_png
from data.latents import write_latents
from tests.data.preparing import prepare
from unified.conversation.sequence import Kind
from unified.media.codec import FrameCodec, pixels_to_frames


@pytest.fixture(scope="module")
def codec_folder(tiny_codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("codec")
    tiny_codec.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def latents_folder(babyai_folder, codec_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoded") / "babyai"
    shutil.copytree(babyai_folder, folder)
    command = ["latents", "--data", str(folder), "--codec", str(codec_folder), "--batch", "7"]
    assert prepare(command) == 0
    return folder


def rows_of(dataset):
    files = [dataset.folder / shard["file"] for shard in dataset.info["shards"]]
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def test_episodes_are_the_rows_of_the_files(babyai_folder):
    dataset = EpisodeDataset(babyai_folder)
    rows = rows_of(dataset)
    assert len(dataset) == len(rows) == 16
    for episode, row, length in zip(dataset, rows, dataset.lengths, strict=True):
        segments = row["segments"]
        actions = [segment for segment in segments if segment["kind"] == "action"]
        frames = [segment for segment in segments if segment["kind"] == "frame"]
        assert (episode.id, episode.level, episode.seed) == (row["id"], row["level"], row["seed"])
        assert episode.task == segments[0]["text"]
        assert episode.actions == [segment["action"] for segment in actions]
        assert episode.targets == [segment["target"] for segment in actions]
        assert episode.action_weights == [segment["weight"] for segment in actions]
        assert [list(motion or ()) for motion in episode.motions] == [
            segment["motion"] for segment in actions
        ]
        assert episode.outcomes == [segment["outcome"] for segment in frames]
        assert episode.captions == [segment["caption"] for segment in frames]
        assert len(frames) == length == len(actions) + 1
        said: list[list[str]] = []
        told: list[str | None] = []
        of_world = None
        for segment in segments[1:]:
            if segment["kind"] == "frame":
                said.append([])
                told.append(of_world)
                of_world = None
            elif segment["kind"] == "text" and segment["role"] == "world":
                of_world = segment["text"]
            elif segment["kind"] == "text":
                said[-1].append(segment["text"])
        assert [[words.text for words in turn] for turn in episode.said] == said
        assert episode.told == told
    assert dataset.levels == ["GoToRedBall", "OpenDoor"]
    assert dataset[-1].id == dataset[15].id
    with pytest.raises(IndexError, match="episode 16 of 16"):
        dataset[16]


def test_frames_are_decoded_in_any_order(babyai_folder):
    dataset = EpisodeDataset(babyai_folder)
    rows = rows_of(dataset)
    for index in (15, 0, 7, 3):
        pngs = [one["frame"]["bytes"] for one in rows[index]["segments"] if one["frame"]]
        for frame, png in zip(dataset.frames(index), pngs, strict=True):
            np.testing.assert_array_equal(frame, decode_png(png))


def test_latents_are_the_codecs_row_by_row(latents_folder, codec_folder):
    dataset = EpisodeDataset(latents_folder, require_latents=True)
    codec = FrameCodec.from_pretrained(codec_folder)
    for index in (0, 9, 15):
        frames = pixels_to_frames(np.stack(dataset.frames(index)))
        with torch.no_grad():
            expected = codec.encode(frames)
        latents = dataset[index].latents
        assert latents is not None
        assert latents.dtype == np.float16
        np.testing.assert_allclose(latents, expected.numpy(), atol=1e-2)


def test_a_worker_process_maps_the_latents_again(latents_folder):
    dataset = EpisodeDataset(latents_folder)
    data = pickle.dumps(dataset)
    copy = pickle.loads(data)
    assert dataset.latents is not None
    np.testing.assert_array_equal(copy[5].latents, dataset[5].latents)
    assert copy.sequence(5).segments[1].latents.shape == dataset.latents.shape[1:]


def test_latents_of_the_same_codec_are_kept_and_of_another_replaced(
    latents_folder, codec_folder, tmp_path, other_codec
):
    folder = tmp_path / "data"
    shutil.copytree(latents_folder, folder)
    written = (folder / "latents.npy").stat().st_mtime_ns
    command = ["latents", "--data", str(folder), "--codec"]
    assert prepare([*command, str(codec_folder)]) == 0
    assert (folder / "latents.npy").stat().st_mtime_ns == written
    other_codec.save_pretrained(tmp_path / "other")
    assert prepare([*command, str(tmp_path / "other")]) == 0
    assert (folder / "latents.npy").stat().st_mtime_ns != written


def test_missing_or_torn_latents_are_refused(babyai_folder, latents_folder, tmp_path):
    with pytest.raises(ValueError, match="has no latents; write them with"):
        EpisodeDataset(babyai_folder, require_latents=True)
    with pytest.raises(ValueError, match="run data.prepare latents, or pixels=True"):
        EpisodeDataset(babyai_folder).sequence(0)
    folder = tmp_path / "data"
    shutil.copytree(latents_folder, folder)
    np.save(folder / "latents.npy", np.zeros((3, 4, 7, 7), np.float16))
    with pytest.raises(ValueError, match="rerun python -m data.prepare latents"):
        EpisodeDataset(folder)
    (folder / "latents.npy").unlink()
    with pytest.raises(ValueError, match="rerun python -m data.prepare latents"):
        EpisodeDataset(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_latents_that_are_no_numbers_are_refused_when_the_folder_is_opened(
    latents_folder, tmp_path, value, dtype
):
    folder = tmp_path / "babyai"
    shutil.copytree(latents_folder, folder)
    latents = np.load(folder / "latents.npy").astype(dtype)
    np.save(folder / "latents.npy", latents)
    good = EpisodeDataset(folder)
    place = int(good.lengths[:9].sum()) + 1
    latents[place, 0, 3, 2] = value
    np.save(folder / "latents.npy", latents)
    with pytest.raises(ValueError, match=f"infinity at frame 1 of episode '{good[9].id}'"):
        EpisodeDataset(folder)


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("action", "weight", float("nan"), "has weight nan; give a finite number of at least 0"),
        ("frame", "weight", -1.0, "has weight -1.0"),
        ("frame", "outcome", "won", "has outcome 'won'; use one of ongoing, success, failure"),
        ("text", "role", "user", "has role 'user'; use one of task, agent, world"),
        ("text", "role", None, "has role None"),
        ("action", "kind", "jump", "has kind 'jump'; use one of text, action, frame"),
        ("action", "kind", "frame", "has kind 'frame' and another role than world"),
        ("action", "role", "world", "has kind 'action' and another role than agent"),
        ("action", "motion", [0.0, float("nan"), 0.0], "has a motion that is not finite"),
        ("action", "motion", [float("inf"), 0.0, 0.0], "has a motion that is not finite"),
        ("action", "motion", [0.0], "has a motion of other than three numbers"),
        ("frame", "motion", [0.0] * 3, "has a motion, which only actions have"),
        ("action", "action", "zzz", "has action 'zzz', which is none of .*action_space.json"),
        ("action", "target", "zzz", "has target 'zzz', which is none of .*action_space.json"),
        ("frame", "action", "left", "has a field action that its kind does not have"),
        ("frame", "frame", None, "has kind 'frame' and no picture"),
        ("action", "frame", {"bytes": b"x", "path": None}, "has a picture, which only frames have"),
        ("text", "text", None, "has kind 'text' and no text"),
        ("frame", "text", "look", "has a field text that its kind does not have"),
    ],
)
def test_what_no_record_can_hold_is_refused_when_the_folder_is_opened(
    babyai_folder, tmp_path, kind, field, value, message
):
    folder = tmp_path / "babyai"
    shutil.copytree(babyai_folder, folder)
    shard = folder / EpisodeDataset(folder).info["shards"][-1]["file"]
    table = pq.read_table(shard)
    rows = table.to_pylist()
    place = [segment["kind"] for segment in rows[1]["segments"]].index(kind)
    rows[1]["segments"][place][field] = value
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    where = f"segment {place} of episode '{rows[1]['id']}' {message}"
    with pytest.raises(ValueError, match=where):
        EpisodeDataset(folder)


def test_counting_pictures_reads_none_of_them(babyai_folder, monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("a row group was read")

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", read)
    assert len(EpisodeDataset(babyai_folder)) == 16


@pytest.mark.parametrize(
    ("png", "message"),
    [
        (b"\x89PNG", "frame 1 of episode '{id}' cannot be read"),
        (b"", "episode '{id}' has {less} pictures for {count} frames"),
    ],
)
def test_a_picture_that_cannot_be_read_is_named_by_its_episode(
    png, message, babyai_folder, tmp_path
):
    folder = tmp_path / "babyai"
    shutil.copytree(babyai_folder, folder)
    shard = folder / EpisodeDataset(folder).info["shards"][0]["file"]
    table = pq.read_table(shard)
    rows = table.to_pylist()
    places = [i for i, one in enumerate(rows[1]["segments"]) if one["kind"] == "frame"]
    rows[1]["segments"][places[1]]["frame"]["bytes"] = png
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    dataset = EpisodeDataset(folder)
    assert len(dataset.frames(0)) == dataset.lengths[0]
    count = len(places)
    message = message.format(id=rows[1]["id"], less=count - 1, count=count)
    with pytest.raises(ValueError, match=message):
        dataset.frames(1)


GOOD = {"file": "episodes/a.parquet", "episodes": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: [], "is damaged .it holds no object"),
        (lambda info: {**info, "shards": None}, "shards is None, no list of files"),
        (lambda info: {**info, "shards": []}, r"shards is \[\], no list of files"),
        (lambda info: {**info, "shards": [5]}, "the shard 5 lacks its file"),
        (lambda info: {**info, "shards": [{**GOOD, "episodes": "1"}]}, "'1'} lacks its file or"),
        (lambda info: {**info, "shards": [{**GOOD, "episodes": True}]}, "True} lacks its file or"),
        (lambda info: {**info, "shards": [{**GOOD, "file": None}]}, "lacks its file or"),
        (lambda info: {**info, "shards": [{**GOOD, "file": "../a"}]}, "'../a' lies outside of"),
        (lambda info: {**info, "shards": [{**GOOD, "file": "/a"}]}, "'/a' lies outside of"),
    ],
)
def test_an_info_of_other_types_is_refused(change, message, babyai_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(babyai_folder, folder)
    path = folder / "info.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=f"info.json.*{message}"):
        EpisodeDataset(folder)


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ([], "it holds no object"),
        ({}, "codec is None, no fingerprint"),
        ({"codec": "x"}, "shape is None, no list of integers"),
        ({"codec": "x", "shape": ["1"]}, "no list of integers"),
    ],
)
def test_an_info_of_latents_of_other_types_is_refused(
    info, message, latents_folder, tiny_codec, tmp_path
):
    folder = tmp_path / "data"
    shutil.copytree(latents_folder, folder)
    (folder / "latents.json").write_text(json.dumps(info))
    for read in (EpisodeDataset, lambda one: write_latents(one, tiny_codec)):
        with pytest.raises(ValueError, match=f"latents.json is damaged .*{message}"):
            read(folder)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((4, 7, 7), "int64"), ((4, 7, 7), "complex128"), ((4, 7, 7), "<U1"), ((4,), "float16")],
)
def test_latents_of_another_kind_are_refused(shape, dtype, latents_folder, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(latents_folder, folder)
    info = json.loads((folder / "latents.json").read_text())
    info["shape"] = [info["shape"][0], *shape]
    np.save(folder / "latents.npy", np.zeros(info["shape"], dtype))
    (folder / "latents.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match=rf"latents.npy holds {dtype} of shape .*, not floating"):
        EpisodeDataset(folder)


def test_a_sequence_has_the_segments_of_its_row(babyai_folder):
    dataset = EpisodeDataset(babyai_folder)
    for index, row in enumerate(rows_of(dataset)):
        sequence = dataset.sequence(index, pixels=True)
        for segment, stored in zip(sequence.segments, row["segments"], strict=True):
            for name in ("kind", "role", "text", "action", "target", "outcome"):
                assert getattr(segment, name) == stored[name]
            is_given = stored["kind"] == "text" and stored["role"] != "agent"
            assert segment.weight == (0 if is_given else stored["weight"])
            if segment.kind is Kind.FRAME:
                assert segment.frame is not None
                np.testing.assert_array_equal(segment.frame, decode_png(stored["frame"]["bytes"]))


def test_a_missing_folder_or_shard_is_refused(babyai_folder, tmp_path):
    with pytest.raises(ValueError, match="does not exist; write one with data.prepare"):
        EpisodeDataset(tmp_path / "nowhere")
    folder = tmp_path / "data"
    shutil.copytree(babyai_folder, folder)
    (folder / "episodes" / "OpenDoor-000000.parquet").unlink()
    with pytest.raises(ValueError, match="is missing; delete info.json and rerun"):
        EpisodeDataset(folder)
    (folder / "episodes" / "OpenDoor-000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="is damaged"):
        EpisodeDataset(folder)
    (folder / "info.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        EpisodeDataset(folder)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("seed", [["1"]] * 8, r"column seed is list<.*string>, not int64"),
        ("segments", ["none"] * 8, r"column segments is string, not list<"),
        ("level", None, "column level is missing, not string"),
    ],
)
def test_columns_of_another_type_are_refused(babyai_folder, tmp_path, name, values, message):
    folder = tmp_path / "data"
    shutil.copytree(babyai_folder, folder)
    path = folder / "episodes" / "OpenDoor-000000.parquet"
    table = pq.read_table(path)
    place = table.column_names.index(name)
    if values is None:
        table = table.drop([name])
    else:
        table = table.set_column(place, name, pa.array(values[: len(table)]))
    pq.write_table(table, path)
    with pytest.raises(ValueError, match=rf"OpenDoor-000000.parquet is damaged \({message}"):
        EpisodeDataset(folder)


def test_a_folder_that_others_wrote_shows_pictures_of_any_kind_as_they_look():
    levels = np.array([[0, 257, 32768, 65535]], np.uint16)
    for image, expected in (
        (Image.fromarray(levels), [0, 1, 128, 255]),
        (Image.fromarray(np.zeros((1, 4, 4), np.uint8)), [255] * 4),
        (Image.fromarray(np.array([[0, 9, 90, 255]], np.uint8)), [0, 9, 90, 255]),
    ):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        assert decode_png(buffer.getvalue())[0].tolist() == [[x] * 3 for x in expected]


def test_png_keeps_every_pixel():
    frame = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    np.testing.assert_array_equal(decode_png(encode_png(frame)), frame)
    with pytest.raises(ValueError, match="give uint8"):
        encode_png(frame.astype(np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "sound", "role": "world"}, "kind 'sound' is unknown"),
        ({"kind": "text", "role": "narrator", "text": "a"}, "role 'narrator' is unknown"),
        ({"kind": "action", "role": "world"}, "cannot be spoken by 'world'"),
        ({"kind": "text", "role": "agent"}, "only text has"),
        ({"kind": "frame", "role": "world"}, "have an image"),
        ({"kind": "frame", "role": "world", "frame": b"", "outcome": "won"}, "outcome 'won'"),
        ({"kind": "action", "role": "agent", "outcome": "success"}, "no outcome"),
        ({"kind": "text", "role": "agent", "text": "a", "action": "left"}, "names an action"),
        ({"kind": "action", "role": "agent", "weight": -1.0}, "weight -1.0"),
        ({"kind": "action", "role": "agent", "weight": float("nan")}, "weight nan"),
        ({"kind": "action", "role": "agent", "weight": 1e308}, r"weight 1e\+308 .*32 bits"),
        (
            {"kind": "action", "role": "agent", "motion": (1e39, 0.0, 0.0)},
            r"motion \(1e\+39, 0.0, 0.0\) must be finite and fit into 32 bits",
        ),
    ],
)
def test_a_wrong_segment_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        SegmentRecord(**fields)
