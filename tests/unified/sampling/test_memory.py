"""What is kept, against a twin that spells it out in loops; what is seen, without any cache."""

from dataclasses import replace

import pytest
import torch

from tests.unified.sampling.test_generation import rollout, seeded
from unified.memory import Memory, read_memory
from unified.model.layers import latent_places
from unified.model.plan import StreamState, plan_stream
from unified.sampling.generation import Session


class Twin:
    """One row of a session: its tokens, and which of them a memory by place keeps, in loops.

    It watches a session and takes down of each token its keys, its place, and what it saw.
    """

    def __init__(self, config, recent, cells):
        self.config, self.recent, self.cells = config, recent, cells
        self.ids, self.frame, self.place, self.states, self.pose = [], [], [], [], []
        self.look = []
        self.kept: list[int] = []
        self.sees: list[set[int]] = []
        self.ended = 0

    def take(self, token, look, place, states, pose):
        opened = (self.frame[-1] if self.frame else 0) + (token == self.config.frame_token_id)
        number = len(self.ids)
        self.ids.append(token)
        self.frame.append(opened)
        is_latent = token == self.config.latent_token_id
        self.place.append(tuple(round(float(x)) for x in place) if is_latent else None)
        self.look.append(look)
        self.states.append(states)
        self.pose.append(pose)
        self.kept.append(number)
        self.sees.append(set(self.kept))
        if token == self.config.frame_end_token_id:
            for i in range(number):
                if self.place[i] is not None and self.frame[i] == opened:
                    frame = [j for j in range(number) if self.frame[j] == opened and self.place[j]]
                    self.sees[i] |= set(frame)
            self.ended += 1
            self.forget()

    def forget(self):
        old = [i for i in self.kept if 0 < self.frame[i] <= self.ended - self.recent]
        shows = [i for i in self.kept if self.place[i] is not None]
        newest = {self.place[i]: i for i in shows}
        unlike = [
            i
            for i in shows
            if float(((self.look[i] - self.look[newest[self.place[i]]]) ** 2).mean()) > 0.5
        ]
        second = {self.place[i]: i for i in unlike}
        chosen = {*newest.values(), *second.values()}
        remembered = [i for i in old if i in chosen][-self.cells :]
        self.kept = [i for i in self.kept if i not in old or i in remembered]


@pytest.fixture
def watched(monkeypatch):
    """Makes sessions tell a twin of each row what they commit, before anything is dropped."""
    twins: list[Twin] = []
    settle = Session._settle

    def watch(session, ids, latents, slots, plan):
        cache, config = session.cache, session.config
        path = cache.steps.cumsum(1)
        for row, twin in enumerate(twins):
            for column, slot in enumerate(slots[row].tolist()):
                if slot >= 0:
                    pose = path[row, slot].clone()
                    at = plan.position_ids[row : row + 1, :, column : column + 1]
                    place = latent_places(pose[None, None], at, config.path_origin)[0, 0]
                    states = cache.states[:, :, row, :, slot].clone()
                    look = None if latents is None else latents[row, column].clone()
                    twin.take(int(ids[row, column]), look, place, states, pose)
        settle(session, ids, latents, slots, plan)

    monkeypatch.setattr(Session, "_settle", watch)
    return twins


def narrow(model):
    """The model, in whose world one often comes by the same cells."""
    with torch.no_grad():
        model.path.motions.mul_(0.6)
    return model


@torch.no_grad()
@pytest.mark.parametrize(("recent", "cells"), [(1, 4000), (2, 4000), (1, 5), (4, 3)])
def test_by_place_a_ragged_batch_keeps_what_the_loops_of_a_twin_keep(world, watched, recent, cells):
    model = narrow(world.model(world_token_id=None))
    episodes = [world.episode(1), world.episode(4, seed=1, task=None, thoughts=True)]
    watched += [Twin(model.config, recent, cells) for _ in episodes]
    memory = f"place:recent={recent},cells={cells}"
    inputs = world.processor.encode(episodes)
    session = model.start(**inputs, generator=seeded(1, 2), memory=memory)
    for _ in range(3):
        rollout(session, world, 3, num_inference_steps=1)
        length = session.state.length
        for row, twin in enumerate(watched):
            kept, size = twin.kept, int(length[row])
            assert size == len(kept)
            states = torch.stack([twin.states[i] for i in kept], 3)
            assert torch.equal(session.cache.states[:, :, row, :, :size], states)
            pose = torch.stack([twin.pose[i] for i in kept])
            torch.testing.assert_close(session.cache.steps[row, :size].cumsum(0), pose)
    forgotten = [len(twin.ids) - len(twin.kept) for twin in watched]
    assert min(forgotten) > 0
    gone = [set(range(len(twin.ids))) - set(twin.kept) for twin in watched]
    assert any(twin.place[i] for twin, ids in zip(watched, gone, strict=True) for i in ids)


