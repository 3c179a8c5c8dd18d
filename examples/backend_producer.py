"""Publishes a message to MQTT clients: `backend_producer.py SUBTOPIC PAYLOAD`.

SUBTOPIC follows the parent topic, such as `/hello` for its subscribers or `/p2p/GID_demo@@@device1` for one client.
"""

import asyncio
import json
import sys
import uuid

import nats
from nats.errors import Error
from nats.js import JetStreamContext


async def publish(js: JetStreamContext, subject: str, payload: bytes, headers: dict[str, str]) -> int:
    """Publish until it is stored, and return its place in the queue."""
    while True:
        try:
            return (await js.publish(subject, payload, headers=headers)).seq
        except (Error, TimeoutError) as error:
            print(f"not stored yet, trying again: {error!r}", file=sys.stderr)
            await asyncio.sleep(1)


async def main() -> None:
    """Publish once, surely."""
    try:
        subtopic, payload = sys.argv[1:]
    except ValueError:
        sys.exit(__doc__)
    made = json.load(sys.stdin)
    client = await nats.connect(made["nats_url"])
    headers = {
        "mqttSecondTopic": subtopic,
        "qoslevel": "1",
        "cleansessionflag": "false",  # keep a P2P message for a client that is offline
        "Nats-Msg-Id": uuid.uuid4().hex,  # the same in each attempt, so that the message is stored once
    }
    subject = f"mq.in.{made['instance']}.{made['topic']}"
    print("stored as", await publish(client.jetstream(), subject, payload.encode(), headers))
    await client.close()


if __name__ == "__main__":
    asyncio.run(main())
