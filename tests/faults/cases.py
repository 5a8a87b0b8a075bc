"""One container with a fault in it, in a process of its own: what its caller was told, how long that took, and what is left.

Everything that a case starts comes to this process when its parent ends (prctl(PR_SET_CHILD_SUBREAPER)), so that nothing can hide,
and nothing else on the machine is mistaken for ours. Control groups bear their owner's pid in their names.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Final

from attrs import define, field, frozen

import sandbox
from sandbox._launch import driver
from tests.faults.faulty import Faulty
from tests.leak.snapshot import descendants, describe
from tests.support import patience

HANG_S: Final = patience(30.0)  # after which a case is ended
PATIENCE_S: Final = patience(1.0)  # in which everything must have gone
_SUBREAPER: Final = 36  # PR_SET_CHILD_SUBREAPER, <linux/prctl.h>
Scenario = Callable[[], object]


@frozen
class Outcome:
    """What became of a case."""

    error: str  # the type of what was raised; "": nothing was
    message: str
    is_typed: bool  # a SandboxError, or nothing
    seconds: float
    left: list[str] = field(factory=list[str])

    @property
    def complaints(self) -> list[str]:
        """What is wrong with it."""
        found = [f"left behind: {line}" for line in self.left]
        if not self.is_typed:
            found.append(f"{self.error}: {self.message}")
        elif self.error and not self.message:
            found.append(f"{self.error} without a word")
        if self.seconds > PATIENCE_S:
            found.append(f"took {self.seconds:.1f} s ({self.error or 'no error'})")
        return found


@define(eq=False)
class Case:
    """A running case."""

    pid: int
    pipe: int

    @property
    def has_ended(self) -> bool:
        return bool(select.select([self.pipe], [], [], 0)[0])

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def outcome(self) -> Outcome:
        """Wait for its end, and look at what is left."""
        ready = select.select([self.pipe], [], [], HANG_S)[0]
        if not ready:
            self.kill()
        with open(self.pipe, "rb") as file:
            told = file.read()
        found = Outcome(**json.loads(told)) if told else Outcome("", "", is_typed=True, seconds=0.0 if ready else HANG_S)
        found.left.extend(_left_by(self.pid))
        return found


def begin(scenario: Scenario, faulty: Faulty | None = None) -> Case:
    """Carry *scenario* out in a fork of this process, by a launcher with faults if one is given; see `own_orphans`."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        try:
            told = json.dumps(_carry_out(scenario, faulty)).encode()
        except BaseException:
            told = json.dumps({"error": "bug", "message": traceback.format_exc(), "is_typed": False, "seconds": 0.0, "left": []}).encode()
        os.write(write, told)
        os._exit(0)
    os.close(write)
    return Case(pid, read)


def _carry_out(scenario: Scenario, faulty: Faulty | None) -> dict[str, object]:
    if faulty is not None:
        driver._BINARY = str(faulty.program)  # type: ignore[misc]
    before = _fds()
    began = time.monotonic()
    error, typed = None, True
    try:
        scenario()
    except Exception as raised:
        error, typed = raised, isinstance(raised, sandbox.SandboxError)
    seconds = time.monotonic() - began
    message = str(error or "") if typed else "".join(traceback.format_exception(error))
    error_name = type(error).__name__ if error is not None else ""
    del error  # its frames hold what they were at work on
    launcher = 0 if faulty is None else faulty.launcher
    alive = list(_outliving(lambda: list(filter(None, map(describe, descendants(launcher)))), allow="sandbox-")) if launcher else []
    with contextlib.suppress(sandbox.SandboxError):
        sandbox.shut_down()
    left = [f"before its launcher ended: {line}" for line in alive] + [f"descriptor {fd}" for fd in sorted(_fds() - before)]
    return {"error": error_name, "message": message, "is_typed": typed, "seconds": seconds, "left": left}


def _fds() -> set[str]:
    found: set[str] = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.add(f"{fd} -> {os.readlink(f'/proc/self/fd/{fd}')}")
    return {line for line in found if not line.endswith("/fd")}


def _left_by(pid: int) -> list[str]:
    """What is left of a case after a while; processes are killed then."""
    left = list(_outliving(lambda: [*_processes(), *_groups(pid)]))
    for other in descendants(os.getpid()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(other, signal.SIGKILL)
    _reap()
    return left


def _outliving(look: Callable[[], list[str]], *, allow: str = "\0") -> Iterator[str]:
    deadline = time.monotonic() + PATIENCE_S
    while (left := [line for line in look() if not line.startswith(allow)]) and time.monotonic() < deadline:
        time.sleep(0.002)
    yield from left


def _processes() -> list[str]:
    _reap()
    return [said for pid in descendants(os.getpid()) if (said := describe(pid))]


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _groups(pid: int) -> Iterator[str]:
    for top in _starts():
        with contextlib.suppress(OSError):
            yield from (str(top / name) for name in os.listdir(top) if name.startswith(f"sandbox-{pid}-"))


def _starts() -> Iterator[Path]:
    from sandbox.cg import detect

    yield from (Path(hierarchy.start) for hierarchy in detect().hierarchies)


@contextlib.contextmanager
def own_orphans() -> Generator[None]:
    """Within the block orphans of this process's children come to it; afterwards they go where they went before."""
    libc = ctypes.CDLL(None)
    if libc.prctl(_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError("prctl(PR_SET_CHILD_SUBREAPER)")
    try:
        yield
    finally:
        libc.prctl(_SUBREAPER, 0, 0, 0, 0)
