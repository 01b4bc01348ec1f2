"""A few kills of each writer; `python -m tests.fuzz.kills` does a hundred."""

from tests.fuzz import kills


def test_a_writer_that_is_killed_leaves_the_old_the_new_or_nothing_that_passes_for_whole():
    assert kills.run(2, seed=0, slow=False) == []
