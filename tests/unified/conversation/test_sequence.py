"""Segments refuse what makes no sense; patches lose nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unified.conversation.sequence import (
    Kind,
    Segment,
    Sequence,
    action_segment,
    frame_segment,
    text_segment,
)
from unified.conversation.stream import patchify, unpatchify
from unified.conversation.turns import check_turns


@given(
    batch=st.lists(st.integers(1, 3), max_size=2),
    channels=st.integers(1, 3),
    rows=st.integers(1, 3),
    columns=st.integers(1, 3),
    patch=st.integers(1, 3),
)
def test_patches_put_together_again_are_the_latents(batch, channels, rows, columns, patch):
    latents = torch.randn(*batch, channels, rows * patch, columns * patch)
    tokens = patchify(latents, patch)
    assert tokens.shape == (*batch, rows * columns, channels * patch**2)
    assert torch.equal(unpatchify(tokens, patch, (rows, columns)), latents)


def test_tokens_run_row_by_row_and_each_holds_its_own_patch():
    latents = torch.arange(24.0).reshape(1, 4, 6)
    tokens = patchify(latents, 2)
    assert (
        tokens[4].tolist() == latents[0, 2:4, 2:4].flatten().tolist()
    )  # second row, second column


def test_latents_that_cannot_be_cut_are_refused():
    with pytest.raises(ValueError, match="3x4 cannot be cut into patches of 2x2"):
        patchify(torch.zeros(1, 3, 4), 2)


def test_a_sequence_knows_its_frames_and_actions():
    frame, action = frame_segment(latents=torch.zeros(1, 2, 2)), action_segment("left")
    sequence = Sequence([text_segment("go", "task"), frame, action, frame])
    assert len(sequence) == 4
    assert sequence.frames() == [frame, frame]
    assert sequence.actions() == [action]


@pytest.mark.parametrize("role", ["user", "assistant", "", None])
def test_an_unknown_role_is_refused(role):
    with pytest.raises(ValueError, match="use one of task, agent, world"):
        text_segment("hello", role)


@pytest.mark.parametrize(
    ("kind", "role"),
    [(Kind.FRAME, "task"), (Kind.FRAME, "agent"), (Kind.ACTION, "world"), (Kind.ACTION, "task")],
)
def test_who_may_not_speak_a_kind_is_refused(kind, role):
    with pytest.raises(ValueError, match=f"a {kind.value} cannot be spoken by '{role}'"):
        Segment(kind=kind, role=role)


def test_an_unknown_outcome_is_refused():
    with pytest.raises(ValueError, match="'won' is unknown; use one of ongoing, success, failure"):
        frame_segment(outcome="won")


TASK, WORDS = text_segment("go", "task"), text_segment("i go")
FRAME = frame_segment(np.zeros((8, 8, 3), np.uint8), outcome="ongoing")
ACT, TOLD = action_segment("left"), action_segment("left", hindsight=True)


@pytest.mark.parametrize(
    "segments",
    [
        [TASK, FRAME, WORDS, ACT, FRAME],
        [FRAME, TASK, WORDS, TASK, TASK, WORDS, ACT, FRAME, WORDS],
        [FRAME, action_segment(None), FRAME, TOLD, TASK, ACT, FRAME, TASK],
    ],
)
def test_task_and_agent_may_talk_between_a_frame_and_an_action(segments):
    check_turns(segments, is_whole=True)


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([FRAME, FRAME], "segment 1: a frame follows a frame; put an action between"),
        ([FRAME, TASK, FRAME], "segment 2: a frame follows a frame"),
        ([FRAME, WORDS, FRAME], "segment 2: a frame follows the agent's words"),
        ([FRAME, ACT, ACT], "segment 2: the agent goes on after an action"),
        ([FRAME, ACT, WORDS], "segment 2: the agent goes on after an action"),
        ([FRAME, ACT, TASK], "segment 2: the task speaks after an action"),
        ([FRAME, ACT, TOLD], "segment 2: an action told in hindsight follows a frame"),
        ([TASK, ACT, FRAME], "segment 1: the agent's turn comes before any frame"),
        ([WORDS], "segment 0: the agent's turn comes before any frame"),
    ],
)
def test_who_speaks_out_of_turn_is_named(segments, message):
    with pytest.raises(ValueError, match=message):
        check_turns(segments, is_whole=True)


def test_what_goes_on_with_a_conversation_may_begin_with_the_agent():
    check_turns([WORDS, ACT, FRAME, TASK])
