"""UnifiedModel: the transformer that is loaded by name, takes adapters and answers prompts.

Letters: B rows, L tokens, C latent size.
"""

import json
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, GenerationConfig

from unified.configuration import UnifiedConfig
from unified.conversation.grammar import Grammar
from unified.files import atomic_files, check_weights, check_whole
from unified.model import language
from unified.model.adaptable import AdaptableModel
from unified.model.card import CARD_FILE, write_card
from unified.pretrained import ADAPTER_CONFIG_FILE, INFO_FILE, base_of, resolve_checkpoint
from unified.sampling.diffusion.guidance import read_guidance
from unified.sampling.generation import Session
from unified.sampling.habits import check_names, read_config
from unified.sampling.inputs import check_tensor, count_tokens
from unified.sampling.options import Options, count, switch
from unified.sampling.reply import Callback

GENERATION_FILE = "generation_config.json"
_LOADING_ERRORS = (
    OSError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    StrictDataclassError,
)
"""What transformers and torch raise where a file holds something else than they expect."""

WEIGHT_FILES = ("model*.safetensors", "model*.safetensors.index.json")
ADAPTER_FILES = (ADAPTER_CONFIG_FILE, "adapter_model*", INFO_FILE)
"""What an earlier save may have left, of a model or of an adapter."""


def _rename_dtype(options: dict[str, Any]) -> None:
    """Takes `torch_dtype`, as transformers called it once, for `dtype`."""
    old = options.pop("torch_dtype", None)
    if old is not None and options.get("dtype") not in (None, old):
        raise ValueError(f"dtype={options['dtype']} and torch_dtype={old} differ; give dtype alone")
    options["dtype"] = options.get("dtype") or old or torch.float32


