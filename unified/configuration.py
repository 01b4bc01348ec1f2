"""Configuration of the unified model, in transformers' words."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from unified.memory import read_memory

PREDICTION_TYPES = ("sample", "velocity", "epsilon")
MAX_LAYERS = 1000
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "latent_channels",
    "latent_patch_size",
    "window_frames",
    "max_position_embeddings",
    "num_inference_steps",
)
"""Fields that are positive numbers."""
PAIRS = {"latent_grid": 1, "path_origin": 0, "action_token_ids": 0, "text_token_ids": 0}
"""Fields that are two numbers, and the least that these may be."""

NUMBERS = {
    "rms_norm_eps": (0.0, 1.0),
    "rope_theta": (1.0, 1e12),
    "partial_rotary_factor": (0.0, 1.0),
    "initializer_range": (0.0, 1e3),
    "token_loss_weight": (0.0, 1e6),
    "flow_loss_weight": (0.0, 1e6),
    "motion_loss_weight": (0.0, 1e6),
    "context_noise_level": (0.0, 1.0),
}
"""Fields that are any number, with the least and the greatest that make sense."""

MARKER_IDS = (
    "task_token_id",
    "agent_token_id",
    "frame_token_id",
    "frame_end_token_id",
    "latent_token_id",
    "action_token_id",
    "inverse_token_id",
    "unknown_token_id",
    "ongoing_token_id",
    "success_token_id",
    "failure_token_id",
    "world_token_id",
)
"""Fields that name the grammar's own tokens."""


