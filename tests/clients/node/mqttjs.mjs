// One scenario with MQTT.js: reads a job (JSON) from stdin, writes what happened (JSON) to stdout.
//
// Job: {subscriber, publisher: {url, options, ca?}, filter, messages: [{topic, payload, qos}], vanish, count}.
// The publisher sends the messages one after the other, then disconnects or, with `vanish`, drops its connection.
// Outcome: {granted, received: [{topic, payload, qos}]} once the subscriber has `count` messages.
import { readFileSync } from "node:fs";
import { connectAsync } from "mqtt";

const job = JSON.parse(readFileSync(0, "utf8"));

const connect = ({ url, ca, options }) =>
  connectAsync(url, { ...options, reconnectPeriod: 0, ...(ca && { ca: readFileSync(ca) }) }, false);

const received = [];
const subscriber = await connect(job.subscriber);
const complete = new Promise((resolve) => {
  subscriber.on("message", (topic, payload, packet) => {
    received.push({ topic, payload: payload.toString(), qos: packet.qos });
    if (received.length >= job.count) resolve();
  });
});
const granted = (await subscriber.subscribeAsync(job.filter, { qos: 2 })).map(({ qos }) => qos);

const publisher = await connect(job.publisher);
for (const { topic, payload, qos } of job.messages) await publisher.publishAsync(topic, payload, { qos });
if (job.vanish) publisher.stream.destroy();
else await publisher.endAsync();

await complete;
await subscriber.endAsync();
console.log(JSON.stringify({ granted, received }));
