"""Router: matches published messages with the interests of edges, and is the only writer of the message logs.

Its state is soft: edges send their interests and their unacknowledged messages again to a new process. Port 7003,
settings `ROUTER_*`; needs NATS.
"""
