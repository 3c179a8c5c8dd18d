"""What becomes of a message that the log writer has stored, or can never store."""

from __future__ import annotations

from services.router.delivery import Delivery
from services.router.domain.routing import Routing
from services.router.kept import Kept
from services.router.ports import DeadLetter
from services.router.pressure import Pressure
from services.router.publication import Publication
from services.router.retained import Retained, RetainedWrite
from services.router.shards import Shards


class LogReports:
    """Takes the reports of the log writer. Hot path.

    Args:
        routing: finds the way of a message anew, since interests may have changed.
        shards: links of the session shards.
        kept: the streams of kept messages.
        retained: the retained messages.
        delivery: sends messages on.
        pressure: is told that something was stored.
    """

    def __init__(
        self,
        *,
        routing: Routing,
        shards: Shards,
        kept: Kept,
        retained: Retained,
        delivery: Delivery,
        pressure: Pressure,
    ) -> None:
        self._routing = routing
        self._shards = shards
        self._kept = kept
        self._retained = retained
        self._delivery = delivery
        self._pressure = pressure
        self.refused_messages = 0
        """Messages that a log can never store; delivered and acknowledged all the same."""

    def stored(self, token: object, sequence: int, _is_duplicate: bool) -> None:  # noqa: FBT001 - LogWriter's
        """Deliver a message that its log has, also when the log had it before: its edge did not hear of it."""
        if isinstance(token, Publication):
            self._deliver(token, sequence)
        elif isinstance(token, RetainedWrite):
            self._retained.stored(token)
        elif isinstance(token, DeadLetter):
            token.stored()
        self._pressure.stored()

    def failed(self, token: object, _reason: str) -> None:
        """Deliver a message that no log can ever store (too large): trying again changes nothing.

        Who is connected gets it from the edge; shards hear of it, since it is lost for those who are not.
        """
        self.refused_messages += 1
        if isinstance(token, Publication):
            self._deliver(token, 0)
        elif isinstance(token, RetainedWrite):
            self._retained.failed(token)
        elif isinstance(token, DeadLetter):
            token.stored()

    def _deliver(self, publication: Publication, log_sequence: int) -> None:
        if publication.in_kept:
            self._kept.streams.done(publication.instance_id)
        if publication.is_kept_p2p:
            instance_id, topic = publication.instance_id, publication.topic
            # One that could not be stored goes to the receiver's edge, too.
            edges = () if log_sequence else self._routing.route(instance_id, topic, is_p2p=True).legs
            route = self._shards.kept_route(instance_id, topic, edges)
        else:
            route = self._routing.route(publication.instance_id, publication.topic, is_p2p=publication.is_p2p)
        if publication.is_delivered and self._delivery.is_delivered_to_all(publication.source, route):
            publication.source.acknowledge(publication.sequence)
            return
        if publication.shown_topic:
            route = route.shown_as(publication.shown_topic)
        self._delivery.deliver(
            publication.source,
            route,
            publication.payload,
            publication.qos,
            publication.sequence,
            publication.retained_by,
            publication.in_kept,
            log_sequence,
            publication.is_delivered,
        )
