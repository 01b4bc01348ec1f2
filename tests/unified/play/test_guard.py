"""Who may come in, and how often somebody may speak."""

import pytest

from unified.play.guard import Guard, Pace, is_local


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("localhost", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("192.168.1.2", False),
        ("example.org", False),
        ("localhost.example.org", False),
    ],
)
def test_only_this_machines_own_addresses_are_local(host, expected):
    assert is_local(host) == expected


def test_other_addresses_need_a_token_that_is_hard_to_guess():
    with pytest.raises(ValueError, match="lets other machines in; give a --token"):
        Guard("0.0.0.0")
    with pytest.raises(ValueError, match="too easy to guess"):
        Guard("0.0.0.0", "1234")
    guard = Guard("0.0.0.0", "correct horse battery")
    assert guard.knows("correct horse battery")
    assert not guard.knows("correct horse batterz")
    assert not guard.knows(None)
    assert Guard("127.0.0.1").knows(None)


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"host": "127.0.0.1:8000"}, None),
        ({"host": "localhost:8000", "origin": "http://localhost:8000"}, None),
        ({"host": "[::1]:8000"}, None),
        ({"host": "evil.example:8000"}, "another name"),
        ({"host": "127.0.0.1.evil.example"}, "another name"),
        ({}, "another name"),
        ({"host": "127.0.0.1:8000", "origin": "http://evil.example"}, "another origin"),
        ({"host": "127.0.0.1:8000", "origin": "http://127.0.0.1:9000"}, "another origin"),
        ({"host": "127.0.0.1:8000", "origin": "null"}, "another origin"),
    ],
)
def test_other_names_and_origins_are_refused(headers, expected):
    refusal = Guard("127.0.0.1").refusal(headers)
    assert (refusal is None) if expected is None else (refusal is not None and expected in refusal)


def test_a_page_of_another_origin_is_refused_at_any_address():
    guard = Guard("0.0.0.0", "correct horse battery")
    assert guard.refusal({"host": "10.0.0.3:8000"}) is None
    assert guard.refusal({"host": "10.0.0.3:8000", "origin": "https://evil.example"}) is not None


def test_a_pace_allows_a_burst_and_then_a_rate():
    now = [0.0]
    pace = Pace(rate=2, burst=3, clock=lambda: now[0])
    assert [pace.allows() for _ in range(4)] == [True, True, True, False]
    now[0] = 1.0
    assert [pace.allows() for _ in range(3)] == [True, True, False]
    now[0] = 100.0
    assert [pace.allows() for _ in range(4)] == [True, True, True, False]
