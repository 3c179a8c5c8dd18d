"""MQTT topics, client ids and instances as NATS subjects, stream names and keys, and back.

The one place where a text from the network becomes part of a NATS name. Pure. The escape is reversible and keeps
to characters that NATS allows in subjects, in stream names and in keys of KV buckets: letters, digits, `-` and `_`
stand for themselves, every other byte of the UTF-8 form becomes `=XX` (hexadecimal, upper case), and an empty level
becomes `=`.

| What | Name |
|---|---|
| message log of a parent topic | stream `MQ_<instance>_<parent>`, subject `mq.out.<instance>.<parent>.<levels...>` |
| lifecycle events | stream `EVENTS_<instance>`, subject `mq.event.<instance>.<GroupID>_MQTT.<tag>` |
| retained messages | stream `RETAINED_<instance>`, subject `mq.retained.<instance>.<levels...>` |
| kept for sessions, topic without log | stream `KEPT_<instance>_<router>`, subject `mq.kept.<instance>.<router>` |
| messages dropped from sessions | stream `DROPPED_<instance>`, subject `mq.dropped.<instance>` |
| inbound from backends | stream `MQ_IN`, subject `mq.in.<instance>.<parent>`; `mq.in.<slot>.<...>` when stored |
| inbound that can't be routed | stream `MQ_DEAD`, subject `mq.dead.<instance>.<parent>` |
"""

from __future__ import annotations

import hashlib
import re

_PLAIN = re.compile(r"[A-Za-z0-9_-]+\Z")
_ESCAPED = re.compile(rb"[^A-Za-z0-9_-]")
_CODES = re.compile(rb"=([0-9A-F]{2})")

_DIGEST = "=="  # begins no token of `encode_token`

OUT = "mq.out"
"""Prefix of the subjects of message logs."""
IN = "mq.in"
"""Prefix of the subjects that backend applications publish to."""
IN_STREAM = "MQ_IN"
"""Stream of inbound messages."""
DEAD = "mq.dead"
"""Prefix of the subjects of inbound messages that can't be routed."""
DEAD_STREAM = "MQ_DEAD"
"""Stream of those."""
BACKEND = "backend"
"""Prefix of the subjects under which requests of backend applications to JetStream reach auth:
`backend.<instance>.api.<what follows $JS.API.>`."""
EVENT = "mq.event"
"""Prefix of the subjects of lifecycle events."""
RETAINED = "mq.retained"
"""Prefix of the subjects of retained messages."""
RETAINED_STREAM = "RETAINED_"
"""What the names of the streams of retained messages begin with."""
KEPT = "mq.kept"
"""Prefix of the subjects of messages that are kept for sessions and whose topic has no log."""
KEPT_STREAM = "KEPT_"
"""What the names of their streams begin with."""
SESSIONS_STREAM = "KV_sessions"
"""Stream of the bucket of persistent sessions."""
DROPPED = "mq.dropped"
"""Prefix of the subjects of the announcements of messages that sessions lost."""
LOG_STREAM = "MQ_"
"""What the names of message logs begin with."""
TOPIC_HEADER = "mqttTopic"
"""Header that holds the topic by `encode_topic` where the subject does not: in a stream of kept messages, and in a log
when the topic is too long for a subject."""
P2P_HEADER = "mqttP2p"
"""Header of a P2P message: what its router decided, `P2P_KEPT` or `P2P_ONLINE`. Without it a topic of that form is like
any other (the `standard` profile)."""
P2P_KEPT = "kept"
"""The shard of the receiver delivers it, and keeps it for a receiver that is away."""
P2P_ONLINE = "online"
"""It goes to the receiver's connection or nowhere."""
MAX_SUBJECT = 3_900
"""Longest subject of a message log, in characters: NATS takes a line of 4,096 with it, the reply subject and sizes."""


def encode_token(text: str) -> str:
    """Return the NATS token that stands for one MQTT level or name."""
    if _PLAIN.match(text):
        return text
    if not text:
        return "="
    return _ESCAPED.sub(lambda match: b"=%02X" % match[0][0], text.encode()).decode()


def decode_token(token: str) -> str:
    """Return the text that `encode_token` made `token` of.

    Raises:
        ValueError: it can't have made it.
    """
    if token == "=":  # noqa: S105 - not a password
        return ""
    text = _CODES.sub(lambda match: bytes((int(match[1], 16),)), token.encode()).decode()
    if encode_token(text) != token or not token:
        raise ValueError(f"{token!r} is not an encoded token")
    return text


