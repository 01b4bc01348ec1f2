"""The server over real sockets: refusals, limits, several players, and its end."""

import json
import socket
import time
import urllib.error
import urllib.request

import pytest

pytest.importorskip("uvicorn")
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.unified.play.stage import Client, house, serving
from unified.play import server
from unified.play.game import Game
from unified.play.guard import Guard
from unified.play.server import PAGE, listen

TOKEN = "correct horse battery"


@pytest.fixture(scope="module")
def served(engine):
    with serving(house(engine), most=4) as (address, play, _):
        yield address, play


def get(address, path, **headers):
    request = urllib.request.Request(f"http://{address}{path}", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


def wait_until(is_so):
    deadline = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_the_page_and_its_parts_come_from_here_and_load_nothing_from_elsewhere(served):
    address, _ = served
    status, headers, content = get(address, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    assert headers["X-Content-Type-Options"] == "nosniff"
    for path in PAGE.iterdir():
        assert get(address, f"/page/{path.name}")[0] == 200
        text = path.read_text()
        assert "innerHTML" not in text
        assert not [part for part in ("https://", "eval(") if part in text], path
        if path.suffix != ".svg":
            assert "http://" not in text
    assert b" style=" not in content  # the policy would refuse it
    assert b"onclick" not in content


@pytest.mark.parametrize(
    "path",
    ["/page/..%2fserver.py", "/page/server.py", "/page/../server.py", "/docs", "/openapi.json"],
)
def test_nothing_but_the_page_can_be_read(served, path):
    assert get(served[0], path)[0] == 404


def test_other_hosts_and_origins_get_no_page_and_no_socket(served):
    address, _ = served
    status, _, content = get(address, "/", Host="evil.example")
    assert status == 403
    assert b"another name" in content
    foreign = {"Origin": "http://evil.example"}
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://{address}/ws", additional_headers=foreign)


def test_a_token_is_asked_for_and_a_wrong_one_is_refused_in_words(engine):
    with serving(house(engine), Guard("127.0.0.1", TOKEN)) as (address, _, _):
        for token in ({}, {"token": "wrong horse battery!"}):
            facts = Client(address, **token).facts
            assert facts["words"] == "the token is missing or wrong; ask whoever runs the server"
        assert Client(address, token=TOKEN).facts["type"] == "welcome"


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ('{"type": "hello", "id": 1, "protocol": 99}', "speaks protocol 99, the server 1; reload"),
        ('{"type": "step", "id": 1}', "the first message is no hello"),
        ("junk", "hello: message"),
        (b"\x00", "binary messages are not taken"),
    ],
)
def test_who_begins_otherwise_is_told_why_and_sent_away(served, first, words):
    with connect(f"ws://{served[0]}/ws") as line:
        line.send(first)
        assert words in json.loads(line.recv(timeout=10))["words"]
        with pytest.raises(ConnectionClosed):
            line.recv(timeout=10)


def test_places_are_limited_and_one_that_was_left_is_given_to_the_next(served):
    address, play = served
    clients = [Client(address) for _ in range(4)]
    for client in clients:
        client.open()
    late = Client(address)
    assert late.facts["words"] == "all 4 places are taken; try again later"
    clients[0].close()
    wait_until(lambda: any(room.guest is None for room in play.rooms._rooms.values()))
    late = Client(address)
    assert late.facts["type"] == "welcome"
    for client in [*clients, late]:
        client.close()


def test_who_comes_back_finds_every_frame_and_the_other_window_is_told(served):
    address, _ = served
    first = Client(address)
    first.open()
    first.ask("step", action="left")
    first.ask("step", action="right")
    second = Client(address, session=first.facts["session"])
    assert second.facts["is_open"]
    frames = [second.next() for _ in range(3)]
    assert [frame["node"] for frame in frames] == [0, 1, 2]
    assert second.next() == {"type": "at", "id": 1, "node": 2}
    assert first.next()["words"] == "the game goes on in another window"
    second.answer(1)
    assert second.ask("step", action="left")["parent"] == 2
    second.close()


def test_games_in_which_nobody_plays_are_given_up_and_the_player_is_told(engine, monkeypatch):
    monkeypatch.setattr(server, "SWEEP_SECONDS", 0.05)
    with serving(house(engine), idle_seconds=0.3) as (address, play, _):
        client = Client(address)
        client.open()
        told = client.next()
        assert told["type"] == "closed"
        assert "nobody played for long" in told["words"]
        assert len(play.rooms) == 0


def test_floods_are_refused_in_words_and_play_goes_on(served):
    client = Client(served[0])
    client.open()
    for number in range(300):
        client.socket.send(json.dumps({"type": "weigh", "id": 1000 + number, "node": 0}))
    told = [client.next() for _ in range(300)]
    words = {one["words"] for one in told if one["type"] == "error"}
    assert any("slow down" in one or "wait already" in one for one in words)
    time.sleep(1)
    assert client.ask("step", action="left")["type"] == "frame"
    client.close()


def test_a_message_that_is_too_large_ends_its_connection_alone(served):
    address, _ = served
    other, client = Client(address), Client(address)
    other.open()
    with pytest.raises(ConnectionClosed):
        client.ask("instruct", words="x" * (4 * 2**20))
    assert other.ask("step", action="left")["type"] == "frame"
    other.close()


def test_a_game_that_fails_takes_no_other_with_it(engine, monkeypatch):
    with serving(house(engine)) as (address, play, _):
        good, bad = Client(address), Client(address)
        good.open()
        bad.open()
        monkeypatch.setattr(Game, "_tell", lambda self, request: {}["fault"])
        assert "this game failed" in bad.ask("tell", words="a")["words"]
        assert good.ask("step", action="left")["type"] == "frame"
        assert len(play.rooms) == 1
        good.close()


def test_a_tab_that_closes_in_mid_frame_leaves_nothing_running(served):
    address, play = served
    for _ in range(3):
        client = Client(address)
        client.open()
        client.socket.send('{"type": "step", "id": 5, "action": "left"}')
        client.close()
    other = Client(address)
    other.open()
    assert other.ask("step", action="left")["type"] == "frame"
    other.close()
    wait_until(lambda: not play._running)


def test_a_port_that_is_taken_is_told_of():
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    with pytest.raises(ValueError, match="choose another --port, or 0 for any"):
        listen("127.0.0.1", taken.getsockname()[1])
    taken.close()
    with pytest.raises(ValueError, match="cannot listen"):
        listen("127.0.0.1", 99999)


def test_a_server_that_is_stopped_lets_a_running_frame_finish(engine):
    with serving(house(engine)) as (address, play, running):
        client = Client(address)
        client.open()
        client.socket.send('{"type": "step", "id": 9, "action": "left"}')
        wait_until(lambda: play._running)
        running.should_exit = True
        assert client.answer(9)["type"] == "frame"
