"""Guidance: a frame is drawn once with all that it follows from, and once without a part of that.

What the part makes of the frame is then taken `scale` times (classifier-free guidance,
arXiv:2207.12598): `with + (scale - 1) (with - without)`, summed over the parts. The frames without
something are further noisy copies in the same pass, behind the frame itself, as a training row
holds several noisy copies behind the clean stream. They read the same cache, with other keys
hidden, so nothing is encoded twice but the tokens since the last frame.

- `text`: the words before the first frame are hidden. What older frames took from them stays.
- `action`: the action before the frame becomes `<unknown>`, as where an inverse query is asked.
- `history`: every frame and word since the first frame is hidden, and the action stays (history
  guidance, arXiv:2502.06764, in its plainest form).

Letters: B rows, n latent tokens of a frame, R tokens since the last one, K copies, S cached slots.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from unified.configuration import UnifiedConfig
from unified.model.plan import Plan, StreamState


@dataclass(frozen=True)
class Guidance:
    """How often what a part makes of a frame is taken; 1 changes nothing and costs nothing.

    Attributes:
        text: Of the words before the first frame.
        action: Of the action before the frame.
        history: Of the frames before.
    """

    text: float = 1.0
    action: float = 1.0
    history: float = 1.0

    @property
    def parts(self) -> tuple[str, ...]:
        """Parts that are taken more or less than once."""
        return tuple(field.name for field in fields(self) if getattr(self, field.name) != 1)

    @property
    def scales(self) -> tuple[float, ...]:
        """Their scales."""
        return tuple(getattr(self, part) for part in self.parts)


PARTS = tuple(field.name for field in fields(Guidance))
MAX_SCALE = 100.0
HOW = "give such as {'action': 2.0, 'history': 1.5}, or 'action=2,history=1.5'"


def read_guidance(given: Any) -> Guidance:
    """Guidance as a user gives it: scales by part, the same in words, or a number for the text.

    Raises:
        ValueError: If a part is unknown, or a scale is no number from 0 to 100.

    >>> read_guidance("action=2,history=1.5").parts
    ('action', 'history')
    """
    if given is None or isinstance(given, Guidance):
        return given or Guidance()
    if isinstance(given, str):
        pairs = [part.partition("=") for part in given.split(",")]
        given = {name.strip(): value for name, _, value in pairs}
        if len(given) != len(pairs):
            raise ValueError(f"guidance_scale names a part twice; {HOW}")
    if not isinstance(given, Mapping):
        given = {"text": given}
    for part in given:
        if part not in PARTS:
            raise ValueError(
                f"guidance_scale knows no {part!r}; its parts are {', '.join(PARTS)}: {HOW}"
            )
    return Guidance(**{part: _scale(part, value) for part, value in given.items()})


def _scale(part: str, value: Any) -> float:
    try:
        scale = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        scale = float("nan")
    if not 0 <= scale <= MAX_SCALE:
        raise ValueError(
            f"guidance_scale of {part} is {value!r}, and must be a number from 0 to "
            f"{MAX_SCALE:g}; 1 changes nothing"
        )
    return scale


@dataclass(frozen=True)
class FrameTokens:
    """The tokens of a frame that is drawn, and of its copies behind it; L in all.

    Attributes:
        input_ids: `(B, L)` int64.
        position_ids: `(B, 3, L)` int64.
        visible: `(B, 3, 2, L)` int32.
        path: `(B, 2, 2, L)` int32.
    """

    input_ids: Tensor
    position_ids: Tensor
    visible: Tensor
    path: Tensor


class NoisyCopies:
    """One noisy copy of the next frame for each part that is left out.

    Each copy stands behind a copy of the latest tokens, R at most: those since the last frame, and
    where there was none, the frame's opening marker alone, since the words before it are the text.
    All of them are in the cache.
    """

    def __init__(
        self, parts: tuple[str, ...], histories: list[list[Tensor]], config: UnifiedConfig
    ):
        """Finds the latest tokens.

        Args:
            parts: What each copy does without.
            histories: Token ids of each row, in pieces.
            config: Names the markers.
        """
        self.parts, self.config = parts, config
        runs = [_latest(pieces, config.frame_end_token_id) for pieces in histories if parts]
        lead = max(map(len, runs), default=0)
        padding = config.pad_token_id or 0
        padded = [[padding] * (lead - len(run)) + run for run in runs]
        self._latest = torch.tensor(padded, dtype=torch.int64)
        self._num_latest = torch.tensor([len(run) for run in runs])
        self._length = lead + config.frame_tokens

    @property
    def num_tokens(self) -> int:
        """Tokens of all copies of a row."""
        return len(self.parts) * self._length

    def behind(
        self, input_ids: Tensor, frame: Plan, first: int, state: StreamState, num_cached: int
    ) -> FrameTokens:
        """Lays them out behind the frame.

        Args:
            input_ids: `(B, L)`, of the frame.
            frame: Their plan.
            first: Which of them is the frame's first latent.
            state: Where each row stands before the frame.
            num_cached: Cached slots S in front of the frame.
        """
        told = FrameTokens(input_ids, frame.position_ids, frame.visible, frame.path)
        if not self.parts:
            return told
        # What the frame sees of the cache, up to the latest tokens: two intervals.
        base = state.length - self._num_latest  # slot of the first of the latest tokens
        seen = torch.minimum(frame.visible[:, :2, :, first].long(), base[:, None, None])
        columns = [self._copy(part, state, seen, base) for part in self.parts]
        start = num_cached + input_ids.shape[1]
        for number, (ids, positions, cached, own) in enumerate(columns):
            offset = start + number * self._length
            visible = torch.cat([cached[:, :2], own[:, None] + offset], 1)
            path = torch.cat([cached[:, 2:], self._path(own)[:, None] + offset], 1)
            told = FrameTokens(
                torch.cat([told.input_ids, ids], 1),
                torch.cat([told.position_ids, positions], 2),
                torch.cat([told.visible, visible.to(torch.int32)], 3),
                torch.cat([told.path, path.to(torch.int32)], 3),
            )
        return told

    def _path(self, own: Tensor) -> Tensor:
        """The intervals of the path among a copy's tokens: as far as each token itself."""
        index = torch.arange(self._length)
        return torch.stack([own[:, 0], (index + 1).expand_as(own[:, 1])], 1)

    def _copy(
        self, part: str, state: StreamState, seen: Tensor, base: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One copy, its own tokens counted from 0.

        Returns:
            Ids `(B, R + n)`; positions `(B, 3, R + n)`; what is seen of the cache in two intervals
            and all of it before the copy in a third, `(B, 3, 2, R + n)`; and what is seen of the
            copy, `(B, 2, R + n)`.
        """
        config, length = self.config, self._length
        lead = self._latest.shape[1]
        index = torch.arange(length)
        offset = (index - lead).clamp(min=0)
        is_latent = index >= lead
        padding = lead - self._num_latest[:, None]  # of each row, in front
        is_real = index >= padding

        time = state.time[:, None] + torch.where(is_latent, 0, index - lead)
        row = time + offset // config.latent_grid[1]
        column = time + offset % config.latent_grid[1]
        ids = torch.nn.functional.pad(
            self._latest, (0, config.frame_tokens), value=config.latent_token_id
        )
        none, opening = torch.zeros_like(base), torch.minimum(state.prefix, base)
        older, newer = seen[:, 0], seen[:, 1]
        if part == "text":
            older = torch.stack([none, none], 1)
            newer = torch.stack([torch.maximum(newer[:, 0], opening), newer[:, 1]], 1)
        elif part == "history":
            older, newer = torch.stack([none, opening], 1), torch.stack([none, none], 1)
        elif part == "action":
            first, stop = config.action_token_ids
            ids = torch.where((ids >= first) & (ids < stop), config.unknown_token_id, ids)
        cached = torch.stack([older, newer, torch.stack([none, base], 1)], 1)[..., None]
        cached = torch.where(is_real[:, None, None], cached, 0)
        begin = torch.where(is_real, padding, index)
        stop = torch.where(is_latent, length, index + 1)
        own = torch.stack([begin, stop.expand_as(begin)], 1)
        return ids, torch.stack([time, row, column], 1), cached, own


def _latest(pieces: list[Tensor], frame_end: int) -> list[int]:
    """Tokens behind the last end of a frame; without a frame, the last token."""
    run: list[int] = []
    for ids in reversed(pieces):
        ends = (ids == frame_end).nonzero()
        if len(ends):
            return ids[int(ends[-1]) + 1 :].tolist() + run
        run = ids.tolist() + run
    return run[-1:]
