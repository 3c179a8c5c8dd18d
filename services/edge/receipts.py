"""P2P messages whose publisher wants to know what becomes of them (`RouterService.Deliver`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from services.edge.ports import Client
from weimq.router.v1 import router_pb2

Outcome: TypeAlias = router_pb2.DeliveryOutcome.ValueType


class Receipt:
    """Token of a delivery that wants a receipt."""

    __slots__ = ("_client", "_receipt_id", "_receipts", "_report")

    def __init__(
        self, receipts: Receipts, client: Client, receipt_id: int, report: Callable[[int, Outcome], None]
    ) -> None:
        self._receipts = receipts
        self._client = client
        self._receipt_id = receipt_id
        self._report = report

    def acknowledged(self) -> None:
        """Note that the client has completed the delivery."""
        self._receipts.forget(self._client, self)
        self.end(router_pb2.DELIVERY_OUTCOME_ACKNOWLEDGED)

    def end(self, outcome: Outcome) -> None:
        """Report the end."""
        self._report(self._receipt_id, outcome)


class Receipts:
    """Receipts by connection. Owned by one event loop."""

    def __init__(self) -> None:
        self._of_client: dict[Client, set[Receipt]] = {}

    def open(self, client: Client, receipt_id: int, report: Callable[[int, Outcome], None]) -> Receipt:
        """Return the token of a delivery to a connection; `report` is told the end once."""
        receipt = Receipt(self, client, receipt_id, report)
        self._of_client.setdefault(client, set()).add(receipt)
        return receipt

    def forget(self, client: Client, receipt: Receipt) -> None:
        """Note the end of a delivery."""
        waiting = self._of_client.get(client)
        if waiting is not None:
            waiting.discard(receipt)
            if not waiting:
                del self._of_client[client]

    def lost(self, client: Client) -> None:
        """Note that a connection is gone: what it did not acknowledge is lost to it."""
        for receipt in self._of_client.pop(client, ()):
            receipt.end(router_pb2.DELIVERY_OUTCOME_OFFLINE_NOT_KEPT)
