"""Several adapters of one model: at most one is in it at a time, and without it is the base.

An adapter replaces modules of the base when it becomes active, and the very same come back when
another one does, or none. So no adapter sees another one, whatever kind of adapter it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from unified.configuration import UnifiedConfig
from unified.model.adapters import base_tensors, check_base, flat_folder
from unified.model.transformer import UnifiedTransformer

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

INSIDE = "default"
"""What peft calls any adapter; the names that users give are this file's."""
KEEPS_BASE = (True, False, None, "gaussian", "orthogonal", "eva")
"""Ways to begin a LoRA that leave the base's own weights alone."""
OWN_FORWARD = ("XLORA", "POLY", "SHADOW")
"""Kinds that compute something around the model, which its modules alone do not."""


@dataclass(frozen=True)
class Change:
    """One module of the base, and what an adapter puts in its place."""

    parent: nn.Module
    name: str
    base: nn.Module | None
    adapted: nn.Module | None


@dataclass(frozen=True)
class Twin:
    """A parameter of the base that an adapter trains, such as a bias, and the adapter's own."""

    parent: nn.Module
    name: str
    base: nn.Parameter
    adapted: nn.Parameter


@dataclass(frozen=True)
class Loaded:
    """An adapter that can be made active: what it changes, and the `PeftModel` that made it."""

    peft_model: "PeftModel"
    changes: list[Change]
    twins: list[Twin]

    @property
    def config(self) -> "PeftConfig":
        """Its kind and options."""
        return self.peft_model.peft_config[INSIDE]


