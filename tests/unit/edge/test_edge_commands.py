"""Commands on topics of the server."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.edge.commands import MAX_BODY_BYTES, Body, CommandError, Commands, parse
from services.edge.mqtt.packets import Publish
from services.edge.ports import Client


@pytest.mark.parametrize(
    ("payload", "body"),
    [
        (b'{"token":"t","type":"RW"}', {"token": "t", "type": "RW"}),
        (b'{"maxPushNum":30,"pushOrder":"DESC"}', {"maxPushNum": 30, "pushOrder": "DESC"}),
        (b'{"order":true}', {"order": True}),
        (b" {} ", {}),
        ('{"token":"é"}'.encode(), {"token": "é"}),
    ],
)
def test_a_body_is_a_flat_object(payload: bytes, body: Body) -> None:
    assert parse(payload) == body


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"RW|token",
        b"[]",
        b'"x"',
        b"{",
        b'{"a":{}}',
        b'{"a":[1]}',
        b'{"a":null}',
        b'{"a":1.5}',
        b'{"a":NaN}',
        b'{"a":' + b"1" * 5000 + b"}",
        b"[" * MAX_BODY_BYTES,
        b'{"a":' * (MAX_BODY_BYTES // 6),
        b'{"token":"' + b"x" * MAX_BODY_BYTES + b'"}',
        b"{" + b",".join(b'"%d":1' % n for n in range(17)) + b"}",
        b'{"token":"\xff"}',
        '{"token":"t"}'.encode("utf-16"),
    ],
)
def test_any_other_body_is_refused(payload: bytes) -> None:
    with pytest.raises(CommandError):
        parse(payload)


def test_a_command_goes_to_its_handler() -> None:
    taken: list[tuple[Client, Body]] = []

    def handler(client: Client, body: Body, done: Callable[[], None]) -> None:
        taken.append((client, body))
        done()

    commands = Commands()
    commands.add("$SYS/x", handler)
    client = Client()
    answers: list[int] = []
    assert commands.take(client, Publish("$SYS/x", b'{"a":1}', 1, False, False, 7), lambda: answers.append(7))
    assert taken == [(client, {"a": 1})]
    assert answers == [7]
    assert not commands.take(client, Publish("$SYS/y", b"no JSON", 1, False, False, 8), lambda: answers.append(8))
    assert answers == [7]
