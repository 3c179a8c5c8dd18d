"""A service is one process type of the mesh, started as `python -m services.<name>`."""

import os

from services import compiled

compiled.install()  # before any module of the hot path is imported

# gRPC reads this when it is first imported: its older way to serve sockets, see docs/decisions/0012.
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
