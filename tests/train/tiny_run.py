"""A run of three steps, for tests that start it in processes of its own.

python -m tests.train.tiny_run DATA CODEC OUT ROWS ACCUMULATION [--stop STEP] [--resume]
"""

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from train import pretrain
from train.pretrain import PretrainArguments, train
from train.recipes import RECIPES, Recipe
from train.rows.mixture import MixtureConfig
from train.trainer import SaveByTime

ROOT = Path(__file__).parents[2]
MODEL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "latent_grid": (7, 7),
    "window_frames": 3,
    "path_layer": 1,
}


class StopAt(SaveByTime):
    """Ends the process where a power failure would, after the checkpoint of a step."""

    stop: int | None = None

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Saves, and stops."""
        super().on_save(args, state, control, **kwargs)
        if state.global_step == self.stop:
            if args.world_size > 1:
                torch.distributed.barrier()
            os._exit(0)


def run(data: Path, codec: Path, out: Path, rows: int, accumulation: int, resume: bool) -> None:
    """Three steps that save and log at each of them."""
    mixture = MixtureConfig(row_length=300, max_frames=3)
    RECIPES["tiny"] = lambda: Recipe(model=MODEL, mixture=mixture, steps=3, rows=rows)
    try:
        train(
            PretrainArguments(
                data=data,
                codec=codec,
                out=out,
                accumulation=accumulation,
                resume=resume,
                recipe="tiny",
                tokenizer=ROOT / "tokenizers_cfg" / "text",
                actions=ROOT / "tokenizers_cfg" / "actions" / "babyai.json",
                save_seconds=0,
                log_steps=1,
                workers=0,
                sample_steps=0,
                device="cpu",
            )
        )
    finally:
        del RECIPES["tiny"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("data", "codec", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("rows", type=int)
    parser.add_argument("accumulation", type=int)
    parser.add_argument("--stop", type=int)
    parser.add_argument("--resume", action="store_true")
    told = parser.parse_args()
    torch.set_num_threads(1)
    if told.stop is not None:
        StopAt.stop = told.stop
        pretrain.SaveByTime = StopAt
    run(told.data, told.codec, told.out, told.rows, told.accumulation, told.resume)


if __name__ == "__main__":
    main()
