"""Session service: who is connected where, who gets a client id, and lifecycle events.

Owns presence (in memory), the streams `EVENTS_<instance>` (its truth) and `PRESENCE` (checkpoints of it). Serves
gRPC on SESSION_GRPC_LISTEN; settings have the prefix `SESSION_`. Calls no other service.
"""
