"""Messages are read as they are meant, or refused in one line."""

import json

import pytest

from unified.play.protocol import MAX_MESSAGE, Open, Step, pack, read_request, request_id, unpack


def test_a_message_is_read_by_its_type():
    step = read_request('{"type": "step", "id": 3, "action": "left"}')
    assert step == Step(id=3, type="step", action="left")
    opened = read_request('{"type":"open","id":0,"opening":{"level":"A","seed":5},"world":"both"}')
    assert isinstance(opened, Open)
    assert (opened.opening.level, opened.opening.seed, opened.world) == ("A", 5, "both")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "message: "),
        ("[]", "message: "),
        ('{"id": 1}', "type"),
        ('{"type": "fly", "id": 1}', "fly"),
        ('{"type": "step"}', "step.id: Field required"),
        ('{"type": "step", "id": -1}', "step.id"),
        ('{"type": "step", "id": 1, "extra": 2}', "step.extra: Extra"),
        ('{"type": "goto", "id": 1, "node": "7"}', "goto.node"),
        ('{"type": "instruct", "id": 1, "words": ""}', "instruct.words"),
        (json.dumps({"type": "tell", "id": 1, "words": "a" * 401}), "tell.words"),
        ('{"type": "seats", "id": 1, "agent": "god"}', "seats.agent"),
        ('{"type": "seats", "id": 1, "temperature": 1e9}', "seats.temperature"),
        (b"\x00\x01", "binary messages are not taken"),
        ("x" * (MAX_MESSAGE + 1), "send less"),
        ("[" * 100000, "message: "),
    ],
)
def test_what_is_no_message_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=message.replace(".", r"\.")) as error:
        read_request(text)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400


def test_the_id_of_a_message_that_cannot_be_read_is_told_if_there_is_one():
    assert request_id('{"id": 7, "type": "fly"}') == 7
    assert request_id('{"id": true}') is None
    assert request_id("[" * 3000) is None
    assert request_id(b"1") is None


def test_files_come_out_of_a_binary_message_as_they_went_in():
    files = {"view": ("image/png", b"\x89PNG"), "truth": ("image/webp", b"")}
    header, content = unpack(pack({"type": "frame", "id": 2}, files))
    assert header == {"type": "frame", "id": 2}
    assert content == {"view": b"\x89PNG", "truth": b""}
