"""Minari datasets, in and out, by Minari's own package: HDF5 or Arrow.

An episode of Minari has T + 1 observations and T actions, as ours have.
"""

import copy
import functools
import importlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
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
from data.frames import is_blank_end
from data.outcomes import OutcomeRule, default_rule, told_rule
from data.shards import (
    Shard,
    action_space_of_folder,
    claim_folder,
    cut_shards,
    export_request,
    record_shards,
    store,
)
from data.sources.gymnasium import action_space_from, written_action
from data.sources.tasks import check_tasks, read_tasks
from data.sources.video import resized
from unified.media.action_space import ActionSpace
from unified.media.actions import ContinuousActions, MultiDiscreteActions, NamedActions
from unified.media.numbers import is_whole

EPISODES_PER_SHARD = 50
TASKS = ("mission", "task", "instruction")
OUTCOME = "unified_outcome"
"""Of an export of ours, in `infos`: a number of `_CODES` for each observation."""
_CODES = (None, "ongoing", "success", "failure")


class MinariReader:
    """The episodes of a Minari dataset.

    Args:
        folder: The one that holds `metadata.json`, or the one above it.
        image: Key of the pictures among the observations; None takes the only ones.
        size: Height and width of the frames; None leaves them as they are.
        task: Words that open each episode; None takes the observations' own, if they have any.
        tasks: Words that open the episode of a number, which go before `task`.
        outcome: What a success is, see `data.outcomes.OutcomeRule`; None takes what an export of
            ours says, or the `reward_threshold` of the environment; without, nobody knows.
        action_names: Of the actions, if the dataset does not name them.
        keep_last_frame: Whether an end that shows nothing shows the frame before it again.

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
        tasks: Mapping[str, str] | None = None,
        outcome: str | None = None,
        action_names: Sequence[str] = (),
        keep_last_frame: bool = False,
    ) -> None:
        try:
            from minari import MinariDataset
        except ImportError as error:
            raise ValueError('Minari is not installed; pip install "minari[hdf5]"') from error
        self.folder, self.size, self.task = folder, size, task
        self.tasks, self.keep_last_frame = dict(tasks or {}), keep_last_frame
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
            else action_space_from(self.dataset.action_space, folder.name, action_names)
        )
        self.spec = self._spec()
        threshold = getattr(self.spec, "reward_threshold", None)
        self._chosen, self.has_own_outcomes = outcome, outcome is None and bool(own)
        self.rule = OutcomeRule(outcome) if outcome else default_rule(threshold)
        self.has_told_blank = False

    @property
    def rule_text(self) -> str:
        """A report of where outcomes come from."""
        return (
            "those of the export" if self.has_own_outcomes else told_rule(self._chosen, self.rule)
        )

    def _spec(self) -> Any:
        """Of the environment that was recorded, if the dataset says so."""
        try:
            return self.dataset.env_spec
        except Exception:  # of a package that is not installed, or of another version
            return None

    def __len__(self) -> int:
        """Number of episodes."""
        return len(self.dataset)

    def _picture_key(self, image: str | None) -> str | None:
        """Key of the pictures; None if the observations are the pictures themselves."""
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
        """The episode at index `place`.

        Raises:
            ValueError: If it cannot be read, or holds something that is no action.
        """
        try:
            (episode,) = self.dataset.iterate_episodes([place])
        except Exception as error:
            raise ValueError(f"{self.folder}, episode {place} is damaged: {error}") from error
        seen: Any = episode.observations
        frames = seen if self.image is None else seen[self.image]
        given = self.tasks.get(str(place)) or self.task
        told = [given] * len(frames) if given else _told(seen, len(frames))
        task = told[0]
        segments = [SegmentRecord(kind="text", role="task", text=task, weight=0.0)] if task else []
        actions: Any = episode.actions
        last = len(actions)
        if len(frames) != last + 1:
            raise ValueError(
                f"{self.folder}, episode {place} has {len(frames)} observations and {last} "
                "actions; there must be one more observation than actions"
            )
        views = [
            resized(
                np.ascontiguousarray(frame),
                self.size,
                f"{self.folder}, episode {place}: frame {number}",
            )
            for number, frame in enumerate(frames)
        ]
        outcomes = self._outcomes(episode, place)
        if last and is_blank_end(views[-2], views[-1]):
            self._tell_blank(place)
            views[-1] = views[-2] if self.keep_last_frame else views[-1]
        for step, (view, outcome) in enumerate(zip(views, outcomes, strict=True)):
            if step:
                try:
                    action = written_action(self.actions, actions[step - 1])
                except ValueError as error:
                    where = f"{self.folder}, episode {place}, step {step - 1}"
                    raise ValueError(f"{where}: {error}") from error
                segments.append(SegmentRecord(kind="action", role="agent", action=action))
            png = encode_png(view)
            segments.append(SegmentRecord(kind="frame", role="world", frame=png, outcome=outcome))
            if step and told[step] and told[step] != told[step - 1]:
                segments.append(
                    SegmentRecord(kind="text", role="task", text=told[step], weight=0.0)
                )
        return EpisodeRecord(
            id=f"{self.folder.name}/{place}",
            source="minari",
            level=self.folder.name,
            seed=-1,
            behaviour="recorded",
            segments=segments,
        )

    def _outcomes(self, episode: Any, place: int) -> list[str | None]:
        """How things stand at each observation."""
        infos = episode.infos or {}
        if self.has_own_outcomes and OUTCOME in infos:
            return [_CODES[int(code)] for code in infos[OUTCOME]]
        judge = self.rule.begin(_Recorded(self.spec))
        found: list[str | None] = ["ongoing"]
        for step, reward in enumerate(episode.rewards):
            info = _told_after(infos, step, len(episode.rewards))
            ended = bool(episode.terminations[step]), bool(episode.truncations[step])
            try:
                found.append(judge(float(reward), *ended, info))
            except ValueError as error:
                where = f"{self.folder}, episode {place}, step {step}"
                raise ValueError(f"{where}: {error}") from error
        return found

    def _tell_blank(self, place: int) -> None:
        """Says once that episodes end with a frame that shows nothing."""
        if not self.has_told_blank:
            self.has_told_blank = True
            what = "its frame before is kept" if self.keep_last_frame else "--keep-last-frame mends"
            tqdm.write(
                f"warning: {self.folder}: the last frame of episode {place} is blank; {what}",
                file=sys.stderr,
            )


class _Recorded:
    """What a dataset knows of the environment that it was recorded in."""

    def __init__(self, spec: Any) -> None:
        self.spec = spec


def _told_after(infos: Mapping[str, Any], step: int, count: int) -> dict[str, Any]:
    """What `info` held after a step, of columns and groups of columns.

    Args:
        infos: Columns with a value for the reset and each step, or for each step alone; others are
            left out, since nobody knows which step they are of.
        step: Number of the step, from 0.
        count: Number of steps.
    """
    found = {}
    for key, values in infos.items():
        if isinstance(values, Mapping):
            found[key] = _told_after(values, step, count)
        elif len(values) in (count, count + 1):
            found[key] = values[step + len(values) - count]
    return found


def _is_picture(space: Any) -> bool:
    return isinstance(space, spaces.Box) and space.dtype == np.uint8 and space.shape[2:] == (3,)


def _told(observations: Any, count: int) -> list[str | None]:
    """The task at each observation, as the observations themselves tell it."""
    if isinstance(observations, dict):
        for key in TASKS:
            if key in observations and isinstance(observations[key][0], str):
                return list(observations[key])
    return [None] * count


@functools.cache
def _reader(options: str) -> MinariReader:
    values = json.loads(options)
    values["size"] = values["size"] and tuple(values["size"])
    return MinariReader(Path(values.pop("folder")), **values)


def _import_shard(options: str, shard: Shard) -> tuple[Shard, int]:
    return store(shard, [_reader(options).record(place) for place in shard.seeds])


def import_minari(
    folder: Path,
    out: Path,
    *,
    image: str | None = None,
    size: tuple[int, int] | None = None,
    task: str | None = None,
    tasks: Path | None = None,
    outcome: str | None = None,
    action_names: Sequence[str] = (),
    keep_last_frame: bool = False,
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
        tasks: File with the words of each episode: CSV with the columns episode and task, or JSON.
        outcome: What a success is: `info:KEY`, `reward>X`, `return>=X`, `terminated`, `truncated`,
            `module:function` or `none`; None takes the environment's own `reward_threshold`, and
            without one nobody knows how an episode ended.
        action_names: Of the actions, in their order, if the dataset does not name them.
        keep_last_frame: Show the frame before again where the last one of an episode is blank.
        workers: Number of processes.

    Raises:
        ValueError: If the dataset cannot be read, or `out` was begun with something else.
    """
    told = read_tasks(tasks) if tasks is not None else {}
    options = json.dumps(
        {
            "folder": str(folder),
            "image": image,
            "size": size,
            "task": task,
            "tasks": told,
            "outcome": outcome,
            "action_names": list(action_names),
            "keep_last_frame": keep_last_frame,
        }
    )
    _reader.cache_clear()
    reader = _reader(options)
    count = len(reader)
    check_tasks(told, [str(place) for place in range(count)], tasks)
    print(
        f"{folder}: {count} episodes of {reader.dataset.id}; pictures: {reader.image or 'all'}; "
        f"actions: {type(reader.actions).__name__}, {reader.actions.num_tokens} tokens\n"
        f"  outcomes: {reader.rule_text}"
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
    write = functools.partial(_import_shard, options)
    record_shards(out, request, shards, write, workers, actions=reader.actions)


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

    dataset = EpisodeDataset(data)
    space = action_space_of_folder(data, actions)
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
                infos={OUTCOME: np.array([_CODES.index(one) for one in episode.outcomes])},
            )

    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    storage = MinariStorage.new(draft, observed, _space(space), jpeg_encoding=False)
    storage.update_episodes(buffers())
    spec = recorded_spec(dataset.info)
    storage.update_metadata(
        {
            "dataset_id": name,
            "minari_version": minari.__version__,
            "unified_action_space": json.dumps(space.to_config()),
            **({"env_spec": spec} if spec else {}),
        }
    )
    draft.rename(out / "data")  # only now it is a dataset


