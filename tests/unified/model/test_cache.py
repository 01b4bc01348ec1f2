"""The cache holds what was written, wherever its slots have moved."""

from typing import Any

import pytest
import torch

from unified.model.cache import KVCache, moves

SHAPE: dict[str, Any] = {
    "num_layers": 2,
    "batch_size": 3,
    "num_heads": 2,
    "head_dim": 4,
}


def filled(length=6, capacity=8):
    """A cache whose first slots hold something, and what they hold."""
    cache = KVCache(**SHAPE, capacity=capacity)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 2, 3, 2, length, 4, generator=generator)
    for layer in range(2):
        cache.put(layer, states[0, layer], states[1, layer], 0)
    return cache, states


def assert_holds(cache, states, slots=slice(None)):
    for layer in range(2):
        keys, values = cache.states[:, layer, :, :, : states.shape[4]]
        torch.testing.assert_close(keys[:, :, slots], states[0, layer][:, :, slots], rtol=0, atol=0)
        torch.testing.assert_close(
            values[:, :, slots], states[1, layer][:, :, slots], rtol=0, atol=0
        )


def test_what_is_put_is_read_with_all_that_was_there():
    cache, states = filled()
    assert_holds(cache, states)
    new = torch.randn(3, 2, 2, 4)
    keys, values = cache.put(1, new, -new, 5)
    assert torch.equal(keys, torch.cat([states[0, 1, :, :, :5], new], 2))
    assert torch.equal(values, torch.cat([states[1, 1, :, :, :5], -new], 2))
    assert_holds(cache, states, slice(0, 5))


def test_the_steps_of_a_path_are_read_back_and_forked_and_negative_slots_are_dropped():
    cache = KVCache(**SHAPE, capacity=4)
    steps = torch.randn(3, 2, 3)
    cache.put_steps(steps, 2)
    cache.commit(2, torch.tensor([[0, 1], [2, -1], [-1, -1]]))
    cache.reserve(9)
    assert torch.equal(cache.read_steps(2)[0], steps[0])
    assert torch.equal(cache.fork(torch.tensor([1, 1])).read_steps(3)[1, 2], steps[1, 0])
    assert not cache.steps[1:, :2].any()


@pytest.mark.parametrize("seed", range(5))
def test_slots_that_are_kept_move_down_and_paths_to_them_are_as_long_as_they_were(seed):
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(**SHAPE, capacity=8)
    cache.states.copy_(torch.randn(cache.states.shape, generator=generator))
    cache.steps.copy_(torch.randn(cache.steps.shape, generator=generator))
    states, path = cache.states.clone(), cache.steps.cumsum(1)
    kept = torch.rand(3, 6, generator=generator) < 0.6
    cache.keep(kept)
    for row in range(3):
        slots = kept[row].nonzero()[:, 0]
        assert torch.equal(cache.states[:, :, row, :, : len(slots)], states[:, :, row, :, slots])
        found = cache.steps.cumsum(1)[row, : len(slots)]
        torch.testing.assert_close(found, path[row, slots])


def test_a_copy_of_the_first_slots_is_loaded_back_without_moving_the_cache():
    cache, states = filled()
    copy = cache.fork(torch.arange(3), 6)
    address = cache.states.data_ptr()
    cache.states.zero_()
    cache.load(copy)
    assert_holds(cache, states)
    assert cache.states.data_ptr() == address


def test_rows_are_committed_at_their_own_slots_and_negative_slots_are_dropped():
    cache, states = filled()
    new = torch.randn(2, 3, 2, 3, 4)
    for layer in range(2):
        cache.put(layer, new[layer], -new[layer], 5)
    # A row as long as the longest, one whose slots overlap the scratch, and one that rests.
    cache.commit(5, torch.tensor([[5, 6, -1], [4, 5, 6], [-1, -1, -1]]))
    for layer in range(2):
        for side, sign in enumerate((1, -1)):
            rows = cache.states[side, layer]
            assert torch.equal(rows[0, :, 5:7], sign * new[layer, 0, :, :2])
            assert torch.equal(rows[1, :, 4:7], sign * new[layer, 1])
    assert_holds(cache, states, slice(0, 4))
    assert torch.equal(cache.states[:, :, [0, 2], :, 4], states[:, :, [0, 2], :, 4])


@pytest.mark.parametrize("seed", range(20))
def test_no_slot_is_written_twice_so_that_the_order_of_writes_does_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    cache = KVCache(**SHAPE, capacity=16)
    cache.states.copy_(torch.randn(cache.states.shape, generator=generator))
    cache.steps.copy_(torch.randn(cache.steps.shape, generator=generator))
    num_cached, length = 6, 8
    slots = torch.full((3, length), -1)
    for row in range(3):  # padding in front and behind, in rows that may be shorter
        lead = int(torch.randint(0, length, (), generator=generator))
        count = int(torch.randint(0, length - lead + 1, (), generator=generator))
        start = int(torch.randint(2, num_cached + 1, (), generator=generator))
        slots[row, lead : lead + count] = torch.arange(start, start + count)
    targets, sources = moves(num_cached, slots)
    expected, steps = cache.states.clone(), cache.steps.clone()
    for row in range(3):
        assert len(set(targets[row].tolist())) == length
        for token, slot in enumerate(slots[row].tolist()):
            if slot >= 0:
                expected[:, :, row, :, slot] = cache.states[:, :, row, :, num_cached + token]
                steps[row, slot] = cache.steps[row, num_cached + token]
    for order in (torch.arange(length), torch.randperm(length, generator=generator)):
        states = cache.states.clone()
        for row in range(3):
            for i in order.tolist():
                held = cache.states[:, :, row, :, sources[row, i]]
                states[:, :, row, :, targets[row, i]] = held
        assert torch.equal(states, expected)
    cache.commit(num_cached, slots)
    assert torch.equal(cache.states, expected)
    assert torch.equal(cache.steps, steps)


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