class AdaptableModel(UnifiedTransformer):
    """Loads, chooses and saves adapters, with the methods that transformers' models have for it."""

    peft_config: dict[str, Any]

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed anew, under the old name by which peft asks.

        Newer versions of transformers warn of it whenever an adapter is loaded.
        """
        return any(getattr(module, "gradient_checkpointing", False) for module in self.modules())

    def __init__(self, config: UnifiedConfig):
        """A model without adapters."""
        super().__init__(config)
        self._loaded: dict[str, Loaded] = {}
        self._chosen: str | None = None
        self._installed: str | None = None
        self._trained: dict[nn.Parameter, bool] = {}  # of the base, while an adapter is in it

    def load_adapter(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        peft_model_id: str | Path,
        adapter_name: str | None = None,
        *,
        is_trainable: bool = False,
        **kwargs: Any,
    ) -> None:
        """Puts an adapter into the model, and makes it the active one.

        Several may be loaded under names of their own: `set_adapter` chooses one,
        `disable_adapters` gives the base back. It is as if each were alone in the model.

        Args:
            peft_model_id: Folder or hub id, of any kind of adapter that peft trains in a model.
            adapter_name: What it is called here; "default" if not given.
            is_trainable: Whether it is to be trained on.
            **kwargs: For peft, when it looks for files: `subfolder`, `revision`, `token`, ...

        Raises:
            ValueError: If the adapter was trained on other weights, or is of a kind that does not
                come back exactly.
        """
        from peft import PeftConfig
        from peft.utils.save_and_load import load_peft_weights

        name = self._free_name(adapter_name)
        folder = Path(peft_model_id)
        with self._without_adapters():
            if folder.is_dir():
                check_base(folder, self)
            kwargs = {
                key: kwargs[key] for key in ("subfolder", "revision", "token") if key in kwargs
            }
            config = PeftConfig.from_pretrained(str(peft_model_id), **kwargs)
            tensors = load_peft_weights(str(peft_model_id), device="cpu", **kwargs)
            _check_kind(config, str(peft_model_id))
            config.inference_mode = not is_trainable
            own = {key.removeprefix("base_model.model."): x for key, x in tensors.items()}
            for key, tensor in base_tensors(self).items():  # peft saves tables that have grown
                same = key in own and own[key].shape == tensor.shape
                if same and torch.equal(own[key].to(tensor), tensor):
                    tensors.pop(f"base_model.model.{key}")
            self._loaded[name] = self._put_in(config, lambda m: _fill(m, tensors, folder))
        if not is_trainable:
            self.eval()
        self.set_adapter(name)

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Begins a new adapter, to be trained, and makes it the active one."""
        name = self._free_name(adapter_name)
        with self._without_adapters():
            self._loaded[name] = self._put_in(adapter_config, lambda _: None)
        self.set_adapter(name)

    def set_adapter(self, adapter_name: list[str] | str) -> None:
        """Makes an adapter the active one, and its action space the model's.

        Raises:
            ValueError: If there is none of that name, or several are asked for.
        """
        names = [adapter_name] if isinstance(adapter_name, str) else adapter_name
        if len(names) != 1 or names[0] not in self._loaded:
            raise ValueError(
                f"adapter {adapter_name!r} cannot be active; choose one of "
                f"{', '.join(self._loaded) or 'none, load_adapter first'}"
            )
        self._install(None)
        self._chosen = names[0]
        self._install(self._chosen)

    def disable_adapters(self) -> None:
        """Gives the base back, exactly: its weights, vocabulary and config."""
        self._check_any()
        self._install(None)

    def enable_adapters(self) -> None:
        """Brings the adapter back that was chosen last."""
        self._check_any()
        self._install(self._chosen)

    def active_adapters(self) -> list[str]:
        """The name of the adapter that is in the model; none while adapters are disabled."""
        return [] if self._installed is None else [self._installed]

    def delete_adapter(self, adapter_names: list[str] | str) -> None:
        """Forgets adapters; if the active one is among them, the model is the base again.

        Raises:
            ValueError: If there is none of that name.
        """
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if name not in self._loaded:
                raise ValueError(f"there is no adapter {name!r}; there are {list(self._loaded)}")
            if name == self._installed:
                self._install(None)
            if name == self._chosen:
                self._chosen = None
            del self._loaded[name]
            self._install(self._installed)

    def get_adapter_state_dict(
        self, adapter_name: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Weights of an adapter, of the active one if no name is given, as peft saves them."""
        from peft import get_peft_model_state_dict

        self._check_any()
        name, before = adapter_name or self._chosen, self._installed
        self._install(name)
        found = get_peft_model_state_dict(
            self._loaded[str(name)].peft_model, state_dict, INSIDE, save_embedding_layers=False
        )
        self._install(before)
        return found

    def save_pretrained(self, save_directory: str | Path, *args: Any, **kwargs: Any) -> None:
        """Writes the model, or the adapter alone while one is active."""
        if self._installed is None:
            super().save_pretrained(save_directory, *args, **kwargs)
            return
        model: Any = self._loaded[self._installed].peft_model
        model.save_pretrained(str(save_directory), save_embedding_layers=False)
        flat_folder(Path(save_directory), INSIDE)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        """What peft wants of any model with task type CAUSAL_LM; `generate` plans by itself."""
        return {"input_ids": input_ids, **kwargs}

    # One adapter at a time

    def _check_any(self) -> None:
        if not self._loaded:
            raise ValueError("no adapter is loaded; call load_adapter first")

    def _free_name(self, name: str | None) -> str:
        chosen = name or INSIDE
        if chosen in self._loaded:
            raise ValueError(f"there is an adapter {chosen!r} already; give another adapter_name")
        return chosen

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        """The base, and after the block what was active before it."""
        before = self._installed
        self._install(None)
        try:
            yield
        finally:
            self._install(before)

    def _install(self, name: str | None) -> None:
        """Puts an adapter into the base, or, for None, takes it out."""
        if self._installed is not None and name != self._installed:
            for twin in self._loaded[self._installed].twins:
                twin.parent._parameters[twin.name] = twin.base
            for change in reversed(self._loaded[self._installed].changes):
                _put(change.parent, change.name, change.base)
            _require(self._trained)
        if name is not None and name != self._installed:
            self._trained = {x: x.requires_grad for x in self.parameters()}
            _require(dict.fromkeys(self._trained, False))
            base = {id(tensor) for tensor in (*self.parameters(), *self.buffers())}
            weight = self.model.norm.weight
            for change in self._loaded[name].changes:
                _put(change.parent, change.name, change.adapted)
                if change.adapted is None:
                    continue
                change.adapted.train(self.training)
                for tensor in (*change.adapted.parameters(), *change.adapted.buffers()):
                    if id(tensor) not in base:  # the model may have moved in the meantime
                        dtype = weight.dtype if tensor.is_floating_point() else tensor.dtype
                        tensor.data = tensor.data.to(weight.device, dtype)
            for twin in self._loaded[name].twins:
                twin.adapted.data = twin.adapted.data.to(weight.device, weight.dtype)
                twin.parent._parameters[twin.name] = twin.adapted
        self._installed = name
        self._hf_peft_config_loaded = name is not None  # what transformers asks
        if name is not None:
            self.peft_config = {key: loaded.config for key, loaded in self._loaded.items()}
        elif "peft_config" in self.__dict__:
            del self.peft_config

    def _put_in(self, config: Any, fill: Callable[["PeftModel"], None]) -> Loaded:
        """Lets peft change the base, fills the adapter, and takes it out again.

        Raises:
            ValueError: If peft cannot, or would change the base itself.
        """
        from peft import PeftModel

        kind = getattr(config.peft_type, "value", config.peft_type)
        before = {module: dict(module._modules) for module in self.modules()}
        weights = {name: (x.data_ptr(), x._version) for name, x in base_tensors(self).items()}
        kept = {x: x.data for x in self.parameters()}
        trained = {x: x.requires_grad for x in self.parameters()}
        twins: list[Twin] = []
        try:
            try:
                made = PeftModel(self, config, INSIDE, autocast_adapter_dtype=False)
            except (AttributeError, KeyError, TypeError, NotImplementedError) as error:
                raise ValueError(
                    f"a {kind} adapter does not fit into this model: {error}"
                ) from error
            now = base_tensors(self)
            changed = [n for n, x in weights.items() if (now[n].data_ptr(), now[n]._version) != x]
            changes = _changes(before)
            if changed:
                raise ValueError(f"a {kind} adapter changes the base's own {changed[0]}")
            if not changes:
                raise ValueError(
                    f"a {kind} adapter is no part of the model; use PeftModel.from_pretrained"
                )
            twins += _own_parameters(made, set(kept))
            fill(made)
        finally:
            for twin in twins:
                twin.parent._parameters[twin.name] = twin.base
            for change in _changes(before):
                _put(change.parent, change.name, change.base)
            for parameter, data in kept.items():
                parameter.data = data
            _require(trained)
            if "peft_config" in self.__dict__:
                del self.peft_config
        return Loaded(made, changes, twins)


def _put(parent: nn.Module, name: str, module: nn.Module | None) -> None:
    if module is None:
        del parent._modules[name]
    else:
        parent._modules[name] = module


def _require(trained: dict[nn.Parameter, bool]) -> None:
    """Says of parameters whether they are trained."""
    for parameter, is_trained in trained.items():
        parameter.requires_grad_(is_trained)


def _own_parameters(model: "PeftModel", base: set[nn.Parameter]) -> list[Twin]:
    """Gives an adapter parameters of its own for those of the base that it trains and saves.

    Raises:
        ValueError: If it trains some that peft does not save, so that a file has lost them.
    """
    from peft import __version__, get_peft_model_state_dict

    saved = get_peft_model_state_dict(model, None, INSIDE, save_embedding_layers=False)
    written = {tensor.data_ptr() for tensor in saved.values()}
    twins = []
    for path, module in list(model.named_modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is None or parameter not in base:
                continue
            if parameter.requires_grad and parameter.data_ptr() not in written:
                raise ValueError(
                    f"the adapter trains the base's own {path}.{name}, which peft {__version__} "
                    "does not save; train it with bias='none', or save it with a newer peft"
                )
            if parameter.data_ptr() in written:
                own = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
                module._parameters[name] = own
                twins.append(Twin(module, name, parameter, own))
    return twins


def _changes(before: dict[nn.Module, dict[str, nn.Module | None]]) -> list[Change]:
    """What became of the modules that were there before."""
    found = []
    for parent, children in before.items():
        now = parent._modules
        for name in [*children, *(name for name in now if name not in children)]:
            if now.get(name) is not children.get(name):
                found.append(Change(parent, name, children.get(name), now.get(name)))
    return found


def _check_kind(config: Any, source: str) -> None:
    """Refuses adapters that live around the model, or belong to other weights than the base's."""
    kind = getattr(config.peft_type, "value", config.peft_type)
    begin = getattr(config, "init_lora_weights", None)
    if begin not in KEEPS_BASE:
        raise ValueError(
            f"the adapter in {source} has init_lora_weights={begin!r}, which changes the base's "
            "own weights; save it as one that does not (see "
            "path_initial_model_for_weight_conversion of peft's save_pretrained)"
        )
    is_around = config.is_prompt_learning or kind in OWN_FORWARD
    if is_around or getattr(config, "alora_invocation_tokens", None):
        raise ValueError(
            f"the adapter in {source} is of kind {kind}, which computes around the model and not "
            "in it; use peft's PeftModel.from_pretrained(base, folder)"
        )


def _fill(model: "PeftModel", tensors: dict[str, Tensor], source: Path) -> None:
    """Puts the weights of a file into an adapter, and makes sure that all are there.

    Raises:
        ValueError: If some are missing, left over, of another shape, or not what the file has.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    expected = get_peft_model_state_dict(model, None, INSIDE, save_embedding_layers=False)
    wrong = sorted(tensors.keys() ^ expected.keys())
    if not wrong:
        try:
            set_peft_model_state_dict(model, dict(tensors), adapter_name=INSIDE)
        except (RuntimeError, KeyError) as error:
            raise ValueError(f"the adapter in {source} does not fit: {error}") from error
        found = get_peft_model_state_dict(model, None, INSIDE, save_embedding_layers=False)
        wrong = [k for k, x in tensors.items() if not torch.equal(x.to(found[k]), found[k])]
    if wrong:
        raise ValueError(
            f"the adapter in {source} does not come back exactly: {', '.join(wrong[:4])} of its "
            f"{len(tensors)} tensors; it is broken, of another model, or of a kind that is not "
            "restored from its weights alone (use peft's PeftModel.from_pretrained)"
        )
