"""How large texts are in UTF-8, which is what limits of protocols and frames count."""

from __future__ import annotations

from typing import Final

MAX_BYTES: Final = 4
"""Most bytes of a character."""
