"""The parts of a processor as a checkpoint's folder holds them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from unified.conversation.lexicon import Lexicon
from unified.conversation.vocabulary import action_ids
from unified.files import check_whole, read_json
from unified.media.action_space import ACTIONS_FILE, ActionSpace
from unified.media.codec import FrameCodec
from unified.pretrained import base_of, check_codec, resolve_checkpoint

CODEC_FOLDER = "codec"
PROCESSOR_FILE = "processor_config.json"
LOADING_OPTIONS = (
    "backend",
    "cache_dir",
    "code_revision",
    "device_map",
    "dtype",
    "force_download",
    "local_files_only",
    "revision",
    "subfolder",
    "token",
    "torch_dtype",
    "trust_remote_code",
    "use_fast",
)
"""What transformers' own loaders pass to any processor; nothing here depends on it."""


def _check_options(options: Mapping[str, Any]) -> None:
    """Refuses options of `from_pretrained` that nobody reads, such as a misspelt `resize`.

    Raises:
        ValueError: Naming the option.
    """
    for name in options:
        if name != "resize" and name not in LOADING_OPTIONS and not name.startswith("_"):
            raise ValueError(
                f"UnifiedProcessor.from_pretrained has no option {name!r}; it takes resize"
            )


def load_parts(name: str | Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `UnifiedProcessor` is made of.

    Args:
        name: Folder, hub id, or embedded name.
        options: As `from_pretrained` was given them.

    Raises:
        ValueError: If a file is missing or broken, or an option unknown; names it.
    """
    _check_options(options)
    folder = _folder_of(resolve_checkpoint(name))
    check_whole(folder)
    config_file = folder / PROCESSOR_FILE
    if not config_file.exists():
        raise ValueError(
            f"{folder} has no {PROCESSOR_FILE}; save one with processor.save_pretrained"
        )
    try:
        config = read_json(config_file)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        vocabulary = tokenizer.get_vocab()
        check_tokenizer(tokenizer)
    except Exception as error:  # tokenizers raises a bare Exception for a broken file
        raise ValueError(
            f"the processor in {folder} is broken ({error}); copy the checkpoint again"
        ) from error
    patch_size, prefix = config.get("latent_patch_size", 1), config.get("action_prefix")
    if isinstance(patch_size, bool) or not isinstance(patch_size, int) or patch_size < 1:
        raise ValueError(
            f"{config_file} has latent_patch_size={patch_size!r}; copy the checkpoint again"
        )
    if prefix is not None and not isinstance(prefix, str):
        raise ValueError(f"{config_file} has action_prefix={prefix!r}; copy the checkpoint again")
    try:
        grid = _grid_of(config)
    except ValueError as error:
        raise ValueError(f"{config_file} has {error}") from error
    actions_file = folder / ACTIONS_FILE
    space = ActionSpace.from_config(actions_file) if actions_file.exists() else None
    if space is not None:
        try:
            check_vocabulary(space, action_ids(space, vocabulary, prefix))
        except ValueError as error:
            raise ValueError(f"{actions_file} does not fit the tokenizer: {error}") from error
    codec = _codec_of(folder)
    _check_model(folder, fingerprints(tokenizer, space, codec))
    return {
        "tokenizer": tokenizer,
        "codec": codec,
        "action_space": space,
        "latent_patch_size": patch_size,
        "latent_grid": grid or _model_grid(folder),
        "lexicon": Lexicon.read(folder),
        "action_prefix": prefix,
    }


def fingerprints(
    tokenizer: Any, space: ActionSpace | None, codec: FrameCodec | None
) -> dict[str, str]:
    """What tells one processor from another: of its tokens, its actions and its codec."""
    told: dict[str, Any] = {"tokens": sorted(tokenizer.get_vocab().items())}
    if space is not None:
        told["actions"] = space.to_config()
    found = {name: _hash(json.dumps(content)) for name, content in told.items()}
    return found if codec is None else {**found, "codec": codec.fingerprint}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_model(folder: Path, found: dict[str, str]) -> None:
    """Refuses the processor of another model: a program may have been stopped between two saves.

    Raises:
        ValueError: If the model in the folder was made for another processor.
    """
    try:
        known = read_json(folder / "config.json").get("made_for")
    except ValueError:
        return  # the model tells, if there is to be one
    if not isinstance(known, dict):
        return
    others = [name for name, value in known.items() if found.get(name, value) != value]
    if others:
        raise ValueError(
            f"the model and the processor in {folder} do not belong together (the model was made "
            f"with other {', '.join(others)}): one of them was saved over another's; save both "
            "again. If they do belong together, set model.config.made_for = "
            "processor.fingerprints() and save the model again"
        )


def check_tokenizer(tokenizer: Any) -> None:
    """Reads and writes a word, as a broken setting of the tokenizer shows only when it is used.

    Raises:
        ValueError: If there is no padding token.
        Exception: Whatever the tokenizer raises.
    """
    if not isinstance(tokenizer.pad_token_id, int):
        raise ValueError("its tokenizer has no padding token")
    tokenizer.decode(tokenizer.encode("go", add_special_tokens=False, split_special_tokens=True))


def check_vocabulary(space: ActionSpace, ids: Mapping[str, int]) -> tuple[int, int]:
    """Where the actions are among all tokens, half-open.

    Args:
        space: The action space.
        ids: Of its tokens, see `action_ids`.

    Raises:
        ValueError: If they are not one run, in the space's order.
    """
    indices = [ids.get(token, -1) for token in space.tokens]
    if indices != list(range(indices[0], indices[0] + len(indices))) or indices[0] < 0:
        raise ValueError(
            f"the action tokens of {space.name!r} are not one run of the vocabulary; add them "
            "together, in the action space's order"
        )
    return indices[0], indices[-1] + 1


def _folder_of(source: str) -> Path:
    folder = Path(source)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(source))
    except (OSError, HFValidationError) as error:
        raise ValueError(
            f"no processor at {source!r}: it is neither a folder, nor an embedded name "
            f"such as 'babyai', nor a hub id that can be reached ({type(error).__name__})"
        ) from error


def _grid_of(config: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of a frame's tokens, as a JSON file of a checkpoint has them.

    Raises:
        ValueError: If they are something else.
    """
    grid = config.get("latent_grid")
    if grid is None:
        return None
    is_pair = isinstance(grid, list) and len(grid) == 2
    if not is_pair or not all(type(n) is int and n > 0 for n in grid):
        raise ValueError(
            f"latent_grid={grid!r} must be two whole numbers of at least 1; copy the checkpoint "
            "again"
        )
    return grid[0], grid[1]


def _model_grid(folder: Path) -> tuple[int, int] | None:
    """The model's, of the folder's own config.json, or of its base's."""
    file, base = folder / "config.json", base_of(folder)
    if base is not None:
        file = _folder_of(resolve_checkpoint(base)) / "config.json"
    try:
        return _grid_of(read_json(file))
    except ValueError:
        return None  # whether the config is broken, the model tells


def _codec_of(folder: Path) -> FrameCodec | None:
    """The folder's own; an adapter has one only if it is another than its base's."""
    codec_folder, base = folder / CODEC_FOLDER, base_of(folder)
    if codec_folder.is_dir():
        return FrameCodec.from_pretrained(codec_folder)
    if base is None:
        return None
    codec = _codec_of(_folder_of(resolve_checkpoint(base)))
    check_codec(folder, codec)
    return codec
