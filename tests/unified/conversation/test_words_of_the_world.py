"""The world speaks before its frames: who may, what it looks like as tokens, and who reads it."""

import pytest
import torch

from unified.conversation.grammar import Grammar
from unified.conversation.messages import messages_from_segments, sequence_from_messages
from unified.conversation.sequence import Sequence, action_segment, text_segment

WORDS = "a box appears 1 ahead"


def told(world, *, opening=None, event=None):
    """A task, a frame, an action and a frame, with the world's words before the frames."""
    sequence = world.episode(2)
    task, first, action, second = sequence.segments
    segments = [task, *([text_segment(opening, "world")] if opening else []), first, action]
    return Sequence([*segments, *([text_segment(event, "world")] if event else []), second])


def names(world, sequence):
    stream = world.processor.stream(sequence)
    return [world.processor.token_names[int(token)] for token in stream.input_ids], stream


def test_the_worlds_words_stand_between_an_action_and_its_frame_and_are_not_learned(world):
    plain, _ = names(world, told(world))
    spoken, stream = names(world, told(world, event=WORDS))
    size = len(world.processor.tokenizer.encode(WORDS)) + 1
    place = len(plain) - 1 - plain[::-1].index("<frame>")
    assert spoken == [*plain[:place], *spoken[place : place + size], *plain[place:]]
    assert spoken[place] == "<world>"
    assert stream.weights[place : place + size].tolist() == [0.0] * size


def test_the_worlds_words_come_back_from_their_tokens(world):
    sequence = told(world, opening="you see a red ball", event=WORDS)
    stream = world.processor.stream(sequence)
    latents = torch.zeros(len(stream), stream.latents.shape[-1])
    config = world.config()
    read = world.processor.segments(stream.input_ids, latents, config)
    said = [(segment.role, segment.text) for segment in read if segment.text]
    assert said == [
        ("task", "open the red door"),
        ("world", "you see a red ball"),
        ("world", WORDS),
    ]


def test_messages_take_the_worlds_words_and_give_them_back(world):
    messages = [
        {"role": "task", "content": "open the door"},
        {"role": "world", "content": "you see a red ball"},
    ]
    sequence = sequence_from_messages(messages, world.processor.action_ids)
    assert [segment.role for segment in sequence.segments] == ["task", "world"]
    again = messages_from_segments(sequence.segments, lambda segment: segment.frame)  # pyright: ignore[reportArgumentType]
    assert [message["role"] for message in again] == ["task", "world"]


def test_after_the_worlds_words_only_a_frame_may_come(world):
    config = world.config()
    stream = world.processor.stream(Sequence([text_segment("you see a key", "world")]))
    grammar = Grammar(config)
    ids = stream.input_ids[None]
    legal = grammar.legal(ids[:, -1], "forward", opener=grammar.opener(ids))
    assert legal.nonzero()[:, 1].tolist() == [config.frame_token_id]


@pytest.mark.parametrize("query", ["policy", "inverse"])
def test_nobody_acts_right_after_the_worlds_words(world, query):
    stream = world.processor.stream(Sequence([text_segment("you see a key", "world")]))
    grammar = Grammar(world.config())
    ids = stream.input_ids[None]
    with pytest.raises(ValueError, match="ends with the world's words"):
        grammar.check(ids[:, -1], query, grammar.opener(ids))


def test_the_world_does_not_speak_out_of_turn(world):
    _, first, action, second = world.episode(2).segments
    words = text_segment(WORDS, "world")
    with pytest.raises(ValueError, match="put its frame behind them"):
        world.processor.stream(Sequence([words, action_segment("left"), first]))
    with pytest.raises(ValueError, match="put its words behind an action"):
        world.processor.stream(Sequence([first, words, second]))
    with pytest.raises(ValueError, match="put its frame behind them"):
        world.processor.stream(Sequence([first, action, words, text_segment("stop", "task")]))


def test_a_frame_reads_the_worlds_words(world):
    model = world.model()
    drawn = []
    for words in ("you see a red ball", "you see a blue key"):
        stream = world.processor.stream(Sequence([text_segment(words, "world")]))
        seed = torch.Generator().manual_seed(0)
        drawn.append(model.generate(stream.input_ids[None], query="forward", generator=seed))
    one, other = (torch.cat(list(reply.latents)) for reply in drawn)
    assert not torch.allclose(one, other)
