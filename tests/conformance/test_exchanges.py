"""Every exchange of `exchanges/`, against the sans-IO machine and against a live edge over each transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest
import pytest_asyncio

from benchmarks.wire import TRANSPORTS
from tests.conformance.exchange import CONNACK, CONNECT, FENCE_RECEIVED, FENCE_SENT, Exchange, load
from tests.conformance.live import LiveEdge, Wire, live_edge
from tests.conformance.machine_peer import MachinePeer

EXCHANGES = load()

every_exchange = pytest.mark.parametrize(
    "exchange",
    [
        pytest.param(
            exchange, id=f"{exchange.file}: {exchange.name}", marks=[pytest.mark.spec(tag) for tag in exchange.spec]
        )
        for exchange in EXCHANGES
    ],
)


def test_names_of_exchanges_are_unique() -> None:
    names = [(exchange.file, exchange.name) for exchange in EXCHANGES]
    assert len(names) == len(set(names))


@every_exchange
@pytest.mark.parametrize("in_pieces", [False, True], ids=["whole", "byte by byte"])
def test_exchange_with_the_machine(exchange: Exchange, in_pieces: bool) -> None:
    peer = MachinePeer(in_pieces=in_pieces)
    if exchange.is_connected:
        peer.send(CONNECT)
        assert peer.received == CONNACK
        peer.received = b""
    for step in exchange.steps:
        if step.action == "send":
            peer.send(step.data)
        elif step.action == "recv":
            taken, peer.received = peer.received[: len(step.data)], peer.received[len(step.data) :]
            assert taken.hex(" ") == step.data.hex(" "), step.note
        else:
            assert peer.is_closed, step.note
            # Closed, and for what the exchange is about: not because its bytes are wrong elsewhere.
            assert peer.failure is None or peer.failure in exchange.spec
    assert peer.received.hex(" ") == "", "nothing more was due"
    if not exchange.ends_closed:
        assert not peer.is_closed
        peer.send(FENCE_SENT)
        assert peer.received == FENCE_RECEIVED


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge() -> AsyncGenerator[LiveEdge]:
    ready: asyncio.Future[LiveEdge] = asyncio.get_running_loop().create_future()
    stop = asyncio.Event()

    async def hold() -> None:
        # Set-up and tear-down of a fixture are different tasks; what the edge has entered is left by its own.
        async with live_edge() as made:
            ready.set_result(made)
            await stop.wait()

    holder = asyncio.ensure_future(hold())
    await asyncio.wait((holder, ready), return_when=asyncio.FIRST_COMPLETED)
    if holder.done():
        holder.result()  # raises what kept the edge from starting
    yield ready.result()
    stop.set()
    await holder


@every_exchange
@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.asyncio(loop_scope="module")
async def test_exchange_with_a_live_edge(edge: LiveEdge, exchange: Exchange, transport: str) -> None:
    async with edge.wire(transport) as wire:
        if exchange.is_connected:
            wire.send(CONNECT)
            assert await wire.take(len(CONNACK)) == CONNACK
        for step in exchange.steps:
            if step.action == "send":
                wire.send(step.data)
            elif step.action == "recv":
                assert (await wire.take(len(step.data))).hex(" ") == step.data.hex(" "), step.note
            else:
                assert (await wire.wait_closed()).hex(" ") == "", step.note
        if not exchange.ends_closed:
            await _expect_silence(wire)


async def _expect_silence(wire: Wire) -> None:
    wire.send(FENCE_SENT)
    assert (await wire.take(len(FENCE_RECEIVED))).hex(" ") == FENCE_RECEIVED.hex(" "), "nothing more was due"
