"""UnifiedProcessor: messages -> Sequence -> token stream -> model inputs, and back."""

import copy
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoProcessor, BatchFeature, ProcessorMixin

from unified.configuration import UnifiedConfig
from unified.conversation.lexicon import LEXICON_FILE, Lexicon
from unified.conversation.loading import (
    CODEC_FOLDER,
    PROCESSOR_FILE,
    check_vocabulary,
    fingerprints,
    load_parts,
)
from unified.conversation.messages import (
    check_options,
    messages_from_segments,
    messages_of,
    sequence_from_messages,
)
from unified.conversation.reading import read_action, read_segments
from unified.conversation.sequence import (
    Kind,
    Motion,
    Segment,
    Sequence,
)
from unified.conversation.stream import TokenStream, as_latents, patchify
from unified.conversation.turns import check_turns
from unified.conversation.vocabulary import (
    NAMES,
    WORLD,
    action_ids,
    add_actions,
    language_tokenizer,
    token_fields,
    world_id,
)
from unified.files import atomic_files, write_json
from unified.media.action_space import ACTIONS_FILE, ActionSpace
from unified.media.codec import FrameCodec, frames_to_pixels, pixels_to_frames
from unified.media.pictures import Fit, check_fit, read_picture, shortened, sized_picture

_PARTS = (
    "tokenizer",
    "codec",
    "action_space",
    "latent_patch_size",
    "latent_grid",
    "resize",
    "lexicon",
    "action_prefix",
)


