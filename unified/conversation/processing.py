"""UnifiedProcessor: messages -> Sequence -> token stream -> model inputs, and back."""

import copy
import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, AutoTokenizer, BatchFeature, ProcessorMixin

from unified.conversation.messages import messages_from_segments, sequence_from_messages
from unified.conversation.sequence import (
    Kind,
    Motion,
    Segment,
    Sequence,
    TokenStream,
    action_segment,
    frame_segment,
    patchify,
    text_segment,
    unpatchify,
)
from unified.conversation.turns import check_turns
from unified.files import atomic_files, write_json
from unified.media.actions import ActionSpace
from unified.media.codec import FrameCodec, frames_to_pixels, pixels_to_frames
from unified.media.pictures import Fit, check_fit, read_picture, shortened, sized_picture
from unified.model import adapters, language
from unified.model.configuration import OUTCOMES, UnifiedConfig
from unified.model.modeling import resolve_checkpoint

ACTIONS_FILE = "action_space.json"
CODEC_FOLDER = "codec"


class UnifiedProcessor(ProcessorMixin):
    """Turns conversations into model inputs, and generated tokens into conversations.

    It owns all that is not the transformer: the text tokenizer, the codec (frames <-> latents)
    and the action space (actions <-> tokens).
    """

    attributes = ["tokenizer"]
    tokenizer_class = "AutoTokenizer"

    def __init__(
        self,
        tokenizer: Any = None,
        codec: FrameCodec | None = None,
        action_space: ActionSpace | None = None,
        latent_patch_size: int = 1,
        latent_grid: tuple[int, int] | None = None,
        resize: Fit | None = None,
        **kwargs: Any,
    ):
        """Puts the parts together.

        Args:
            tokenizer: Fast tokenizer that has the markers and the action tokens.
            codec: Frames <-> latents; None leaves only conversations whose frames are latents.
            action_space: Actions <-> tokens.
            latent_patch_size: As in the model's config.
            latent_grid: Likewise: rows and columns of a frame's tokens. None takes any frames.
            resize: What to do with frames of another size than the model's: "crop" scales them to
                cover the frame and cuts off what hangs over, "pad" scales them to lie within it, on
                black. The first of each size is told. None refuses them.
            **kwargs: Ignored, as transformers passes a saved file's other entries.
        """
        self.tokenizer = tokenizer
        self.codec = codec
        self.action_space = action_space
        self.latent_patch_size = latent_patch_size
        self.latent_grid = latent_grid and (latent_grid[0], latent_grid[1])
        if resize is not None:
            check_fit(resize)
        self.resize: Fit | None = resize
        self._resized_sizes: set[tuple[int, ...]] = set()
        self.chat_template = None
        vocabulary = tokenizer.get_vocab()
        names = ["eos", "task", "agent", "frame", "/frame", "latent", "action", "inverse"]
        names += ["unknown", *OUTCOMES]
        missing = [f"<{name}>" for name in names if f"<{name}>" not in vocabulary]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {' '.join(missing)}; add tokenizers_cfg/special_tokens.json"
            )
        self.ids: dict[str, int] = {name: vocabulary[f"<{name}>"] for name in names}
        self.token_names = {index: token for token, index in vocabulary.items()}
        self._vocabulary = vocabulary
        self._text_ids = lru_cache(maxsize=65536)(self._encode_text)

    def __call__(self, sequences: Any, **kwargs: Any) -> BatchFeature:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Model inputs of one Sequence or of several; see `encode`."""
        return self.encode([sequences] if isinstance(sequences, Sequence) else list(sequences))

    # Saving and loading

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes tokenizer, codec and action space into a folder, each file whole or not at all.

        `codec=False` leaves the codec out.
        """
        with atomic_files(Path(save_directory)) as folder:
            self.tokenizer.save_pretrained(folder)
            if self.action_space is not None:
                write_json(folder / ACTIONS_FILE, self.action_space.to_config())
            if self.codec is not None and kwargs.get("codec", True):
                self.codec.save_pretrained(folder / CODEC_FOLDER)
            config = {
                "processor_class": type(self).__name__,
                "latent_patch_size": self.latent_patch_size,
            }
            if self.latent_grid is not None:
                config["latent_grid"] = list(self.latent_grid)
            write_json(folder / "processor_config.json", config)
        return [str(save_directory)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Loads a folder, a hub id, or an embedded checkpoint by name ("babyai").

        `resize="crop"` or `"pad"` takes frames of any size, see `__init__`.

        Raises:
            ValueError: If a file is missing or broken.
        """
        source = resolve_checkpoint(pretrained_model_name_or_path)
        folder = Path(source)
        if not folder.is_dir():
            from huggingface_hub import snapshot_download
            from huggingface_hub.errors import HFValidationError

            try:
                folder = Path(snapshot_download(source))
            except (OSError, HFValidationError) as error:
                raise ValueError(
                    f"no processor at {source!r}: it is neither a folder, nor an embedded name "
                    f"such as 'babyai', nor a hub id that can be reached ({type(error).__name__})"
                ) from error
        config_file = folder / "processor_config.json"
        if not config_file.exists():
            raise ValueError(
                f"{folder} has no processor_config.json; save one with processor.save_pretrained"
            )
        try:
            config = json.loads(config_file.read_text())
            tokenizer = AutoTokenizer.from_pretrained(folder)
        except Exception as error:  # tokenizers raises a bare Exception for a broken file
            raise ValueError(
                f"the processor in {folder} is broken ({error}); copy the checkpoint again"
            ) from error
        codec_folder, actions_file = folder / CODEC_FOLDER, folder / ACTIONS_FILE
        base = adapters.base_of(folder)
        codec = None
        if codec_folder.is_dir():
            codec = FrameCodec.from_pretrained(codec_folder)
        elif base is not None:  # an adapter has a codec of its own only if it is another one
            codec = cls.from_pretrained(base).codec
            adapters.check_codec(folder, codec)
        return cls(
            tokenizer=tokenizer,
            codec=codec,
            action_space=ActionSpace.from_config(actions_file) if actions_file.exists() else None,
            latent_patch_size=config.get("latent_patch_size", 1),
            latent_grid=config.get("latent_grid") or _model_grid(folder, base),
            resize=kwargs.get("resize"),
        )

    @classmethod
    def from_language_model(cls, source: str | Path, **kwargs: Any) -> "UnifiedProcessor":
        """A language model's tokenizer with our markers and actions behind its own words.

        Args:
            source: Folder or hub id of the language model.
            **kwargs: `action_space`, and perhaps `codec`, `latent_patch_size`; all others are for
                `AutoTokenizer.from_pretrained`.

        Raises:
            ValueError: If the tokenizer has one of our tokens already.
        """
        return language.language_processor(source, **kwargs)

    def with_action_space(self, action_space: ActionSpace) -> "UnifiedProcessor":
        """The same with another action space; its tokens go behind the vocabulary if they are new.

        `UnifiedModel.adopt` then makes room for them.

        Raises:
            ValueError: If only some of its tokens are known, or they are known otherwise.
        """
        tokenizer = copy.deepcopy(self.tokenizer)
        known = tokenizer.get_vocab()
        new = [token for token in action_space.tokens if token not in known]
        old = [known[token] for token in action_space.tokens if token in known]
        is_word = any(i <= max(self.ids.values()) for i in old)  # or a marker
        if old and (new or is_word or old != list(range(old[0], old[0] + len(old)))):
            taken = [token for token in action_space.tokens if token in known]
            raise ValueError(
                f"the vocabulary has {' '.join(taken[:4])} already, as something else or in "
                f"another order than {action_space.name!r}; rename these actions"
            )
        tokenizer.add_tokens(new, special_tokens=True)
        return self._with(tokenizer=tokenizer, action_space=action_space)

    def with_codec(self, codec: FrameCodec) -> "UnifiedProcessor":
        """The same with another codec, as a model needs that is adapted to other frames.

        How large they are is known once the model adopts it.
        """
        return self._with(codec=codec, latent_grid=None)

    def _with(self, **changes: Any) -> "UnifiedProcessor":
        """A processor of the same parts but those that are given."""
        names = ("tokenizer", "codec", "action_space", "latent_patch_size", "latent_grid", "resize")
        return UnifiedProcessor(**{**{name: getattr(self, name) for name in names}, **changes})

    def config_fields(self) -> dict[str, Any]:
        """The fields of `UnifiedConfig` that this tokenizer, codec and action space decide."""
        ids = self.ids
        actions = self._vocabulary_range()
        fields: dict[str, Any] = {f"{name}_token_id": ids[name] for name in OUTCOMES}
        for name in ("eos", "task", "agent", "frame", "latent", "action", "inverse", "unknown"):
            fields[f"{name}_token_id"] = ids[name]
        fields["frame_end_token_id"] = ids["/frame"]
        fields["pad_token_id"] = self.tokenizer.pad_token_id
        fields["vocab_size"] = len(self.tokenizer)
        fields["action_token_ids"] = actions
        formats = self._space().formats
        shifted = [[(actions[0] + a, actions[0] + b) for a, b in form] for form in formats]
        is_plain = shifted == [[actions]]
        fields["action_formats"] = None if is_plain else shifted
        fields["text_token_ids"] = (0, min(self.tokenizer.pad_token_id, *ids.values()))
        fields["latent_patch_size"] = self.latent_patch_size
        if self.codec is not None:
            fields["latent_channels"] = self.codec.latent_channels
        return fields

    def _vocabulary_range(self) -> tuple[int, int]:
        space = self._space()
        indices = [self._vocabulary.get(token, -1) for token in space.tokens]
        if indices != list(range(indices[0], indices[0] + len(indices))) or indices[0] < 0:
            raise ValueError(
                f"the action tokens of {space.name!r} are not one run of the "
                "vocabulary; add them together, in the action space's order"
            )
        return indices[0], indices[-1] + 1

    # Pixels <-> latents

    @property
    def frame_size(self) -> tuple[int, int] | None:
        """Height and width in pixels of the model's frames; None where nobody knows."""
        if self.latent_grid is None or self.codec is None:
            return None
        side = self.latent_patch_size * self.codec.downsample_factor
        return self.latent_grid[0] * side, self.latent_grid[1] * side

    def read_frame(self, source: Any, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """The pixels of a frame, `(H, W, 3)` uint8, in the size of the model's frames.

        Args:
            source: What `unified.media.pictures.read_picture` takes.
            name: What an error calls it, if it is no file.
            size: Height and width of the model's frames; None is `frame_size`.

        Raises:
            ValueError: If it cannot be read, or has another size and `resize` is None.
        """
        pixels, size = read_picture(source, name), size or self.frame_size
        if size is None:
            return pixels
        name = shortened(source) if isinstance(source, str | os.PathLike) else name
        return sized_picture(pixels, name, size, self.resize, self._resized_sizes)

    def pixels(self, segment: Segment) -> np.ndarray:
        """A FRAME segment as `(H, W, 3)` uint8, decoded if it holds latents."""
        if segment.frame is not None:
            return segment.frame
        return self.decode_latents(_to_host(segment.latents)[None])[0]

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """Decodes `(N, c, h, w)` latents, wherever they are, to `(N, H, W, 3)` uint8."""
        codec = self._codec()
        return frames_to_pixels(codec.decode(latents.to(codec.device, codec.dtype))).cpu().numpy()

    @torch.no_grad()
    def encode_pixels(self, pixels: np.ndarray) -> Tensor:
        """Encodes `(N, H, W, 3)` uint8 to `(N, c, h, w)` float32 latents."""
        codec = self._codec()
        frames = pixels_to_frames(pixels).to(codec.device, codec.dtype)
        return _to_host(codec.encode(frames))

    def _space(self) -> ActionSpace:
        if self.action_space is None:
            raise ValueError(
                f"the processor has no action space; copy the checkpoint again with its "
                f"{ACTIONS_FILE}, or give action_space"
            )
        return self.action_space

    def _codec(self) -> FrameCodec:
        if self.codec is None:
            raise ValueError("the processor has no codec to turn frames into latents; give codec")
        return self.codec

    # Sequence -> tokens

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def action_ids(self, action: object) -> list[int]:
        """Token ids of one action."""
        return [self._vocabulary[token] for token in self._space().encode(action)]

    def stream(self, sequence: Sequence) -> TokenStream:
        """A conversation as a token stream; the grammar is in `unified.conversation.grammar`.

        Raises:
            ValueError: If segments stand where nobody may speak.
        """
        ids = self.ids
        tokens: list[int] = []
        targets: list[int] = []
        weights: list[float] = []
        frame_weights: list[float] = []
        frames: list[Segment] = []
        moving: list[int] = []
        moved: list[Motion] = []

        def say(
            token: int, weight: float, target: int | None = None, motion: Motion | None = None
        ) -> None:
            if motion is not None:
                moving.append(len(tokens))
                moved.append(motion)
            tokens.append(token)
            targets.append(token if target is None else target)
            weights.append(weight)

        check_turns(sequence.segments)
        previous: Segment | None = None
        in_turn = False  # the agent has the floor
        frame_tokens = 0
        if any(s.kind is Kind.FRAME for s in sequence.segments):
            latents = self._frame_latents(sequence.frames())
            frame_tokens = latents.shape[1]
        else:
            latents = torch.zeros(0, 0, 0)
        for segment in sequence.segments:
            weight = segment.weight
            if segment.kind is Kind.FRAME:
                say(ids["frame"], weight)
                frames.append(segment)
                frame_weights.append(weight)
                tokens += [ids["latent"]] * frame_tokens
                targets += [ids["latent"]] * frame_tokens
                weights += [0.0] * frame_tokens
                say(ids["/frame"], 0.0)
                if segment.outcome is not None:
                    say(ids[segment.outcome], weight)
            elif segment.role == "task":
                if in_turn and previous is not None:
                    say(ids["eos"], previous.weight)
                    in_turn = False
                if previous is None or previous.role != "task":
                    say(ids["task"], 0.0)
                for token in self._text_ids(segment.text or ""):
                    say(token, weight)
            elif segment.hindsight:
                say(ids["inverse"], 0.0)
                self._say_action(segment, say)
            else:
                if not in_turn:
                    say(ids["agent"], 0.0)
                    in_turn = True
                if segment.kind is Kind.TEXT:
                    for token in self._text_ids(segment.text or ""):
                        say(token, weight)
                else:
                    # The marker ends the words before it, so it is learned with them.
                    spoke = previous is not None and previous.kind is Kind.TEXT and in_turn
                    ends_text = spoke and previous is not None and previous.role == "agent"
                    say(ids["action"], previous.weight if ends_text and previous else weight)
                    self._say_action(segment, say)
                    in_turn = False
            previous = segment
        if in_turn and previous is not None:
            say(ids["eos"], previous.weight)
        motions = torch.full((len(tokens), 3), torch.nan)
        motions[moving] = torch.tensor(moved).view(-1, 3)
        return TokenStream(
            input_ids=torch.tensor(tokens),
            targets=torch.tensor(targets),
            weights=torch.tensor(weights),
            latents=latents,
            frame_weights=torch.tensor(frame_weights),
            motions=motions,
        )

    def _say_action(self, segment: Segment, say: Any) -> None:
        if segment.action is None:
            say(self.ids["unknown"], 0.0)
            return
        shown = self.action_ids(segment.action)
        learned = shown if segment.target is None else self.action_ids(segment.target)
        for place, (token, target) in enumerate(zip(shown, learned, strict=True)):
            motion = segment.motion
            if motion is not None and place < len(shown) - 1:
                motion = (0.0, 0.0, 0.0)
            say(token, segment.weight, target, motion)

    def _frame_latents(self, frames: list[Segment]) -> Tensor:
        """Clean latent tokens of FRAME segments, `(T, n, latent_size)` float32."""
        missing = [i for i, s in enumerate(frames) if s.latents is None]
        latents: list[Any] = [s.latents for s in frames]
        if missing:
            pixels = [self.read_frame(frames[i].frame, f"frame {i}") for i in missing]
            sizes = {p.shape for p in pixels}
            if len(sizes) > 1:
                raise ValueError(f"frames differ in size: {sorted(sizes)}; resize them to one size")
            for i, encoded in zip(missing, self.encode_pixels(np.stack(pixels)), strict=True):
                latents[i] = encoded
        hosted = [_to_host(x) for x in latents]
        shapes = sorted({tuple(x.shape) for x in hosted})
        if len(shapes) > 1 or len(shapes[0]) != 3:
            raise ValueError(
                f"latents have shapes {shapes}; give (channels, height, width), one size for all"
            )
        stacked = torch.stack(hosted)
        if not torch.isfinite(stacked).all():
            raise ValueError("latents hold NaN or infinity; check the frames and the codec")
        side = self.latent_patch_size
        height, width = stacked.shape[-2:]
        if self.latent_grid is not None and (height, width) != (
            side * self.latent_grid[0],
            side * self.latent_grid[1],
        ):
            rows, cols = self.latent_grid
            raise ValueError(
                f"a frame has {height}x{width} latents, the model's have {rows * side}x"
                f"{cols * side} (height x width); resize the frames before they are encoded"
            )
        return patchify(stacked, side)

    def encode(self, sequences: list[Sequence]) -> BatchFeature:
        """Model inputs of ragged conversations, padded on the right.

        Returns:
            `input_ids` `(B, L)`, `attention_mask` `(B, L)`, and `latents` `(B, L, C)` where
            there are frames.
        """
        streams = [self.stream(sequence) for sequence in sequences]
        length = max(len(stream) for stream in streams)
        shape = (len(streams), length)
        input_ids = torch.full(shape, self.tokenizer.pad_token_id)
        attention_mask = torch.zeros(shape, dtype=torch.int64)
        size = max(s.latents.shape[-1] for s in streams)
        latents = torch.zeros(*shape, size)
        for row, stream in enumerate(streams):
            input_ids[row, : len(stream)] = stream.input_ids
            attention_mask[row, : len(stream)] = 1
            if len(stream.latents):
                is_latent = input_ids[row] == self.ids["latent"]
                latents[row, is_latent] = stream.latents.flatten(0, 1)
        data = {"input_ids": input_ids, "attention_mask": attention_mask}
        return BatchFeature({**data, "latents": latents} if size else data)

    def apply_chat_template(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, conversation: Any, **kwargs: Any
    ) -> BatchFeature:
        """Model inputs of one conversation or a list of them, see `unified.conversation.messages`.

        Args:
            conversation: A list of messages, or a list of such lists.
            **kwargs: transformers' other options; only `return_tensors="pt"` is meaningful.
        """
        if kwargs.get("return_tensors", "pt") != "pt":
            raise ValueError(f"return_tensors={kwargs['return_tensors']!r} is not made; use 'pt'")
        if not conversation:
            raise ValueError("the prompt is empty; give at least a task or a frame")
        many = conversation if isinstance(conversation[0], list) else [conversation]
        return self.encode(
            [
                sequence_from_messages(messages, self.action_ids, self.read_frame)
                for messages in many
            ]
        )

    # Tokens -> segments -> messages

    def segments(self, input_ids: Tensor, latents: Tensor | None, config: UnifiedConfig):
        """Reads one row of tokens back into segments; the inverse of `stream`.

        Args:
            input_ids: `(L,)` int64, no padding. May begin in the middle of a conversation.
            latents: `(L, C)`, read at the latent tokens.
            config: Gives the frame's grid.

        Returns:
            A list of `Segment`.
        """
        ids = self.ids
        names = {ids[name]: name for name in OUTCOMES}
        enders = {ids[name] for name in ("task", "agent", "inverse", "action", "frame")}
        tokens = input_ids.tolist()
        segments: list[Segment] = []
        role, hindsight, text, action, length = "agent", False, [], [], 0

        def flush() -> None:
            if text:
                words = self.tokenizer.decode(text)
                segments.append(text_segment(words, role))  # pyright: ignore[reportArgumentType]
                text.clear()

        index = 0
        while index < len(tokens):
            token = tokens[index]
            if token in enders:
                flush()
            if token == ids["task"]:
                role = "task"
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
                shaped = unpatchify(frame, self.latent_patch_size, grid)
                segments.append(frame_segment(latents=shaped))
                index += config.frame_tokens - 1
            elif token in names:
                latest = segments[-1] if segments else frame_segment()
                segments[-1:] = [frame_segment(latents=latest.latents, outcome=names[token])]
            elif config.action_token_ids[0] <= token < config.action_token_ids[1]:
                if not action:
                    length = len(config.action_format(token))
                action.append(self.token_names[token])
                if len(action) == length:
                    done = self._space().decode(action)
                    segments.append(action_segment(done, hindsight=hindsight))
                    hindsight, action = False, []
            elif token < config.text_token_ids[1]:
                text.append(token)
            index += 1
        flush()
        return segments

    def decode(self, generation: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Messages of what `UnifiedModel.generate` returned.

        Returns:
            A list of messages with PIL frames; a list of such lists for several rows.
        """
        replies = [
            messages_from_segments(self.segments(ids, latents, generation.config), self.pixels)
            for ids, latents in generation.rows()
        ]
        return replies[0] if len(replies) == 1 else replies


def _to_host(latents: Any) -> Tensor:
    """Latents as float32 on the CPU, wherever a model or codec left them."""
    return torch.as_tensor(latents).detach().to("cpu", torch.float32)


def _model_grid(folder: Path, base: Any) -> tuple[int, int] | None:
    """The model's `latent_grid`: of the folder's own config.json, or of its base's."""
    file = folder / "config.json"
    if not file.is_file() and base is not None:
        file = Path(resolve_checkpoint(base)) / "config.json"
    try:
        rows, cols = json.loads(file.read_text())["latent_grid"]
    except (OSError, ValueError, KeyError, TypeError):
        return None  # whether the config is broken, the model tells
    return rows, cols


AutoProcessor.register(UnifiedConfig, UnifiedProcessor)
