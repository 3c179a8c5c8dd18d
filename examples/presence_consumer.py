"""Prints who comes and who goes, from the lifecycle events of an instance.

The rule: a client is online if and only if one of its channels has a `connect` and neither `disconnect` nor `tcpclean`.
Events may come more than once; an end counts for its own channel only.
"""

import asyncio
import json
import sys

import nats
from nats.js.api import AckPolicy, ConsumerConfig

REMEMBERED = 1_000_000


class Presence:
    """The fold of lifecycle events."""

    def __init__(self) -> None:
        self.channels: dict[str, set[str]] = {}  # by client id: those that have begun and not ended; online: has some
        self.ended: dict[str, None] = {}  # the latest, since a `connect` may be repeated after the end

    def take(self, event: dict[str, str]) -> None:
        """Take one event."""
        client_id, channel_id = event["clientId"], event["channelId"]
        channels = self.channels.setdefault(client_id, set())
        if event["eventType"] != "connect":
            channels.discard(channel_id)
            self.ended[channel_id] = None
            if len(self.ended) > REMEMBERED:
                del self.ended[next(iter(self.ended))]
        elif channel_id not in self.ended:
            channels.add(channel_id)
        if not channels:
            del self.channels[client_id]


async def main() -> None:
    """Read the events from the first one that is kept, for ever: the state is rebuilt at each start."""
    made = json.load(sys.stdin)
    client = await nats.connect(made["nats_url"])
    config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=300)
    events = await client.jetstream().pull_subscribe("", stream=f"EVENTS_{made['instance']}", config=config)
    presence = Presence()
    while True:
        try:
            batch = await events.fetch(500, timeout=5)
        except TimeoutError:
            continue
        for message in batch:
            event = json.loads(message.data)
            presence.take(event)
            online = "online" if event["clientId"] in presence.channels else "offline"
            print(event["clientId"], event["eventType"], "->", online, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
