"""The cache holds what was written, wherever its slots have moved."""

from typing import Any

import pytest
import torch

from unified.cache import KVCache

SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "batch_size": 3,
    "num_heads": 2,
    "head_dim": 4,
}


def filled(length=6, capacity=8):
    """A cache whose first slots are written, and what was written."""
    cache = KVCache(**SHAPE, capacity=capacity)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 2, 3, 2, length, 4, generator=generator)
    slots = torch.arange(length).expand(3, length)
    for layer in range(2):
        cache.write(layer, states[0, layer], states[1, layer], slots)
    return cache, states


def assert_holds(cache, states, slots=slice(None)):
    for layer in range(2):
        keys, values = cache.read(layer, states.shape[4])
        torch.testing.assert_close(keys[:, :, slots], states[0, layer][:, :, slots], rtol=0, atol=0)
        torch.testing.assert_close(
            values[:, :, slots], states[1, layer][:, :, slots], rtol=0, atol=0
        )


def test_what_is_written_is_read_back():
    assert_holds(*filled())


def test_the_steps_of_a_path_are_read_back_and_forked_and_negative_slots_are_dropped():
    cache = KVCache(**SHAPE, capacity=4)
    steps = torch.randn(3, 2, 3)
    cache.write_steps(steps, torch.tensor([[0, 1], [2, -1], [-1, -1]]))
    cache.reserve(9)
    assert torch.equal(cache.read_steps(2)[0], steps[0])
    assert torch.equal(cache.fork(torch.tensor([1, 1])).read_steps(3)[1, 2], steps[1, 0])
    assert not cache.steps[1, :2].any()
    assert not cache.steps[2].any()


def test_a_path_is_as_long_as_it_was_after_evicting():
    cache = KVCache(**SHAPE, capacity=8)
    cache.steps.copy_(torch.randn(cache.steps.shape))
    before = cache.steps.clone()
    cache.evict(1, 2, 5)
    path = before.cumsum(1)
    kept = torch.tensor([0, 1, 5, 6, 7])
    torch.testing.assert_close(cache.steps.cumsum(1)[1, :5], path[1, kept])
    assert torch.equal(cache.steps[[0, 2]], before[[0, 2]])


def test_rows_are_written_at_their_own_slots_and_negative_slots_are_dropped():
    cache, states = filled()
    before = cache.states.clone()
    new = torch.randn(3, 2, 2, 4)
    cache.write(1, new, -new, torch.tensor([[6, 7], [0, -1], [-1, -1]]))
    assert torch.equal(cache.states[:, 0], before[:, 0])
    assert torch.equal(cache.states[0, 1, 0, :, 6:8], new[0])
    assert torch.equal(cache.states[1, 1, 1, :, 0], -new[1, :, 0])
    assert torch.equal(cache.states[:, 1, 1, :, 1:], before[:, 1, 1, :, 1:])
    assert torch.equal(cache.states[:, 1, 2], before[:, 1, 2])
    assert states.shape[4] == 6


def test_growing_keeps_what_is_there():
    cache, states = filled()
    cache.reserve(9)
    assert cache.capacity == 16
    assert_holds(cache, states)
    cache.reserve(3)
    assert cache.capacity == 16


def test_a_fork_holds_its_rows_and_shares_nothing():
    cache, states = filled()
    fork = cache.fork(torch.tensor([2, 0, 2, 1]))
    assert fork.batch_size == 4
    cache.states.zero_()
    assert_holds(fork, states[:, :, [2, 0, 2, 1]])


@pytest.mark.parametrize(("start", "stop"), [(1, 4), (0, 6), (2, 2)])
def test_evicting_moves_what_follows_down_in_one_row_only(start, stop):
    cache, states = filled()
    cache.evict(1, start, stop)
    kept = [i for i in range(6) if not start <= i < stop]
    expected = states.clone()
    expected[:, :, 1, :, : len(kept)] = states[:, :, 1, :, kept]
    assert torch.equal(cache.states[:, :, 0, :, :6], states[:, :, 0])
    assert torch.equal(cache.states[:, :, 2, :, :6], states[:, :, 2])
    assert torch.equal(cache.states[:, :, 1, :, : len(kept)], expected[:, :, 1, :, : len(kept)])
