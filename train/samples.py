"""A small evaluation and a picture, every so many steps of a run."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import TrainerCallback

from data.dataset import EpisodeDataset
from eval.babyai.episodes import EVALUATION_SEED, TrueEpisode, recorded_episodes
from eval.babyai.player import Player, first_frames
from eval.babyai.simulator import evaluate_next_frame
from eval.babyai.tally import Tally
from eval.comparison import Recording
from eval.game import Moment
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import action_segment
from unified.modeling import UnifiedModel

SCALE = 2
GAP = 4


class Samples(TrainerCallback):
    """Every so many steps: a rollout as a picture, and for BabyAI the accuracy of the next frame.

    The picture `samples/step-N.png` has two rows for each episode: what the environment showed,
    and what the model drew under the same actions, from the first frame on. BabyAI's episodes are
    unseen ones; those of other data are of the data, which cannot be played anew.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        processor: UnifiedProcessor,
        data: EpisodeDataset,
        folder: Path,
        steps: int,
    ):
        """Evaluates `model` (the averaged weights) each `steps` optimiser steps; 0 never does.

        Args:
            model: What is trained, or its average.
            processor: The model's.
            data: What it is trained on.
            folder: Folder for the pictures.
            steps: Steps between two evaluations.
        """
        assert isinstance(model, UnifiedModel)
        self.player = Player(model, processor)
        self.data = data
        self.folder = folder
        self.steps = steps
        self.episodes: list[TrueEpisode] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluates when it is time."""
        is_time = self.steps and state.global_step % self.steps == 0
        if not is_time or not state.is_world_process_zero:
            return
        figures = self.evaluate(state.global_step)
        if figures:
            state.log_history.append({**figures, "step": state.global_step})
        path = self.folder / f"step-{state.global_step}.png"
        print(f"step {state.global_step}: {figures or ''} {path}", flush=True)

    def evaluate(self, step: int) -> dict[str, float]:
        """Shares of right tiles, if there is a truth; draws the picture on the way."""
        is_babyai = self.data.info.get("source") == "babyai"
        if is_babyai and not self.episodes:
            self.episodes = [
                episode
                for level in self.data.levels
                for episode in recorded_episodes(level, 2, EVALUATION_SEED + 900_000)
            ]
        was_training = self.player.model.training
        self.player.model.eval()
        tally = Tally()
        with torch.random.fork_rng():  # the run's own randomness must not notice
            if is_babyai:
                evaluate_next_frame(
                    self.player, self.episodes, tally, num_inference_steps=4, seed=0
                )
            self.draw(step, self.episodes[::2] if is_babyai else self._recorded())
        self.player.model.train(was_training)
        figures = {}
        for group in ("determined", "changed"):
            estimate = tally.estimate(f"next/{group}/model")
            if estimate is not None:
                figures[f"sample/{group}_tiles"] = round(estimate.value, 4)
        return figures

    def _recorded(self) -> list[Recording]:
        """The first and the last episode of the data."""
        recordings = []
        for index in sorted({0, len(self.data) - 1}):
            episode, frames = self.data[index], self.data.frames(index)
            moments = zip(frames, [None, *episode.actions], episode.outcomes, strict=False)
            views = [
                Moment(frame, action, outcome or "ongoing") for frame, action, outcome in moments
            ]
            recordings.append(Recording(episode.task, index, views))
        return recordings

    def draw(
        self, step: int, episodes: list[TrueEpisode] | list[Recording], horizon: int = 8
    ) -> None:
        """Writes a picture of what the model draws now."""
        rows = []
        for episode in episodes:
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
