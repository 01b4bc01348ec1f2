"""Unified: one transformer that is both the agent and the world.

>>> from unified import Sequence, action_segment
>>> len(Sequence([action_segment("left")]))
1
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from unified.roles.registration import register_worlds

if TYPE_CHECKING:
    from unified.configuration import UnifiedConfig
    from unified.conversation.inpainting import known_latents
    from unified.conversation.lexicon import Lexicon
    from unified.conversation.processing import UnifiedProcessor
    from unified.conversation.reel import Reel
    from unified.conversation.sequence import (
        Kind,
        Segment,
        Sequence,
        action_segment,
        frame_segment,
        text_segment,
    )
    from unified.media.action_space import ActionSpace
    from unified.media.actions import (
        ContinuousActions,
        KeyboardMouseActions,
        MultiDiscreteActions,
        NamedActions,
    )
    from unified.media.codec import FrameCodec
    from unified.media.embodiments import EmbodiedActions
    from unified.media.samples import sample
    from unified.model.transformer import UnifiedOutput
    from unified.modeling import UnifiedModel
    from unified.play.remote import RemoteWorldEnv
    from unified.roles.agent import Agent
    from unified.roles.simulation import History
    from unified.roles.world import WorldEnv, WorldVectorEnv
    from unified.sampling.generation import Generation, Session

__version__ = "0.1.0"

# Names are imported when they are first asked for: `import unified` is quick, and the core needs
# none of the optional packages (gymnasium for the environments, diffusers for the codec).
_MODULES = {
    "ActionSpace": "media.action_space",
    "Agent": "roles.agent",
    "ContinuousActions": "media.actions",
    "EmbodiedActions": "media.embodiments",
    "FrameCodec": "media.codec",
    "Generation": "sampling.generation",
    "KeyboardMouseActions": "media.actions",
    "History": "roles.simulation",
    "Kind": "conversation.sequence",
    "Lexicon": "conversation.lexicon",
    "MultiDiscreteActions": "media.actions",
    "NamedActions": "media.actions",
    "Reel": "conversation.reel",
    "RemoteWorldEnv": "play.remote",
    "Segment": "conversation.sequence",
    "Sequence": "conversation.sequence",
    "Session": "sampling.generation",
    "UnifiedConfig": "configuration",
    "UnifiedModel": "modeling",
    "UnifiedOutput": "model.transformer",
    "UnifiedProcessor": "conversation.processing",
    "WorldEnv": "roles.world",
    "WorldVectorEnv": "roles.world",
    "action_segment": "conversation.sequence",
    "frame_segment": "conversation.sequence",
    "known_latents": "conversation.inpainting",
    "sample": "media.samples",
    "text_segment": "conversation.sequence",
}

__all__ = [
    "ActionSpace",
    "Agent",
    "ContinuousActions",
    "EmbodiedActions",
    "FrameCodec",
    "Generation",
    "KeyboardMouseActions",
    "History",
    "Kind",
    "Lexicon",
    "MultiDiscreteActions",
    "NamedActions",
    "Reel",
    "RemoteWorldEnv",
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
    "known_latents",
    "sample",
    "text_segment",
]


def __getattr__(name: str) -> Any:
    """Imports a public name."""
    register_worlds()
    if name not in _MODULES:
        raise AttributeError(f"module 'unified' has no attribute {name!r}")
    return getattr(import_module(f"unified.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """Public names."""
    return [*__all__, "__version__"]


register_worlds()
