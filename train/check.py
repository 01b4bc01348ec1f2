"""Did it work? A finetuned model and its base, compared on episodes of the training data.

A loss that fell proves little: adapters that were not saved, actions that nobody learned and
frames that outweigh everything else look the same in a log. So a few training episodes are put to
both models, as they come from disk, and what they answer is counted.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from data.dataset import EpisodeDataset
from unified.configuration import UnifiedConfig
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Kind, Sequence
from unified.model.flow import to_sample
from unified.model.plan import TrainingRow, collate, plan_training, span_ranges
from unified.modeling import UnifiedModel

MAX_FRAMES = 8
TOLERANCE = 0.5
"""Euclidean distance to the true latent within which a drawn one is right: latents have unit
variance, so others are several times as far."""
IMPROVED = 0.02
"""Least growth of a share that counts as growth."""
GOOD = 0.95
_NO_BETTER = {
    "actions": "the actions of training episodes are predicted no better than before: words and "
    "outcomes outweigh them (raise the mixture's action_weight), or the same view is followed by "
    "different actions in the data",
    "words": "what the agent says in training episodes is predicted no better than before: only "
    "markers and outcomes were learned (train longer), or the same view is followed by different "
    "words in the data",
}


@dataclass(frozen=True)
class Answers:
    """Shares of right answers, None where nothing was asked.

    Attributes:
        actions: Learned actions whose token is the likeliest of the action tokens.
        words: Learned tokens of what the agent says that are the likeliest of all.
        frames: Latents of next frames, drawn in one step from pure noise, that are right.
    """

    actions: float | None
    words: float | None
    frames: float | None


@dataclass(frozen=True)
class Check:
    """The base and what became of it.

    Attributes:
        base: Scores of the base.
        trained: Scores of the finetuned model, loaded from disk.
        token_loss: At the first log line, and over the last quarter of them.
        flow_loss: Likewise.
        is_changed: Whether any weight differs from the base's.
    """

    base: Answers
    trained: Answers
    token_loss: tuple[float, float]
    flow_loss: tuple[float, float]
    is_changed: bool

    def warnings(self) -> list[str]:
        """What went wrong, with its likely cause; empty if nothing did."""
        if not self.is_changed:
            return [
                "no weight has changed: the learning rate or the number of steps is too low, or "
                "the adapter was not saved"
            ]
        found = []
        fell = {
            "words and actions": self.token_loss[1] < 0.95 * self.token_loss[0],
            "frames": self.flow_loss[1] < 0.95 * self.flow_loss[0],
        }
        of = "words" if self.trained.actions is None else "actions"
        before, after = getattr(self.base, of), getattr(self.trained, of)
        if after is None and self.token_loss[0] > 0:
            found.append(
                "the data teach no action and no words: all are unknown or have weight 0, so that "
                "the agent cannot have learned anything; give them weights (see docs/data.md)"
            )
        if fell["words and actions"] and not _is_better(before, after):
            found.append(f"the token loss fell, but {_NO_BETTER[of]}")
        if fell["frames"] and not _is_better(self.base.frames, self.trained.frames):
            found.append(
                "the flow loss fell, but frames drawn from pure noise are no better than before: "
                "only light noise was learned to be removed (train longer, or with more spans at "
                "pure noise), or the latents were made by another codec"
            )
        if not any(fell.values()):
            found.append(
                "neither loss fell: the learning rate is too low, the rank too small, or the model "
                "knew all this already"
            )
        return found

    def table(self) -> str:
        """Both models side by side, as Markdown."""
        lines = ["| on training episodes | base | finetuned |", "|---|---|---|"]
        rows = {
            "actions right": (self.base.actions, self.trained.actions),
            "tokens of words right": (self.base.words, self.trained.words),
            "latents of next frames right": (self.base.frames, self.trained.frames),
        }
        for name, shares in rows.items():
            cells = ["-" if share is None else f"{100 * share:.1f} %" for share in shares]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        for name, (first, last) in (("token", self.token_loss), ("flow", self.flow_loss)):
            lines.append(f"| {name} loss, at first and at last | {first:.4f} | {last:.4f} |")
        return "\n".join(lines)


def _is_better(before: float | None, after: float | None) -> bool:
    if before is None or after is None:
        return True
    return after > min(before + IMPROVED, GOOD)


@torch.no_grad()
def ask(
    model: UnifiedModel, processor: UnifiedProcessor, episodes: EpisodeDataset, indices: list[int]
) -> Answers:
    """Puts episodes to a model, each up to its first `MAX_FRAMES` frames.

    Args:
        model: In evaluation mode.
        processor: The model's.
        episodes: With latents.
        indices: Indices of the episodes.
    """
    config = model.config
    first, stop = config.action_token_ids
    right = {"actions": 0, "words": 0, "frames": 0}
    asked = dict(right)
    for index in tqdm(indices, desc="self-check", leave=False):
        row = _row(episodes.sequence(index), processor, config)
        if row is None:
            continue
        batch = {name: x.to(model.device) for name, x in collate([row], config, len(row)).items()}
        noise = torch.randn(batch["latents"].shape, generator=torch.Generator().manual_seed(index))
        noise = noise.to(model.device)
        output = model(**batch, noise=noise)
        labels = batch["labels"]
        is_action = (labels >= first) & (labels < stop) & (batch["label_weights"] > 0)
        assert output.logits is not None
        chosen = output.logits[is_action][:, first:stop].argmax(-1) + first
        right["actions"] += int((chosen == labels[is_action]).sum())
        asked["actions"] += int(is_action.sum())
        is_word = (labels >= config.text_token_ids[0]) & (labels < config.text_token_ids[1])
        is_word &= batch["label_weights"] > 0
        right["words"] += int((output.logits[is_word].argmax(-1) == labels[is_word]).sum())
        asked["words"] += int(is_word.sum())
        is_noisy = batch["flow_weights"] > 0
        drawn = _drawn(output.prediction[is_noisy], noise[is_noisy], config)
        distance = (drawn - batch["latents"][is_noisy]).square().sum(-1).sqrt()
        right["frames"] += int((distance < TOLERANCE).sum())
        asked["frames"] += len(distance)
    shares = {name: right[name] / asked[name] if asked[name] else None for name in right}
    return Answers(**shares)


def _row(
    sequence: Sequence, processor: UnifiedProcessor, config: UnifiedConfig
) -> TrainingRow | None:
    """The episode's beginning, each frame after the first copied at pure noise.

    To a model that hears no words of the world it ends where the world speaks; None where that is
    before the first frame.
    """
    segments, frames = [], 0
    for segment in sequence.segments:
        if segment.role == "world" and segment.kind is Kind.TEXT and config.world_token_id is None:
            break
        frames += segment.kind is Kind.FRAME
        if frames > MAX_FRAMES:
            break
        segments.append(segment)
    if not frames:
        return None
    stream = processor.stream(Sequence(segments))
    count = len(stream.latents)
    spans = span_ranges(count, "frame", first_frame=1)
    return plan_training(stream, config, spans=spans, noise_levels=torch.ones(len(spans), count))


def _drawn(prediction: Tensor, noise: Tensor, config: UnifiedConfig) -> Tensor:
    levels = torch.ones_like(noise[..., :1])
    return to_sample(prediction.float(), noise, levels, config.prediction_type)


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    """Whether two models compute the same, adapters included: those that are all zero add none."""
    added = [p for n, p in other.named_parameters() if ".lora_B" in n]
    if added:
        return not any(bool(p.any()) for p in added)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)
