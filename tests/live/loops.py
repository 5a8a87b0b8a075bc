"""What tests of `sandbox.aio` share."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from tests.support import repeats

Run = Callable[[Coroutine[Any, Any, Any]], Any]
MANY = repeats(1000)


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

    gc.collect()
    gc.freeze()  # what all the tests before have left in this process would be looked through in one turn, and is not the loop's
    task = asyncio.create_task(beat())
    try:
        yield found
    finally:
        task.cancel()
        gc.unfreeze()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))
