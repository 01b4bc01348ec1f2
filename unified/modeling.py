"""UnifiedModel: the transformer that is loaded by name, takes adapters and answers prompts.

Letters: B rows, L tokens, C latent size.
"""

from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from unified.configuration import UnifiedConfig
from unified.model import language
from unified.model.adapters import AdaptableModel
from unified.pretrained import base_of, resolve_checkpoint
from unified.sampling.generation import Callback, Generation, Session


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

        Weights come in float32 unless `dtype` says otherwise, whatever they are stored in. The
        folder of an adapter gives its base with the adapter in it.

        Raises:
            ValueError: If the folder lacks a file, holds a broken one, or lacks a tensor.
        """
        source = resolve_checkpoint(pretrained_model_name_or_path)
        base = base_of(Path(source))
        if base is not None:
            loaded: Any = cls.from_pretrained(base, *args, **kwargs)
            model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
            model.load_adapter(source)
            return loaded  # pyright: ignore[reportReturnType]
        kwargs.setdefault("use_safetensors", True)
        kwargs.setdefault("dtype", torch.float32)  # stored in half precision, computed in single
        wants_info = kwargs.pop("output_loading_info", False)
        kwargs["output_loading_info"] = True
        try:
            loaded = super().from_pretrained(source, *args, **kwargs)
        except (OSError, RuntimeError, KeyError, StrictDataclassError) as error:
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
        return loaded if wants_info else model

    @classmethod
    def from_language_model(
        cls, source: str | Path, processor: Any, *, dtype: Any = torch.float32, **changes: Any
    ) -> Self:
        """Makes a pretrained language model the decoder; see `unified.model.language`.

        Words alone give the logits that they gave before. With `modality_experts=True` latents have
        maps of their own, which begin as copies.

        Args:
            source: Folder or hub id of a Llama-, Qwen2-, Qwen3- or SmolLM2-like model.
            processor: From `UnifiedProcessor.from_language_model` with the same source.
            dtype: Of the weights.
            **changes: Fields of `UnifiedConfig`; `gguf_file` is passed on to transformers.

        Raises:
            ValueError: If the language model does something that the decoder cannot.
        """
        options = {"gguf_file": changes.pop("gguf_file")} if "gguf_file" in changes else {}
        source = str(source)
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
    ) -> Session:
        """A batch of conversations to extend, prefilled with prompts; see `Session`."""
        return Session(self, input_ids, latents, attention_mask, generator, compiled)

    @torch.no_grad()
    def generate(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor,
        latents: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        query: str = "policy",
        generator: torch.Generator | list[torch.Generator] | None = None,
        temperature: float = 0.0,
        top_k: int | None = None,
        num_inference_steps: int = 4,
        solver: str = "euler",
        max_turns: int = 1,
        max_text_tokens: int = 64,
        think: bool | None = None,
        callback: Callback | None = None,
    ) -> Generation:
        """Answers a prompt: acts, simulates, names an action, or imagines.

        Args:
            input_ids: `(B, L)` prompts, as `UnifiedProcessor` makes them.
            latents: `(B, L, C)`, likewise.
            attention_mask: `(B, L)`, likewise.
            query: `policy` speaks and acts; `forward` shows the next frame and its outcome;
                `inverse` names the action that led to the last frame; `joint` goes on acting and
                showing until an outcome or `max_turns` frames.
            generator: Seeds the noise and the tokens; one for each row makes a row's reply
                independent of its neighbours.
            temperature: 0 takes the likeliest token.
            top_k: Sample among the k likeliest tokens only.
            num_inference_steps: Denoise steps of a frame.
            solver: `euler` or `heun`.
            max_turns: Frames of a `joint` reply.
            max_text_tokens: Longest run of words; then the agent must act.
            think: True makes the agent speak before it acts, False keeps it silent.
            callback: Called with each finished segment: row, token ids, latents.

        Returns:
            The reply's tokens and latents; `UnifiedProcessor.decode` reads them.

        Raises:
            ValueError: If a prompt ends where the one who is asked may not speak.
        """
        session = self.start(input_ids, latents, attention_mask, generator)
        return session.run(
            query,
            temperature=temperature,
            top_k=top_k,
            num_inference_steps=num_inference_steps,
            solver=solver,
            max_turns=max_turns,
            max_text_tokens=max_text_tokens,
            think=think,
            callback=callback,
        )


AutoConfig.register("unified", UnifiedConfig)
AutoModel.register(UnifiedConfig, UnifiedModel)
AutoModelForCausalLM.register(UnifiedConfig, UnifiedModel)