def recorded_spec(info: Mapping[str, Any]) -> str | None:
    """The environment that a data folder was recorded in, as JSON; None if there is not one.

    Args:
        info: Content of the folder's `info.json`.
    """
    import gymnasium

    recorder = info.get("recorder")
    levels = info.get("levels", [])
    if isinstance(recorder, Mapping):
        made, options = str(recorder["env"]), dict(recorder.get("options", {}))
    elif info.get("source") == "babyai" and len(levels) == 1:
        importlib.import_module("minigrid")
        made, options = f"BabyAI-{levels[0]}-v0", {}
    else:
        return None
    try:
        module, _, name = made.rpartition(":")
        if module:
            importlib.import_module(module)
        spec = copy.deepcopy(gymnasium.spec(name))
        spec.kwargs.update(options)
        return spec.to_json()
    except (gymnasium.error.Error, ImportError, ValueError, TypeError) as error:
        print(f"without env_spec: {made} is not known here, or cannot be written ({error})")
        return None


def _space(actions: ActionSpace) -> Any:
    """The space of gymnasium that holds what `_value` gives."""
    if isinstance(actions, NamedActions):
        return spaces.Discrete(len(actions.names), start=actions.start)
    if isinstance(actions, MultiDiscreteActions):
        counts = [len(options) for options in actions.parts.values()]
        dtype: Any = actions.dtype.type
        return spaces.MultiDiscrete(counts, dtype=dtype, start=np.array(actions.starts))
    if isinstance(actions, ContinuousActions) and actions.chunk == 1:
        low, high = actions.bounds
        dtype = actions.dtype.type if is_whole(actions.dtype) else np.float64
        return spaces.Box(low.astype(dtype), high.astype(dtype), dtype=dtype)
    raise ValueError(
        f"the actions of {actions.name!r} have no space in Minari; export named actions, several "
        "choices, or single vectors"
    )


def _value(actions: ActionSpace, action: str | None) -> Any:
    actions.encode(action)
    if isinstance(actions, NamedActions | MultiDiscreteActions):
        return actions.to_environment(action)
    dtype = np.float64
    if isinstance(actions, ContinuousActions) and is_whole(actions.dtype):
        dtype = actions.dtype
    return np.array(json.loads(str(action)), dtype=dtype)
