"""Minari datasets, in and out, by Minari's own package: HDF5 or Arrow.

An episode of Minari has T + 1 observations and T actions, as ours have.
"""

import functools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from tqdm import tqdm

from data.dataset import EpisodeDataset
from data.episode import (
    FORMAT_VERSION,
    EpisodeRecord,
    SegmentRecord,
    encode_png,
)
from data.shards import Shard, claim_folder, cut_shards, export_request, record_shards, store
from data.sources.gymnasium import action_space_from, written_action
from data.sources.video import resized
from unified.files import write_json
from unified.media.action_space import ACTIONS_FILE, ActionSpace
from unified.media.actions import ContinuousActions, MultiDiscreteActions, NamedActions

EPISODES_PER_SHARD = 50
TASKS = ("mission", "task", "instruction")


class MinariReader:
    """The episodes of a Minari dataset.

    Args:
        folder: The one that holds `metadata.json`, or the one above it.
        image: Key of the pictures among the observations; None takes the only ones.
        size: Height and width of the frames; None leaves them as they are.
        task: Words that open each episode; None takes the observations' own, if they have any.

    Raises:
        ValueError: If it is no such dataset, has no pictures, or has actions that tokens cannot
            tell.
    """

    def __init__(
        self,
        folder: Path,
        *,
        image: str | None = None,
        size: tuple[int, int] | None = None,
        task: str | None = None,
    ) -> None:
        try:
            from minari import MinariDataset
        except ImportError as error:
            raise ValueError('Minari is not installed; pip install "minari[hdf5]"') from error
        self.folder, self.size, self.task = folder, size, task
        data = folder if (folder / "metadata.json").exists() else folder / "data"
        try:
            self.dataset = MinariDataset(data)
        except Exception as error:  # h5py, pyarrow and json each have their own
            raise ValueError(f"{folder} is no Minari dataset that can be read: {error}") from error
        self.image = self._picture_key(image)
        own = self.dataset.storage.metadata.get("unified_action_space")
        self.actions = (
            ActionSpace.from_config(json.loads(own))
            if own
            else action_space_from(self.dataset.action_space, folder.name)
        )

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.dataset)

    def _picture_key(self, image: str | None) -> str | None:
        """None if the observations are the pictures."""
        space = self.dataset.observation_space
        if isinstance(space, spaces.Dict):
            found = [key for key, inner in space.spaces.items() if _is_picture(inner)]
            if image in found or (image is None and len(found) == 1):
                return image or found[0]
            raise ValueError(
                f"{self.folder} has pictures under {found or 'no key'}, not {image!r}; name one"
            )
        if image is not None or not _is_picture(space):
            raise ValueError(
                f"the observations of {self.folder} are {space}, no pictures (H, W, 3) uint8; "
                "record the environment with data.record, which renders it"
            )
        return None

    def record(self, place: int) -> EpisodeRecord:
        """Episode number `place`.

        Raises:
            ValueError: If it cannot be read, or holds something that is no action.
        """
        try:
            (episode,) = self.dataset.iterate_episodes([place])
        except Exception as error:
            raise ValueError(f"{self.folder}, episode {place} is damaged: {error}") from error
        seen: Any = episode.observations
        frames = seen if self.image is None else seen[self.image]
        task = self.task or _told(seen)
        segments = [SegmentRecord(kind="text", role="task", text=task, weight=0.0)] if task else []
        actions: Any = episode.actions
        last = len(actions)
        if len(frames) != last + 1:
            raise ValueError(
                f"{self.folder}, episode {place} has {len(frames)} observations and {last} "
                "actions; there must be one more observation than actions"
            )
        for step, frame in enumerate(frames):
            if step:
                try:
                    action = written_action(self.actions, actions[step - 1])
                except ValueError as error:
                    where = f"{self.folder}, episode {place}, step {step - 1}"
                    raise ValueError(f"{where}: {error}") from error
                segments.append(SegmentRecord(kind="action", role="agent", action=action))
            outcome = "ongoing"
            if step == last and last and episode.terminations[-1]:
                outcome = "success" if episode.rewards[-1] > 0 else "failure"
            png = encode_png(resized(np.ascontiguousarray(frame), self.size))
            segments.append(SegmentRecord(kind="frame", role="world", frame=png, outcome=outcome))
        return EpisodeRecord(
            id=f"{self.folder.name}/{place}",
            source="minari",
            level=self.folder.name,
            seed=-1,
            behaviour="recorded",
            segments=segments,
        )


def _is_picture(space: Any) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)


def _told(observations: Any) -> str | None:
    if isinstance(observations, dict):
        for key in TASKS:
            if key in observations and isinstance(observations[key][0], str):
                return observations[key][0]
    return None


@functools.cache
def _reader(options: str) -> MinariReader:
    values = json.loads(options)
    size = values["size"] and tuple(values["size"])
    folder = Path(values["folder"])
    return MinariReader(folder, image=values["image"], size=size, task=values["task"])


def _import_shard(options: str, shard: Shard) -> tuple[Shard, int]:
    return store(shard, [_reader(options).record(place) for place in shard.seeds])


