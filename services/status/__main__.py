"""`python -m services.status`."""

from __future__ import annotations

from services.common import runtime
from services.status.app import serve
from services.status.settings import StatusSettings

if __name__ == "__main__":
    runtime.main("status", StatusSettings, serve)
