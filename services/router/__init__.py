"""Router: matches published messages with the interests of edges, and is the only writer of the message logs.

It keeps the retained messages, in memory and in JetStream. The rest of its state is soft: edges send their interests
and their unacknowledged messages again to a new process. Port 7003, settings `ROUTER_*`; needs NATS.
"""
