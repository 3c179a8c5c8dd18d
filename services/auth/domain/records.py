"""What is stored about instances, AccessKeys, groups, parent topics and token keys, and its JSON form.

A record of a later version is refused rather than half understood; keys that this version does not know are ignored,
and a missing one takes its default, so that fields can be added without a new version.
"""

from __future__ import annotations

import dataclasses
import enum
import json

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hmac import HMAC

from services.common import signature
from services.common.subjects import encode_token

VERSION = 1
"""Version of the JSON form."""

DEFAULT_RETENTION_S = 3 * 86_400
"""How long a log keeps messages unless told otherwise: 3 days (product.md section 2.5)."""

DEFAULT_ACCOUNT = "default"
"""Account of what is created without naming one."""


class Profile(enum.StrEnum):
    """Rule set of an instance."""

    LMQ = "lmq"
    STANDARD = "standard"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A tenant with its limits; the defaults are those of the profile `lmq`."""

    instance_id: str
    profile: Profile = Profile.LMQ
    anonymous: bool = False
    """Whether clients without credentials may connect; only in the profile `standard`."""
    max_topic_characters: int = 64
    """Longest topic name; 0: what MQTT allows."""
    max_payload_bytes: int = 64 << 10
    max_subscriptions: int = 30
    takeover: bool = False
    """Whether a second connection with a client id in use displaces the first."""
    refuse_filters: bool = False
    """Whether a denied filter is answered 0x80 instead of closing the connection."""
    strict_order: bool = False
    """Whether live messages wait behind the backlog of a persistent session."""
    offline_batch_messages: int = 30
    """Messages of a batch of offline messages; 0: no pacing."""
    offline_batch_interval_ms: int = 5_000
    acknowledgement_timeout_ms: int = 5_000
    """Without an acknowledgement for so long, a delivery counts as offline."""
    offline_retention_ms: int = DEFAULT_RETENTION_S * 1_000
    max_offline_messages: int = 1_000_000
    """Of the whole instance; the oldest are dropped first."""
    session_expiry_ms: int = 30 * 86_400_000
    """How long a persistent session outlives its last connection; 0: for ever."""
    max_topic_levels: int = 0
    """Most levels of a topic; 0: what MQTT allows."""
    max_publish_rate: int = 0
    """Messages of a client in a second; 0: no bound."""
    max_publish_bytes_rate: int = 0
    """Bytes of a client in a second; 0: no bound."""
    create_time_ms: int = 0
    deleting: bool = False
    """Whether its deletion has begun: nobody sees it any more, and a restart goes on deleting."""

    @property
    def key(self) -> str:
        """Key in the bucket."""
        return f"instance.{encode_token(self.instance_id)}"


def new_instance(instance_id: str, profile: Profile, *, anonymous: bool, create_time_ms: int) -> Instance:
    """Return an instance with the default limits of its profile."""
    if profile is Profile.LMQ:
        return Instance(instance_id=instance_id, create_time_ms=create_time_ms)
    return Instance(
        instance_id=instance_id,
        profile=profile,
        anonymous=anonymous,
        max_topic_characters=0,
        # A level of a filter is a node at every router: 65,536 of them in each of 10,000 filters would be too dear.
        max_topic_levels=1000,
        # Plain MQTT must carry payloads of 1 MB and more; one message must still fit JetStream and one gRPC frame.
        max_payload_bytes=4 << 20,
        max_subscriptions=10_000,
        takeover=True,
        refuse_filters=True,
        strict_order=True,
        offline_batch_messages=0,
        max_offline_messages=10_000_000,
        create_time_ms=create_time_ms,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AccessKey:
    """Id and secret of an account."""

    instance_id: str
    access_key_id: str
    account_id: str
    sealed_secret: str = dataclasses.field(repr=False)
    """Base64 of the secret encrypted under the master key."""
    publish: bool = True
    subscribe: bool = True
    topic_filters: tuple[str, ...] = ()
    """What it is limited to; empty: every parent topic of the account."""
    create_time_ms: int = 0
    secret: str | None = dataclasses.field(default=None, repr=False, compare=False, metadata={"stored": False})
    """The secret itself, only in memory; None: it could not be decrypted, and the key is as good as unknown."""
    signer: HMAC | None = dataclasses.field(
        init=False, default=None, repr=False, compare=False, metadata={"stored": False}
    )
    """Made of the secret."""

    def __post_init__(self) -> None:
        """Make the signer, once for all clients."""
        if self.secret:
            object.__setattr__(self, "signer", signature.signer(self.secret))

    @property
    def key(self) -> str:
        """Key in the bucket."""
        return f"accesskey.{encode_token(self.instance_id)}.{encode_token(self.access_key_id)}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A set of like devices."""

    instance_id: str
    group_id: str
    account_id: str
    create_time_ms: int = 0

    @property
    def key(self) -> str:
        """Key in the bucket."""
        return f"group.{encode_token(self.instance_id)}.{encode_token(self.group_id)}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """A parent topic."""

    instance_id: str
    topic: str
    account_id: str
    logged: bool
    ordered: bool
    retention_s: int
    """How long its log keeps messages; 0 when it has no log."""
    create_time_ms: int = 0
    deleting: bool = False
    """Whether its deletion has begun: nobody sees it any more, and a restart goes on deleting."""

    @property
    def key(self) -> str:
        """Key in the bucket."""
        return f"topic.{encode_token(self.instance_id)}.{encode_token(self.topic)}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TokenKey:
    """A key that tokens are sealed with."""

    key_id: str
    """8 hexadecimal digits; every token names its key."""
    sealed_secret: str = dataclasses.field(repr=False)
    """Base64 of the key encrypted under the master key."""
    create_time_ms: int = 0
    cipher: AESGCM | None = dataclasses.field(default=None, repr=False, compare=False, metadata={"stored": False})
    """Made of the key, only in memory; None: it could not be decrypted, and its tokens can't be opened."""

    @property
    def key(self) -> str:
        """Key in the bucket."""
        return f"tokenkey.{encode_token(self.key_id)}"


