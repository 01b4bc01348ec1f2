"""The tokens that a conversation needs besides words: markers, outcomes and actions."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unified.conversation.turns import OUTCOMES
from unified.media.action_space import ActionSpace

MARKERS = ("eos", "task", "agent", "frame", "/frame", "latent", "action", "inverse", "unknown")
NAMES = (*MARKERS, *OUTCOMES)
WORLD = "world"
"""Opens the world's words; tokenizers of older models do not have it."""
"""Each is a token of its own, in angle brackets."""


def language_tokenizer(
    source: str | Path, action_space: ActionSpace, **kwargs: Any
) -> PreTrainedTokenizerBase:
    """A language model's tokenizer, with our markers and actions behind its own words.

    Args:
        source: Folder or hub id of the language model.
        action_space: Its tokens are added, in their order.
        **kwargs: For `AutoTokenizer.from_pretrained`, such as `gguf_file`.

    Raises:
        ValueError: If the tokenizer has one of these tokens already.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, **kwargs)
    added = ["<unified-pad>", *(f"<{name}>" for name in (*NAMES, WORLD)), *action_space.tokens]
    vocabulary = tokenizer.get_vocab()
    taken = [token for token in added if token in vocabulary]
    if taken:
        raise ValueError(
            f"the tokenizer of {source} has {' '.join(taken)} already; rename these actions, or "
            "use a language model that has not been given our markers"
        )
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.pad_token = added[0]
    return tokenizer


def action_ids(
    space: ActionSpace, vocabulary: Mapping[str, int], prefix: str | None
) -> dict[str, int]:
    """Ids of an action space's tokens, in its order, without those that the vocabulary lacks.

    Args:
        space: Gives the tokens.
        vocabulary: Of the tokenizer.
        prefix: What the vocabulary writes before them: `<arm:left>` is `<left>` with `arm`.
    """
    written = {token: _prefixed(token, prefix) for token in space.tokens}
    return {token: vocabulary[name] for token, name in written.items() if name in vocabulary}


def add_actions(tokenizer: Any, space: ActionSpace, behind: int) -> str | None:
    """Puts an action space's tokens behind the vocabulary, if they are new to it.

    Args:
        tokenizer: Gets the tokens.
        space: Its name is their prefix where the vocabulary has some of them as something else.
        behind: Id of the last word or marker: up to it no token is an action.

    Returns:
        The prefix; None if the tokens do without.
    """
    known = tokenizer.get_vocab()
    numbers = itertools.count(2)
    prefix = None
    while True:
        found = list(action_ids(space, known, prefix).values())
        if not found:
            new = [_prefixed(token, prefix) for token in space.tokens]
            tokenizer.add_tokens(new, special_tokens=True)
            return prefix
        if found[0] > behind and found == list(range(found[0], found[0] + len(space.tokens))):
            return prefix  # they are there
        prefix = space.name if prefix is None else f"{space.name}{next(numbers)}"


def _prefixed(token: str, prefix: str | None) -> str:
    return token if prefix is None else f"<{prefix}:{token.removeprefix('<')}"


def world_id(ids: Mapping[str, int]) -> int:
    """The token that opens the world's words.

    Raises:
        ValueError: If the tokenizer has none.
    """
    if WORLD not in ids:
        raise ValueError(
            "this model was never taught words of the world: its tokenizer has no <world>; leave "
            "them out, or say them as the task"
        )
    return ids[WORLD]


def token_fields(
    tokenizer: Any, ids: Mapping[str, int], space: ActionSpace, actions: tuple[int, int]
) -> dict[str, Any]:
    """The fields of `UnifiedConfig` that say what a token means.

    Args:
        tokenizer: Of words, markers and actions.
        ids: Of the markers and outcomes, by name.
        space: The action space.
        actions: Where its tokens are, half-open.
    """
    fields: dict[str, Any] = {f"{name}_token_id": ids[name] for name in OUTCOMES}
    for name in ("eos", "task", "agent", "frame", "latent", "action", "inverse", "unknown"):
        fields[f"{name}_token_id"] = ids[name]
    fields["frame_end_token_id"] = ids["/frame"]
    fields["world_token_id"] = ids.get("world")
    fields["pad_token_id"] = tokenizer.pad_token_id
    fields["vocab_size"] = len(tokenizer)
    fields["action_token_ids"] = actions
    shifted = [[(actions[0] + a, actions[0] + b) for a, b in form] for form in space.formats]
    fields["action_formats"] = None if shifted == [[actions]] else shifted
    fields["text_token_ids"] = (0, min(tokenizer.pad_token_id, *ids.values()))
    return fields
