"""What is generated obeys the grammar, read here by a regular expression."""

import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified.conversation.grammar import QUERIES, Grammar
from unified.conversation.sequence import Sequence

ACTION = "(?:a|u)"
WORLD = rf"F(?:zzzz)E[osf](?:I{ACTION})?"
OPEN_WORLD = rf"F(?:zzzz)E(?:[osf](?:I{ACTION})?)?"
EXCHANGE = "(?:AW+e)?TW*"
TURN = rf"(?:{EXCHANGE})*AW*X{ACTION}"
EPISODE = re.compile(
    rf"(?:TW*)?(?:{WORLD}{TURN})*(?:{OPEN_WORLD})?(?:{TURN}|(?:{EXCHANGE})*(?:AW+e)?)?"
)


def letters(ids, config):
    """One letter for each token."""
    names = {
        config.task_token_id: "T",
        config.agent_token_id: "A",
        config.frame_token_id: "F",
        config.frame_end_token_id: "E",
        config.latent_token_id: "z",
        config.action_token_id: "X",
        config.inverse_token_id: "I",
        config.unknown_token_id: "u",
        config.ongoing_token_id: "o",
        config.success_token_id: "s",
        config.failure_token_id: "f",
        config.eos_token_id: "e",
    }
    names |= dict.fromkeys(range(*config.action_token_ids), "a")
    names |= dict.fromkeys(range(*config.text_token_ids), "W")
    return "".join(names[token] for token in ids.tolist())


PROMPTS = {
    "policy": {"num_frames": [1, 2, 4], "last_outcome": [None, "ongoing"]},
    "forward": {"num_frames": [0, 2, 4], "last_outcome": ["ongoing"]},
    "inverse": {"num_frames": [2, 3], "last_outcome": [None, "ongoing", "success"]},
    "joint": {"num_frames": [0, 1, 3], "last_outcome": [None, "ongoing"]},
}
ANSWERS = {
    "policy": r"[osf]?|[osf]?AW*Xa|o?AW+e",
    "forward": r"FzzzzE[osf]",
    "inverse": r"[osf]?Ia",
    "joint": r"o?(?:AW*Xa)?(?:FzzzzEoAW*Xa)*(?:FzzzzE[osf])?(?:o?AW+e)?|[sf]",
}


@st.composite
def questions(draw):
    """A query, a prompt that it may be asked of, and options."""
    query = draw(st.sampled_from(QUERIES))
    prompt = {name: draw(st.sampled_from(values)) for name, values in PROMPTS[query].items()}
    options = {
        "temperature": draw(st.sampled_from([0.0, 0.7, 3.0])),
        "top_k": draw(st.sampled_from([None, 3])),
        "think": draw(st.sampled_from([None, True, False])),
        "max_text_tokens": draw(st.integers(1, 4)),
        "num_inference_steps": draw(st.integers(1, 2)),
        "max_turns": draw(st.integers(1, 4)),
    }
    return query, prompt, options, draw(st.integers(0, 2**20))


@settings(max_examples=30)
@given(question=questions())
def test_a_random_model_never_breaks_the_grammar(world, question):
    query, prompt, options, seed = question
    model = world.model(seed % 5, window_frames=2)
    hindsight = query != "inverse" and bool(seed % 2)
    exchanges = query in ("policy", "joint") and bool(seed % 3)
    episode = world.episode(**prompt, seed=seed, hindsight=hindsight, exchanges=exchanges)
    if query == "forward" and prompt["num_frames"]:
        episode = Sequence(world.episode(prompt["num_frames"] + 1, seed=seed).segments[:-1])
    inputs = world.processor.encode([episode])
    generator = torch.Generator().manual_seed(seed)
    session = model.start(**inputs, generator=generator)
    reply = session.run(query, **options)
    said = letters(reply.input_ids[0], model.config)
    assert re.fullmatch(ANSWERS[query], said), said
    whole = letters(session.history(0)[0], model.config)
    assert EPISODE.fullmatch(whole), whole


def test_after_an_action_told_in_hindsight_the_agent_has_the_floor(world, tiny_model):
    inputs = world.processor.encode([world.episode(2)])
    session = tiny_model.start(**inputs)
    session.run("inverse")
    with pytest.raises(ValueError, match="ends with an action told in hindsight"):
        session.run("forward")
    session.run("policy", think=False)
    session.run("forward")
    whole = letters(session.history(0)[0], tiny_model.config)
    assert re.fullmatch(r"TW+FzzzzEoAX[au]FzzzzEoIaAXaFzzzzE[osf]", whole), whole


ENDS = {
    "the task": {"num_frames": 0},
    "an untold frame": {"num_frames": 2, "last_outcome": None},
    "an ongoing frame": {"num_frames": 2},
    "a final outcome": {"num_frames": 2, "last_outcome": "failure"},
    "words after a frame": {"num_frames": 1, "exchanges": True, "seed": 1},
}
LEGAL = {
    "the task": {"forward", "joint"},
    "an untold frame": {"policy", "inverse", "joint"},
    "an ongoing frame": {"policy", "inverse", "joint"},
    "a final outcome": {"inverse"},
    "words after a frame": {"policy", "joint"},
}


@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("end", ENDS)
def test_a_prompt_that_ends_where_the_asked_may_not_speak_is_refused(world, tiny_model, end, query):
    session = tiny_model.start(**world.processor.encode([world.episode(**ENDS[end])]))
    if query in LEGAL[end]:
        session.run(query, think=False)
        return
    with pytest.raises(ValueError, match=rf"prompt 0 ends .*where '{query}' cannot go on; end it"):
        session.run(query)


def test_an_unknown_query_is_refused(world, tiny_model):
    session = tiny_model.start(**world.processor.encode([world.episode(1)]))
    with pytest.raises(ValueError, match="'act' is unknown; use one of policy, forward"):
        session.run("act")


def test_thinking_can_be_asked_for_and_forbidden(tiny_config):
    grammar = Grammar(tiny_config)
    floor = torch.tensor([tiny_config.agent_token_id])
    words = slice(*tiny_config.text_token_ids)
    for think, may_speak, may_act in [
        (None, True, True),
        (True, True, False),
        (False, False, True),
    ]:
        legal = grammar.legal(floor, "policy", think)[0]
        assert bool(legal[words].all()) == bool(legal[words].any()) == may_speak
        assert bool(legal[tiny_config.action_token_id]) == may_act
        others = legal.clone()
        others[words] = others[tiny_config.action_token_id] = False
        assert not others.any()
