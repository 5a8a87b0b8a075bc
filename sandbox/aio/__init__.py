"""The same face for asyncio: `Container`, `Process`, `run` and `interact`, with ``await`` before what waits.

No threads, and no polling: all waiting is done by the event loop, whichever it is (asyncio's own, uvloop). An awaiting task that is cancelled
kills its program, or its container that is not yet there, and waits until nothing of it is left.
"""

from sandbox.aio._container import Container, run
from sandbox.aio._interact import interact
from sandbox.aio._monitor import Monitor
from sandbox.aio._process import Process, Reader, Writer

__all__ = ["Container", "Monitor", "Process", "Reader", "Writer", "interact", "run"]
