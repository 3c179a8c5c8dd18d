"""Prints every message that clients publish below a parent topic, each at least once; goes on where it stopped."""

import asyncio
import json
import sys

import nats


async def main() -> None:
    """Consume until interrupted."""
    made = json.load(sys.stdin)
    client = await nats.connect(made["nats_url"])
    stream = f"MQ_{made['instance']}_{made['topic']}"
    # The name of the consumer keeps its place; several processes with one name share the work.
    messages = await client.jetstream().pull_subscribe("", durable="example", stream=stream)
    while True:
        try:
            batch = await messages.fetch(100, timeout=5)
        except TimeoutError:
            continue
        for message in batch:
            headers = message.headers or {}
            topic = made["topic"] + headers.get("mqttSecondTopic", "")
            sender = headers["clientId"] or headers.get("mqttOrigin", "another system")
            print(f"{sender} {topic} qos={headers['qoslevel']} {message.data.decode(errors='replace')}", flush=True)
            await message.ack()  # only now: a crash before it brings the message again


if __name__ == "__main__":
    asyncio.run(main())