def import_minari(
    folder: Path,
    out: Path,
    *,
    image: str | None = None,
    size: tuple[int, int] | None = None,
    task: str | None = None,
    workers: int = 1,
) -> None:
    """Writes a Minari dataset into a data folder; a second call resumes.

    The action space goes to `action_space.json`.

    Args:
        folder: The one that holds `metadata.json`, or the one above it.
        out: Data folder to write.
        image: Key of the pictures among the observations; None takes the only ones.
        size: Height and width of the frames; None leaves them as they are.
        task: Words that open each episode; None takes the observations' own, if they have any.
        workers: Number of processes.

    Raises:
        ValueError: If the dataset cannot be read, or `out` was begun with something else.
    """
    options = json.dumps({"folder": str(folder), "image": image, "size": size, "task": task})
    _reader.cache_clear()
    reader = _reader(options)
    count = len(reader)
    print(
        f"{folder}: {count} episodes of {reader.dataset.id}; pictures: {reader.image or 'all'}; "
        f"actions: {type(reader.actions).__name__}, {reader.actions.num_tokens} tokens"
    )
    shards = cut_shards(
        out, "episodes", folder.name, first_seed=0, episodes=count, size=EPISODES_PER_SHARD
    )
    request = {
        "source": "minari",
        "format_version": FORMAT_VERSION,
        "levels": [folder.name],
        "episodes": count,
        "reader": json.loads(options),
    }
    record_shards(out, request, shards, functools.partial(_import_shard, options), workers)
    write_json(out / ACTIONS_FILE, reader.actions.to_config())


def export_minari(
    data: Path, out: Path, *, name: str | None = None, actions: Path | None = None
) -> None:
    """Writes a data folder as a Minari dataset, its pictures uncompressed and so bit by bit.

    What was cut off is begun anew by a second call, as all is one file.

    Observations are `image` and `mission`; the reward is 1 at a success. What Minari has no place
    for (words after the task, captions, targets, motions) is left out.

    Args:
        data: A complete data folder.
        out: A new folder, or one that the same export began; below `~/.minari/datasets`,
            `minari.load_dataset` finds it.
        name: The dataset's id, such as `babyai/mine-v0`; None is made of the folder's name.
        actions: Action space (JSON); None reads the folder's `action_space.json`.

    Raises:
        ValueError: If `out` holds something else, there is no action space, or an action is
            unknown.
    """
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    space = ActionSpace.from_config(actions or data / ACTIONS_FILE)
    dataset = EpisodeDataset(data)
    name = name or f"{data.name}-v0"
    claim_folder(out, export_request("minari", dataset, space, name=name))
    if (out / "data").exists():
        print(f"{out} is complete")
        return
    draft = (out / "partial").resolve()  # Minari looks for a relative path behind itself
    shape = dataset.frames(0)[0].shape
    words = max(len(episode.task or "") for episode in dataset)
    charset = frozenset("".join(episode.task or "" for episode in dataset)) or frozenset(" ")
    observed = spaces.Dict(
        {
            "image": spaces.Box(0, 255, shape, np.uint8),
            "mission": spaces.Text(max_length=max(words, 1), min_length=0, charset=charset),
        }
    )

    def buffers() -> Iterator[Any]:
        for index in tqdm(range(len(dataset)), unit="episode", desc="minari"):
            episode = dataset[index]
            steps = len(episode.actions)
            end = episode.outcomes[-1]
            values = []
            for step, action in enumerate(episode.actions):
                try:
                    values.append(_value(space, action))
                except ValueError as error:
                    raise ValueError(f"episode {episode.id}, step {step}: {error}") from error
            yield EpisodeBuffer(
                observations={
                    "image": dataset.frames(index),
                    "mission": [episode.task or ""] * (steps + 1),
                },
                actions=values,
                rewards=[0.0] * (steps - 1) + [float(end == "success")],
                terminations=[False] * (steps - 1) + [end in ("success", "failure")],
                truncations=[False] * (steps - 1) + [end not in ("success", "failure")],
            )

    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    storage = MinariStorage.new(draft, observed, _space(space), jpeg_encoding=False)
    storage.update_episodes(buffers())
    storage.update_metadata(
        {
            "dataset_id": name,
            "minari_version": minari.__version__,
            "unified_action_space": json.dumps(space.to_config()),
        }
    )
    draft.rename(out / "data")  # only now it is a dataset


def _space(actions: ActionSpace) -> Any:
    """The space of gymnasium that holds what `_value` gives."""
    if isinstance(actions, NamedActions):
        return spaces.Discrete(len(actions.names))
    if isinstance(actions, MultiDiscreteActions):
        return spaces.MultiDiscrete([len(options) for options in actions.parts.values()])
    if isinstance(actions, ContinuousActions) and actions.chunk == 1:
        return spaces.Box(actions.edges[:, 0], actions.edges[:, -1], dtype=np.float64)
    raise ValueError(
        f"the actions of {actions.name!r} have no space in Minari; export named actions, several "
        "choices, or single vectors"
    )


def _value(actions: ActionSpace, action: str | None) -> Any:
    tokens = actions.encode(action)
    if isinstance(actions, NamedActions):
        return actions.names.index(actions.decode(tokens))
    if isinstance(actions, MultiDiscreteActions):
        return np.array(actions.indices(action))
    return np.array(json.loads(str(action)), dtype=float)
