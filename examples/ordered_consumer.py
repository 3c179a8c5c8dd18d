"""Handles the messages of an ordered topic one after the other, in the order in which each client published them.

The topic is made by `weimq topic create NAME --ordered`; its name may be given as an argument.
"""

import asyncio
import json
import sys

import nats
from nats.js.api import AckPolicy, ConsumerConfig


async def main() -> None:
    """Consume until interrupted."""
    made = json.load(sys.stdin)
    topic = sys.argv[1] if len(sys.argv) > 1 else made["topic"]
    client = await nats.connect(made["nats_url"])
    # One message on its way at a time: a message that is not acknowledged comes again before the next one.
    config = ConsumerConfig(ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1, ack_wait=30)
    messages = await client.jetstream().pull_subscribe(
        "", durable="example-ordered", stream=f"MQ_{made['instance']}_{topic}", config=config
    )
    last = 0
    while True:
        try:
            (message,) = await messages.fetch(1, timeout=5)
        except TimeoutError:
            continue
        sequence = message.metadata.sequence.stream
        if sequence > last:  # else its acknowledgement was lost
            print((message.headers or {})["clientId"], message.data.decode(errors="replace"), flush=True)
            last = sequence
        await message.ack()


if __name__ == "__main__":
    asyncio.run(main())
