"""Generated worlds by gymnasium's names: `gymnasium.make("unified/World-v0", model="babyai")`."""

import sys

WORLD = "unified/World-v0"


def register_worlds() -> None:
    """Makes the worlds known to gymnasium, once, and if somebody has imported it."""
    gymnasium = sys.modules.get("gymnasium")
    if gymnasium is None or not hasattr(gymnasium, "register") or WORLD in gymnasium.registry:
        return
    gymnasium.register(
        WORLD,
        entry_point="unified.roles.world:WorldEnv",
        vector_entry_point="unified.roles.world:WorldVectorEnv",
    )
