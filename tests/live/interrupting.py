"""Interrupt a scenario at many lines, one after another, and print what was wrong each time: ``python -m tests.live.interrupting NAME POINTS``.

In a process of its own, for descriptors: between a system call and whoever takes its result there is always a place for Ctrl-C.
"""

from __future__ import annotations

import gc
import linecache
import os
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Self

import sandbox
from sandbox import PIPE, Container, Party, _spares, interact
from sandbox._launch import driver
from tests.leak.snapshot import descendants, describe
from tests.support import patience

LIBRARY = os.path.dirname(sandbox.__file__)
SOON_S = patience(10.0)
Scenario = Callable[[], Iterator[Container]]


def _is_finalizing(frame: FrameType | None) -> bool:
    """Whether it runs for a ``__del__``, in which the interpreter itself loses every exception."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class Interrupt:
    """Raises KeyboardInterrupt at the n-th line of the library that is reached within the block; `count` says how many were."""

    def __init__(self, at: int = 0) -> None:
        self.at, self.count = at, 0
        self._last: dict[int, int] = {}

    def __enter__(self) -> Self:
        sys.settrace(self._on_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _on_call(self, frame: FrameType, *_: object) -> Any:
        if not frame.f_code.co_filename.startswith(LIBRARY) or _is_finalizing(frame):
            return None
        self._last.pop(id(frame), None)
        return self._on_line

    def _on_line(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "line" and not self._leaves_block(frame):
            self.count += 1
            if self.count == self.at:
                raise KeyboardInterrupt
        return self._on_line

    def _leaves_block(self, frame: FrameType) -> bool:
        """Whether the end of a with block is what comes next: there the interpreter looks for no signals, or no lock would be safe."""
        last, self._last[id(frame)] = self._last.get(id(frame), 0), frame.f_lineno
        return frame.f_lineno < last and linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with ")


def execute() -> Iterator[Container]:
    with Container() as container:
        yield container
        container.exec(["cat"], input=b"x")


def start() -> Iterator[Container]:
    with Container() as container:
        yield container
        with container.popen(["cat"], stdin=PIPE, stdout=PIPE) as program:
            program.communicate(b"x")


def limit() -> Iterator[Container]:
    with Container(memory="64M", pids=20) as container:
        yield container
        container.exec(["true"], memory="32M")
        container.pause()
        container.resume()


def talk() -> Iterator[Container]:
    with Container() as container:
        yield container
        interact(Party(container, ["sh", "-c", "echo hi; read x"]), Party(container, ["sh", "-c", "read x; echo $x"]))


def once() -> Iterator[Container]:
    sandbox.run(["true"])
    yield from ()


def alive() -> list[str]:
    launcher = driver.known()
    inits = [] if launcher is None else descendants(launcher.own_pid)
    return [said for pid in inits if (said := describe(pid)) and not said.startswith("sandbox-release")]


def outliving() -> list[str]:
    """What is alive when everything has been closed, after a while."""
    gc.collect()
    deadline = time.monotonic() + SOON_S
    while (left := alive()) and time.monotonic() < deadline:
        time.sleep(0.002)
    return left


def interrupt(scenario: Scenario, at: int) -> Iterator[str]:
    """What is wrong with an interrupt at the line of that number."""
    containers: list[Container] = []
    began = time.monotonic()
    came = False
    try:
        with Interrupt(at) as tracer:
            for container in scenario():
                containers.append(container)  # noqa: PERF402 - extend() would keep what came before the interrupt to itself
    except KeyboardInterrupt:
        came = True
    if (took := time.monotonic() - began) > SOON_S:
        yield f"it took {took:.1f} s"
    if not came and tracer.count >= at:
        yield "it was lost"
    for container in containers:  # as whoever holds it does, when `with` itself was interrupted
        container.close()
    del containers
    if left := outliving():
        yield f"alive: {left}"
    if not sandbox.run(["true"]).ok:
        yield "the next run failed"


def main(name: str, points: int) -> None:
    scenario: Scenario = globals()[name]
    _spares.PER_KIND = 0  # type: ignore[misc]  # what is made ahead is alive, and may be
    for _ in range(3):
        list(scenario())
    with Interrupt() as whole:
        list(scenario())
    for at in range(1, whole.count, max(1, whole.count // points)):
        for complaint in interrupt(scenario, at):
            print(f"line {at} of {whole.count}: {complaint}")
    sandbox.shut_down()  # which waits until the launcher has removed everything, however busy the machine is


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
