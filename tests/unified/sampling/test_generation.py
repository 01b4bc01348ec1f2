"""A session says what the model would say without cache, batch, fork or eviction."""

import pytest
import torch

from unified.conversation.grammar import Grammar
from unified.conversation.sequence import Kind, Sequence, action_segment
from unified.model.flow import add_noise, to_sample
from unified.model.plan import plan_training
from unified.sampling.diffusion.schedules import noise_schedule
from unified.sampling.diffusion.solvers import SOLVERS, Solver

MEMORIES = ("window:frames=2", "window:frames=2,sinks=1", "place:recent=1,cells=9", "place")
"""Every mechanism; what a session promises holds for each."""


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def without_cache(model, ids, latents, query, generator, *, steps, max_turns, think, max_text):
    """Greedy generation that computes everything anew for each token and denoise step."""
    config, grammar = model.config, Grammar(model.config)
    ids, latents = ids[None], latents[None]
    begin, frames, words = ids.shape[1], 0, 0
    opener = grammar.opener(ids)

    def add(tokens, values=None):
        nonlocal ids, latents
        values = torch.zeros(len(tokens), config.latent_size) if values is None else values
        ids = torch.cat([ids, torch.tensor([tokens])], 1)
        latents = torch.cat([latents, values[None]], 1)

    while True:
        last = int(ids[0, -1])
        if last == config.frame_token_id:
            n = config.frame_tokens
            drawn = torch.randn(n, config.latent_size, generator=generator)
            schedule = noise_schedule(steps)
            add([config.latent_token_id] * n, drawn)
            for level, following in zip(schedule[:-1], schedule[1:], strict=True):
                levels = torch.zeros(1, ids.shape[1])
                levels[:, -n:] = level
                seen = latents.clone()
                seen[0, -n:] = drawn
                prediction = model(ids, seen, noise_levels=levels).prediction[0, -n:]
                drawn = drawn + (following - level) * (drawn - prediction) / level
            latents[0, -n:] = drawn
            add([config.frame_end_token_id])
            frames += 1
            continue
        legal = grammar.legal(torch.tensor([last]), query, think, opener)
        if words >= max_text:
            legal[:, slice(*config.text_token_ids)] = False
        logits = model(ids, latents).logits[:, -1].masked_fill(~legal, -torch.inf)
        token = int(logits.argmax())
        add([token])
        opener = grammar.opener(torch.tensor([[token]]), before=opener)
        words = words + 1 if token < config.text_token_ids[1] else 0
        acted = config.action_token_ids[0] <= token < config.action_token_ids[1]
        shown = token in config.outcome_token_ids
        final = shown and token != config.ongoing_token_id
        if (
            token == config.eos_token_id
            or (query in ("policy", "inverse") and acted)
            or (query == "policy" and final)
            or (query == "forward" and shown)
            or (query == "joint" and (final or (shown and frames >= max_turns)))
        ):
            return ids[0, begin:], latents[0, begin:]


def hopeful(model):
    """The model, for which no episode ever ends."""
    config = model.config

    def shift(module, arguments, logits):
        ends = torch.zeros(logits.shape[-1])
        ends[[config.success_token_id, config.failure_token_id]] = 1e3
        return logits - ends

    model.lm_head.register_forward_hook(shift)
    return model


def prompt_of(world, episode):
    inputs = world.processor.encode([episode])
    return inputs["input_ids"], inputs.get("latents")


CASES = [
    ("policy", None),
    ("policy", True),
    ("forward", False),
    ("inverse", None),
    ("joint", False),
]


