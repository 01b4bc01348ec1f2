"""Planning: before it acts, the agent imagines futures and takes the action that ends best."""

from dataclasses import dataclass
from typing import Any

import torch

from unified.conversation.messages import messages_from_segments
from unified.conversation.processing import UnifiedProcessor
from unified.conversation.sequence import Kind, Segment
from unified.sampling.generation import Session
from unified.sampling.options import count, number

OUTCOME_VALUES = {"success": 1.0, "failure": -1.0}
"""Worth of an end; one that is still open is worth nothing yet."""


@dataclass(frozen=True)
class Future:
    """An imagined continuation of an episode.

    Attributes:
        action: Its first action, as the action space names it; None where none was taken.
        outcome: How it stands at its end: "ongoing", "success" or "failure".
        steps: Its number of actions.
        value: What it is worth: 1 for a success, -1 for a failure, discounted by its steps.
        segments: What was done and seen: actions, and frames as latents.
    """

    action: Any
    outcome: str
    steps: int
    value: float
    segments: list[Segment]

    def messages(self, processor: UnifiedProcessor) -> list[dict[str, Any]]:
        """The future as messages with PIL frames, to read or to show (`Reel.of`)."""
        return messages_from_segments(self.segments, processor.pixels)


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """How much is imagined before an action.

    An action costs at most `futures * horizon * (num_inference_steps + 2)` passes of the model,
    all futures of all rows in one batch.

    Attributes:
        futures: Futures of each row, N.
        horizon: Most actions of a future.
        discount: Factor on the worth of an end for each step until then, in (0, 1].
        temperature: Of the imagined actions; above 0, so that the futures differ.
        num_inference_steps: Denoise steps of an imagined frame.
    """

    futures: int
    horizon: int = 8
    discount: float = 0.95
    temperature: float = 1.0
    num_inference_steps: int = 2

    def __post_init__(self) -> None:
        for name in ("futures", "horizon", "num_inference_steps"):
            count(name, getattr(self, name))
        for name in ("discount", "temperature"):
            value = number(name, getattr(self, name))
            if not value > 0:
                raise ValueError(f"{name}={value} must be above 0")
        if self.discount > 1:
            raise ValueError(f"discount={self.discount} must be at most 1")


def best_action(futures: list[Future], processor: UnifiedProcessor) -> Any:
    """The first action whose futures succeed most and soonest.

    An action's worth is the sum of its futures' values over one more than their number, so that
    one lucky future counts less than several.

    Returns:
        The action; None where none is worth more than nothing.
    """
    found: dict[tuple[int, ...], list[Future]] = {}
    for future in futures:
        if future.action is not None:
            found.setdefault(tuple(processor.action_ids(future.action)), []).append(future)
    worth = [
        (sum(future.value for future in same) / (len(same) + 1), same[0].action)
        for same in found.values()
    ]
    value, action = max(worth, key=lambda pair: pair[0], default=(0.0, None))
    return action if value > 0 else None


def imagine(
    session: Session, processor: UnifiedProcessor, rows: list[int], plan: PlanOptions
) -> list[list[Future]]:
    """Imagines futures from where rows of a session stand; the session stays as it is.

    Every future has noise of its own, drawn from its row's generator.

    Args:
        session: Where the agent is to act next in all of `rows`.
        processor: The model's.
        rows: Indices.
        plan: How much.

    Returns:
        The futures of each row.
    """
    copies = session.fork([row for row in rows for _ in range(plan.futures)])
    copies.generators = [
        torch.Generator().manual_seed(int(seed))
        for row in rows
        for seed in torch.randint(2**62, (plan.futures,), generator=session.generators[row])
    ]
    reply = copies.run(
        "joint",
        temperature=plan.temperature,
        num_inference_steps=plan.num_inference_steps,
        max_turns=plan.horizon,
        think=False,
    )
    read = [
        _future(processor.segments(ids, latents, session.config), plan)
        for ids, latents in reply.rows()
    ]
    size = plan.futures
    return [read[i * size : (i + 1) * size] for i in range(len(rows))]


def _future(segments: list[Segment], plan: PlanOptions) -> Future:
    actions = [segment.action for segment in segments if segment.kind is Kind.ACTION]
    ends = [segment.outcome for segment in segments if segment.kind is Kind.FRAME]
    outcome = (ends[-1] if ends else None) or "ongoing"
    value = OUTCOME_VALUES.get(outcome, 0.0) * plan.discount ** len(actions)
    return Future(actions[0] if actions else None, outcome, len(actions), value, segments)
