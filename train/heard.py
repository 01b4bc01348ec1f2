"""What training teaches a model to hear; see `unified.conversation.lexicon`."""

from data.dataset import EpisodeDataset
from train.mixture import MixtureConfig
from unified.conversation.lexicon import Lexicon, Phrase
from unified.roles.agent import DESCRIBE

_DESCRIBE = Phrase(
    DESCRIBE, "policy", "the agent says what the frame shows (pass think=True, or --think True)"
)


def heard(
    episodes: EpisodeDataset,
    mixture: MixtureConfig,
    before: Lexicon | None = None,
    *,
    knows_words: bool = False,
) -> Lexicon:
    """Words and phrases of a data folder, behind those that the model knew.

    Args:
        episodes: What is trained on.
        mixture: How; what has no share in it is not taught.
        before: Of the model that training began with; None is a model without words.
        knows_words: A language model that knows all words is the decoder.
    """
    old = before or Lexicon()
    texts = episodes.texts()
    taught = list(old.phrases)
    is_described = mixture.describe_share > 0 and bool(episodes.texts("caption"))
    if is_described and _DESCRIBE not in taught:  # descriptions themselves are the world's words
        taught.append(_DESCRIBE)
    if knows_words:
        return Lexicon((), tuple(taught))
    spoken = [phrase.say.removesuffix("DESCRIPTION") for phrase in taught]
    return Lexicon.of([*texts, *spoken, *old.words], taught)
