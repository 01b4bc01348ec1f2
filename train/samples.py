"""What a run has learned so far: a small evaluation and a picture, now and then."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback

from eval.episodes import EVALUATION_SEED, TrueEpisode, recorded_episodes
from eval.player import Player, first_frames
from eval.simulator import evaluate_next_frame
from eval.tally import Tally
from unified.modeling import UnifiedModel
from unified.processing import UnifiedProcessor
from unified.sequence import action_segment

SCALE = 2
GAP = 4


class Samples(TrainerCallback):
    """Every so many steps: next-frame accuracy on unseen episodes, and a rollout as a picture.

    The picture `samples/step-N.png` has two rows for each episode: what the environment showed,
    and what the model drew under the same actions, from the first frame on.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: UnifiedProcessor,
        levels: list[str],
        folder: Path,
        steps: int,
    ):
        """Evaluates `model` (the averaged weights) each `steps` optimiser steps; 0 never does."""
        assert isinstance(model, UnifiedModel)
        self.player = Player(model, processor)
        self.levels = levels
        self.folder = folder
        self.steps = steps
        self.episodes: list[TrueEpisode] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates when it is time."""
        if not self.steps or state.global_step % self.steps:
            return
        figures = self.evaluate(state.global_step)
        state.log_history.append({**figures, "step": state.global_step})
        print(f"step {state.global_step}: {figures}", flush=True)

    def evaluate(self, step: int) -> dict[str, float]:
        """Shares of right tiles; draws the picture on the way."""
        if not self.episodes:
            self.episodes = [
                episode
                for level in self.levels
                for episode in recorded_episodes(level, 2, EVALUATION_SEED + 900_000)
            ]
        was_training = self.player.model.training
        self.player.model.eval()
        tally = Tally()
        with torch.random.fork_rng():  # the run's own randomness must not notice
            evaluate_next_frame(self.player, self.episodes, tally, num_inference_steps=4, seed=0)
            self.draw(step)
        self.player.model.train(was_training)
        figures = {}
        for group in ("determined", "changed"):
            estimate = tally.estimate(f"next/{group}/model")
            if estimate is not None:
                figures[f"sample/{group}_tiles"] = round(estimate.value, 4)
        return figures

    def draw(self, step: int, horizon: int = 8) -> None:
        """Writes the picture."""
        rows = []
        for episode in self.episodes[::2]:
            views = episode.views[: horizon + 1]
            session = self.player.start([episode], seed=0)
            drawn = [views[0].frame]
            for view in views[1:]:
                session.append([self.player.stream(action_segment(view.action))])
                frames = first_frames(self.player.replies(session.run("forward")))
                drawn.append(self.player.pixels(frames)[0])
            rows += [_row([view.frame for view in views], horizon + 1), _row(drawn, horizon + 1)]
        self.folder.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(np.concatenate(rows, axis=0))
        size = (picture.width * SCALE, picture.height * SCALE)
        picture.resize(size, Image.Resampling.NEAREST).save(self.folder / f"step-{step}.png")


def _row(frames: list[np.ndarray], count: int) -> np.ndarray:
    """Frames side by side on white, padded to `count`."""
    height, width, _ = frames[0].shape
    row = np.full((height + GAP, count * (width + GAP), 3), 255, np.uint8)
    for i, frame in enumerate(frames):
        row[:height, i * (width + GAP) : i * (width + GAP) + width] = frame
    return row
