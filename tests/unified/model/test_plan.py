"""The plan, against an oracle that spells out in loops who may see whom."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified.conversation.sequence import Sequence, action_segment, text_segment
from unified.model.plan import (
    StreamState,
    collate,
    next_token_labels,
    pack,
    plan_stream,
    plan_training,
    span_ranges,
)

KINDS = ["frame", "chunk", "sequence", "bidirectional"]


def seen(visible):
    """Set of visible keys of each query, from `(3, 2, L)` intervals."""
    return [
        {key for start, stop in intervals for key in range(start, stop)}
        for intervals in visible.permute(2, 0, 1).tolist()
    ]


class Oracle:
    """Visibility between the tokens of one clean stream, by definition."""

    def __init__(self, ids, config):
        self.window = config.window_frames
        self.is_latent = [token == config.latent_token_id for token in ids]
        self.turn = []  # frames opened so far, this token included
        for token in ids:
            so_far = self.turn[-1] if self.turn else 0
            self.turn.append(so_far + (token == config.frame_token_id))

    def in_window(self, query, key):
        return self.turn[key] == 0 or self.turn[key] > self.turn[query] - self.window

    def in_one_frame(self, query, key):
        both = self.is_latent[query] and self.is_latent[key]
        return both and self.turn[query] == self.turn[key]

    def sees(self, query, key):
        in_time = key <= query or self.in_one_frame(query, key)
        return in_time and self.in_window(query, key)

    def keys(self, query):
        return {key for key in range(len(self.turn)) if self.sees(query, key)}


def copied_tokens(oracle, spans):
    """Original token and span of every copy, in order."""
    copies = []
    for number, (first, stop) in enumerate(spans):
        latents = [
            i for i, turn in enumerate(oracle.turn) if oracle.is_latent[i] and first < turn <= stop
        ]
        copies += [(i, number) for i in range(latents[0], latents[-1] + 1)]
    return copies


@st.composite
def streams(draw):
    """Options of `world.stream`."""
    return {
        "num_frames": draw(st.integers(1, 6)),
        "seed": draw(st.integers(0, 99)),
        "task": draw(st.sampled_from([None, "go", "open the red door"])),
        "thoughts": draw(st.booleans()),
        "hindsight": draw(st.booleans()),
        "last_outcome": draw(st.sampled_from([None, "ongoing", "success"])),
    }


@settings(max_examples=20)
@given(options=streams(), window=st.integers(1, 4))
def test_the_clean_stream_sees_what_the_oracle_says(world, options, window):
    stream, config = world.stream(**options), world.config(window_frames=window)
    oracle = Oracle(stream.input_ids.tolist(), config)
    found = seen(plan_stream(stream.input_ids[None], config).visible[0])
    assert found == [oracle.keys(query) for query in range(len(stream))]
    path = seen(plan_stream(stream.input_ids[None], config).path[0])
    assert path == [set(range(query + 1)) for query in range(len(stream))]  # whatever the window


@settings(max_examples=20)
@given(
    options=streams(),
    window=st.integers(1, 4),
    kind=st.sampled_from(KINDS),
    first=st.integers(0, 2),
    chunk=st.integers(1, 3),
)
def test_noisy_spans_see_what_the_oracle_says(world, options, window, kind, first, chunk):
    stream, config = world.stream(**options), world.config(window_frames=window)
    num_frames = options["num_frames"]
    spans = span_ranges(num_frames, kind, chunk, first)
    levels = torch.rand(len(spans), num_frames)
    both_ways = kind == "bidirectional"
    row = plan_training(stream, config, spans=spans, noise_levels=levels, bidirectional=both_ways)
    oracle = Oracle(stream.input_ids.tolist(), config)
    copies = copied_tokens(oracle, spans)
    starts = {number: original for original, number in reversed(copies)}
    expected = [oracle.keys(query) for query in range(len(stream))]
    for query, span in copies:
        clean = {key for key in range(starts[span]) if oracle.sees(query, key)}
        own = {
            len(stream) + place
            for place, (key, other) in enumerate(copies)
            if other == span
            and (oracle.in_window(query, key) if both_ways else oracle.sees(query, key))
        }
        expected.append(clean | own)
    assert seen(row.visible) == expected
    originals = torch.tensor([original for original, _ in copies], dtype=torch.int64)
    assert torch.equal(row.input_ids[len(stream) :], stream.input_ids[originals])
    assert torch.equal(
        row.position_ids[:, len(stream) :], row.position_ids[:, : len(stream)][:, originals]
    )
    paths = [set(range(query + 1)) for query in range(len(stream))]
    for place, (_, span) in enumerate(copies):
        own = {len(stream) + i for i in range(place + 1) if copies[i][1] == span}
        paths.append(set(range(starts[span])) | own)
    assert seen(row.path) == paths


@settings(max_examples=20)
@given(
    rows=st.lists(streams(), min_size=1, max_size=3),
    window=st.integers(1, 3),
    cuts=st.lists(st.floats(0, 1), min_size=3, max_size=3),
    leads=st.lists(st.integers(0, 3), min_size=3, max_size=3),
)
def test_ragged_rows_behind_a_cache_see_what_the_oracle_says(world, rows, window, cuts, leads):
    config = world.config(window_frames=window)
    ids = [world.stream(**options).input_ids for options in rows]
    whole = [i[None] for i in ids]
    lengths, rests = [], []
    for tokens, cut in zip(ids, cuts, strict=False):
        places = [  # a frame is never cut
            i
            for i in range(len(tokens))
            if tokens[i] != config.latent_token_id or tokens[i - 1] != config.latent_token_id
        ]
        lengths.append(places[int(cut * (len(places) - 1))])
        rests.append(len(tokens) - lengths[-1])
    state = plan_stream(*padded(ids, [0] * len(ids), lengths, config)).state
    leads = leads[: len(ids)]
    new, _, _, counts = padded(ids, lengths, rests, config, leads)
    plan = plan_stream(new, config, state, counts, lead=torch.tensor(leads))
    most = max(lengths)
    for row, tokens in enumerate(ids):
        oracle = Oracle(tokens.tolist(), config)
        columns = {slot: slot for slot in range(lengths[row])}
        columns |= {lengths[row] + i: most + leads[row] + i for i in range(rests[row])}
        here = slice(leads[row], leads[row] + rests[row])
        found = seen(plan.visible[row])[here]
        assert found == [
            {columns[key] for key in oracle.keys(lengths[row] + i)} for i in range(rests[row])
        ]
        assert seen(plan.path[row])[here] == [
            {columns[key] for key in range(lengths[row] + i + 1)} for i in range(rests[row])
        ]
        at_once = plan_stream(whole[row], config)
        assert torch.equal(
            plan.position_ids[row, :, here], at_once.position_ids[0, :, lengths[row] :]
        )
        for name in ("length", "time", "num_frames", "prefix"):
            assert getattr(plan.state, name)[row] == getattr(at_once.state, name)[0], name


def padded(ids, starts, counts, config, leads=(0, 0, 0)):
    """Arguments of `plan_stream` for a part of each row."""
    batch = torch.full((len(ids), max(max(counts), 1) + max(leads)), config.pad_token_id)
    for row, (tokens, start, count) in enumerate(zip(ids, starts, counts, strict=True)):
        batch[row, leads[row] : leads[row] + count] = tokens[start : start + count]
    return batch, config, None, torch.tensor(counts)


def test_packed_documents_do_not_see_each_other(world, tiny_config):
    rows = [world.row(world.stream(n, seed=n), tiny_config) for n in (1, 3, 2)]
    for name in ("visible", "path"):
        packed = seen(getattr(pack(rows), name))
        offset = 0
        for row in rows:
            expected = [{key + offset for key in keys} for keys in seen(getattr(row, name))]
            assert packed[offset : offset + len(row)] == expected
            offset += len(row)


def test_padding_sees_only_itself(world, tiny_config):
    rows = [world.row(world.stream(n), tiny_config) for n in (1, 2)]
    length = len(rows[1]) + 3
    batch = collate(rows, tiny_config, length)
    for row, visible in zip(rows, batch["visible"], strict=True):
        assert seen(visible)[len(row) :] == [{i} for i in range(len(row), length)]
    assert (batch["labels"][0, len(rows[0]) :] == -100).all()


@settings(max_examples=20)
@given(options=streams(), kind=st.sampled_from(KINDS), window=st.integers(1, 3))
def test_every_token_sees_itself_and_no_interval_leaves_the_row(world, options, kind, window):
    config = world.config(window_frames=window)
    row = world.row(world.stream(**options), config, kind)
    start, stop = row.visible[:, 0], row.visible[:, 1]
    is_open = start < stop
    assert (start[is_open] >= 0).all()
    assert (stop[is_open] <= len(row)).all()
    assert all(query in keys for query, keys in enumerate(seen(row.visible)))
    ordered = start[1:][is_open[1:] & is_open[:-1]] >= stop[:-1][is_open[1:] & is_open[:-1]]
    assert ordered.all()  # the intervals do not overlap: no key counts twice


@settings(max_examples=20)
@given(options=streams(), kind=st.sampled_from(KINDS))
def test_noise_and_flow_loss_are_on_the_latents_of_spans_alone(world, options, kind):
    config = world.config()
    stream = world.stream(**options)
    row = world.row(stream, config, kind)
    is_latent = row.input_ids == config.latent_token_id
    in_span = torch.arange(len(row)) >= len(stream)
    assert ((row.flow_weights > 0) == (is_latent & in_span)).all()
    assert (row.noise_levels[~(is_latent & in_span)] == 0).all()
    assert (row.labels[in_span] == -100).all()
    assert torch.equal(row.latents[is_latent & ~in_span], stream.latents.flatten(0, 1))


def test_a_learned_context_is_a_span_over_everything_without_its_copies(world, tiny_config):
    stream = world.stream(3, task=None)
    levels = torch.tensor([0.0, 0.5, 1.0])
    weights = torch.rand(3, tiny_config.frame_tokens)
    options = {"config": tiny_config, "latent_weights": weights}
    copied = plan_training(stream, spans=[(0, 3)], noise_levels=levels[None], **options)
    row = plan_training(
        stream,
        spans=[],
        noise_levels=torch.zeros(0, 3),
        context_noise_levels=levels,
        learn_context=True,
        **options,
    )
    assert len(row) == len(stream)
    span = slice(len(stream), None)
    originals = slice(1, 1 + len(copied) - len(stream))  # all but the marker before and what ends
    assert torch.equal(row.noise_levels[originals], copied.noise_levels[span])
    is_noised = row.noise_levels > 0
    assert torch.equal(
        row.flow_weights[originals], copied.flow_weights[span] * is_noised[originals]
    )
    offset = len(stream) - 1
    assert seen(copied.visible)[span] == [
        {key + offset for key in keys if key} | ({0} & keys)
        for keys in seen(row.visible)[originals]
    ]


def test_a_frame_has_one_time_and_its_rows_and_columns_count_from_it(world):
    config = world.config(latent_grid=(2, 3))
    ids = [config.task_token_id, 7, config.frame_token_id, *[config.latent_token_id] * 6]
    ids += [config.frame_end_token_id, config.ongoing_token_id]
    time, row, column = plan_stream(torch.tensor([ids]), config).position_ids[0].tolist()
    assert time == [0, 1, 2, 3, 3, 3, 3, 3, 3, 4, 5]
    assert row == [0, 1, 2, 3, 3, 3, 4, 4, 4, 4, 5]
    assert column == [0, 1, 2, 3, 4, 5, 3, 4, 5, 4, 5]


def test_a_later_part_of_an_episode_keeps_its_task_at_the_beginning(world, tiny_config):
    stream = world.stream(2)
    plain = world.row(stream, tiny_config).position_ids
    late = world.row(stream, tiny_config, start_time=50).position_ids
    marker = int((stream.input_ids == tiny_config.frame_token_id).nonzero()[0])
    assert torch.equal(late[:, :marker], plain[:, :marker])
    assert torch.equal(late[:, marker:], plain[:, marker:] + 50 - marker)


def test_the_label_after_the_action_marker_of_turn_t_is_a_t_between_s_t_and_s_t_plus_1(world):
    names = ["left", "right", "forward", "toggle"]
    rng = np.random.default_rng(0)
    segments = [text_segment("go", "task"), world.frame(rng)]
    for t, name in enumerate(names):
        target = "pickup" if t == 2 else None  # the expert would have done something else
        segments += [action_segment(name, target=target), world.frame(rng)]
    stream = world.processor.stream(Sequence(segments))
    config = world.config()
    row = world.row(stream, config)
    ids, vocabulary = stream.input_ids, world.processor.tokenizer.get_vocab()
    frame_number = (ids == config.frame_token_id).cumsum(0) - 1
    acting = (ids == config.action_token_id).nonzero()[:, 0].tolist()
    assert len(acting) == len(names)
    for t, place in enumerate(acting):
        assert frame_number[place] == t  # s_t is the last frame before
        assert frame_number[place + 2] == t + 1  # and s_{t+1} opens right behind it
        assert ids[place + 2] == config.frame_token_id
        assert ids[place + 1] == vocabulary[f"<{names[t]}>"]
        learned = "pickup" if t == 2 else names[t]
        assert row.labels[place] == vocabulary[f"<{learned}>"]
    latents = stream.latents
    for t, frame in enumerate(Sequence(segments).frames()):
        expected = torch.as_tensor(frame.latents).flatten(1).T
        torch.testing.assert_close(latents[t], expected, rtol=0, atol=0)


def test_what_weighs_nothing_and_what_is_drawn_has_no_label(world, tiny_config):
    stream = world.stream(2, task="open the red door")
    is_latent = stream.input_ids == tiny_config.latent_token_id
    labels, weights = next_token_labels(stream, is_latent)
    after = stream.input_ids[1:]
    assert (labels[:-1][is_latent[1:]] == -100).all()
    assert (labels[:-1][after == tiny_config.frame_end_token_id] == -100).all()
    words = stream.input_ids < tiny_config.text_token_ids[1]
    assert (labels[:-1][words[1:]] == -100).all()  # the task has weight 0
    assert labels[-1] == -100
    assert ((labels == -100) == (weights == 0)).all()


def test_a_document_without_frames_can_be_planned(world, tiny_config):
    stream = world.processor.stream(Sequence([text_segment("go", "task"), text_segment("I go")]))
    row = plan_training(stream, tiny_config, spans=[], noise_levels=torch.zeros(0, 0))
    assert len(row) == len(stream)
    assert row.latents.shape == (len(stream), tiny_config.latent_size)


def test_frames_of_another_grid_are_refused(world):
    with pytest.raises(ValueError, match="2 frames of 9 tokens"):
        world.row(world.stream(2), world.config(latent_grid=(3, 3)))


def test_a_row_that_is_too_long_is_refused(world, tiny_config):
    with pytest.raises(ValueError, match="raise the row length"):
        collate([world.row(world.stream(2), tiny_config)], tiny_config, 10)


def test_an_unknown_kind_of_span_is_refused():
    with pytest.raises(ValueError, match="'frames' is unknown; use frame, chunk"):
        span_ranges(3, "frames")  # pyright: ignore[reportArgumentType]


def test_the_states_of_some_rows_are_theirs(world, tiny_config):
    ids = [world.stream(n).input_ids for n in (1, 3)]
    state = plan_stream(*padded(ids, [0, 0], [len(i) for i in ids], tiny_config)).state
    swapped = state.select(torch.tensor([1, 0, 1]))
    assert swapped.num_frames.tolist() == [3, 1, 3]
    assert torch.equal(swapped.frame_slots[0], state.frame_slots[1])
    assert StreamState.fresh(2).length.tolist() == [0, 0]
