"""What a model's name stands for: an embedded checkpoint, a folder, or an adapter and its base."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHECKPOINTS = Path(__file__).parent / "checkpoints"
"""Checkpoints that are installed with the package."""
ADAPTER_CONFIG_FILE = "adapter_config.json"
INFO_FILE = "unified_adapter.json"
FORMAT_VERSION = 2


def resolve_checkpoint(name: str | Path) -> str:
    """The folder of an embedded checkpoint such as "babyai"; any other name as it is."""
    folder = CHECKPOINTS / str(name)
    if "/" not in str(name) and (folder / "config.json").exists():
        return str(folder)
    return str(name)


@dataclass(frozen=True, kw_only=True)
class AdapterInfo:
    """What an adapter folder says besides peft's own files.

    Attributes:
        base: Name of the base model, as `UnifiedModel.from_pretrained` takes it.
        base_fingerprint: Of its weights, see `fingerprint`.
        codec_fingerprint: Hash of the codec that the adapter was trained with.
        environment: The environment that it was trained on, so that it can be run there.
        format_version: Version of this file's format.
    """

    base: str
    base_fingerprint: str
    codec_fingerprint: str | None = None
    environment: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> "AdapterInfo | None":
        """Of a folder; None if it has none.

        Raises:
            ValueError: If it is of a version that this code does not know, or broken.
        """
        path = folder / INFO_FILE
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content["format_version"]
            if version != FORMAT_VERSION:
                raise ValueError(f"format version {version}, this code reads {FORMAT_VERSION}")
            return cls(**content)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read ({error}); save the adapter again") from error


def base_of(folder: Path) -> str | None:
    """Name of the base if the folder holds an adapter, and no model of its own."""
    config = folder / ADAPTER_CONFIG_FILE
    if not config.exists() or (folder / "config.json").exists():
        return None
    info = AdapterInfo.read(folder)
    if info is not None:
        return info.base
    try:
        base = json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"]
        if not isinstance(base, str):
            raise ValueError(f"its base is {base!r}")
        return base
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{config} cannot be read ({error}); save the adapter again") from error


def check_codec(folder: Path, codec: Any) -> None:
    """Refuses a base's codec if the adapter was trained with the latents of another one.

    Raises:
        ValueError: If it was.
    """
    info = AdapterInfo.read(folder)
    found = None if codec is None else codec.fingerprint
    if info is not None and info.codec_fingerprint not in (None, found):
        raise ValueError(
            f"the adapter in {folder} was trained with codec {info.codec_fingerprint}, and its "
            f"base {info.base!r} has {found}; put that codec into {folder / 'codec'}"
        )
