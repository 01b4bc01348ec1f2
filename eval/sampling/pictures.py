"""Pictures of sampling: schedules as matrices, and one frame as it loses its noise."""

import numpy as np
from PIL import Image, ImageDraw

from eval.babyai.player import Player
from eval.world.openloop import Loop, ModelRoller
from unified.conversation.sequence import action_segment
from unified.sampling.diffusion.schedules import noise_schedule, scheduling_matrix
from unified.sampling.watching import denoise_steps

CELL, GAP, LINE = 20, 16, 18
"""Pixels: side of a matrix' cell, between pictures, of a line of words."""
FRAMES, STEPS = 6, 4
_LEVELS = noise_schedule(STEPS)
_MATRICES = {
    "autoregressive": scheduling_matrix(FRAMES, _LEVELS),
    "chunked:frames=3": scheduling_matrix(FRAMES, _LEVELS, "chunked", chunk_frames=3),
    "pyramid:lag=1": scheduling_matrix(FRAMES, _LEVELS, "pyramid"),
    "full, bidirectional": scheduling_matrix(FRAMES, _LEVELS, "full"),
}


def schedules() -> np.ndarray:
    """The levels of six frames over the steps, one matrix for each kind, black is noise.

    Returns:
        `(H, W, 3)` uint8.
    """
    height = max(map(len, _MATRICES.values())) * CELL + LINE
    width = len(_MATRICES) * (FRAMES * CELL + GAP) - GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (name, matrix) in enumerate(_MATRICES.items()):
        left = number * (FRAMES * CELL + GAP)
        draw.text((left, 2), name, fill="black")
        for row, frames in enumerate(matrix):
            for column, level in enumerate(frames):
                grey = round(255 * (1 - float(level)))
                corner = left + column * CELL, LINE + row * CELL
                box = (*corner, corner[0] + CELL - 2, corner[1] + CELL - 2)
                draw.rectangle(box, fill=(grey, grey, grey), outline=(160, 160, 160))
    return np.array(sheet)


def denoising(player: Player, loop: Loop, steps: int = 4) -> np.ndarray:
    """A true frame, the noisy ones that the model saw in turn, and the one it drew.

    Returns:
        `(H, W, 3)` uint8, twice as large as the frames.
    """
    session = ModelRoller(player).start([loop])
    session.append([player.stream(action_segment(loop.views[0].action))])
    latents = denoise_steps(session, steps)
    frames = [loop.views[0].frame, *player.processor.decode_latents(latents)]
    gap = np.full((2 * frames[0].shape[0], GAP // 2, 3), 255, dtype=np.uint8)
    cells = [part for frame in frames for part in (frame.repeat(2, 0).repeat(2, 1), gap)]
    return np.concatenate(cells[:-1], axis=1)


def sheet(player: Player, loop: Loop) -> np.ndarray:
    """Both, one above the other."""
    parts = [schedules(), denoising(player, loop)]
    width = max(part.shape[1] for part in parts)
    padded = [
        np.pad(part, ((0, GAP), (0, width - part.shape[1]), (0, 0)), constant_values=255)
        for part in parts
    ]
    return np.concatenate(padded)[:-GAP]
