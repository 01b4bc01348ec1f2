"""transfusion-pytorch as the yardstick of speed: the same episodes, trained and sampled with it.

The package is optional (`pip install "unified-tav[bench]"`).
"""

import importlib
from typing import Any

import torch
from torch import Tensor


class Transfusion:
    """A transfusion-pytorch model of a given size.

    Attributes:
        row_length: Tokens of a row of the latest pass, as it lays an episode out.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        channels: int,
        grid: tuple[int, int],
        width: int,
        layers: int,
        heads: int,
        head_size: int,
        device: str,
    ):
        """Random weights.

        Raises:
            ValueError: If the package is not installed.
        """
        try:
            self.package: Any = importlib.import_module("transfusion_pytorch.transfusion")
        except ImportError as error:
            raise ValueError(
                "transfusion-pytorch is not installed; pip install 'unified-tav[bench]', or leave "
                "out the parts train and sample"
            ) from error
        importlib.import_module("loguru").logger.disable("transfusion_pytorch")
        self.grid, self.channels, self.device = grid, channels, device
        self.model = self.package.Transfusion(
            num_text_tokens=vocabulary,
            dim_latent=channels,
            modality_default_shape=grid,
            modality_num_dim=2,
            add_pos_emb=True,
            transformer={
                "dim": width,
                "depth": layers,
                "dim_head": head_size,
                "heads": heads,
                "use_flex_attn": device == "cuda",
            },
        ).to(device)
        self.row_length = 0
        self.model.transformer.register_forward_pre_hook(self._measure)

    def _measure(self, module: Any, given: tuple[Tensor, ...]) -> None:
        self.row_length = given[0].shape[1]

    @property
    def num_parameters(self) -> int:
        """Number of parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def loss(self, words: Tensor, actions: Tensor, frames: Tensor) -> Tensor:
        """Training loss of a batch of episodes.

        Args:
            words: `(B, W)` int64.
            actions: `(B, T)` int64.
            frames: `(B, T, h, w, C)` float32.
        """
        samples = []
        for row in range(len(words)):
            parts: list[Any] = [words[row]]
            for t in range(frames.shape[1]):
                parts += [(0, frames[row, t]), actions[row, t : t + 1]]
            samples.append(parts)
        return self.model(samples)

    @torch.no_grad()
    def sample(self, words: Tensor, action: int, num_frames: int, evaluations: int) -> None:
        """Draws frames with its cached, batched sampler; an action follows each.

        The sampler draws the tokens between frames at random. Here they are fixed: its one function
        that draws a token is replaced by a script. Everything else is unchanged.

        Args:
            words: `(B, W)` int64, the prompts.
            action: Token id.
            num_frames: Frames of each row.
            evaluations: Evaluations of the network for each frame; even, two for each solver step.
        """
        som = self.model.som_ids[0]
        script = iter([action, som] * (num_frames - 1) + [self.model.eos_id])
        drawn = self.package.sample_text_token

        def tell(logits: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # It asks for the first token row by row, and then for one of every row at once.
            token = som if logits.ndim == 1 else next(script)
            return torch.full((*logits.shape[:-1], 1), token, device=logits.device)

        self.package.sample_text_token = tell
        try:
            self.model.sample_many(
                list(words),
                max_length=10**6,
                fixed_modality_shape=self.grid,
                modality_steps=evaluations // 2 + 1,
                return_unprocessed_modalities=True,
                cfg_scale=1.0,
            )
        finally:
            self.package.sample_text_token = drawn
