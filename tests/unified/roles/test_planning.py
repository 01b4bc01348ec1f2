"""Planning: what is imagined, what it is worth, and that it leaves the episode as it is."""

import pytest
import torch

from tests.unified.parts import babyai_parts, random_frames
from unified import Agent
from unified.conversation.sequence import Kind
from unified.roles.planning import Future, PlanOptions, best_action, imagine

TASKS = ["open the red door", "go to the green ball"]


@pytest.fixture(scope="module")
def parts():
    return babyai_parts()


def future(action, outcome="ongoing", steps=1, discount=0.5):
    value = {"success": 1.0, "failure": -1.0, "ongoing": 0.0}[outcome] * discount**steps
    return Future(action, outcome, steps, value, [])


@pytest.mark.parametrize(
    ("futures", "best"),
    [
        ([future("left"), future("right", "success")], "right"),
        ([future("left", "success", 3), future("right", "success", 2)], "right"),  # sooner
        ([future("left", "success"), *[future("right", "success")] * 2], "right"),  # more often
        ([future("left", "success"), *[future("left")] * 9, future("right", "success")], "right"),
        ([future("left", "failure"), future("right")], None),
        ([future("left", "failure"), future("left", "success")], None),
        ([future(None, "success")], None),
        ([], None),
    ],
)
def test_the_action_is_taken_whose_futures_succeed_most_and_soonest(parts, futures, best):
    assert best_action(futures, parts[1]) == best


def session_of(agent, frames, tasks):
    agent.act(frames, tasks)
    assert agent._session is not None
    return agent._session


def test_futures_are_as_long_as_the_horizon_or_end_before(parts):
    agent = Agent(*parts, think=False)
    session = session_of(agent, random_frames(1), TASKS[:1])
    options = PlanOptions(futures=6, horizon=3, num_inference_steps=1)
    for found in imagine(session, parts[1], [0], options)[0]:
        kinds = [segment.kind for segment in found.segments]
        assert kinds[:2] == [Kind.ACTION, Kind.FRAME]
        assert found.steps == kinds.count(Kind.ACTION) <= 3
        assert found.outcome != "ongoing" or found.steps == 3
        assert found.action == found.segments[0].action
        frame = found.messages(parts[1])[-1]["content"][0]["frame"]
        assert frame.size == (56, 56)


def test_futures_of_a_row_are_the_same_alone_and_in_a_batch_and_leave_the_session_as_it_is(parts):
    options = PlanOptions(futures=3, horizon=2, num_inference_steps=1)

    def begun(rows):
        generators = [torch.Generator().manual_seed(7 + row) for row in rows]
        agent = Agent(*parts, think=False, generator=generators)
        frames = random_frames(2)
        return session_of(agent, [frames[row] for row in rows], [TASKS[row] for row in rows])

    both = begun([0, 1])
    logits, length = both.logits.clone(), both.state.length.clone()
    together = imagine(both, parts[1], [0, 1], options)
    assert torch.equal(both.logits, logits)
    assert torch.equal(both.state.length, length)
    for row in (0, 1):
        alone = imagine(begun([row]), parts[1], [0], options)[0]
        for one, other in zip(alone, together[row], strict=True):
            assert [s.action for s in one.segments] == [s.action for s in other.segments]
            for a, b in zip(one.segments, other.segments, strict=True):
                if a.kind is Kind.FRAME:
                    torch.testing.assert_close(a.latents, b.latents, atol=1e-4, rtol=0.0)
    actions = {tuple(str(s.action) for s in found.segments) for found in together[0]}
    assert len(actions) > 1  # each future has noise of its own


def test_an_agent_that_plans_takes_the_best_action_or_the_policys(parts):
    frames = random_frames(3)
    plain = Agent(*parts, think=False, generator=torch.Generator().manual_seed(1))
    planner = Agent(
        *parts, think=False, plan=4, horizon=2, generator=torch.Generator().manual_seed(1)
    )
    for frame in frames:
        action = planner.act(frame, TASKS[0])
        policy = plain.act(frame, TASKS[0])
        assert len(planner.futures[0]) == 4
        best = best_action(planner.futures[0], parts[1])
        assert action == (policy if best is None else best)
        plain.override_action(action)  # so that both have the same past
    planner.reset([0])
    assert planner.futures == [[]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plan": 0}, "plan=0 must be at least 1"),
        ({"plan": 4, "horizon": 0}, "horizon=0 must be at least 1"),
        ({"plan": True}, "plan=True must be a whole number"),
    ],
)
def test_a_plan_without_futures_is_refused(parts, options, message):
    with pytest.raises(ValueError, match=message):
        Agent(*parts, **options)
    with pytest.raises(ValueError, match="discount=1.5 must be at most 1"):
        PlanOptions(futures=2, discount=1.5)
    with pytest.raises(ValueError, match=r"temperature=0\.0 must be above 0"):
        PlanOptions(futures=2, temperature=0.0)
