"""Record any Gymnasium environment: `python -m data.record --env CartPole-v1 --out runs/cartpole`.

Resumable, and the same whatever the number of workers. Asked for more episodes, a folder grows.
Its `action_space.json` says how its actions are written; `train.finetune` reads it.
"""

import functools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tyro

from data.episode import FORMAT_VERSION
from data.growing import EARLIER, grow, grown_shards
from data.shards import Shard, claim_folder, record_shards, store
from data.sources.gymnasium import GymnasiumRecorder
from unified.command import command


@dataclass(frozen=True, kw_only=True)
class RecordArguments:
    """Record episodes of a Gymnasium environment."""

    env: str
    """Its id, perhaps with the module that registers it: `module:Id-v0`."""
    out: Path
    """Data folder to write."""
    policy: str = "random"
    """`random`, or `module:function`: from an observation to an action, or, with one argument
    named `env`, from the environment to such a function. Random actions are not imitated."""
    episodes: int = 100
    """Number of episodes. A folder with fewer, asked for alike, gets the missing ones."""
    seed: int = 0
    """Seed of the first episode; episode i has seed + i."""
    size: tuple[int, int] | None = None
    """Height and width of the frames; as they are rendered if not given."""
    task: str | None = None
    """Words that open each episode; the environment's own mission if not given."""
    max_steps: int = 200
    """Number of steps after which an episode is cut off."""
    outcome: str | None = None
    """What a success is: `info:KEY`, `reward>X`, `return>=X`, `terminated`, `truncated`,
    `module:function` (from a `data.outcomes.Step`) or `none`. The environment's own
    `reward_threshold` if not given; without one, nobody knows how an episode ended."""
    noise: float = 0.0
    """Share of the steps at which a random action is taken. The policy's action stays the target,
    so that the model sees mistakes and learns to correct them."""
    bins: int = 256
    """Bins of each number of a continuous action."""
    is_still: bool = False
    """The camera never moves. The recorded motions are then zero instead of unknown."""
    action_names: list[str] = field(default_factory=list)
    """Of the actions, in the environment's order; for environments that do not name them."""
    keep_last_frame: bool = False
    """Show the frame before again where the environment renders a blank one after its end."""
    options: dict[str, str] = field(default_factory=dict)
    """Other arguments of `gymnasium.make`: numbers, true, false, or words."""
    workers: int = 1
    """Processes."""
    episodes_per_shard: int = 50
    """Episodes of one file."""

    def recorder(self) -> dict[str, Any]:
        """Options of the recorder."""
        options = {name: _value(text) for name, text in self.options.items()}
        names = ["env", "policy", "size", "task", "max_steps", "outcome"]
        names += ["noise", "bins", "is_still", "action_names", "keep_last_frame"]
        return {**{name: getattr(self, name) for name in names}, "options": options}


def _value(text: str) -> Any:
    """A number, a truth value or a list as JSON has them; anything else as it is."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


@functools.cache
def _recorder(arguments: str) -> GymnasiumRecorder:
    options = json.loads(arguments)
    options["size"] = options["size"] and tuple(options["size"])
    return GymnasiumRecorder(**options)


def _record_shard(arguments: str, shard: Shard) -> tuple[Shard, int]:
    return store(shard, [_recorder(arguments).record(seed) for seed in shard.seeds])


def record(arguments: RecordArguments) -> None:
    """Records what is missing; a folder of fewer episodes grows.

    Raises:
        ValueError: If the environment or the policy cannot be used, a number is out of range, or
            the folder holds something else.
    """
    for name in ("episodes", "workers", "episodes_per_shard"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"{name}={getattr(arguments, name)} must be at least 1")
    if arguments.seed < 0:
        raise ValueError(f"seed={arguments.seed} must not be negative")
    options = json.dumps(arguments.recorder())
    actions = _recorder(options).actions
    print(f"outcomes: {_recorder(options).rule_text}")
    request = {
        "source": "gymnasium",
        "format_version": FORMAT_VERSION,
        "levels": [arguments.env],
        "episodes": arguments.episodes,
        "seed": arguments.seed,
        "episodes_per_shard": arguments.episodes_per_shard,
        "recorder": json.loads(options),
    }
    request = grow(arguments.out, request)
    shards = grown_shards(
        arguments.out,
        "episodes",
        arguments.env,
        first_seed=arguments.seed,
        counts=[*request.get(EARLIER, []), arguments.episodes],
        size=arguments.episodes_per_shard,
    )
    claim_folder(arguments.out, request)
    one = functools.partial(_record_shard, options)
    record_shards(arguments.out, request, shards, one, arguments.workers, actions=actions)
    _recorder(options).close()
    _recorder.cache_clear()


def main() -> None:
    """Command line."""
    with command("data.record"):
        record(tyro.cli(RecordArguments, description=__doc__))


if __name__ == "__main__":
    main()
