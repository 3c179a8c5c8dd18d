"""The queue of wills in front of the router."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from grpc import aio

from services.common.runtime import background
from services.common.sharding import router_of
from services.session import wills
from services.session.domain.records import Will
from services.session.frames import Opening
from services.session.wills import RouterGroup, WillPublisher
from weimq.router.v1 import router_pb2
from weimq.session.v1 import session_pb2

pytestmark = pytest.mark.asyncio


def a_will(number: int, payload: bytes = b"") -> Will:
    return Will("i", "c", str(number), "t", payload, qos=0, retain=False, clean_session=False)


class Router:
    """Notes what it is asked; fails as often as it is told; refuses the ids that it is told."""

    def __init__(self, *, failures: int = 0, refuses: frozenset[str] = frozenset()) -> None:
        self.failures = failures
        self.refuses = refuses
        self.asked: list[list[str]] = []
        self.taken: list[str] = []

    async def publish(
        self,
        request: router_pb2.PublishRequest,
        /,
        *,
        timeout: float,  # noqa: ASYNC109 - as in the stub
    ) -> router_pb2.PublishResponse:
        ids = [message.message_id for message in request.messages]
        self.asked.append(ids)
        if self.failures:
            self.failures -= 1
            raise _error(grpc.StatusCode.UNAVAILABLE)
        if self.refuses.intersection(ids):
            raise _error(grpc.StatusCode.INVALID_ARGUMENT)
        self.taken += ids
        return router_pb2.PublishResponse()


def _error(code: grpc.StatusCode) -> aio.AioRpcError:
    return aio.AioRpcError(code, aio.Metadata(), aio.Metadata(), details="no")


async def published(router: Router, publisher: WillPublisher) -> list[str]:
    """Return the ids that the router has taken once all is done."""
    async with asyncio.timeout(30), background(publisher.run()):
        await publisher.drained()
    return router.taken


def ids(*numbers: int) -> list[str]:
    return [f"will-{number}" for number in numbers]


async def test_what_gathers_goes_in_batches_in_order() -> None:
    router = Router()
    publisher = WillPublisher(router.publish)
    publisher.add(a_will(n) for n in range(1_200))
    assert await published(router, publisher) == ids(*range(1_200))
    assert [len(each) for each in router.asked] == [500, 500, 200]
    assert publisher.waiting == 0


async def test_a_batch_is_bounded_in_bytes() -> None:
    router = Router()
    publisher = WillPublisher(router.publish)
    publisher.add(a_will(n, b"x" * 65_535) for n in range(100))
    await published(router, publisher)
    assert max(len(each) for each in router.asked) * 65_535 < wills.BATCH_BYTES + 65_535


async def test_a_batch_is_repeated_until_the_router_answers() -> None:
    router = Router(failures=2)
    publisher = WillPublisher(router.publish)
    publisher.add([a_will(1), a_will(2)])
    assert await published(router, publisher) == ids(1, 2)
    assert router.asked == [ids(1, 2)] * 3


async def test_the_pause_between_attempts_doubles_up_to_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def no_sleep(pause_s: float) -> None:
        pauses.append(pause_s)

    router = Router(failures=6)
    publisher = WillPublisher(router.publish)
    publisher.add([a_will(1)])
    monkeypatch.setattr("services.session.wills.asyncio.sleep", no_sleep)
    await published(router, publisher)
    assert pauses == [0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


async def test_a_refused_will_is_dropped_alone() -> None:
    router = Router(refuses=frozenset(ids(3)))
    publisher = WillPublisher(router.publish)
    publisher.add(a_will(n) for n in range(5))
    assert await published(router, publisher) == ids(0, 1, 2, 4)
    assert publisher.refused == 1


async def test_wills_beyond_the_bounds_are_dropped_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    router = Router()
    publisher = WillPublisher(router.publish, max_wills=3)
    publisher.add(a_will(n) for n in range(5))
    publisher.add([a_will(5)])
    assert publisher.dropped == 3
    assert len([record for record in caplog.records if "too many" in record.message]) == 1
    assert await published(router, publisher) == ids(0, 1, 2)
    publisher.add([a_will(6)])  # there is room again
    assert await published(router, publisher) == ids(0, 1, 2, 6)
    assert publisher.dropped == 3


async def test_bytes_are_bounded_and_a_smaller_will_may_still_fit() -> None:
    router = Router()
    publisher = WillPublisher(router.publish, max_bytes=1_000)
    publisher.add([a_will(1, b"x" * 600), a_will(2, b"x" * 600), a_will(3, b"x" * 300)])
    assert publisher.dropped == 1
    assert await published(router, publisher) == ids(1, 3)


async def test_an_opening_without_a_will_has_none() -> None:
    connection = session_pb2.Connection(channel_id="0" * 32, instance_id="mqtt-demo", client_id="me")
    assert Opening(session_pb2.Opening(connection=connection)).will is None
    opening = session_pb2.Opening(connection=connection, will=session_pb2.Will())
    assert Opening(opening).will is not None  # an empty payload is a will


async def test_each_will_goes_to_the_router_of_its_topic() -> None:
    routers = [Router(), Router(failures=1)]
    publisher = WillPublisher(RouterGroup([router.publish for router in routers]))
    topics = [f"t{n}/a" for n in range(20)]
    publisher.add(Will("i", "c", topic, topic, b"", qos=0, retain=False, clean_session=False) for topic in topics)
    async with asyncio.timeout(30), background(publisher.run()):
        await publisher.drained()
    for index, router in enumerate(routers):
        expected = [f"will-{topic}" for topic in topics if router_of("i", topic.partition("/")[0], 2) == index]
        assert expected
        # The first attempt as a whole failed with the second router; what the first one took is repeated.
        assert list(dict.fromkeys(router.taken)) == expected
