"""The Flash policy answer."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET

from hypothesis import given
from hypothesis import strategies as st

from services.edge.transports.flash_policy import REQUEST, FlashPolicyProtocol, policy
from services.edge.transports.strangers import Strangers
from tests.unit.edge.transports.doubles import Loop, Socket


def made() -> tuple[FlashPolicyProtocol, Socket, Loop]:
    loop = Loop()
    socket = Socket()
    protocol = FlashPolicyProtocol(loop.typed(), policy([1883, 8883]), Strangers(), timeout_s=10.0)
    protocol.connection_made(socket.typed())
    return protocol, socket, loop


def test_policy_names_the_ports() -> None:
    answer = policy([1883, 8883], "*.example.com")
    assert answer.endswith(b"\0")
    (access,) = ET.fromstring(answer[:-1])
    assert access.attrib == {"domain": "*.example.com", "to-ports": "1883,8883"}


@given(st.lists(st.integers(1, len(REQUEST)), max_size=5))
def test_request_in_any_pieces_gets_the_policy_and_the_end(cuts: list[int]) -> None:
    protocol, socket, _ = made()
    positions = sorted({0, *cuts, len(REQUEST)})
    for start, end in itertools.pairwise(positions):
        assert not socket.written
        protocol.data_received(REQUEST[start:end])
    assert socket.written == policy([1883, 8883])
    assert socket.is_closed
    assert not socket.is_aborted


@given(st.binary(min_size=1, max_size=100).filter(lambda data: not REQUEST.startswith(data[: len(REQUEST)])))
def test_anything_else_is_closed(data: bytes) -> None:
    protocol, socket, loop = made()
    protocol.data_received(data)
    assert socket.is_aborted
    assert not socket.written
    protocol.connection_lost(None)
    assert loop.running == []


def test_silence_has_an_end() -> None:
    protocol, socket, loop = made()
    protocol.data_received(REQUEST[:5])
    loop.running[0].callback()
    assert socket.is_aborted
