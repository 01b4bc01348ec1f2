"""Threads: the quicker number is taken, and no frame depends on it."""

import time

import pytest
import torch

from unified.play.threads import quickest, tune_threads


@pytest.fixture(autouse=True)
def same_threads_after():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("slow", [1, 2])
def test_the_quicker_number_of_threads_is_taken(slow):
    def work():
        time.sleep(0.02 if torch.get_num_threads() == slow else 0.0)

    assert quickest((1, 2), work) == 3 - slow


def test_a_model_is_tuned_to_one_of_both(world):
    torch.set_num_threads(2)
    assert tune_threads(world.model()) in (1, 2)
    torch.set_num_threads(1)
    assert tune_threads(world.model()) == 1
