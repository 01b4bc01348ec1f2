"""Record BabyAI: many episodes, each a pure function of its level and seed."""

import functools
from pathlib import Path

from data.babyai.recorder import BEHAVIOURS, EVALUATION_SEEDS, Recorder
from data.babyai.views import ACTIONS
from data.episode import FORMAT_VERSION
from data.growing import EARLIER, grow, grown_shards
from data.shards import Shard, record_shards, store
from unified.media.actions import NamedActions

EPISODES_PER_SHARD = 250


@functools.cache
def _recorder(level: str) -> Recorder:
    return Recorder(level)


def _record_shard(shard: Shard) -> tuple[Shard, int]:
    """Record and write one shard; return it with its number of frames."""
    return store(shard, [_recorder(shard.level).record(seed) for seed in shard.seeds])


def _check_request(
    levels: list[str], *, episodes: int, seed: int, workers: int, evaluation: bool
) -> None:
    """Refuses levels and numbers that cannot be recorded."""
    if len(set(levels)) != len(levels):
        raise ValueError(f"levels {levels} repeat; name each level once")
    for level in levels:
        _recorder(level)
    if episodes < len(levels) or episodes % len(levels):
        raise ValueError(
            f"episodes {episodes} cannot be split over {len(levels)} levels; give a multiple"
        )
    if workers < 1:
        raise ValueError(f"workers {workers} must be at least 1")
    per_level = episodes // len(levels)
    if evaluation and seed < EVALUATION_SEEDS:
        raise ValueError(f"seed {seed} is for training; evaluate from seed {EVALUATION_SEEDS} on")
    if not evaluation and not 0 <= seed <= EVALUATION_SEEDS - per_level:
        raise ValueError(
            f"seeds {seed} to {seed + per_level - 1} leave the training seeds 0 to "
            f"{EVALUATION_SEEDS - 1}; choose a lower --seed, or --evaluation for held-out seeds"
        )


def record_babyai(
    levels: list[str],
    *,
    episodes: int,
    out: Path,
    seed: int = 0,
    workers: int = 1,
    evaluation: bool = False,
) -> None:
    """Record BabyAI episodes into a data folder; a second call resumes, or finds it complete.

    Asked for more episodes than last time, the folder grows.

    Args:
        levels: Names such as "GoToRedBall".
        episodes: Number of episodes in all, a multiple of the number of levels.
        out: Data folder.
        seed: First environment seed of every level; episode i has seed + i.
        workers: Number of processes; the result does not depend on it.
        evaluation: Allow seeds from 1000000 on, and no others.

    Raises:
        ValueError: The request is not possible, or `out` was begun with another one.
    """
    _check_request(levels, episodes=episodes, seed=seed, workers=workers, evaluation=evaluation)
    request = {
        "source": "babyai",
        "format_version": FORMAT_VERSION,
        "levels": levels,
        "episodes": episodes,
        "seed": seed,
        "evaluation": evaluation,
        "behaviours": BEHAVIOURS,
    }
    request = grow(out, request)
    counts = [count // len(levels) for count in (*request.get(EARLIER, []), episodes)]
    shards = [
        shard
        for level in levels
        for shard in grown_shards(
            out, level, level, first_seed=seed, counts=counts, size=EPISODES_PER_SHARD
        )
    ]
    actions = NamedActions("babyai", ACTIONS)
    record_shards(out, request, shards, _record_shard, workers, actions=actions)
