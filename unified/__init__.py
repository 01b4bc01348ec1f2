"""Unified: one transformer that is both the agent and the world.

>>> from unified import Sequence, action_segment
>>> len(Sequence([action_segment("left")]))
1
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unified.action_space import ActionSpace
    from unified.actions import (
        ContinuousActions,
        KeyboardMouseActions,
        MultiDiscreteActions,
        NamedActions,
    )
    from unified.agent import Agent
    from unified.codec import FrameCodec
    from unified.configuration import UnifiedConfig
    from unified.embodiments import EmbodiedActions
    from unified.generation import Generation, Session
    from unified.modeling import UnifiedModel, UnifiedOutput
    from unified.processing import UnifiedProcessor
    from unified.sequence import (
        Kind,
        Segment,
        Sequence,
        action_segment,
        frame_segment,
        text_segment,
    )
    from unified.world import WorldEnv, WorldVectorEnv

__version__ = "0.1.0"

# Names are imported when they are first asked for: `import unified` is quick, and the core needs
# none of the optional packages (gymnasium for the environments, diffusers for the codec).
_MODULES = {
    "ActionSpace": "action_space",
    "Agent": "agent",
    "ContinuousActions": "actions",
    "EmbodiedActions": "embodiments",
    "FrameCodec": "codec",
    "Generation": "generation",
    "KeyboardMouseActions": "actions",
    "Kind": "sequence",
    "MultiDiscreteActions": "actions",
    "NamedActions": "actions",
    "Segment": "sequence",
    "Sequence": "sequence",
    "Session": "generation",
    "UnifiedConfig": "configuration",
    "UnifiedModel": "modeling",
    "UnifiedOutput": "modeling",
    "UnifiedProcessor": "processing",
    "WorldEnv": "world",
    "WorldVectorEnv": "world",
    "action_segment": "sequence",
    "frame_segment": "sequence",
    "text_segment": "sequence",
}

__all__ = [
    "ActionSpace",
    "Agent",
    "ContinuousActions",
    "EmbodiedActions",
    "FrameCodec",
    "Generation",
    "KeyboardMouseActions",
    "Kind",
    "MultiDiscreteActions",
    "NamedActions",
    "Segment",
    "Sequence",
    "Session",
    "UnifiedConfig",
    "UnifiedModel",
    "UnifiedOutput",
    "UnifiedProcessor",
    "WorldEnv",
    "WorldVectorEnv",
    "action_segment",
    "frame_segment",
    "text_segment",
]


def __getattr__(name: str) -> Any:
    """Imports a public name."""
    if name not in _MODULES:
        raise AttributeError(f"module 'unified' has no attribute {name!r}")
    return getattr(import_module(f"unified.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Public names."""
    return [*__all__, "__version__"]
