// Prints every message that clients publish below a parent topic, each at least once; goes on where it stopped.
import { readFileSync } from "node:fs";
import { connect } from "@nats-io/transport-node";
import { AckPolicy, jetstream, jetstreamManager } from "@nats-io/jetstream";

const made = JSON.parse(readFileSync(0, "utf8"));
const { username, password, host } = new URL(made.nats_url);
const connection = await connect({ servers: host, user: username, pass: password });
const stream = `MQ_${made.instance}_${made.topic}`;
const manager = await jetstreamManager(connection);
await manager.consumers.add(stream, { durable_name: "example-node", ack_policy: AckPolicy.Explicit });
const consumer = await jetstream(connection).consumers.get(stream, "example-node");

for await (const message of await consumer.consume({ max_messages: 100 })) {
  const sender = message.headers.get("clientId") || message.headers.get("mqttOrigin");
  const topic = made.topic + message.headers.get("mqttSecondTopic");
  console.log(`${sender} ${topic} qos=${message.headers.get("qoslevel")} ${message.string()}`);
  message.ack(); // only now: a crash before it brings the message again
}
