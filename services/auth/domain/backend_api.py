"""What a backend application may ask JetStream for: the logs and lifecycle events of its own instance. Pure.

Each instance's backends have a NATS account of their own (`services.cli.nats_config`). What they ask of JetStream's API
comes to auth, except for fetching and acknowledging messages, which NATS lets through for each of their streams.
Auth decides here what is passed on, and takes the names of others' streams out of the answers.
"""

from __future__ import annotations

import json
from typing import Any

from services.common import subjects

MAX_BODY_BYTES = 64 << 10
MAX_TOKENS = 64
"""Bounds of a request."""

_OF_STREAM = (
    ("STREAM", "INFO"),
    ("STREAM", "MSG", "GET"),
    ("DIRECT", "GET"),
    ("CONSUMER", "CREATE"),
    ("CONSUMER", "DURABLE", "CREATE"),
    ("CONSUMER", "INFO"),
    ("CONSUMER", "DELETE"),
    ("CONSUMER", "LIST"),
    ("CONSUMER", "NAMES"),
)
"""Calls whose next token is the name of a stream."""

_LISTS = {"STREAM.NAMES": "streams", "STREAM.LIST": "streams"}
"""Calls that name streams, and the field of the answer."""

NO_USAGE = json.dumps(
    {
        "type": "io.nats.jetstream.api.v1.account_info_response",
        "memory": 0,
        "storage": 0,
        "streams": 0,
        "consumers": 0,
        "limits": {
            "max_memory": -1,
            "max_storage": -1,
            "max_streams": -1,
            "max_consumers": -1,
            "max_ack_pending": -1,
            "memory_max_stream_bytes": -1,
            "storage_max_stream_bytes": -1,
            "max_bytes_required": False,
        },
        "api": {"total": 0, "errors": 0},
    }
).encode()
"""Answer to `INFO`, by which clients find out whether there is JetStream; the figures are those of all instances."""


class DeniedError(Exception):
    """A request that is not passed on; the text is for whoever asked."""


def check(instance_id: str, call: str, body: bytes) -> None:
    """Refuse a request that reaches beyond an instance.

    Args:
        instance_id: of the backend.
        call: what follows `$JS.API.` in the subject.
        body: of the request.

    Raises:
        DeniedError: it is not passed on.
    """
    tokens = call.split(".")
    if len(body) > MAX_BODY_BYTES or len(tokens) > MAX_TOKENS:
        raise DeniedError("the request is too large")
    if call in _LISTS:
        return
    for prefix in _OF_STREAM:
        if tuple(tokens[: len(prefix)]) == prefix and len(tokens) > len(prefix):
            _check_stream(instance_id, tokens, tokens[len(prefix)], body)
            return
    raise DeniedError("backends may not ask for this")


def own(instance_id: str, stream: str) -> bool:
    """Return whether a stream is a log or the lifecycle events of an instance."""
    return stream == subjects.event_stream(instance_id) or stream.startswith(subjects.log_stream_prefix(instance_id))


def only_own(instance_id: str, call: str, answer: bytes) -> bytes:
    """Return an answer without the streams of others."""
    field = _LISTS.get(call)
    if field is None:
        return answer
    values = json.loads(answer)
    values[field] = [stream for stream in values.get(field) or () if own(instance_id, _name(stream))]
    values["total"] = len(values[field])
    values["offset"] = 0
    values.pop("missing", None)
    return json.dumps(values).encode()


def _check_stream(instance_id: str, tokens: list[str], stream: str, body: bytes) -> None:
    is_dead = stream == subjects.DEAD_STREAM and tokens[0] == "CONSUMER"
    if not is_dead and not own(instance_id, stream):
        raise DeniedError("no stream of this instance")
    if is_dead and subjects.dead_consumer(instance_id) not in tokens[2:]:
        raise DeniedError(f"the consumer must be named {subjects.dead_consumer(instance_id)}")
    if "CREATE" not in tokens[:3]:
        return
    config = _config(body)
    # The named stream of the subject must be that of the body, which JetStream checks; it does not know whose a subject
    # is to which a push consumer delivers.
    if config.get("deliver_subject"):
        raise DeniedError("push consumers are not allowed; use a pull consumer")
    if is_dead:
        filters = config.get("filter_subjects") or [config.get("filter_subject")]
        mine = f"{subjects.DEAD}.{subjects.encode_token(instance_id)}."
        if not all(isinstance(each, str) and each.startswith(mine) for each in filters):
            raise DeniedError(f"the filter must be {mine}> or narrower")


def _config(body: bytes) -> dict[str, Any]:
    try:
        config = json.loads(body)["config"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise DeniedError("not the configuration of a consumer") from error
    if not isinstance(config, dict):
        raise DeniedError("not the configuration of a consumer")
    return config


def _name(stream: str | dict[str, Any]) -> str:
    return stream if isinstance(stream, str) else str(stream["config"]["name"])