def log_subject(instance_id: str, topic: str) -> str:
    """Return the subject of a message published to `topic`: `mq.out.<instance>.<levels...>`."""
    return ".".join((OUT, encode_token(instance_id), *map(encode_token, topic.split("/"))))


def log_topic(subject: str) -> tuple[str, str]:
    """Return the instance id and topic of a subject that `log_subject` made.

    Raises:
        ValueError: the subject is not one of a message log.
    """
    return _topic(OUT, subject)


def encode_topic(topic: str) -> str:
    """Return a topic in the characters of a subject, which a header carries unchanged whatever the topic holds."""
    return ".".join(map(encode_token, topic.split("/")))


def decode_topic(text: str) -> str:
    """Return the topic that `encode_topic` made `text` of.

    Raises:
        ValueError: it can't have made it.
    """
    return "/".join(map(decode_token, text.split(".")))


def message_topic(subject: str, topic_header: str | None) -> tuple[str, str]:
    """Return the instance id and topic of a message in a log or a stream of kept messages.

    Args:
        subject: of the message.
        topic_header: value of `TOPIC_HEADER`; None: it has none.

    Raises:
        ValueError: it is no such message.
    """
    if subject.startswith(f"{KEPT}."):
        return kept_instance(subject), decode_topic(topic_header or "")
    instance_id, topic = log_topic(subject)
    return instance_id, topic if topic_header is None else decode_topic(topic_header)


def log_filter(instance_id: str, parent_topic: str) -> list[str]:
    """Return the subjects of the log of a parent topic: the bare topic and all below it."""
    subject = log_subject(instance_id, parent_topic)
    return [subject, f"{subject}.>"]


def log_stream(instance_id: str, parent_topic: str) -> str:
    """Return the name of the stream of a parent topic."""
    return f"MQ_{_stream_part(instance_id)}_{_stream_part(parent_topic)}"


def in_subject(instance_id: str, parent_topic: str) -> str:
    """Return the subject that messages to a parent topic and its subtopics are published to by backends."""
    return f"{IN}.{encode_token(instance_id)}.{encode_token(parent_topic)}"


def in_topic(subject: str) -> tuple[str, str]:
    """Return instance id and parent topic of a subject of the stream of inbound messages.

    Raises:
        ValueError: the subject is not one.
    """
    prefix, _, rest = subject.partition(f"{IN}.")
    tokens = rest.split(".")
    if prefix or len(tokens) != 3:  # noqa: PLR2004 - slot, instance, parent topic
        raise ValueError(f"{subject!r} is not a subject of {IN}")
    return decode_token(tokens[1]), decode_token(tokens[2])


def dead_subject(subject: str) -> str:
    """Return the subject under which an inbound message of `subject` is kept that can't be routed."""
    _, _, names = subject.removeprefix(f"{IN}.").partition(".")
    return f"{DEAD}.{names}"


def log_stream_prefix(instance_id: str) -> str:
    """Return what the names of the streams of all parent topics of an instance begin with, and no others'."""
    return f"MQ_{_stream_part(instance_id)}_"


def dead_consumer(instance_id: str) -> str:
    """Return the name of the consumer by which backends of an instance read their messages in `MQ_DEAD`."""
    return f"dead-{encode_token(instance_id)}"


def event_stream(instance_id: str) -> str:
    """Return the name of the stream of an instance's lifecycle events."""
    return f"EVENTS_{_stream_part(instance_id)}"


def event_filter(instance_id: str) -> str:
    """Return the subject that matches every lifecycle event of an instance."""
    return f"{EVENT}.{encode_token(instance_id)}.>"


def event_subject(instance_id: str, group_id: str, tag: str) -> str:
    """Return the subject of a lifecycle event; `tag` is `connect`, `disconnect` or `tcpclean`."""
    return f"{EVENT}.{encode_token(instance_id)}.{encode_token(group_id)}_MQTT.{tag}"


