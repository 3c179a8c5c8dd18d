"""Hypothesis strategies for valid control packets."""

from __future__ import annotations

from hypothesis import strategies as st

from services.edge.mqtt.packets import (
    ConnAck,
    Connect,
    ConnectReturnCode,
    Disconnect,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    Will,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
PAYLOAD = st.one_of(st.binary(max_size=20), st.integers(100, 20_000).map(bytes))
IDENTIFIER = st.integers(1, 65_535)
QOS = st.integers(0, 2)
TOPIC = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0+#"), min_size=1, max_size=20)
TOPIC_FILTER = st.lists(st.one_of(TOPIC, st.just("+")), min_size=1, max_size=3).map("/".join)

WILL = st.builds(Will, TOPIC, PAYLOAD, QOS, st.booleans())


def _connect(
    protocol_level: int,
    client_id: str,
    clean_session: bool,
    keep_alive_s: int,
    user: tuple[str | None, bytes | None],
    will: Will | None,
) -> Connect:
    username, password = user
    return Connect(protocol_level, client_id, clean_session, keep_alive_s, username, password, will)


CONNECT = st.builds(
    _connect,
    st.sampled_from([3, 4]),
    TEXT,
    st.booleans(),
    st.integers(0, 65_535),
    st.one_of(
        st.just((None, None)),
        st.tuples(TEXT, st.one_of(st.none(), st.binary(max_size=20))),
    ),
    st.one_of(st.none(), WILL),
)
CONNACK = st.one_of(
    st.builds(ConnAck, st.booleans(), st.just(0)),
    st.builds(ConnAck, st.just(False), st.sampled_from([int(code) for code in ConnectReturnCode])),
)
PUBLISH = st.one_of(
    st.builds(Publish, TOPIC, PAYLOAD, st.just(0), st.booleans(), st.just(False), st.just(0)),
    st.builds(Publish, TOPIC, PAYLOAD, st.sampled_from([1, 2]), st.booleans(), st.booleans(), IDENTIFIER),
)
SUBSCRIBE = st.builds(Subscribe, IDENTIFIER, st.lists(st.tuples(TOPIC_FILTER, QOS), min_size=1, max_size=4))
UNSUBSCRIBE = st.builds(Unsubscribe, IDENTIFIER, st.lists(TOPIC_FILTER, min_size=1, max_size=4))

FROM_CLIENT: st.SearchStrategy[Packet] = st.one_of(
    CONNECT,
    PUBLISH,
    st.builds(PubAck, IDENTIFIER),
    st.builds(PubRec, IDENTIFIER),
    st.builds(PubRel, IDENTIFIER),
    st.builds(PubComp, IDENTIFIER),
    SUBSCRIBE,
    UNSUBSCRIBE,
    st.just(PingReq()),
    st.just(Disconnect()),
)
FROM_SERVER: st.SearchStrategy[Packet] = st.one_of(
    CONNACK,
    st.builds(SubAck, IDENTIFIER, st.lists(st.sampled_from([0, 1, 2, 0x80]), min_size=1, max_size=4)),
    st.builds(UnsubAck, IDENTIFIER),
    st.just(PingResp()),
)
PACKET: st.SearchStrategy[Packet] = st.one_of(FROM_CLIENT, FROM_SERVER)
