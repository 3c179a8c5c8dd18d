"""What the machine tells its driver; packets that need the driver are events as they are."""

from __future__ import annotations

from typing import ClassVar, TypeAlias

from services.edge.mqtt.errors import ProtocolError
from services.edge.mqtt.packet_base import PacketBase
from services.edge.mqtt.packets import (
    Connect,
    Disconnect,
    Publish,
    PublishRun,
    Subscribe,
    Unsubscribe,
)


class Acknowledged(PacketBase):
    """The client has completed a delivery (PUBACK or PUBCOMP) that had a token."""

    __slots__ = ("token",)

    fields: ClassVar[tuple[str, ...]] = ("token",)

    def __init__(self, token: object) -> None:
        self.token = token


class Failed(PacketBase):
    """The connection is over and `error` says why; always the last event.

    Send what `take_output` still holds, then close. The will is due.
    """

    __slots__ = ("error",)

    fields: ClassVar[tuple[str, ...]] = ("error",)

    def __init__(self, error: ProtocolError) -> None:
        self.error = error


Event: TypeAlias = Connect | Publish | PublishRun | Subscribe | Unsubscribe | Disconnect | Acknowledged | Failed