@torch.no_grad()
def test_by_place_a_token_sees_what_is_kept_and_nothing_else(world, watched):
    # The whole conversation in one pass without a cache, each token masked by what the twin saw.
    model = narrow(world.model(world_token_id=None))
    watched.append(Twin(model.config, 1, 4000))
    inputs = world.processor.encode([world.episode(2)])
    session = model.start(**inputs, generator=seeded(1), memory="place:recent=1")
    rollout(session, world, 5, num_inference_steps=2)
    logits = session.logits[0]
    (twin,) = watched
    ids, latents = session.history(0)
    assert ids.tolist() == twin.ids
    plan = plan_stream(ids[None], model.config)
    layout = model.lay_out(ids[None], plan.position_ids, plan.visible, plan.path, 0)
    sees = torch.zeros(len(ids), len(ids))
    for query, keys in enumerate(twin.sees):
        sees[query, sorted(keys)] = 1
    mask = torch.zeros_like(sees).masked_fill(sees == 0, -torch.inf)[None, None]
    layout = replace(layout, mask=mask)
    hidden = model.embed(ids[None], latents[None], torch.zeros(1, len(ids)), layout)
    hidden, _ = model.decode(hidden, layout)
    torch.testing.assert_close(model.token_logits(hidden)[0, -1], logits, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_window_with_sinks_sees_its_first_frames_and_its_last(world):
    config = world.config()
    ids = world.stream(6).input_ids
    memory = Memory("window", frames=2, sinks=1)
    visible = plan_stream(ids[None], config, memory=memory).visible[0]
    opened = (ids == config.frame_token_id).cumsum(0)
    for query in range(len(ids)):
        spans = visible[:, :, query].tolist()
        seen = [key for start, stop in spans for key in range(start, stop)]
        expected = [
            key
            for key in range(len(ids))
            if (opened[key] <= 1 or opened[key] > opened[query] - 2)
            and (key <= query or bool((ids[min(key, query) : max(key, query) + 1] == 518).all()))
        ]
        assert sorted(seen) == expected  # each once: the intervals are disjoint


def test_what_is_listed_of_frames_follows_the_slots_that_stay():
    state = replace(
        StreamState.fresh(2),
        length=torch.tensor([9, 7]),
        frame_slots=torch.tensor([[1, 4, 7], [0, 5, 99]]),
        num_frames=torch.tensor([3, 2]),
    )
    kept = torch.ones(2, 9, dtype=torch.bool)
    kept[0, 1:4], kept[1, 7:] = False, False
    after = state.keep(kept)
    assert after.length.tolist() == [6, 7]
    assert after.num_frames.tolist() == [2, 2]
    assert after.frame_slots.tolist() == [[1, 4], [0, 5]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("palace", "'palace' is unknown; use 'window'"),
        ("place:frames=2", "place has recent, cells"),
        ("window:frames=0", "frames is '0', and must be a whole number from 1"),
        ("window:sinks=-1", "sinks is '-1'"),
        ("place:recent=2,recent=3", "each once"),
        ("place:cells=9999999", "cells is '9999999'.* to 1048576"),
        (3, "memory=3 is a int, no words"),
    ],
)
def test_a_memory_that_nobody_can_have_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        read_memory(text)


@pytest.mark.parametrize("text", ["window:sinks=0", "window:frames=80,sinks=2"])
def test_a_memory_reads_back_as_it_is_written(text):
    assert str(read_memory(text)) == text


def test_a_model_without_places_refuses_to_remember_by_place(world):
    with pytest.raises(ValueError, match="knows no places.*use memory='window', or train one"):
        world.config(path_layer=None, memory="place")
    model = world.model(path_layer=None)
    with pytest.raises(ValueError, match="knows no places"):
        model.start(**world.processor.encode([world.episode(1)]), memory="place")


def test_a_memory_is_saved_with_the_model_and_old_checkpoints_have_a_window(world, tmp_path):
    model = world.model(memory="place:recent=3")
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path)
    assert again.config.memory == "place:recent=3"
    old = type(model.config).from_dict(
        {name: value for name, value in model.config.to_dict().items() if name != "memory"}
    )
    assert old.memory == "window"
