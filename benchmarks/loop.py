"""What `sandbox.aio` costs: programs at once in one event loop against threads, and how long the loop is kept busy. ``python -m benchmarks.loop``.

Rates and latencies of the ways are taken in turns, and their medians are printed; the loop's business is CPU time of its thread, which other work
on the machine does not lengthen.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import statistics
import time
from collections.abc import Callable

import sandbox
from sandbox import aio

BOXES = 4


async def _beat(turns: list[float]) -> None:
    last = time.thread_time()
    while True:
        await asyncio.sleep(0.0005)
        now = time.thread_time()
        turns.append(now - last)
        last = now


async def at_once(count: int, **limits: str) -> tuple[float, float]:
    """Run *count* programs at once; gives programs per second, and the longest turn of the loop in CPU seconds."""
    boxes = [await aio.Container(**limits).create() for _ in range(BOXES)]  # type: ignore[arg-type, unused-ignore]
    for box in boxes:
        await box.exec(["true"])
    turns: list[float] = []
    beat = asyncio.create_task(_beat(turns))
    await asyncio.sleep(0.01)
    begin = time.perf_counter()
    results = await asyncio.gather(*(boxes[i % BOXES].exec(["true"]) for i in range(count)))
    rate = count / (time.perf_counter() - begin)
    beat.cancel()
    for box in boxes:
        await box.close()
    if not all(result.ok for result in results):
        raise AssertionError("a program failed")
    return rate, max(turns)


def in_threads(count: int, workers: int, **limits: str) -> tuple[float, float]:
    """The same in threads."""
    boxes = [sandbox.Container(**limits).create() for _ in range(BOXES)]  # type: ignore[arg-type, unused-ignore]
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        for box in boxes:
            box.exec(["true"])
        begin = time.perf_counter()
        results = list(pool.map(lambda i: boxes[i % BOXES].exec(["true"]), range(count)))
        rate = count / (time.perf_counter() - begin)
    for box in boxes:
        box.close()
    if not all(result.ok for result in results):
        raise AssertionError("a program failed")
    return rate, 0.0


async def one_by_one(count: int) -> tuple[float, float]:
    """One program after the other."""
    async with aio.Container() as box:
        begin = time.perf_counter()
        for _ in range(count):
            await box.exec(["true"])
        return count / (time.perf_counter() - begin), 0.0


def blocking(count: int) -> tuple[float, float]:
    """The same, without a loop."""
    with sandbox.Container() as box:
        begin = time.perf_counter()
        for _ in range(count):
            box.exec(["true"])
        return count / (time.perf_counter() - begin), 0.0


def ways(count: int) -> dict[str, Callable[[], tuple[float, float]]]:
    found: dict[str, Callable[[], tuple[float, float]]] = {
        "one by one, blocking": lambda: blocking(count),
        "one by one, asyncio": lambda: asyncio.run(one_by_one(count)),
        f"{count} at once, asyncio": lambda: asyncio.run(at_once(count)),
        f"{count} at once, asyncio, limits": lambda: asyncio.run(at_once(count, memory="500M")),
        "8 threads": lambda: in_threads(count, 8),
        "8 threads, limits": lambda: in_threads(count, 8, memory="500M"),
        "250 threads": lambda: in_threads(count, 250),
    }
    try:
        import uvloop
    except ImportError:
        return found
    found[f"{count} at once, uvloop"] = lambda: uvloop.run(at_once(count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="programs in a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(options.rounds):
        for name, way in ways(options.count).items():
            taken.setdefault(name, []).append(way())
    for name, rounds in taken.items():
        rate, busy = statistics.median(r for r, _ in rounds), max(b for _, b in rounds)
        print(f"{name:34} {rate:7.0f} programs/s" + (f", longest turn {busy * 1e3:.1f} ms of CPU time" if busy else ""))


if __name__ == "__main__":
    main()
