"""`python -m services.edge`."""

from __future__ import annotations

from services.common import runtime
from services.edge.app import serve
from services.edge.settings import EdgeSettings

if __name__ == "__main__":
    runtime.main("edge", EdgeSettings, serve)