@torch.no_grad()
@pytest.mark.parametrize(("query", "think"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_generation_with_the_cache_equals_generation_without(world, query, think, seed):
    model = hopeful(world.model(seed, window_frames=2))
    asked = query in ("policy", "joint")
    episode = world.episode(4, seed=seed, hindsight=query == "joint", exchanges=asked)
    if query == "forward":
        episode = Sequence(episode.segments[:-1])
    ids, latents = prompt_of(world, episode)
    options = {"max_turns": 6, "think": think}
    reply = model.generate(
        ids,
        latents,
        query=query,
        generator=seeded(7),
        num_inference_steps=3,
        max_text_tokens=5,
        **options,
    )
    expected = without_cache(
        model, ids[0], latents[0], query, seeded(7)[0], steps=3, max_text=5, **options
    )
    assert torch.equal(reply.input_ids[0], expected[0])
    torch.testing.assert_close(reply.latents[0], expected[1], rtol=1e-4, atol=1e-5)
    num_frames = int((reply.input_ids[0] == model.config.frame_token_id).sum())
    assert num_frames == {"forward": 1, "joint": 6}.get(query, 0)


def rollout(session, world, num_frames, **options):
    """Acts by script and simulates, so that no chance outcome ends the rollout."""
    for i in range(num_frames):
        name = ("left", "forward", "right")[i % 3]
        stream = world.processor.stream(Sequence([action_segment(name)]))
        session.append([stream] * session.batch_size)
        session.run("forward", **options)


def fresh(session, model, row):
    """A session that is told the whole history of one row at once."""
    ids, latents = session.history(row)
    generators = [session.generators[row].clone_state()]
    return model.start(ids[None], latents[None], generator=generators)


def assert_same(session, row, other, other_row=0):
    torch.testing.assert_close(session.logits[row], other.logits[other_row], rtol=1e-4, atol=1e-4)
    assert session.last[row] == other.last[other_row]
    assert session.opener[row] == other.opener[other_row]
    assert session.state.time[row] == other.state.time[other_row]


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_session_that_has_forgotten_equals_a_fresh_one_that_is_told_all_at_once(world, memory):
    model = world.model(memory=memory)
    episodes = [world.episode(1), world.episode(3, seed=1, task=None)]
    session = model.start(**world.processor.encode(episodes), generator=seeded(1, 2))
    for frames in (2, 7):
        rollout(session, world, frames, num_inference_steps=1)
        for row in range(2):
            assert_same(session, row, fresh(session, model, row))
    assert session.evictions > 0
    tokens = [len(session.history(row)[0]) for row in range(2)]
    assert int(session.state.length.max()) < min(tokens)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_fork_goes_on_as_a_fresh_session_would(world, memory):
    model = world.model(memory=memory)
    episodes = [world.episode(2), world.episode(1, seed=1)]
    session = model.start(**world.processor.encode(episodes), generator=seeded(1, 2))
    rollout(session, world, 4)
    fork = session.fork([1, 0, 1])
    streams = [
        world.processor.stream(Sequence([action_segment(name)]))
        for name in ("left", "drop", "done")
    ]
    fork.append(list(streams))
    replies = fork.run("forward", num_inference_steps=2)
    for place, row in enumerate([1, 0, 1]):
        alone = fresh(session, model, row)
        alone.append([streams[place]])
        reply = alone.run("forward", num_inference_steps=2)
        assert torch.equal(reply.input_ids[0], replies.input_ids[place])
        torch.testing.assert_close(reply.latents[0], replies.latents[place], rtol=1e-4, atol=1e-5)
        assert_same(fork, place, alone)


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_fork_leaves_its_origin_alone(world, tiny_model, memory):
    inputs = world.processor.encode([world.episode(2)])
    session = tiny_model.start(**inputs, generator=seeded(3), memory=memory)
    logits, states = session.logits.clone(), session.cache.states.clone()
    fork = session.fork()
    rollout(fork, world, 2)
    assert torch.equal(session.logits, logits)
    assert torch.equal(session.cache.states, states)
    assert len(fork.history(0)[0]) > len(session.history(0)[0])


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_rewind_goes_back_and_forward_bit_for_bit_whatever_was_forgotten(world, memory):
    model = world.model()
    episodes = [world.episode(1), world.episode(2, seed=1)]
    inputs = world.processor.encode(episodes)
    session = model.start(**inputs, generator=seeded(4, 5), memory=memory)
    moments = []
    for _ in range(4):
        generators = [g.clone_state() for g in session.generators]
        moments.append((session.savepoint(), session.fork(), generators))
        rollout(session, world, 2, num_inference_steps=1)
    assert session.evictions > 0
    end = [session.history(row) for row in range(2)]
    for number in (2, 0, 3, 1):
        savepoint, fork, generators = moments[number]
        session.rewind(savepoint)
        length = fork.state.length
        assert torch.equal(session.logits, fork.logits)
        assert torch.equal(session.state.length, length)
        for row in range(2):
            cached = session.cache.states[:, :, row, :, : int(length[row])]
            assert torch.equal(cached, fork.cache.states[:, :, row, :, : int(length[row])])
        session.generators = [g.clone_state() for g in generators]
        if number in (0, 1):  # going on is as it was the first time
            for _ in range(4 - number):
                session.savepoint()  # passes what is queued, as it did the first time
                rollout(session, world, 2, num_inference_steps=1)
            for row in range(2):
                assert torch.equal(session.history(row)[0], end[row][0])
                assert torch.equal(session.history(row)[1], end[row][1])


@pytest.mark.parametrize("memory", MEMORIES)
def test_a_cleared_row_begins_anew_and_the_others_go_on(world, memory):
    model = world.model(memory=memory)
    episodes = [world.episode(2), world.episode(3, seed=1)]
    session = model.start(**world.processor.encode(episodes), generator=seeded(1, 2))
    rollout(session, world, 3, num_inference_steps=1)
    session.clear([0])
    with pytest.raises(ValueError, match="append its new conversation first"):
        session.run("policy")
    session.append([world.stream(2, seed=9, task="go"), None])
    rollout(session, world, 5, num_inference_steps=1)
    for row in range(2):
        assert_same(session, row, fresh(session, model, row))


@pytest.mark.parametrize(
    ("query", "memory"),
    [(q, "window:frames=2") for q in ("policy", "forward", "inverse")]
    + [("joint", memory) for memory in MEMORIES],
)
def test_a_ragged_batch_replies_as_its_rows_would_alone(world, query, memory):
    model = hopeful(world.model(memory=memory))
    episodes = [
        world.episode(1 + (query == "inverse")),
        world.episode(5, seed=1, task="go"),
        world.episode(3, seed=2, task=None, thoughts=True),
    ]
    if query == "forward":
        moves = [action_segment(name) for name in ("left", "right", None)]
        episodes = [Sequence([*e.segments, m]) for e, m in zip(episodes, moves, strict=True)]
    options = {
        "query": query,
        "temperature": 1.3,
        "top_k": 50,
        "max_turns": 4,
        "max_text_tokens": 6,
        "num_inference_steps": 2,
    }
    batch = world.processor.encode(episodes)
    together = model.generate(**batch, generator=seeded(1, 2, 3), **options)
    lengths = {len(ids) for ids in together.input_ids}
    assert query in ("forward", "inverse") or len(lengths) > 1
    for row, episode in enumerate(episodes):
        alone = model.generate(
            **world.processor.encode([episode]), generator=seeded(row + 1), **options
        )
        assert torch.equal(alone.input_ids[0], together.input_ids[row])
        torch.testing.assert_close(alone.latents[0], together.latents[row], rtol=1e-4, atol=1e-5)


def test_rows_that_are_not_asked_stay_as_they_are(world, tiny_model):
    episodes = [world.episode(n, seed=n) for n in (1, 2, 3)]
    session = tiny_model.start(**world.processor.encode(episodes), generator=seeded(1, 2, 3))
    before = session.logits.clone()
    reply = session.run("policy", rows=[1], think=False)
    assert [len(ids) for ids in reply.input_ids] == [0, 3, 0]
    assert torch.equal(session.logits[[0, 2]], before[[0, 2]])
    assert_same(session, 0, fresh(session, tiny_model, 0))


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["sample", "velocity", "epsilon"])
@pytest.mark.parametrize("level", [1.0, 0.6, 0.1])
def test_training_on_a_noisy_span_sees_what_a_denoise_step_sees(
    world, monkeypatch, prediction_type, level
):
    # In double precision: an epsilon at level 1 is divided by 1e-3 on its way to a sample.
    model = world.model(window_frames=2, prediction_type=prediction_type).double()
    config = model.config
    episode = world.episode(5, thoughts=True)
    stream = world.processor.stream(episode)
    generator = seeded(0)[0]
    noise = torch.randn(config.frame_tokens, config.latent_size, generator=generator)
    for frame in range(5):
        row = plan_training(
            stream,
            config,
            spans=[(frame, frame + 1)],
            noise_levels=torch.full((1, 5), level),
        )
        batch = world.batch([row], config)
        batch["noise"][0, -config.frame_tokens :] = noise
        trained = model(**batch).prediction[0, -config.frame_tokens :]
        noisy = add_noise(stream.latents[frame], noise, torch.tensor(level))

        def probe(denoise, *_, noisy=noisy):
            return denoise(noisy[None, None], torch.full((1, 1), level))

        monkeypatch.setitem(SOLVERS, "probe", Solver("probe", probe))
        session = started_before(world, model, episode, frame)
        reply = session.run("forward", solver="probe")
        seen = reply.latents[0][reply.input_ids[0] == config.latent_token_id]
        expected = to_sample(trained, noisy, torch.tensor(level), prediction_type)
        torch.testing.assert_close(seen, expected.float(), rtol=1e-4, atol=1e-4)


def started_before(world, model, episode, frame):
    """A session that knows all that came before a frame of the episode."""
    places = [i for i, s in enumerate(episode.segments) if s.kind is Kind.FRAME]
    before = Sequence(episode.segments[: places[frame]])
    return model.start(**world.processor.encode([before]))


@torch.no_grad()
def test_the_model_is_told_the_context_noise_level_of_frames_it_drew_itself(world):
    model = world.model(context_noise_level=0.2)
    episode = Sequence([*world.episode(2).segments, action_segment("left")])
    session = model.start(**world.processor.encode([episode]), generator=seeded(1))
    session.run("forward")
    ids, latents = session.history(0)
    levels = torch.zeros(len(ids))
    levels[(ids == model.config.latent_token_id).nonzero()[-4:, 0]] = 0.2
    plain = model(ids[None], latents[None]).logits[0, -1]
    expected = model(ids[None], latents[None], noise_levels=levels[None]).logits[0, -1]
    torch.testing.assert_close(session.logits[0], expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(plain, expected, atol=1e-3)


@pytest.mark.parametrize("query", ["policy", "forward", "inverse", "joint"])
def test_the_callback_streams_whole_segments_in_order(world, query):
    model = world.model(1)
    episode = world.episode(2, last_outcome=None if query == "policy" else "ongoing")
    if query == "forward":
        episode = Sequence([*episode.segments, action_segment("left")])
    pieces = []
    reply = model.generate(
        **world.processor.encode([episode]),
        query=query,
        generator=seeded(2),
        think=True if query == "joint" else None,
        max_text_tokens=3,
        max_turns=3,
        callback=lambda row, ids, latents: pieces.append((row, ids, latents)),
    )
    read = world.processor.segments
    whole = read(reply.input_ids[0], reply.latents[0], model.config)
    parts = [read(ids, latents, model.config) for _, ids, latents in pieces]
    assert [len(part) for part in parts] == [1] * len(whole)
    for (part,), segment in zip(parts, whole, strict=True):
        assert (part.kind, part.text, part.action, part.hindsight, part.outcome) == (
            segment.kind,
            segment.text,
            segment.action,
            segment.hindsight,
            segment.outcome,
        )
    assert torch.equal(torch.cat([ids for _, ids, _ in pieces]), reply.input_ids[0])


def test_the_same_seed_gives_the_same_reply(world, tiny_model):
    inputs = world.processor.encode([world.episode(1), world.episode(2)])
    options = {"query": "joint", "temperature": 1.0, "max_turns": 2, "max_text_tokens": 4}
    one, other = (
        tiny_model.generate(**inputs, generator=seeded(8)[0], **options) for _ in range(2)
    )
    for row in range(2):
        assert torch.equal(one.input_ids[row], other.input_ids[row])
        assert torch.equal(one.latents[row], other.latents[row])


def test_ids_of_any_whole_numbers_give_the_same_reply(world):
    model = world.model()
    inputs = dict(world.processor.encode([world.episode(1)]))
    expected = model.generate(**inputs, seed=0)
    inputs["input_ids"] = inputs["input_ids"].to(torch.int16)
    assert torch.equal(model.generate(**inputs, seed=0).input_ids[0], expected.input_ids[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"streamer": 5}, "streamer=5 has no put and end"),
        ({"callback": 5}, "callback=5 cannot be called; give a function"),
        ({"seed": 2**63}, f"seed={2**63} must be at least 0 and at most {2**62}"),
    ],
)
def test_options_that_cannot_be_used_are_refused_by_name(world, options, words):
    inputs = world.processor.encode([world.episode(1)])
    with pytest.raises(ValueError, match=words):
        world.model().generate(**inputs, **options)
