"""Common to the parts of the speed benchmark: options, tables, clocks, models of equal size."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from eval.speed.transfusion import Transfusion
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Sequence, action_segment, frame_segment, text_segment
from unified.media.actions import NamedActions
from unified.model.plan import TrainingRow, collate, plan_training
from unified.modeling import UnifiedModel

Part = Literal["train", "sample", "play", "profile", "scaling", "sizes", "large"]
ON_CPU: tuple[Part, ...] = ("train", "sample", "play", "profile", "scaling")
ON_GPU: tuple[Part, ...] = (*ON_CPU, "sizes", "large")
WORDS = 12
"""Of an episode that both sides are given."""


@dataclass(frozen=True, kw_only=True)
class SpeedArguments:
    """Measure speed."""

    out: Path = Path("runs/speed")
    """Folder for speed.json and speed.md."""
    parts: tuple[Part, ...] | None = None
    """Parts to measure; all that run on this machine, if not given."""
    model: str = "babyai"
    """Model that plays, and whose vocabulary the others take."""
    width: int = 256
    """Hidden size of the models that are compared."""
    layers: int = 6
    """Layers of these models."""
    heads: int = 4
    """Heads of these models, of 64 dimensions each."""
    batch: int = 8
    """Episodes of a training step, and rows of a sampled batch."""
    frames: int = 8
    """Frames of an episode; an action follows each."""
    evaluations: int = 4
    """Evaluations of the network for each sampled frame; even."""
    rounds: int = 9
    """Timed rounds of each comparison, after two that are not timed."""
    play_frames: tuple[int, ...] = (10, 100, 1000)
    """Frame numbers at which play is timed."""
    play_steps: tuple[int, ...] = (1, 2, 4, 8)
    """Denoise steps with which play is timed; all but four at the first frame number only."""
    lengths: tuple[int, ...] = (1024, 2048, 4096, 8192, 16384)
    """Tokens of a row in the scaling part."""
    bf16: bool = False
    """Train, sample and play in bfloat16 (autocast), on both sides; a GPU always trains so."""
    device: str | None = None
    """Torch device; CUDA where there is one, if not given."""
    threads: int | None = None
    """Threads of torch; None leaves the choice to torch."""
    seed: int = 0
    """Seed of weights and noise."""


@dataclass
class Table:
    """The figures that were measured.

    Attributes:
        title: Says what, and under which circumstances.
        columns: Names, with units.
        rows: Values, numbers or words.
        notes: What a reader has to know to believe it.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def markdown(self) -> str:
        """The table as Markdown."""
        cells = [self.columns, ["---"] * len(self.columns)] if self.rows else []
        cells += [[_shown(value) for value in row] for row in self.rows]
        lines = [f"## {self.title}", "", *(f"| {' | '.join(row)} |" for row in cells)]
        return "\n".join([*lines, "", *(f"- {note}" for note in self.notes)]).rstrip() + "\n"

    @contextmanager
    def attempt(self, what: str) -> Iterator[None]:
        """Notes a failure instead of passing it on."""
        try:
            yield
        except Exception as error:  # whatever a driver, a compiler or a kernel comes up with
            reason = str(error).strip().splitlines() or [""]
            self.notes.append(f"{what} FAILED: {type(error).__name__}: {reason[0][:300]}")


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def medians(sides: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each side; they take turns, after two rounds that do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in tqdm(range(rounds + 2), desc=" / ".join(sides), leave=False):
        for name, run in sides.items():
            seconds[name].append(timed(run))
    return {name: statistics.median(values[2:]) for name, values in seconds.items()}


def timed(run: Callable[[], Any]) -> float:
    """Seconds that a call takes, a GPU's work included."""
    _wait()
    start = time.perf_counter()
    run()
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@dataclass
class Bench:
    """Common to all parts: options, device, vocabulary, random episodes."""

    arguments: SpeedArguments
    device: str
    processor: UnifiedProcessor
    latent_shape: tuple[int, int, int]

    def config(self, **changes: Any) -> UnifiedConfig:
        """A model of the compared size; its MLP as large as transfusion-pytorch's."""
        a = self.arguments
        size = {"width": a.width, "layers": a.layers, "heads": a.heads, "head_size": 64}
        size |= {key: changes.pop(key) for key in list(changes) if key in size}
        patch = self.processor.latent_patch_size
        channels, height, width = self.latent_shape
        fields = {
            "hidden_size": size["width"],
            "intermediate_size": int(size["width"] * 8 / 3) // 32 * 32,
            "num_hidden_layers": size["layers"],
            "num_attention_heads": size["heads"],
            "head_dim": size["head_size"],
            "latent_channels": channels,
            "latent_grid": (height // patch, width // patch),
            "window_frames": a.frames + 1,
        }
        return UnifiedConfig(**{**self.processor.config_fields(), **fields, **changes})

    def episode(self, num_frames: int, seed: int) -> Sequence:
        """Twelve words, then frames of noise, each followed by an action."""
        rng = np.random.default_rng(seed)
        assert isinstance(self.processor.action_space, NamedActions)
        names = self.processor.action_space.names
        segments = [text_segment("go to a red ball " * 2, "task")]
        for _ in range(num_frames):
            latents = rng.standard_normal(self.latent_shape, dtype=np.float32)
            segments.append(frame_segment(latents=latents))
            segments.append(action_segment(str(rng.choice(names))))
        return Sequence(segments)

    def prompt(self, rows: int) -> dict[str, Any]:
        """Inputs of episodes that stand at their first frame."""
        sequences = [Sequence(self.episode(1, i).segments[:2]) for i in range(rows)]
        return dict(self.processor.encode(sequences))

    def row(self, num_frames: int, seed: int, config: UnifiedConfig) -> TrainingRow:
        """An episode laid out for training, each frame noised once."""
        stream = self.processor.stream(self.episode(num_frames, seed))
        generator = torch.Generator().manual_seed(seed)
        levels = torch.rand(num_frames, num_frames, generator=generator)
        spans = [(i, i + 1) for i in range(num_frames)]
        return plan_training(stream, config, spans=spans, noise_levels=levels)

    def long_row(self, length: int, **changes: Any) -> tuple[UnifiedConfig, dict[str, Tensor]]:
        """A row of as many frames as fit, all in view, on the device, and the model's config."""
        config = self.config(**changes)
        one, two = (len(self.row(count, 0, config)) for count in (1, 2))
        count = max(1, (length - one) // (two - one) + 1)
        config = self.config(window_frames=count + 1, **changes)
        row = self.row(count, 0, config)
        batch = collate([row], config, max(length, len(row)))
        return config, {name: value.to(self.device) for name, value in batch.items()}

    def model(self, config: UnifiedConfig) -> UnifiedModel:
        """A model with random weights, the same for the same config."""
        torch.manual_seed(self.arguments.seed)
        model = UnifiedModel(config)
        torch.nn.Module.to(model, self.device)
        return model

    def theirs(self, config: UnifiedConfig) -> Transfusion:
        """The model of transfusion-pytorch with the same width, depth and grid."""
        torch.manual_seed(self.arguments.seed)
        return Transfusion(
            vocabulary=config.vocab_size,
            channels=config.latent_channels,
            grid=(config.latent_grid[0], config.latent_grid[1]),
            width=config.hidden_size,
            layers=config.num_hidden_layers,
            heads=config.num_attention_heads,
            head_size=64,
            device=self.device,
        )

    @property
    def trains_in_bf16(self) -> bool:
        """On a GPU always."""
        return self.arguments.bf16 or self.device == "cuda"

    def mixed_precision(self, enabled: bool) -> torch.autocast:
        """bfloat16 where it is exact enough, float32 elsewhere."""
        return torch.autocast(self.device, torch.bfloat16, enabled=enabled)
