"""What becomes of a message that the log writer has stored, or can never store."""

from __future__ import annotations

from services.common.log_runs import Part
from services.router.delivery import Delivery
from services.router.domain.columns import Run
from services.router.domain.outbox import Publisher
from services.router.domain.routing import Route, Routing
from services.router.kept import Kept
from services.router.ports import DeadLetter
from services.router.pressure import Pressure
from services.router.publication import Publication
from services.router.retained import Retained, RetainedWrite
from services.router.runs import RunPublication
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
        elif isinstance(token, RunPublication):
            self._deliver_run(token, token.source, token.run, 0, sequence)
        elif isinstance(token, Part):
            self._deliver_part(token, sequence)
        elif isinstance(token, RetainedWrite):
            self._retained.stored(token)
        elif isinstance(token, DeadLetter):
            token.stored()
        self._pressure.stored()

    def failed(self, token: object, _reason: str) -> None:
        """Deliver a message that no log can ever store (too large): trying again changes nothing.

        Who is connected gets it from the edge; shards hear of it, since it is lost for those who are not.
        """
        self.refused_messages += token.run.count if isinstance(token, RunPublication) else 1
        if isinstance(token, Publication):
            self._deliver(token, 0)
        elif isinstance(token, RunPublication):
            self._deliver_run(token, token.source, token.run, 0, 0)
        elif isinstance(token, Part):
            self._deliver_part(token, 0)
        elif isinstance(token, RetainedWrite):
            self._retained.failed(token)
        elif isinstance(token, DeadLetter):
            token.stored()

    def _deliver(self, publication: Publication, log_sequence: int) -> None:
        route = self._route(publication, log_sequence)
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

    def _deliver_part(self, part: Part, log_sequence: int) -> None:
        """Deliver a message of a run by itself; its publication counts the acknowledgements."""
        publication = part.token
        assert isinstance(publication, RunPublication)  # noqa: S101 - for the type checker: no others are written
        self._deliver_run(publication, publication, publication.run.part(part.offset), part.offset, log_sequence)

    def _deliver_run(
        self, publication: RunPublication, publisher: Publisher, run: Run, offset: int, log_sequence: int
    ) -> None:
        route = self._route(publication, log_sequence)
        sequence = publication.sequence + offset
        if publication.is_delivered and self._delivery.is_delivered_to_all(publication.source, route):
            publisher.acknowledge(sequence)
            return
        self._delivery.deliver_run(
            publication.source,
            publisher,
            route,
            run,
            sequence,
            log_sequence,
            publication.in_kept,
            publication.is_delivered,
        )

    def _route(self, publication: Publication | RunPublication, log_sequence: int) -> Route:
        """Return the way of a message that its log has, or can never store (0)."""
        instance_id, topic = publication.instance_id, publication.topic
        if publication.in_kept:
            self._kept.streams.done(instance_id)
        if publication.is_kept_p2p:
            # One that could not be stored goes to the receiver's edge, too.
            edges = () if log_sequence else self._routing.route(instance_id, topic, is_p2p=True).legs
            return self._shards.kept_route(instance_id, topic, edges)
        return self._routing.route(instance_id, topic, is_p2p=publication.is_p2p)
