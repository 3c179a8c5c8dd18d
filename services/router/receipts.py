"""Messages that wait for the acknowledgement of their receiver: `RouterService.Deliver`.

To the router this is a source like an edge. Edge or session shard are told by a flag and an id that the message wants a
receipt, and report its end; the id is the sequence, which begins at a random number, so that a report for an earlier
process is not taken for one of ours.
"""

from __future__ import annotations

import asyncio
import secrets

from services.common.errors import NotServingError, UnavailableError
from services.common.jetstream import DEPENDENCY as NATS
from services.router.domain.columns import LOGGED
from services.router.publisher import ANSWER_S, DEFAULT_WAIT_S, MAX_WAIT_S, Checked, columns_of
from services.router.router import Router
from weimq.router.v1 import router_pb2

MAX_CALLS = 10_000
"""Calls that wait at the same time; further ones are refused."""

ACKNOWLEDGED = router_pb2.DELIVERY_OUTCOME_ACKNOWLEDGED
OFFLINE_KEPT = router_pb2.DELIVERY_OUTCOME_OFFLINE_KEPT
OFFLINE_NOT_KEPT = router_pb2.DELIVERY_OUTCOME_OFFLINE_NOT_KEPT
PENDING = router_pb2.DELIVERY_OUTCOME_PENDING


class _Wait:
    """A call and what is known of its message."""

    __slots__ = ("done", "is_kept", "outcome", "ways")

    def __init__(self) -> None:
        self.ways = 0  # edges and shards that were handed the message and have not reported
        self.is_kept = False
        self.outcome = PENDING
        self.done = asyncio.Event()

    def end(self, outcome: router_pb2.DeliveryOutcome.ValueType) -> None:
        self.outcome = outcome
        self.done.set()


class Receipts:
    """Delivers for the callers of `Deliver`. Owned by one event loop.

    Args:
        router: routes the messages, and passes on reports.
    """

    def __init__(self, router: Router) -> None:
        self._router = router
        router.on_receipt = self.report
        self._waits: dict[int, _Wait] = {}
        self._sequence = secrets.randbits(48)
        self._is_closed = False
        self.origin = ""
        self.wants_receipts = True
        self.incarnation = f"receipts-{secrets.token_hex(8)}"
        self.is_held = False
        """Whether the router can take no more; calls are refused meanwhile."""

    async def deliver(self, checked: Checked, remaining_s: float | None) -> router_pb2.DeliveryOutcome.ValueType:
        """Route a message whose fields are right, and return what became of it. Cancelling ends the wait.

        Args:
            checked: P2P, of QoS 1 or 2.
            remaining_s: until the deadline of the caller; None: it has none.

        Raises:
            NotServingError: the router is stopping, or does not know its edges yet.
            UnavailableError: NATS does not answer, or too much waits.
        """
        if self._is_closed or not self._router.is_begun:
            raise NotServingError("the router is stopping or waits for its edges")
        if self.is_held or len(self._waits) >= MAX_CALLS:
            raise UnavailableError("too much waits to be stored or confirmed", dependency=NATS)
        if not self._router.can_store and checked.topic_flags & LOGGED:
            raise UnavailableError("NATS does not answer", dependency=NATS)
        message = checked.message
        if self._router.full_logs.has(message.instance_id, message.topic):
            raise UnavailableError("too much waits to be stored in the log of the topic", dependency=NATS)
        self._sequence += 1
        sequence = self._sequence
        wait = self._waits[sequence] = _Wait()
        try:
            self._router.publish(self, columns_of([checked], [sequence]), message_ids={sequence: message.message_id})
            limit_s = DEFAULT_WAIT_S if remaining_s is None else remaining_s
            async with asyncio.timeout(min(limit_s - min(ANSWER_S, limit_s / 5), MAX_WAIT_S)):
                await wait.done.wait()
        except TimeoutError:
            return PENDING
        finally:
            del self._waits[sequence]
        return wait.outcome

    def sent(self, sequence: int, ways: int, *, is_kept: bool) -> None:
        """Note to how many edges and shards a message was handed, and whether a shard keeps it."""
        wait = self._waits.get(sequence)
        if wait is not None:
            wait.ways = ways
            wait.is_kept = is_kept

    def acknowledge(self, sequence: int) -> None:
        """Note that a message is safe: with nobody to report its end, that is the end."""
        wait = self._waits.get(sequence)
        if wait is not None and not wait.ways:
            wait.end(OFFLINE_KEPT if wait.is_kept else OFFLINE_NOT_KEPT)

    def report(self, receipt_id: int, outcome: router_pb2.DeliveryOutcome.ValueType) -> None:
        """Take what an edge or a shard says about a message; one of several connections is enough."""
        wait = self._waits.get(receipt_id)
        if wait is None:
            return  # its call is over
        wait.ways -= 1
        if outcome == ACKNOWLEDGED or wait.ways <= 0:
            wait.end(outcome)

    def release(self) -> None:
        """Take calls again."""
        self.is_held = False

    def close(self) -> None:
        """Refuse further calls: the process stops."""
        self._is_closed = True
