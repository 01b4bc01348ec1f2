"""Generated worlds by gymnasium's names: `gymnasium.make("unified/World-v0", model="babyai")`."""

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

WORLD = "unified/World-v0"


def register_worlds() -> None:
    """Makes the worlds known to gymnasium, at once or when it is imported; it is not imported."""
    gymnasium = sys.modules.get("gymnasium")
    if gymnasium is None:
        if not any(isinstance(finder, _WhenImported) for finder in sys.meta_path):
            sys.meta_path.insert(0, _WhenImported())
        return
    if not hasattr(gymnasium, "register") or WORLD in gymnasium.registry:
        return
    gymnasium.register(
        WORLD,
        entry_point="unified.roles.world:WorldEnv",
        vector_entry_point="unified.roles.world:WorldVectorEnv",
    )


class _WhenImported(MetaPathFinder):
    """Waits for gymnasium, and finds nothing else."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of gymnasium with a loader that registers the worlds afterwards."""
        if fullname != "gymnasium":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        loader: Any = spec and spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register_worlds()

        loader.exec_module = execute_and_register
        return spec
