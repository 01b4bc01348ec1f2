"""The tokens that a conversation needs besides words: markers, outcomes and actions."""

from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unified.conversation.turns import OUTCOMES
from unified.media.action_space import ActionSpace

MARKERS = ("eos", "task", "agent", "frame", "/frame", "latent", "action", "inverse", "unknown")
NAMES = (*MARKERS, *OUTCOMES)
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
    added = ["<unified-pad>", *(f"<{name}>" for name in NAMES), *action_space.tokens]
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
