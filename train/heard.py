"""What training teaches a model to hear; see `unified.conversation.lexicon`."""

from data.dataset import EpisodeDataset
from train.rows.documents import OPENINGS
from train.rows.mixture import MixtureConfig
from unified.conversation.lexicon import Lexicon, Phrase
from unified.roles.agent import DESCRIBE
from unified.roles.simulation import PROMISE

_DESCRIBE = Phrase(
    DESCRIBE, "policy", "the agent says what the frame shows (pass think=True, or --think True)"
)
_IMAGINE = Phrase(
    f"{OPENINGS[0]} DESCRIPTION",
    "forward",
    "a first frame that is like the description (the world says it, in --messages)",
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
    texts = list(episodes.texts())
    if episodes.texts("caption") and (mixture.imagine_share > 0 or mixture.caption_share > 0):
        texts += OPENINGS
    if mixture.promise_share > 0:
        texts.append(PROMISE)
    taught = list(old.phrases)
    for phrase, share in ((_DESCRIBE, mixture.describe_share), (_IMAGINE, mixture.imagine_share)):
        if share > 0 and episodes.texts("caption") and phrase not in taught:
            taught.append(phrase)
    if knows_words:
        return Lexicon((), tuple(taught))
    spoken = [phrase.say.removesuffix("DESCRIPTION") for phrase in taught]
    return Lexicon.of([*texts, *spoken, *old.words], taught)
