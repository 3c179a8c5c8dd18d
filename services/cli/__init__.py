"""The `weimq` command: runs the whole mesh on one machine, and administers a mesh anywhere.

Talks to services only through their gRPC APIs; owns the data directory of `weimq up`.
"""
