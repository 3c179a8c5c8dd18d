"""Looking round now and then, together.

A process that rests costs what wakes it up, some 50 us each time, whatever it then looks at. So everything that looks
round while nothing happens does so at the same moments: when the clock is a multiple of its period. That clock counts
from the start of the machine, so peers that tell each other something then wake one another at the same time, too.
"""

from __future__ import annotations

import asyncio

LOOK_S = 0.5
"""How often is looked round where nothing is under way."""


def next_tick(period_s: float) -> float:
    """Return the next time, by the clock of the running loop, that is a multiple of a period."""
    now = asyncio.get_running_loop().time()
    return now + period_s - now % period_s


async def tick(period_s: float = LOOK_S) -> None:
    """Sleep until the next multiple of a period."""
    await asyncio.sleep(period_s - asyncio.get_running_loop().time() % period_s)