@strict
class UnifiedConfig(PreTrainedConfig):
    """Everything that is needed to build a `UnifiedModel` and to read its token stream.

    The decoder's fields carry their usual transformers names, so that a Llama-like
    `config.json` reads the same here. The fields that end in `_token_id` name the markers
    of the conversation's grammar (see `unified.conversation.grammar`); `action_token_ids` is the
    half-open range of ids that are actions.
    """

    model_type = "unified"
    keys_to_ignore_at_inference = ["past_key_values"]

    # Decoder
    vocab_size: int = 544
    hidden_size: int = 128
    intermediate_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    rms_norm_eps: float = 1e-6
    qk_norm: bool = True
    attention_bias: bool = False
    rope_theta: float = 10000.0
    """Base of the rotary frequencies. The axes (time, row, column) take them in turn."""
    partial_rotary_factor: float = 1.0
    """Share of a head's dimensions that are rotated. The rest match by content alone. When the view
    turns, a cell moves by no fixed offset, so only its content can find it."""
    path_layer: int | None = None
    """Layer in which half of each head has places in the world for rotary positions (see
    `unified.model.layers.PathIntegration`). They are integrated from the motions of the actions, so
    that it can attend to places that were long out of sight. The layers below it have to recognise
    whether an action had an effect. None for no such layer."""
    path_origin: tuple[int, int] | list[int] = (6, 3)
    """Row and column of the latent token about which the view turns: where the agent stands."""
    path_lattice: tuple[int | float, int | float] | list[int | float] | None = None
    """Where the world is a grid: turns of a full circle, and length of a move in tokens, such as
    (4, 1.0). Motions are rounded to these, so that a path is as exact after a thousand actions as
    after one; None leaves them as they are made."""
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    modality_experts: bool = False
    """Second projections and MLP for latent tokens (BAGEL, arXiv:2505.14683; LMFusion,
    arXiv:2412.15188)."""

    # Latents
    latent_channels: int = 8
    latent_patch_size: int = 1
    """Side, in latents, of the square patch that is one token."""
    latent_grid: tuple[int, int] | list[int] = (7, 7)
    """Tokens of one frame: rows and columns, after patching."""
    latent_position_features: bool = True
    """Add Fourier features of a latent's row and column to its token: rotary positions alone are
    relative, and turning the view needs to know where in the frame a token stands."""

    # Flow
    prediction_type: Literal["sample", "velocity", "epsilon", "v"] = "sample"
    """What the latent head returns, see `unified.model.flow.training_target`."""
    noise_path: Literal["rectified", "linear", "cosine"] = "rectified"
    """What lies between latents and noise: a straight line, or a variance-preserving path."""
    step_size_embedding: bool = False
    """The model is told how far a denoise step goes, beside the level at which it begins, so that
    it can take few large ones (shortcut models, arXiv:2410.12557); see `train.distill`."""
    learned_steps: list[int] | None = None
    """Numbers of denoise steps that it was distilled for; with any other it is told nothing of
    their size."""
    flow_loss_weighting: Literal["uniform", "ramp"] = "uniform"
    """Weight over noise levels s: 1, or Dreamer 4's 0.9 (1 - s) + 0.1 (arXiv:2509.24527)."""
    token_loss_weight: float = 1.0
    flow_loss_weight: float = 1.0
    motion_loss_weight: float = 1.0
    """Weight of the squared error of motions, where the data have them."""

    # Context
    window_frames: int = 8
    """How many frames, the current one included, a token sees. What precedes the first frame
    (the task) stays visible for ever."""
    memory: str = "window"
    """What a session remembers unless it is told otherwise, see `unified.memory`: the last
    `window_frames` frames, or "place"."""
    num_inference_steps: int = 4
    """Denoise steps of a frame, unless a session is told otherwise."""
    context_noise_level: float = 0.0
    """Noise level that is given to the model for frames it generated itself. Above 0, it relies on
    them a little less (Diffusion Forcing, arXiv:2407.01392, appendix on stabilised rollouts)."""
    max_position_embeddings: int = 32768
    """Longest prompt, in tokens. Rotary positions need no limit; memory does."""

    # Grammar
    pad_token_id: int | None = 512
    eos_token_id: int | list[int] | None = 513
    task_token_id: int = 514
    agent_token_id: int = 515
    frame_token_id: int = 516
    frame_end_token_id: int = 517
    latent_token_id: int = 518
    action_token_id: int = 519
    inverse_token_id: int = 520
    unknown_token_id: int = 521
    ongoing_token_id: int = 522
    success_token_id: int = 523
    failure_token_id: int = 524
    world_token_id: int | None = None
    """Opens the world's words; None in models that were never taught any."""
    action_token_ids: tuple[int, int] | list[int] = (525, 532)
    action_formats: list[list[tuple[int, int] | list[int]]] | None = None
    """Ways to write an action, such as one for each embodiment: the ids that are legal at each of
    its tokens, half-open. The first token tells which it is. None is one of `action_token_ids`."""
    text_token_ids: tuple[int, int] | list[int] = (0, 512)
    made_for: dict[str, str] | None = None
    """Fingerprints of the processor that the model was made for, see `fingerprints` in
    `unified.conversation.loading`: another one beside it is refused. None where nobody knows."""

    def __post_init__(self, **kwargs):
        """Derives the head sizes that were left open."""
        self._check_sizes()
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        self.validate_architecture()  # here it is a plain ValueError
        self._check_ids()
        super().__post_init__(**kwargs)

    def _check_sizes(self):
        """Checks each field by itself, before anything is computed of it or made in its size.

        Raises:
            ValueError: If a number is out of range, or a pair is not two numbers.
        """
        for name in SIZES:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name, (smallest, greatest) in NUMBERS.items():
            value = getattr(self, name)
            if not smallest <= value <= greatest:  # nor is NaN
                raise ValueError(f"{name}={value} must be from {smallest:g} to {greatest:g}")
        if self.num_hidden_layers > MAX_LAYERS:
            raise ValueError(
                f"num_hidden_layers={self.num_hidden_layers} exceeds {MAX_LAYERS}; is config.json "
                "that of this checkpoint?"
            )
        for name, least in PAIRS.items():
            value = getattr(self, name)
            if len(value) != 2 or min(value) < least:
                raise ValueError(
                    f"{name}={list(value)} must be two whole numbers of at least {least}"
                )

    def validate_architecture(self):
        """Checks the fields against each other.

        Raises:
            ValueError: If two fields contradict each other; names both.
        """
        if self.num_attention_heads % (self.num_key_value_heads or 1):
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}; choose a divisor"
            )
        if self.rotary_dim < 2 or self.rotary_dim % 2:
            raise ValueError(
                f"head_dim={self.head_dim} times partial_rotary_factor="
                f"{self.partial_rotary_factor} must be an even number of at least 2: rotary turns "
                "pairs"
            )
        if self.path_layer is not None and not 0 <= self.path_layer < self.num_hidden_layers:
            raise ValueError(
                f"path_layer={self.path_layer} is none of the {self.num_hidden_layers} layers; "
                f"choose 0 to {self.num_hidden_layers - 1}, or None"
            )
        if self.path_layer is not None and (self.head_dim or 0) % 8:
            raise ValueError(
                f"head_dim={self.head_dim} must be a multiple of 8 for path_layer={self.path_layer}"
                ": half of its pairs turn by place, on two axes"
            )
        if self.path_lattice is not None and (
            len(self.path_lattice) != 2 or not all(0 < x < math.inf for x in self.path_lattice)
        ):
            raise ValueError(
                f"path_lattice={self.path_lattice} must be turns of a circle and a length, both "
                "above 0, such as (4, 1.0); or None"
            )
        self.check_memory(self.memory)
        formats = self.action_formats
        if formats is not None and not (formats and all(formats)):
            raise ValueError(f"action_formats={formats} holds an action without tokens")
        for ids in (ids for form in formats or () for ids in form):
            if len(ids) != 2:
                raise ValueError(f"action_formats has {list(ids)}, which are not two ids")

    def _check_ids(self):
        """Checks that each id names one thing, in the vocabulary.

        Raises:
            ValueError: If a range or a marker lies outside of it, or where others are.
        """
        ranges = {}
        for name in ("text_token_ids", "action_token_ids"):
            first, stop = getattr(self, name)
            if not first < stop <= self.vocab_size:
                raise ValueError(
                    f"{name}={[first, stop]} is no range of the vocabulary of {self.vocab_size}"
                )
            ranges[name] = range(first, stop)
        text, actions = ranges.values()
        if text.start < actions.stop and actions.start < text.stop:
            raise ValueError(
                f"text_token_ids={[text.start, text.stop]} and "
                f"action_token_ids={[actions.start, actions.stop]} overlap"
            )
        for form in self.action_formats or ():
            for first, stop in form:
                if not actions.start <= first < stop <= actions.stop:
                    raise ValueError(
                        f"action_formats has {[first, stop]}, which is no range within "
                        f"action_token_ids={[actions.start, actions.stop]}"
                    )
        seen: dict[int, str] = {}
        for name in MARKER_IDS:
            index: int | None = getattr(self, name)
            if index is None:  # the world's, in models that were never taught its words
                continue
            if not 0 <= index < self.vocab_size:
                raise ValueError(
                    f"{name}={index} lies outside of the vocabulary of {self.vocab_size}"
                )
            other = seen.setdefault(index, name)
            inside = next((range_ for range_, ids in ranges.items() if index in ids), None)
            if other != name or inside is not None:
                raise ValueError(
                    f"{name}={index} is {inside or other} already; each token means one thing"
                )

    def check_memory(self, memory: str) -> None:
        """Refuses a memory that this model cannot have.

        Raises:
            ValueError: If it is unknown, or needs places and the model has none.
        """
        if read_memory(memory).kind == "place" and self.path_layer is None:
            raise ValueError(
                f"memory={memory!r} keeps what was seen by its place, and this model knows no "
                "places (path_layer is None); use memory='window', or train one with path_layer=2 "
                "on recordings with motions"
            )

    @property
    def rotary_dim(self) -> int:
        """Dimensions of a head that are rotated."""
        return int((self.head_dim or 0) * self.partial_rotary_factor)

    def listed_action_formats(self) -> list[list[tuple[int, int]]]:
        """`action_formats` as pairs of integers, also where it is None."""
        formats = self.action_formats or [[self.action_token_ids]]
        return [[(first, stop) for first, stop in form] for form in formats]

    def action_format(self, first: int) -> list[tuple[int, int]]:
        """The ids that are legal at each token of an action that begins with this id.

        Raises:
            ValueError: If no action begins with it.
        """
        for form in self.listed_action_formats():
            if form[0][0] <= first < form[0][1]:
                return form
        raise ValueError(f"no action begins with token {first}; see action_formats")

    @property
    def longest_action(self) -> int:
        """Tokens of the longest action."""
        return max(map(len, self.listed_action_formats()))

    @property
    def outcome_token_ids(self) -> tuple[int, int, int]:
        """Ids of `<ongoing>`, `<success>`, `<failure>`, in this order."""
        return (self.ongoing_token_id, self.success_token_id, self.failure_token_id)

    @property
    def latent_size(self) -> int:
        """Numbers in one latent token: channels times patch area."""
        return self.latent_channels * self.latent_patch_size**2

    @property
    def frame_tokens(self) -> int:
        """Latent tokens in one frame."""
        return self.latent_grid[0] * self.latent_grid[1]
