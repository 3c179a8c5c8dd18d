"""Session service: who is connected where, who gets a client id, and lifecycle events.

Owns presence (in memory), the streams `EVENTS_<instance>` (its truth) and `PRESENCE` (checkpoints of it). Serves
gRPC on SESSION_GRPC_LISTEN; settings have the prefix `SESSION_`. Calls the router, to publish the wills of clients
whose edge was lost; everything else works without it.
"""
