from tests.fuzz import checkpoints, conversations


def test_a_conversation_is_read_as_it_was_said_or_refused():
    tally = conversations.fuzz(300)
    assert not tally.faults, str(tally)
    assert min(tally.accepted, tally.refused) > 60, str(tally)


def test_a_broken_checkpoint_is_refused_or_replies_as_the_whole_one():
    tally = checkpoints.fuzz(40)
    assert not tally.faults, str(tally)
    assert tally.refused > 20, str(tally)
