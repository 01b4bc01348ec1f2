"""The model as a speaker: descriptions of frames, word for word."""

from collections import Counter

from eval.babyai.episodes import TrueEpisode
from eval.babyai.tally import Tally
from eval.game import GamePlayer


def evaluate_captions(
    player: GamePlayer, episodes: list[TrueEpisode], tally: Tally, *, frames_per_episode: int = 2
) -> list[tuple[str, str]]:
    """Describes single frames; counts exact matches with the true state in words.

    The floor says the commonest of the true captions everywhere.

    Returns:
        Some of the misses: what was said, and what is true.
    """
    asked = [
        (episode.name, episode.views[i].frame, episode.captions[i])
        for episode in episodes
        for i in _spread(len(episode.views), frames_per_episode)
    ]
    replies = player.describe([frame for _, frame, _ in asked])
    commonest = Counter(caption for *_, caption in asked).most_common(1)[0][0]
    misses = []
    for (name, _, caption), said in zip(asked, replies, strict=True):
        tally.add("caption", name, said == caption, 1)
        tally.add("caption/majority", name, commonest == caption, 1)
        if said != caption:
            misses.append((said, caption))
    return misses[:20]


def _spread(length: int, count: int) -> list[int]:
    """`count` places in a run of `length`, the first included."""
    return sorted({i * length // count for i in range(min(count, length))})
