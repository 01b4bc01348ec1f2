"""The model as a speaker: descriptions of frames, word for word."""

from tqdm import tqdm

from eval.babyai.episodes import TrueEpisode
from eval.babyai.player import Player
from eval.babyai.tally import Tally
from unified.roles.agent import Agent

BATCH = 64


def evaluate_captions(
    player: Player, episodes: list[TrueEpisode], tally: Tally, *, frames_per_episode: int = 2
) -> list[tuple[str, str]]:
    """Describes single frames; counts exact matches with the true state in words.

    Returns:
        Some of the misses: what was said, and what is true.
    """
    asked = [
        (f"{episode.level}/{episode.seed}", episode.views[i].frame, episode.captions[i])
        for episode in episodes
        for i in _spread(len(episode.views), frames_per_episode)
    ]
    agent = Agent(player.model, player.processor)
    misses = []
    for start in tqdm(range(0, len(asked), BATCH), desc="captions", leave=False):
        batch = asked[start : start + BATCH]
        replies = agent.describe([frame for _, frame, _ in batch])
        for (name, _, caption), said in zip(batch, replies, strict=True):
            tally.add("caption", name, said == caption, 1)
            if said != caption:
                misses.append((said, caption))
    return misses[:20]


def _spread(length: int, count: int) -> list[int]:
    """`count` places in a run of `length`, the first included."""
    return sorted({i * length // count for i in range(min(count, length))})