class UnifiedProcessor(ProcessorMixin):
    """Turns conversations into model inputs, and generated tokens into conversations.

    It holds the text tokenizer, the codec (frames <-> latents) and the action space (actions <->
    tokens).
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
        lexicon: Lexicon | None = None,
        action_prefix: str | None = None,
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
            lexicon: What the model was taught to hear; None if nobody wrote it down.
            action_prefix: What the vocabulary writes before the action space's tokens,
                `<arm:left>` for `<left>`, where it has others of these names.
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
        self.lexicon = lexicon
        self.action_prefix = action_prefix
        self.chat_template = None
        vocabulary = tokenizer.get_vocab()
        missing = [f"<{name}>" for name in NAMES if f"<{name}>" not in vocabulary]
        if missing:
            raise ValueError(
                f"the tokenizer lacks {' '.join(missing)}; add tokenizers_cfg/special_tokens.json"
            )
        names = [*NAMES, WORLD] if f"<{WORLD}>" in vocabulary else NAMES  # older models have none
        self.ids: dict[str, int] = {name: vocabulary[f"<{name}>"] for name in names}
        self._action_ids: dict[str, int] = {}
        if action_space is not None:
            self._action_ids = action_ids(action_space, vocabulary, action_prefix)
        self.token_names = {index: token for token, index in vocabulary.items()}
        self.token_names.update({index: token for token, index in self._action_ids.items()})
        self._text_ids = lru_cache(maxsize=65536)(self._encode_text)

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, sequences: Any = None, *, text: Any = None, images: Any = None, **kwargs: Any
    ) -> BatchFeature:
        """Model inputs of sequences, or of tasks and first frames.

        Args:
            sequences: One `Sequence` or several; see `encode`.
            text: Instead, a task in words; a list of them is a batch.
            images: The frame that belongs to it, as messages take them; a list of them is a batch.
            **kwargs: As in `apply_chat_template`.

        Raises:
            ValueError: If there is nothing, or as many frames as tasks are not given.
        """
        if sequences is not None and (text is not None or images is not None):
            raise ValueError("give sequences, or text and images; not both")
        if isinstance(sequences, Sequence):
            sequences = [sequences]
        if isinstance(sequences, list | tuple):
            check_options(kwargs)
            if not sequences or not all(isinstance(one, Sequence) for one in sequences):
                raise ValueError(
                    "the processor takes a Sequence, a list of them, or text= and images=; "
                    "messages go through apply_chat_template"
                )
            return self.encode(list(sequences))
        if sequences is not None:
            raise ValueError(
                f"the processor was given a {type(sequences).__name__}; say text= or images=, or "
                "give a Sequence"
            )
        return self.apply_chat_template(messages_of(text, images), **kwargs)

    def __repr__(self) -> str:
        """What it is made of, in a line."""
        codec, space = self.codec, self.action_space
        parts = [f"{len(self.tokenizer)} tokens"]
        if codec is not None:
            kind = type(codec.autoencoder).__name__
            parts.append(f"codec {kind} of {codec.latent_channels} channels")
        if space is not None:
            parts.append(f"actions {space.name!r} ({space.kind}, {len(space.tokens)} tokens)")
        return f"{type(self).__name__}({', '.join(parts)})"

    def __getstate__(self) -> dict[str, Any]:
        """All but the cache of words, so that workers can be sent one."""
        return {name: value for name, value in vars(self).items() if name != "_text_ids"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """The inverse of `__getstate__`."""
        vars(self).update(state)
        self._text_ids = lru_cache(maxsize=65536)(self._encode_text)

    # Saving and loading

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes tokenizer, codec and action space into a folder, all of it or nothing.

        `codec=False` leaves the codec out.
        """
        # Those of a processor that was saved there before do not stay where this one has none.
        earlier = (ACTIONS_FILE, CODEC_FOLDER)
        with atomic_files(Path(save_directory), replaces=earlier) as folder:
            self.tokenizer.save_pretrained(folder)
            if self.action_space is not None:
                write_json(folder / ACTIONS_FILE, self.action_space.to_config())
            if self.codec is not None and kwargs.get("codec", True):
                self.codec.save_pretrained(folder / CODEC_FOLDER)
            if self.lexicon is not None:
                write_json(folder / LEXICON_FILE, self.lexicon.to_json())
            config: dict[str, Any] = {
                "processor_class": type(self).__name__,
                "latent_patch_size": self.latent_patch_size,
            }
            if self.action_prefix is not None:
                config["action_prefix"] = self.action_prefix
            if self.latent_grid is not None:
                config["latent_grid"] = list(self.latent_grid)
            write_json(folder / PROCESSOR_FILE, config)
        return [str(save_directory)]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any):  # pyright: ignore[reportIncompatibleMethodOverride]
        """Loads a folder, a hub id, or an embedded checkpoint by name ("babyai").

        `resize="crop"` or `"pad"` takes frames of any size, see `__init__`.

        Raises:
            ValueError: If a file is missing or broken, or an option unknown.
        """
        return cls(**load_parts(pretrained_model_name_or_path, kwargs), resize=kwargs.get("resize"))

    @classmethod
    def from_language_model(
        cls,
        source: str | Path,
        *,
        action_space: ActionSpace,
        codec: FrameCodec | None = None,
        latent_patch_size: int = 1,
        **kwargs: Any,
    ) -> "UnifiedProcessor":
        """A language model's tokenizer with our markers and actions behind its own words.

        Args:
            source: Folder or hub id of the language model.
            action_space: Its tokens are added, in their order.
            codec: Frames <-> latents.
            latent_patch_size: As in the model's config.
            **kwargs: For `AutoTokenizer.from_pretrained`, such as `gguf_file`.

        Raises:
            ValueError: If the tokenizer has one of our tokens already.
        """
        return cls(
            tokenizer=language_tokenizer(source, action_space, **kwargs),
            codec=codec,
            action_space=action_space,
            latent_patch_size=latent_patch_size,
        )

    def with_action_space(self, action_space: ActionSpace) -> "UnifiedProcessor":
        """A processor with another action space; new tokens are added behind the vocabulary.

        If the vocabulary has some of them, as something else or in another order, it gets new ones
        that begin with the action space's name (`action_prefix`), as those of an embodiment do.
        `UnifiedModel.adopt` then makes room for them.
        """
        tokenizer = copy.deepcopy(self.tokenizer)
        prefix = add_actions(tokenizer, action_space, behind=max(self.ids.values()))
        return self._with(tokenizer=tokenizer, action_space=action_space, action_prefix=prefix)

    def with_codec(self, codec: FrameCodec) -> "UnifiedProcessor":
        """The same with another codec, as a model needs that is adapted to other frames.

        How large they are is known once the model adopts it.
        """
        return self._with(codec=codec, latent_grid=None)

    def _with(self, **changes: Any) -> "UnifiedProcessor":
        return UnifiedProcessor(**{**{name: getattr(self, name) for name in _PARTS}, **changes})

    def config_fields(self) -> dict[str, Any]:
        """The fields of `UnifiedConfig` that this tokenizer, codec and action space decide."""
        fields = {**self.token_fields(), "latent_patch_size": self.latent_patch_size}
        if self.codec is not None:
            fields["latent_channels"] = self.codec.latent_channels
        return {**fields, "made_for": self.fingerprints()}

    def token_fields(self) -> dict[str, Any]:
        """Those of them that say what a token means."""
        space, actions = self._actions(), self._vocabulary_range()
        return token_fields(self.tokenizer, self.ids, space, actions)

    def fingerprints(self) -> dict[str, str]:
        """What tells this processor from another: of its tokens, its actions and its codec."""
        return fingerprints(self.tokenizer, self.action_space, self.codec)

    def _vocabulary_range(self) -> tuple[int, int]:
        return check_vocabulary(self._actions(), self._action_ids)

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
        return self.decode_latents(as_latents(segment.latents, "the frame")[None])[0]

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
        return codec.encode(frames).float().cpu()

    def _codec(self) -> FrameCodec:
        if self.codec is None:
            raise ValueError("the processor has no codec to turn frames into latents; give codec")
        return self.codec

    def _actions(self) -> ActionSpace:
        if self.action_space is None:
            raise ValueError(
                f"the processor has no action space; copy the checkpoint again with its "
                f"{ACTIONS_FILE}, or give action_space"
            )
        return self.action_space

    # Sequence -> tokens

    def _encode_text(self, text: str) -> tuple[int, ...]:
        # A marker that somebody writes out, such as "<frame>", is words like any other.
        return tuple(
            self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        )

    def action_ids(self, action: object) -> list[int]:
        """Token ids of one action."""
        space = self._actions()
        try:
            return [self._action_ids[token] for token in space.encode(action)]
        except (TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
            kind = f"a {type(action).__name__}"
            raise ValueError(
                f"{kind} is no action of {space.name!r} ({error}); give one as "
                "processor.action_space.decode returns it"
            ) from error

    def stream(self, sequence: Sequence) -> TokenStream:
        """A conversation as a token stream; the grammar is in `unified.conversation.grammar`.

        Raises:
            ValueError: If segments are out of turn.
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
            latents = self.frame_latents(sequence.frames())
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
            elif segment.role == "world":
                if previous is None or previous.role != "world" or previous.kind is Kind.FRAME:
                    say(world_id(ids), 0.0)
                for token in self._text_ids(segment.text or ""):
                    say(token, 0.0)  # given, as the task is
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

    def frame_latents(self, frames: list[Segment]) -> Tensor:
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
        tensors = [as_latents(x, f"frame {i}") for i, x in enumerate(latents)]
        sizes = sorted({tuple(x.shape) for x in tensors})
        if len(sizes) > 1:
            raise ValueError(f"the latents of frames differ in size: {sizes}; use one codec")
        stacked = torch.stack(tensors)
        if not torch.isfinite(stacked).all():
            raise ValueError("latents hold NaN or infinity; check the frames and the codec")
        return patchify(stacked, self.latent_patch_size, self.latent_grid)

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
    ) -> Any:
        """Model inputs of one conversation or a list of them, see `unified.conversation.messages`.

        Args:
            conversation: A list of messages, or a list of such lists.
            **kwargs: transformers' other options: `tokenize=False` returns what is said as text,
                markers and all; `return_dict=False` the `input_ids` alone. `return_tensors="pt"`,
                `padding` and `add_generation_prompt` change nothing: rows are padded, and the
                query says who goes on.

        Raises:
            ValueError: If an option or a message is not understood; names it and the fix.
        """
        check_options(kwargs)
        if not isinstance(conversation, list | tuple):
            raise ValueError(
                f"the conversation is a {type(conversation).__name__}; give a list of messages"
            )
        if not conversation:
            raise ValueError("the prompt is empty; give at least a task or a frame")
        is_batch = isinstance(conversation[0], list | tuple)
        sequences = [
            sequence_from_messages(messages, self.action_ids, self.read_frame)
            for messages in (conversation if is_batch else [conversation])
        ]
        if kwargs.get("tokenize", True) is False:
            told = [self.tokenizer.decode(self.stream(one).input_ids) for one in sequences]
            return told if is_batch else told[0]
        inputs = self.encode(sequences)
        return inputs if kwargs.get("return_dict", True) else inputs["input_ids"]

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
        return read_segments(
            input_ids,
            latents,
            config,
            ids=self.ids,
            patch_size=self.latent_patch_size,
            read_text=self.tokenizer.decode,
            read_action=lambda tokens: read_action(self, config, tokens),
        )

    def decode(self, generation: Any, **kwargs: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Messages of what `UnifiedModel.generate` returned.

        Args:
            generation: A `Generation`; or token ids, which become text as the tokenizer has it.
            **kwargs: Of the tokenizer's `decode`, for token ids.

        Returns:
            A list of messages with PIL frames; a list of such lists for several rows.
        """
        if not hasattr(generation, "rows"):
            return self.tokenizer.decode(generation, **kwargs)
        replies = self.batch_decode(generation)
        return replies[0] if len(replies) == 1 else replies

    def batch_decode(self, generation: Any, **kwargs: Any) -> list[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As `decode`, always a list with an entry for each row."""
        if not hasattr(generation, "rows"):
            return self.tokenizer.batch_decode(generation, **kwargs)
        return [
            messages_from_segments(self.segments(ids, latents, generation.config), self.pixels)
            for ids, latents in generation.rows()
        ]


AutoProcessor.register(UnifiedConfig, UnifiedProcessor)
