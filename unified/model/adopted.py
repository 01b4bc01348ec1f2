"""Actions and frame sizes that came later: they stand beside the table of tokens, not in it.

So a base stays what it was, and peft can train, save, load, switch and merge what was adopted like
any other module (`modules_to_save=["adopted"]`). `save_pretrained` of a whole model writes one
table.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from unified.configuration import UnifiedConfig

CONFIG_FIELDS = ("vocab_size", "action_token_ids", "action_formats", "latent_grid")
"""Fields of `UnifiedConfig` that may come later: of the actions and of the frames' size."""
_COPY = "modules_to_save."


class Adopted(nn.Module):
    """What a model took over from a processor: tokens, and fields of its config; at first nothing.

    Attributes:
        weight: `(N, D)` embeddings of the tokens from `first` on, which replace the table's.
        head: `(N, D)` their rows of the token head; None where that is tied to the embeddings.
        description: Bytes of JSON, so that it is saved and loaded as weights are.
    """

    weight: Tensor
    head: Tensor | None
    description: Tensor

    def __init__(self, width: int, *, is_tied: bool):
        """Nothing, for hidden states of some width.

        Args:
            width: D.
            is_tied: Whether the token head shares the embeddings.
        """
        super().__init__()
        # Whatever device the model is being made on: there is nothing to load into them.
        empty = torch.empty(0, width, device="cpu")
        self._set("weight", empty, is_trained=False)
        self._set("head", None if is_tied else empty.clone(), is_trained=False)
        self._set("description", torch.zeros(0, dtype=torch.uint8, device="cpu"))
        self._facts: tuple[Tensor, dict[str, Any]] | None = None

    def _set(self, name: str, value: Tensor | None, is_trained: bool = True) -> None:
        """Rows are parameters as soon as there are any: a base has no others than it always had."""
        self._parameters.pop(name, None)
        self._buffers.pop(name, None)
        if value is not None and len(value) and name != "description":
            self.register_parameter(name, nn.Parameter(value, requires_grad=is_trained))
        else:
            self.register_buffer(name, value)
            if value is not None and value.is_floating_point():
                value.requires_grad_(is_trained)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """The rows, even if there are none yet: peft asks here which of them it may train."""
        yield from super().parameters(recurse)
        for table in (self.weight, self.head):
            if table is not None and not isinstance(table, nn.Parameter):
                yield table  # pyright: ignore[reportReturnType]

    def __len__(self) -> int:
        """How many tokens came."""
        return len(self.weight)

    def __bool__(self) -> bool:
        """Whether anything was adopted."""
        return len(self.description) > 0

    def facts(self) -> dict[str, Any]:
        """The description: `first`, and the `config`'s fields without `vocab_size`."""
        if self._facts is None or self._facts[0] is not self.description:
            content = bytes(self.description.tolist()) or b"{}"
            self._facts = (self.description, json.loads(content))
        return self._facts[1]

    @property
    def first(self) -> int:
        """Id of the first token that came."""
        return self.facts()["first"]

    def rows(self, name: str) -> Tensor:
        """The tokens' rows of the table `embed_tokens` or `lm_head`."""
        return self.weight if name == "embed_tokens" or self.head is None else self.head

    @torch.no_grad()
    def take(self, first: int, config: dict[str, Any], rows: dict[str, Tensor]) -> None:
        """Stores tokens and config fields.

        Args:
            first: Id of the first token.
            config: Fields `CONFIG_FIELDS` but for `vocab_size`.
            rows: `(N, D)` of `embed_tokens` and `lm_head`.
        """
        content = json.dumps({"first": first, "config": config}).encode()
        device = rows["embed_tokens"].device
        self._set("description", torch.tensor(list(content), dtype=torch.uint8, device=device))
        self._set("weight", rows["embed_tokens"].clone())
        if self.head is not None:
            self._set("head", rows["lm_head"].clone())

    def _names(self) -> list[str]:
        return ["weight", "description"] + (["head"] if self.head is not None else [])

    def _is_silent(self, prefix: str) -> bool:
        """Whether nothing is saved: it is empty, and belongs to a base model, not to an adapter."""
        return not self and bool(prefix) and _COPY not in prefix

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        if not self._is_silent(prefix):
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *others: Any,
    ) -> None:
        """Takes over whatever number of tokens is there."""
        for name in self._names():
            value = state_dict.get(prefix + name)
            if value is None:
                if not self._is_silent(prefix):
                    missing_keys.append(prefix + name)
                continue
            ours: Tensor = getattr(self, name)
            value = value.detach().to(ours.device, ours.dtype, copy=True)
            self._set(name, value, is_trained=ours.requires_grad)


