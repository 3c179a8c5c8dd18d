"""`python -m services.auth`."""

from __future__ import annotations

from services.auth.app import serve
from services.auth.settings import AuthSettings
from services.common import runtime

if __name__ == "__main__":
    runtime.main("auth", AuthSettings, serve)