def _check_folder(folder: Path) -> None:
    """Refuses what transformers would take for something else, or fail on without a reason."""
    for path in sorted(folder.glob("*.safetensors")):
        check_weights(path)
    file = folder / "config.json"
    if file.exists() and (folder / ADAPTER_CONFIG_FILE).exists():
        raise ValueError(
            f"{folder} holds a model and an adapter, and nobody knows which is meant; save each "
            "into a folder of its own"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # the loader tells
    if not isinstance(content, dict):
        raise ValueError(
            f"{file} holds {type(content).__name__} and no object of fields; copy the checkpoint "
            "again"
        )


class UnifiedModel(AdaptableModel):
    """One decoder-only transformer that is both the agent and the world.

    Tokens (words, actions, outcomes, markers) are predicted one by one; the latents of a frame
    are denoised together, inside the same sequence (Transfusion, arXiv:2408.11039). Use
    `UnifiedProcessor` to make its inputs from messages and to read its replies.

    Attributes:
        is_compiled: See `UnifiedTransformer`.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Self:
        """Loads a folder, a hub id, or an embedded checkpoint by name ("babyai").

        Weights come in float32 unless `dtype` (or `torch_dtype`, its old name) says otherwise,
        whatever they are stored in. The folder of an adapter gives its base with the adapter in it.

        Raises:
            ValueError: If the folder lacks a file, holds a broken one, or lacks a tensor.
        """
        source = resolve_checkpoint(pretrained_model_name_or_path)
        check_whole(Path(source))
        base = base_of(Path(source))
        if base is not None:
            loaded: Any = cls.from_pretrained(base, *args, **kwargs)
            model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_adapter(source)
            return loaded  # pyright: ignore[reportReturnType]
        _check_folder(Path(source))
        kwargs.setdefault("use_safetensors", True)
        _rename_dtype(kwargs)  # stored in half precision, computed in single
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["output_loading_info"] = True
        try:
            loaded = super().from_pretrained(source, *args, **kwargs)
        except _LOADING_ERRORS as error:
            raise ValueError(
                f"cannot load a model from {source!r}: {error}; give a folder with config.json and "
                "model.safetensors, a hub id, or an embedded name such as 'babyai'"
            ) from error
        except Exception as error:  # safetensors raises its own type for a corrupt file
            if type(error).__module__.startswith("safetensors"):
                raise ValueError(
                    f"the weights in {source!r} are corrupt ({error}); copy the checkpoint again"
                ) from error
            raise
        model, info = loaded
        if info["missing_keys"]:
            raise ValueError(
                f"the checkpoint {source!r} lacks {', '.join(sorted(info['missing_keys']))}; copy "
                "it again, or make a new model with UnifiedModel(config)"
            )
        weight = model.model.embed_tokens.weight
        model.adopted.to(weight.device, weight.dtype)
        if (Path(source) / GENERATION_FILE).is_file():
            try:
                model.generation_config = GenerationConfig.from_pretrained(source)
            except (OSError, ValueError, TypeError, RecursionError) as error:
                raise ValueError(
                    f"{Path(source) / GENERATION_FILE} cannot be read ({error}); delete it, or "
                    "copy the checkpoint again"
                ) from error
        return loaded if wants_info else model

    @classmethod
    def from_language_model(
        cls, source: str | Path, processor: Any, *, dtype: Any = None, **changes: Any
    ) -> Self:
        """Makes a pretrained language model the decoder; see `unified.model.language`.

        Words alone give the logits of the language model. With `modality_experts=True` latents have
        layers of their own, which begin as copies.

        Args:
            source: Folder or hub id of a Llama-, Qwen2-, Qwen3- or SmolLM2-like model.
            processor: From `UnifiedProcessor.from_language_model` with the same source.
            dtype: Of the weights; None is float32.
            **changes: Fields of `UnifiedConfig`; `gguf_file` is passed on to transformers.

        Raises:
            ValueError: If the language model does something that the decoder cannot.
        """
        options = {"gguf_file": changes.pop("gguf_file")} if "gguf_file" in changes else {}
        changes["dtype"] = dtype
        _rename_dtype(changes)
        dtype, source = changes.pop("dtype"), str(source)
        decoder = AutoModelForCausalLM.from_pretrained(source, dtype=dtype, **options)
        model = cls(language.language_config(decoder.config, processor, **changes))
        torch.nn.Module.to(model, dtype)
        language.copy_language(model, decoder)
        return model.eval()

    def start(
        self,
        input_ids: Tensor,
        latents: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        compiled: bool = False,
        memory: str | None = None,
    ) -> Session:
        """A session prefilled with prompts, for several queries in a row; see `Session`."""
        return Session(self, input_ids, latents, attention_mask, generator, compiled, memory)

    @classmethod
    def can_generate(cls) -> bool:
        """Yes: there is `generate`, and `generation_config` holds its defaults."""
        return True

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        latents: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        query: str | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        do_sample: bool | None = None,
        max_new_tokens: int | None = None,
        num_return_sequences: int | None = None,
        num_inference_steps: int | None = None,
        solver: str = "euler",
        time_grid: str = "uniform",
        timesteps: Any = None,
        guidance_scale: Any = None,
        max_turns: int = 1,
        max_text_tokens: int = 64,
        think: bool | None = None,
        memory: str | None = None,
        known: Tensor | None = None,
        callback: Callback | None = None,
        streamer: Any = None,
        generation_config: GenerationConfig | None = None,
        return_dict_in_generate: bool | None = None,
        **unknown: Any,
    ) -> Any:
        """Answers a prompt: acts, simulates, names an action, or imagines.

        Args:
            input_ids: `(B, L)` prompts, as `UnifiedProcessor` makes them.
            latents: `(B, L, C)`, likewise.
            attention_mask: `(B, L)`, likewise.
            query: `policy` speaks and acts; `forward` shows the next frame and its outcome;
                `inverse` names the action that led to the last frame; `joint` goes on acting and
                showing until an outcome or `max_turns` frames. None is what the prompt's end asks
                for: the next frame after a task or an action, an unknown action between the last
                two frames, or else what the agent does.
            generator: Seeds the noise and the tokens; one for each row makes a row's reply
                independent of its neighbours.
            seed: A number instead of a generator.
            temperature: 0 takes the likeliest token. None is 1 with `do_sample`, else 0.
            top_k: Sample among the k likeliest tokens only.
            top_p: Sample among the likeliest tokens only that have this probability together.
            do_sample: False takes the likeliest token. None samples above temperature 0.
            max_new_tokens: Ends a reply before what would make it longer: an action or a frame is
                whole or not there.
            num_return_sequences: Replies to each prompt, one behind the other.
            num_inference_steps: Denoise steps of a frame; None is the model's own number.
            solver: How they are taken: `euler`, `heun`, `midpoint`, `rk4`, `dpm++2m`,
                `dpm++2m-sde`, `unipc`, `ddim`, `ddim:eta=0.5` or `ddpm`.
            time_grid: Where they lie: `uniform`, `shifted:by=3`, `logit_normal` or `karras`.
            timesteps: Their noise levels by hand, such as [1, 0.6, 0].
            guidance_scale: How often what the `text`, the `action` and the `history` make of a
                frame is taken, such as {"action": 2.0}; a number is that of the text. 1 changes
                nothing. See `unified.sampling.diffusion.guidance`.
            max_turns: Frames of a `joint` reply.
            max_text_tokens: Longest run of words; then the agent must act.
            think: True makes the agent speak before it acts, False keeps it silent.
            memory: What stays of frames that are past, such as "place"; None is the model's. See
                `unified.memory`.
            known: `(B, n, C)`, latents of the next frame that are given, NaN where they are to be
                drawn (inpainting); `processor.known_latents` makes them of a picture.
            callback: Called with each finished segment: row, token ids, latents.
            streamer: transformers' own or one like it: `put` gets the prompt, then the new tokens
                as they come; of one prompt only.
            generation_config: Defaults of `do_sample`, `temperature`, `top_k`, `top_p`,
                `max_new_tokens` and `num_return_sequences`; None is the model's.
            return_dict_in_generate: False returns `Generation.sequences` alone.
            **unknown: Refused, with the name that is meant.

        Returns:
            A `Generation`, the reply's tokens and latents; `UnifiedProcessor.decode` reads it.

        Raises:
            ValueError: If an option is unknown or out of range, or a prompt ends where the one who
                is asked may not speak.
        """
        check_names(unknown)
        chosen = read_config(
            self.generation_config if generation_config is None else generation_config,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            do_sample=do_sample,
            max_new_tokens=max_new_tokens,
            num_return_sequences=num_return_sequences,
        )
        copies = chosen.pop("num_return_sequences")
        options = Options(
            **chosen,
            num_inference_steps=num_inference_steps,
            solver=solver,
            time_grid=time_grid,
            timesteps=timesteps,
            guidance_scale=read_guidance(guidance_scale),
            max_turns=max_turns,
            max_text_tokens=max_text_tokens,
            think=think,
        )
        wants_all = switch("return_dict_in_generate", return_dict_in_generate) is not False
        if seed is not None and generator is not None:
            raise ValueError(f"seed={seed} and a generator contradict each other; leave one out")
        if seed is not None:
            generator = torch.Generator().manual_seed(count("seed", seed, least=0))
        if callback is not None and not callable(callback):
            raise ValueError(f"callback={callback!r} cannot be called; give a function")
        if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
            raise ValueError(
                f"streamer={streamer!r} has no put and end; give one of transformers', or callback"
            )
        prompts = check_tensor("input_ids", input_ids, is_needed=True).cpu()
        mask = check_tensor("attention_mask", attention_mask)
        latents, known = check_tensor("latents", latents), check_tensor("known", known)
        num_tokens = count_tokens(prompts, None if mask is None else mask.cpu(), self.config)
        prompts = prompts.long()
        if query is None:
            query = Grammar(self.config).query_of(prompts, num_tokens)
        if copies > 1:
            if options.temperature == 0 and query in ("policy", "inverse"):
                raise ValueError(
                    f"num_return_sequences={copies} replies to {query!r} are all the same at "
                    "temperature 0; pass do_sample=True"
                )
            prompts, num_tokens = (x.repeat_interleave(copies, 0) for x in (prompts, num_tokens))
            mask = None if mask is None else mask.repeat_interleave(copies, 0)
            latents, known = (
                None if x is None else x.repeat_interleave(copies, 0) for x in (latents, known)
            )
        if streamer is not None and len(prompts) > 1:
            raise ValueError(f"a streamer follows one reply, not {len(prompts)}; use callback")
        if streamer is not None:
            streamer.put(prompts)
        session = self.start(prompts, latents, mask, generator, memory=memory)
        reply = session.run(
            query, known=known, callback=callback, streamer=streamer, **vars(options)
        )
        if streamer is not None:
            streamer.end()
        reply.prompts = [ids[:size] for ids, size in zip(prompts, num_tokens, strict=True)]
        return reply if wants_all else reply.sequences

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any) -> None:
        """Writes weights and config, and a model card if there is none, all of it or nothing.

        An adapter that lay in the folder goes. While an adapter is active, it alone is written.

        Raises:
            ValueError: If an adapter is active and a model lies there, which may be its base.
        """
        folder = Path(save_directory)
        if kwargs.get("push_to_hub"):
            kwargs.setdefault("repo_id", folder.name)
        is_adapter = bool(self.active_adapters())  # then it alone is written
        if is_adapter and (folder / "config.json").exists():
            raise ValueError(
                f"{folder} holds a model, perhaps this adapter's base; save the adapter into a "
                "folder of its own, or call disable_adapters to save the model"
            )
        replaced = () if is_adapter else (*WEIGHT_FILES, *ADAPTER_FILES)
        with atomic_files(folder, replaces=replaced) as draft:
            super().save_pretrained(draft, *args, **kwargs)
            has_card = (folder / CARD_FILE).exists() or is_adapter
            if kwargs.get("is_main_process", True) and not has_card:
                write_card(self, draft)


AutoConfig.register("unified", UnifiedConfig)
AutoModel.register(UnifiedConfig, UnifiedModel)
AutoModelForCausalLM.register(UnifiedConfig, UnifiedModel)
