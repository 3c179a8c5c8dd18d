"""Status: answers who is online, over signed HTTP queries and over gRPC.

Owns nothing. Calls auth and session. Environment prefix `STATUS_`; gRPC `StatusService`, HTTP queries, health and
metrics.
"""
