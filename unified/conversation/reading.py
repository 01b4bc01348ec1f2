"""Tokens back into segments."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.conversation.sequence import (
    Role,
    Segment,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.conversation.stream import unpatchify
from unified.conversation.turns import OUTCOMES

_OTHERS = ("pad_token_id", "text_token_ids", "world_token_id")
"""Fields in which a model may know less than its processor, or more."""


def check_processor(processor: Any, config: UnifiedConfig) -> None:
    """Refuses a processor that calls the model's tokens by other names.

    Args:
        processor: A `UnifiedProcessor`.
        config: The model's.

    Raises:
        ValueError: If markers or actions differ; names the first and the fix.
    """
    for name, value in processor.token_fields().items():
        ours = getattr(config, name)
        if name == "action_formats":
            value, ours = value or None, ours and config.listed_action_formats()
        elif isinstance(ours, list):  # as tuples come back from a file
            ours = tuple(ours)
        is_shared = name.endswith(("_token_id", "_token_ids", "_formats")) and name not in _OTHERS
        if is_shared and value != ours:
            raise ValueError(
                f"the processor has {name}={value}, the model {ours}: it is another model's; use "
                "the one that was saved with the model, or that it adopted"
            )


def read_action(processor: Any, config: UnifiedConfig, tokens: list[int]) -> object:
    """An action of its token ids, as the processor's action space names it.

    Raises:
        ValueError: If the processor is another model's.
    """
    check_processor(processor, config)
    return processor.action_space.decode([processor.token_names[token] for token in tokens])


def read_segments(
    input_ids: Tensor,
    latents: Tensor | None,
    config: UnifiedConfig,
    *,
    ids: Mapping[str, int],
    patch_size: int,
    read_text: Callable[[list[int]], str],
    read_action: Callable[[list[int]], object],
) -> list[Segment]:
    """Reads one row of tokens back; the inverse of `UnifiedProcessor.stream`.

    Args:
        input_ids: `(L,)` int64, no padding. May begin in the middle of a conversation.
        latents: `(L, C)`, read at the latent tokens.
        config: Gives the frame's grid.
        ids: Of the markers, by name.
        patch_size: Of the latents, as in the model's config.
        read_text: Words of their tokens.
        read_action: An action of its tokens.
    """
    names = {ids[name]: name for name in OUTCOMES}
    enders = {ids[name] for name in ("task", "agent", "inverse", "action", "frame")}
    world = ids.get("world", -1)
    enders.add(world)
    tokens = input_ids.tolist()
    segments: list[Segment] = []
    role: Role = "agent"
    hindsight = False
    text: list[int] = []
    action: list[int] = []
    length = 0

    def flush() -> None:
        if text:
            segments.append(text_segment(read_text(text), role))
            text.clear()

    index = 0
    while index < len(tokens):
        token = tokens[index]
        if token in enders:
            flush()
        if token == ids["task"]:
            role = "task"
        elif token == world:
            role = "world"
        elif token == ids["agent"]:
            role = "agent"
        elif token == ids["inverse"]:
            hindsight = True
        elif token == ids["unknown"]:
            segments.append(action_segment(None, hindsight=hindsight))
            hindsight = False
        elif token == ids["latent"]:
            assert latents is not None
            frame = latents[index : index + config.frame_tokens]
            grid = (config.latent_grid[0], config.latent_grid[1])
            segments.append(frame_segment(latents=unpatchify(frame, patch_size, grid)))
            index += config.frame_tokens - 1
        elif token in names:
            latest = segments[-1] if segments else frame_segment()
            segments[-1:] = [frame_segment(latents=latest.latents, outcome=names[token])]
        elif config.action_token_ids[0] <= token < config.action_token_ids[1]:
            if not action:
                length = len(config.action_format(token))
            action.append(token)
            if len(action) == length:
                segments.append(action_segment(read_action(action), hindsight=hindsight))
                hindsight, action = False, []
        elif token < config.text_token_ids[1]:
            text.append(token)
        index += 1
    flush()
    return segments
