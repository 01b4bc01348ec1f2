"""The model as a speaker: descriptions of frames, word for word."""

from tqdm import tqdm

from eval.episodes import TrueEpisode
from eval.player import Player
from eval.tally import Tally
from unified.agent import DESCRIBE
from unified.sequence import Kind, Sequence, frame_segment, text_segment

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
    misses = []
    for start in tqdm(range(0, len(asked), BATCH), desc="captions", leave=False):
        batch = asked[start : start + BATCH]
        inputs = player.processor.encode(
            [
                Sequence([text_segment(DESCRIBE, "task"), frame_segment(frame, outcome="ongoing")])
                for _, frame, _ in batch
            ]
        )
        replies = player.replies(player.model.generate(**inputs, query="policy", think=True))
        for (name, _, caption), reply in zip(batch, replies, strict=True):
            said = " ".join(s.text or "" for s in reply if s.kind is Kind.TEXT)
            tally.add("caption", name, said == caption, 1)
            if said != caption:
                misses.append((said, caption))
    return misses[:20]


def _spread(length: int, count: int) -> list[int]:
    """`count` places in a run of `length`, the first included."""
    return sorted({i * length // count for i in range(min(count, length))})
