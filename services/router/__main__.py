"""`python -m services.router`."""

from __future__ import annotations

from services.common import runtime
from services.router.app import serve
from services.router.settings import RouterSettings

if __name__ == "__main__":
    runtime.main("router", RouterSettings, serve)