def retained_subject(instance_id: str, topic: str) -> str:
    """Return the subject of the retained message of `topic`: `mq.retained.<instance>.<levels...>`.

    When that is too long, the levels are one token, `==` and the SHA-256 of the topic, and `TOPIC_HEADER` says it.
    """
    subject = ".".join((RETAINED, encode_token(instance_id), *map(encode_token, topic.split("/"))))
    if len(subject) <= MAX_SUBJECT:
        return subject
    return f"{RETAINED}.{encode_token(instance_id)}.{_DIGEST}{hashlib.sha256(topic.encode()).hexdigest()}"


def needs_topic_header(subject: str) -> bool:
    """Say whether a subject that `retained_subject` made does not hold the topic."""
    return f".{_DIGEST}" in subject


def retained_topic(subject: str, topic_header: str | None = None) -> tuple[str, str]:
    """Return the instance id and topic of a subject that `retained_subject` made.

    Args:
        subject: of the message.
        topic_header: value of `TOPIC_HEADER`; None: it has none.

    Raises:
        ValueError: the subject is not one of a retained message.
    """
    instance, _, level = subject.removeprefix(f"{RETAINED}.").partition(".")
    if topic_header is not None and level.startswith(_DIGEST):
        return decode_token(instance), decode_topic(topic_header)
    return _topic(RETAINED, subject)


def retained_filter(instance_id: str) -> str:
    """Return the subject that matches every retained message of an instance."""
    return f"{RETAINED}.{encode_token(instance_id)}.>"


def retained_stream(instance_id: str) -> str:
    """Return the name of the stream of an instance's retained messages."""
    return f"{RETAINED_STREAM}{_stream_part(instance_id)}"


def kept_subject(instance_id: str, router_index: int) -> str:
    """Return the subject of the messages of an instance that a router keeps for sessions."""
    return f"{KEPT}.{encode_token(instance_id)}.{router_index}"


def kept_instance(subject: str) -> str:
    """Return the instance id of a subject that `kept_subject` made.

    Raises:
        ValueError: it can't have made it.
    """
    return decode_token(subject.removeprefix(f"{KEPT}.").partition(".")[0])


def kept_filter(instance_id: str) -> str:
    """Return the subject that matches every kept message of an instance."""
    return f"{KEPT}.{encode_token(instance_id)}.*"


def kept_stream(instance_id: str, router_index: int) -> str:
    """Return the name of their stream: one for each router, since positions are in order for one writer only."""
    return f"{KEPT_STREAM}{_stream_part(instance_id)}_{router_index}"


def sessions_filter(instance_id: str) -> str:
    """Return the subject that matches every entry of an instance in the bucket of persistent sessions."""
    return f"$KV.sessions.{encode_token(instance_id)}.*"


def sessions_mark(instance_id: str) -> str:
    """Return the subject in that bucket under which auth notes that an instance was deleted."""
    return f"$KV.sessions.{encode_token(instance_id)}"


def dropped_subject(instance_id: str) -> str:
    """Return the subject of the announcements of messages that sessions of an instance lost."""
    return f"{DROPPED}.{encode_token(instance_id)}"


def dropped_stream(instance_id: str) -> str:
    """Return the name of the stream of those announcements."""
    return f"DROPPED_{_stream_part(instance_id)}"


def stream_names(stream: str) -> tuple[str, str]:
    """Return the instance id and the parent topic of a message log, or the router's index of a stream of kept messages.

    Raises:
        ValueError: the stream is neither.
    """
    prefix = KEPT_STREAM if stream.startswith(KEPT_STREAM) else LOG_STREAM
    parts = stream.removeprefix(prefix).split("_")
    if not stream.startswith(prefix) or len(parts) != 2:  # noqa: PLR2004 - both are escaped, `_` too
        raise ValueError(f"{stream!r} is no stream of messages")
    instance, rest = (decode_token(part.replace("=5F", "_")) for part in parts)
    return instance, rest


def _topic(root: str, subject: str) -> tuple[str, str]:
    prefix, _, rest = subject.partition(f"{root}.")
    instance_id, _, levels = rest.partition(".")
    if prefix or not levels:
        raise ValueError(f"{subject!r} is not a subject of {root}")
    return decode_token(instance_id), "/".join(map(decode_token, levels.split(".")))


def _stream_part(name: str) -> str:
    # `_` joins the parts of a stream name, so it is escaped inside them: `a_b` + `c` is not `a` + `b_c`.
    return encode_token(name).replace("_", "=5F")