Record = Instance | AccessKey | Group | Topic | TokenKey

_KINDS: dict[str, type[Instance | AccessKey | Group | Topic | TokenKey]] = {
    "instance": Instance,
    "accesskey": AccessKey,
    "group": Group,
    "topic": Topic,
    "tokenkey": TokenKey,
}
_TEXTS = "tuple[str, ...]"
_TYPES: dict[object, type] = {"str": str, "int": int, "bool": bool, "Profile": str, _TEXTS: list}


class BadRecordError(ValueError):
    """Stored bytes that are not a record of this version."""


def encode(record: Record) -> bytes:
    """Return the stored form of a record."""
    body: dict[str, object] = {"version": VERSION}
    for field in dataclasses.fields(record):
        if field.metadata.get("stored", True):
            body[field.name] = getattr(record, field.name)
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def decode(key: str, stored: bytes) -> Record:
    """Return the record that `encode` made `stored` of.

    Args:
        key: where it was found; it must be the record's own.
        stored: the bytes.

    Raises:
        BadRecordError: it is not one.
    """
    kind = _KINDS.get(key.partition(".")[0])
    if kind is None:
        raise BadRecordError("unknown kind of key")
    try:
        body = json.loads(stored)
    except ValueError as error:
        raise BadRecordError("no JSON") from error
    if not isinstance(body, dict) or body.get("version") != VERSION:
        raise BadRecordError(f"not of version {VERSION}")
    values: dict[str, object] = {}
    for field in dataclasses.fields(kind):
        if field.name in body and field.metadata.get("stored", True):
            value = body[field.name]
            # `type` and not `isinstance`: a bool is an int there.
            if type(value) is not _TYPES[field.type]:
                raise BadRecordError(f"{field.name} is not of type {field.type}")
            if isinstance(value, list):
                if not all(isinstance(text, str) for text in value):
                    raise BadRecordError(f"{field.name} holds what is no text")
                value = tuple(value)
            values[field.name] = value
    try:
        if "profile" in values:
            values["profile"] = Profile(str(values["profile"]))
        record: Record = kind(**values)  # type: ignore[arg-type]  # each value was checked by its field's type
    except (ValueError, TypeError) as error:
        raise BadRecordError(str(error)) from error
    if record.key != key:
        raise BadRecordError("stored under another's key")
    return record
