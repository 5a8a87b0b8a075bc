"""How busy an event loop is kept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator


@contextlib.asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """CPU seconds that the loop's thread took from one turn to the next: unlike the clock, other processes do not count."""
    found: list[float] = []

    async def beat() -> None:
        last = time.thread_time()
        while True:
            await asyncio.sleep(0.0005)
            now = time.thread_time()
            found.append(now - last)
            last = now

    task = asyncio.create_task(beat())
    try:
        yield found
    finally:
        task.cancel()
