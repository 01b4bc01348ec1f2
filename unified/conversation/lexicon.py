"""What a checkpoint was taught to hear: its words, and the phrases that ask for something special.

It is a file in the checkpoint's folder. Reading it needs neither torch nor the model, so that
`--help` can tell.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEXICON_FILE = "lexicon.json"
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Phrase:
    """Something that a checkpoint understands when the task says it.

    Attributes:
        say: In words; what varies is in capitals, such as "imagine: CAPTION".
        query: What to ask then.
        means: What comes back.
    """

    say: str
    query: str
    means: str


@dataclass(frozen=True)
class Lexicon:
    """Words and phrases of one checkpoint.

    Attributes:
        words: Lower case, sorted; empty if nobody counted them.
        phrases: The special ones.

    >>> lexicon = Lexicon.of(["Go to the red ball.", "open the door"])
    >>> lexicon.unknown("open the red dor")
    {'dor': ['door']}
    """

    words: tuple[str, ...] = ()
    phrases: tuple[Phrase, ...] = ()

    @classmethod
    def of(cls, texts: Iterable[str], phrases: Iterable[Phrase] = ()) -> Lexicon:
        """The words of some texts."""
        found = {word for text in texts for word in _WORD.findall(text.lower())}
        return cls(tuple(sorted(found)), tuple(phrases))

    @classmethod
    def read(cls, folder: Path) -> Lexicon | None:
        """Of a checkpoint's folder; None if it has none.

        Raises:
            ValueError: If the file is broken.
        """
        path = folder / LEXICON_FILE
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            words, phrases = content["words"], content["phrases"]
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise ValueError("words is no list of words")
            read = tuple(Phrase(**phrase) for phrase in phrases)
            if not all(
                isinstance(part, str) for phrase in read for part in asdict(phrase).values()
            ):
                raise ValueError("a phrase is not in words")
            return cls(tuple(words), read)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise ValueError(
                f"{path} cannot be read ({error!r}); copy the checkpoint again"
            ) from error

    def to_json(self) -> dict[str, Any]:
        """The content of the file that `read` reads."""
        return {"words": list(self.words), "phrases": [asdict(phrase) for phrase in self.phrases]}

    def unknown(self, text: str) -> dict[str, list[str]]:
        """Words of a text that were never heard in training, each with known ones like it."""
        if not self.words:
            return {}
        known = set(self.words)
        words = dict.fromkeys(_WORD.findall(text.lower()))
        return {
            word: difflib.get_close_matches(word, self.words, 3)
            for word in words
            if word not in known
        }

    def hint(self, text: str) -> str | None:
        """A line about unknown words; None if there are none."""
        unknown = self.unknown(text)
        if not unknown:
            return None
        parts = [
            repr(word) + (f" (like it: {', '.join(alike)})" if alike else "")
            for word, alike in unknown.items()
        ]
        return (
            f"this checkpoint never heard {', '.join(parts)} in training; what it makes of such "
            "words is a guess (unified info lists its words)"
        )

    def __str__(self) -> str:
        """A line for each phrase, then the words."""
        lines = [f'"{phrase.say}" ({phrase.query}): {phrase.means}' for phrase in self.phrases]
        return "\n".join([*lines, *([f"words: {' '.join(self.words)}"] if self.words else [])])
