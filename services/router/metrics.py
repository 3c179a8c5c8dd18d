"""Metrics of the router, beside those of the process: read from its parts when they are asked for.

Nothing is counted for them on the way of a message but whole frames and batches.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from typing_extensions import override

from services.common.log_writer import LogWriter
from services.router.calls import Calls
from services.router.retained import Retained
from services.router.router import Router
from services.router.shards import Shards


class RouterMetrics(Collector):
    """Reports the figures of a router.

    Args:
        router: of this process.
        retained: its retained messages.
        shards: its session shards.
        log: what it writes with.
        calls: of other systems.
    """

    def __init__(self, *, router: Router, retained: Retained, shards: Shards, log: LogWriter, calls: Calls) -> None:
        self._router = router
        self._retained = retained
        self._shards = shards
        self._log = log
        self._calls = calls

    def describe(self) -> Iterable[Metric]:
        """Return no names to compare: a test may run several routers in its process."""
        return ()

    @override
    def collect(self) -> Iterable[Metric]:
        yield from self._counters()
        yield from self._gauges()

    def _counters(self) -> Iterable[Metric]:
        router = self._router
        yield _counter("published_messages", "Messages taken from edges, other systems and backends.", router.published)
        delivered = CounterMetricFamily(
            "weimq_router_delivered_messages", "Messages sent to links, once for each link.", labels=["to"]
        )
        delivered.add_metric(["edge"], router.delivered(is_shard=False))
        delivered.add_metric(["shard"], router.delivered(is_shard=True))
        yield delivered
        yield _counter("kept_messages", "Messages without a log that were written for sessions.", router.kept.messages)
        dropped = CounterMetricFamily(
            "weimq_router_dropped_messages", "What did not get where it should, by reason.", labels=["reason"]
        )
        for reason, count in (
            ("not_logged_nats_away", router.unlogged_messages),
            ("not_logged_refused", router.reports.refused_messages),
            ("not_permitted", self._calls.not_permitted),
            ("no_member_left", router.shares.dropped_messages),
            ("not_retained_quota", self._retained.over_quota_messages),
        ):
            dropped.add_metric([reason], count)
        yield dropped
        yield _counter("log_failures", "How often a log was sent to again after a failure.", self._log.failures)

    def _gauges(self) -> Iterable[Metric]:
        router = self._router
        links = GaugeMetricFamily("weimq_router_links", "Linked edges and session shards.", labels=["of"])
        links.add_metric(["edge"], sum(edge.stream is not None and not edge.is_shard for edge in router.edges()))
        links.add_metric(["shard"], len(self._shards.links()))
        yield links
        yield _gauge("unknown_shards", "Session shards that were not there since the start.", self._shards.unknown)
        yield _gauge("targets", "Interests of edges and shards.", sum(len(edge.targets) for edge in router.edges()))
        yield _gauge("pending_bytes", "What edges and shards have not confirmed.", router.pending_bytes)
        yield _gauge("log_backlog_bytes", "What the logs have not stored.", self._log.backlog_bytes)
        yield _gauge("held_sources", "Edges and others that are held back.", router.pressure.held)
        yield _gauge("slowed_edges", "Edges that hold their messages of QoS 0 for now.", router.flooding.slowed)
        yield _gauge("retained_messages", "Retained messages.", self._retained.messages)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"weimq_router_{name}", text, value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"weimq_router_{name}", text, value)
