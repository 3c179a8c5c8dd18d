"""Auth: who may connect, and which instances, AccessKeys, groups and parent topics exist.

Owns the KV bucket `resources`, the streams of logged topics and of lifecycle events. Calls no service. Environment
prefix `AUTH_`; gRPC `AuthService` and `ResourceService`, HTTP health and metrics.
"""
