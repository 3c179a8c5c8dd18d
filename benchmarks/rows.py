"""The cases that are measured: what mqload does, next to whom, and what is to be reached."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchmarks.peers import FREE_TOPIC, Broker

PAIRS = 50
LOGGED_TOPIC = "demo"
STORM = 10_000
RATE = 5_000
WARMUP_S = 1.0


@dataclass(frozen=True)
class Goal:
    """A figure to reach.

    Attributes:
        figure: name of a value of `Row.figures`.
        must: at least this (a ratio to `peer`), or at most this (an absolute value) when there is no peer.
        stretch: the same, better.
        peer: whose figure ours is divided by; empty: none.
    """

    figure: str
    must: float
    stretch: float
    peer: str = ""


@dataclass(frozen=True)
class Row:
    """One case.

    Attributes:
        name: chosen with `--rows`.
        title: shown in the table.
        mode: mqload's mode and options, without target and identity.
        goals: figures to reach.
        topic: parent topic of our run.
        edges: how many edges our clients use; with two, publisher and subscriber are on different ones.
        peers: who is measured beside us.
        is_timed: whether the mode takes a duration.
    """

    name: str
    title: str
    mode: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    topic: str = FREE_TOPIC
    edges: int = 1
    peers: tuple[str, ...] = ("mosquitto",)
    is_timed: bool = True
    peer_mode: tuple[str, ...] = field(default=())

    def arguments(self, broker: Broker, seconds: float) -> list[str]:
        """Return mqload's arguments for one run."""
        ours = broker.name == "weimq"
        arguments = [*(self.mode if ours or not self.peer_mode else self.peer_mode)]
        hosts = broker.hosts[: self.edges] if ours else broker.hosts
        arguments += ["-h", ",".join(hosts), *broker.identity]
        if self.is_timed:
            arguments += ["-t", str(seconds), "--warmup", str(WARMUP_S)]
            if "p2p" in arguments:
                arguments += ["--parent", self.topic]
            elif "--topic" not in arguments:
                arguments += ["--topic", f"{self.topic}/{self.name}/%d"]
        return arguments


def _pairs(qos: int, *more: str, edges: int = 1) -> tuple[str, ...]:
    # An odd number of publishers puts publisher and subscriber of a pair on different edges.
    pairs = PAIRS + 1 if edges > 1 else PAIRS
    return ("throughput", "-P", str(pairs), "--qos", str(qos), *more)


def _speed(*goals: tuple[str, float, float]) -> tuple[Goal, ...]:
    return tuple(Goal("delivered_per_s", must, stretch, peer) for peer, must, stretch in goals)


BOTH = ("mosquitto", "nats")

ROWS = (
    Row("qos0", "QoS 0, one edge", _pairs(0), _speed(("mosquitto", 5, 11)), peers=BOTH),
    Row("qos0-two-edges", "QoS 0, two edges", _pairs(0, edges=2), _speed(("mosquitto", 2, 4)), edges=2),
    Row("qos1", "QoS 1, one edge", _pairs(1), _speed(("mosquitto", 4, 10))),
    Row(
        "qos1-logged", "QoS 1, logged", _pairs(1), _speed(("mosquitto", 1, 2), ("nats", 1.5, 2)),
        topic=LOGGED_TOPIC, peers=BOTH,
    ),
    Row(
        "persistent", "QoS 1, persistent sessions", _pairs(1, "--clean", "0"), _speed(("nats", 1, 2)),
        topic=LOGGED_TOPIC, peers=("nats",),
    ),
    Row("qos2", "QoS 2, one edge", _pairs(2), _speed(("mosquitto", 3, 10))),
    Row(
        "p2p-two-edges", "P2P QoS 1, two edges", _pairs(1, "--topology", "p2p", edges=2), _speed(("mosquitto", 1, 3)),
        edges=2, peer_mode=_pairs(1),
    ),
    Row(
        "fanout-qos0", "fan-out 1:1000, QoS 0",
        ("throughput", "--topology", "fanout", "-P", "1", "-S", "1000", "--topics", "1", "--qos", "0"),
        _speed(("mosquitto", 4, 8)), peers=BOTH,
    ),
    Row(
        "fanout-qos1", "fan-out 1:1000, QoS 1",
        ("throughput", "--topology", "fanout", "-P", "1", "-S", "1000", "--topics", "1", "--qos", "1"),
        _speed(("mosquitto", 4, 5)),
    ),
    Row("latency", "one in flight per pair, QoS 0", _pairs(0, "--credit", "1"), _speed(("mosquitto", 0.7, 1.2))),
    Row(
        "rate", "5,000/s QoS 1, one edge", _pairs(1, "--rate", str(RATE)),
        (Goal("p50_ms", 1, 0.12), Goal("p99_ms", 5, 0.32)),
    ),
    Row(
        "rate-logged", "5,000/s QoS 1, logged", _pairs(1, "--rate", str(RATE)),
        (Goal("p50_ms", 2, 1), Goal("p99_ms", 10, 5)), topic=LOGGED_TOPIC, peers=("nats",),
    ),
    Row(
        "storm", "10,000 connects, 100 in flight", ("connect", "-n", str(STORM), "-w", "100"),
        (Goal("connects_per_s", 0.3, 0.6, "mosquitto"),), is_timed=False,
    ),
    Row(
        "idle", "10,000 idle connections", ("idle", "-n", str(STORM), "-w", "100", "--hold", "60", "--keepalive", "60"),
        (Goal("kib_per_connection", 14, 7), Goal("idle_cpu_percent", 5, 2)), is_timed=False, peers=(),
    ),
)  # fmt: skip

DEFAULT_ROWS = (
    "qos0",
    "qos0-two-edges",
    "qos1",
    "qos1-logged",
    "qos2",
    "fanout-qos0",
    "fanout-qos1",
    "latency",
    "rate",
)
"""What `make bench` measures when it is told nothing: some five minutes."""
