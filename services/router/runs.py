"""Runs of messages on their way through the router: as one thing, in parts where something fails."""

from __future__ import annotations

from services.common.log_runs import Part
from services.router.delivery import Delivery
from services.router.domain.columns import DELIVERED, LOGGED, P2P, QOS, REPEATED, Run
from services.router.domain.routing import Route
from services.router.kept import Kept
from services.router.ports import Log, Source
from services.router.pressure import Pressure
from services.router.publication import HeaderLines
from services.router.shards import Shards


class RunPublication:
    """A run of QoS 1 on its way to the log, or to the stream of kept messages; see `publication.Publication`.

    Where its messages go by themselves, this counts their acknowledgements: its source knows the run only as a whole.
    """

    __slots__ = (
        "in_kept",
        "instance_id",
        "is_delivered",
        "is_kept_p2p",
        "is_p2p",
        "run",
        "sequence",
        "source",
        "topic",
        "waiting",
    )

    def __init__(
        self,
        source: Source,
        route: Route,
        run: Run,
        flags: int,
        sequence: int,
        topic_flags: int,
        in_kept: bool,  # noqa: FBT001 - hot path
    ) -> None:
        self.source = source
        self.instance_id = route.instance_id
        self.topic = route.topic
        self.is_p2p = topic_flags & P2P != 0
        self.is_kept_p2p = route.is_kept
        self.run = run
        self.is_delivered = flags & DELIVERED != 0
        self.sequence = sequence  # of the first message
        self.in_kept = in_kept
        self.waiting = run.count  # messages that are not safe, as long as none was stored with others

    def acknowledge(self, sequence: int) -> None:  # noqa: ARG002 - of `outbox.Publisher`
        """Note that one of the messages is safe; with the last one, the run is."""
        self.waiting -= 1
        if self.waiting == 0:
            self.source.acknowledge(self.sequence)


class Runs:
    """Sends runs to where they have to be stored, or at once to who is to get them. Hot path.

    Args:
        shards: links of the session shards.
        kept: the streams of kept messages.
        header_lines: properties of messages in a log.
        delivery: sends messages on.
        pressure: is told what is written.
    """

    def __init__(
        self, *, shards: Shards, kept: Kept, header_lines: HeaderLines, delivery: Delivery, pressure: Pressure
    ) -> None:
        self._shards = shards
        self._kept = kept
        self._header_lines = header_lines
        self._delivery = delivery
        self._pressure = pressure

    def publish(
        self,
        log: Log,
        source: Source,
        route: Route,
        run: Run,
        sequence: int,
        flags: int,
        topic_flags: int,
        client_id: str,
    ) -> None:
        """Route a run; see `Router.publish`.

        Args:
            log: of all streams.
            source: is told, by the first sequence, when all messages of QoS 1 are safe.
            route: of the topic.
            run: the messages.
            sequence: of the first one.
            flags: of all of them.
            topic_flags: of the topic.
            client_id: of the publisher.
        """
        if not flags & QOS:
            self._delivery.deliver_qos0_run(source, route, run)
            return
        if topic_flags & P2P:
            route = self._shards.p2p_route(route, topic_flags, flags)
        in_kept = False
        if not topic_flags & LOGGED:
            in_kept = len(route.shard_legs) > 0 or route.is_kept or (self._shards.unknown > 0 and not topic_flags & P2P)
            if not in_kept:
                self._delivery.deliver_run(source, source, route, run, sequence)
                return
        self._pressure.written(source)
        lines = self._header_lines.of(route, flags, topic_flags, client_id, source.origin, "", in_kept)
        publication = RunPublication(source, route, run, flags, sequence, topic_flags, in_kept)
        if not in_kept and not flags & REPEATED:
            ids = f"{source.incarnation}-"
            log.write_run(route.subject, run.packets, run.count, run.payload_bytes, ids, sequence, lines, publication)
            return
        may_repeat = flags & REPEATED != 0
        for offset, payload in enumerate(run.payloads()):
            message_id = f"{source.incarnation}-{sequence + offset}"
            part = Part(publication, offset)
            if in_kept:
                self._kept.write(log, route.instance_id, payload, message_id, lines, part, may_repeat)
            else:
                log.write_lines(route.subject, payload, message_id, lines, part, may_repeat, True)  # noqa: FBT003 - hot path