class AdoptingModel(PreTrainedModel):
    """A model that can take over actions and frame sizes of another processor.

    `config` always tells what is active: with an adapter its actions, without it the base's.
    """

    model: Any
    lm_head: Any
    adopted: Any

    @property
    def config(self) -> UnifiedConfig:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The config, with the fields of what is adopted now."""
        if self._modules.get("adopted") is not None:
            active = self.active_adopted()
            if active.description is not self._applied:
                self._configure(active)
        return self._config

    @config.setter
    def config(self, value: UnifiedConfig) -> None:
        self._config = value
        self._before: dict[str, Any] | None = None
        self._applied: Tensor | None = None

    def _configure(self, active: Adopted) -> None:
        """Brings the config up to date; its own fields come back when nothing is adopted."""
        if self._before is None:
            names = (*CONFIG_FIELDS, "made_for")
            self._before = {name: getattr(self._config, name) for name in names}
        fields = dict(self._before)
        if active:
            fields |= {"made_for": None, **active.facts()["config"]}
            if len(active):
                fields["vocab_size"] = active.first + len(active)
        else:
            self._before = None
        for name, value in fields.items():
            setattr(self._config, name, value)
        self._applied = active.description

    def active_adopted(self) -> Adopted:
        """The one in use: an adapter's own if it has one and is enabled."""
        found: Any = self._modules["adopted"]
        while not isinstance(found, Adopted):  # peft's ModulesToSaveWrapper
            names = [] if found.disable_adapters else found.active_adapters
            copies = [found.modules_to_save[name] for name in names if name in found._adapters]
            found = copies[0] if copies else found.original_module
        return found

    def embed_tokens(self, input_ids: Tensor) -> Tensor:
        """Embeddings of tokens, `(..., D)`, those that came later included."""
        own = self.active_adopted()
        if not len(own):
            return self.model.embed_tokens(input_ids)
        known = self.model.embed_tokens(input_ids.clamp(max=own.first - 1))
        came = functional.embedding((input_ids - own.first).clamp(min=0), own.rows("embed_tokens"))
        return torch.where((input_ids >= own.first)[..., None], came.to(known.dtype), known)

    def token_logits(self, hidden: Tensor) -> Tensor:
        """Logits of all tokens, `(..., V)`, those that came later included."""
        logits = self.lm_head(hidden)
        own = self.active_adopted()
        if not len(own):
            return logits
        came = functional.linear(hidden, own.rows("lm_head").to(hidden.dtype))
        return torch.cat([logits[..., : own.first], came.to(logits.dtype)], -1)

    def adopt(self, processor: Any, latent_grid: tuple[int, int] | None = None) -> None:
        """Takes over a processor's vocabulary, action space and codec, to be finetuned with it.

        Tokens that the model does not have begin as the average of its actions, in the embeddings
        and in the head, and stand beside the table: `lora_config` trains them with an adapter;
        before all weights are trained, `fold_adopted` moves them into the table. No weight depends
        on the size of a frame. Latents with another number of channels get new maps, with random
        weights, which no adapter can hold.

        Args:
            processor: As the model's own, but for its action space and codec; from
                `UnifiedProcessor.with_action_space` and `with_codec`.
            latent_grid: Rows and columns of a frame's tokens; None leaves them as they are.

        Raises:
            ValueError: If it differs from the model in more than that, or an adapter is active.
        """
        self.fold_adopted()
        config, fields = self.config, processor.config_fields()
        for name, value in fields.items():
            ours = getattr(config, name)
            if isinstance(ours, list):  # as tuples come back from a file
                ours = tuple(ours)
            if name not in (*CONFIG_FIELDS, "latent_channels", "made_for") and ours != value:
                raise ValueError(
                    f"the processor has {name}={value}, the model {ours}; begin with the model's "
                    "own processor and change its action space and codec alone"
                )
        channels = fields.get("latent_channels", config.latent_channels)
        if channels != config.latent_channels:
            self._reshape_latents(channels)
        chosen = {name: getattr(config, name) for name in CONFIG_FIELDS[1:]}
        before = json.dumps(chosen)
        chosen.update({name: fields[name] for name in CONFIG_FIELDS[1:] if name in fields})
        if latent_grid is not None:
            chosen["latent_grid"] = latent_grid
        first, stop = chosen["action_token_ids"]
        # A table may be padded: which ids are in use is what the processor and the config tell.
        count = stop - first if first >= self._num_used_tokens() else 0
        if count or json.dumps(chosen) != before:
            tables = {"embed_tokens": self.model.embed_tokens, "lm_head": self.lm_head}
            old = slice(*config.action_token_ids)
            rows = {n: t.weight[old].mean(0).expand(count, -1) for n, t in tables.items()}
            self.adopted.take(first, chosen, rows)
        elif config.made_for != fields["made_for"]:
            config.made_for = None  # it is the base still, and about to be trained for another one
        rows_of_frame, columns = chosen["latent_grid"]
        processor.latent_grid = (rows_of_frame, columns)  # so that it knows the frames' size

    def _num_used_tokens(self) -> int:
        """How many ids have a meaning: the others pad the table to a round number."""
        config = self.config
        ids = [value for name, value in vars(config).items() if name.endswith("_token_id")]
        ends = [config.text_token_ids[1], config.action_token_ids[1]]
        return max(*ends, *(int(i) + 1 for i in ids if i is not None))

    @torch.no_grad()
    def _reshape_latents(self, channels: int) -> None:
        """New maps between latents of another size and the decoder."""
        self.config.latent_channels = channels
        size, width = self.config.latent_size, self.config.hidden_size
        like = {"device": self.lm_head.weight.device, "dtype": self.lm_head.weight.dtype}
        self.latent_in = torch.nn.Linear(size, width, **like)
        self.latent_head = torch.nn.Linear(width, size, **like)
        for module in (self.latent_in, self.latent_head):
            self._init_weights(module)

    @torch.no_grad()
    def fold_adopted(self) -> None:
        """Makes what was adopted the model's own: its tokens go into the table, for good.

        Raises:
            ValueError: If they belong to an adapter.
        """
        if not isinstance(self.adopted, Adopted):
            raise ValueError(
                "the model has an adapter with tokens of its own; merge it first "
                "(PeftModel.merge_and_unload), or disable it (disable_adapters)"
            )
        if not self.adopted:
            return
        config, own = self.config, self.adopted
        for name, module in {
            "embed_tokens": self.model.embed_tokens,
            "lm_head": self.lm_head,
        }.items():
            if len(own):
                table = torch.cat([module.weight[: own.first], own.rows(name)])
                module.weight = nn.Parameter(table, requires_grad=module.weight.requires_grad)
        if len(own):
            self.model.embed_tokens.num_embeddings = config.vocab_size
            self.lm_head.out_features = config.vocab_size
            self.tie_weights()
        self.adopted = Adopted(config.hidden_size, is_tied=config.tie_word_embeddings)
        self._before, self._applied = None, self.adopted.description

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Writes the model as one that has always had what it adopted; see transformers' own."""
        own = self.active_adopted()
        if own and isinstance(self.adopted, Adopted):
            tensors = dict(kwargs.pop("state_dict", None) or self.state_dict())
            tensors = {n: x for n, x in tensors.items() if not n.startswith("adopted.")}
            for name in ("model.embed_tokens", "lm_head"):
                if len(own):
                    rows = own.rows(name.removeprefix("model."))
                    table = tensors[f"{name}.weight"][: own.first]
                    tensors[f"{name}.weight"] = torch.cat([table, rows.detach().to(table)])
            if self.config.tie_word_embeddings:
                tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
            kwargs["state_dict"] = tensors
        super().save_pretrained(save_directory, *args, **kwargs)
