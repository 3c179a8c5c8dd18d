"""`python -m services.session`."""

from __future__ import annotations

from services.common import runtime
from services.session.app import serve
from services.session.settings import SessionSettings

if __name__ == "__main__":
    runtime.main("session", SessionSettings, serve)
