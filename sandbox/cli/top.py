"""``sandbox top``: the processes of a container that outlives its command, as this host sees them."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

from attrs import frozen

from sandbox import UsageError
from sandbox.cli import tables
from sandbox.cli.parser import Parser
from sandbox.keep import Kept, find

Carry = Callable[[argparse.Namespace], int]
_HEADINGS: Final = ("UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD")
_MOST: Final = 4096  # bytes of a command line
_PTS: Final = range(136, 144)  # majors of /dev/pts (Documentation/admin-guide/devices.txt)
_DAY_S: Final = 86_400


def add_top(parser: Parser) -> Carry:
    """``sandbox top``."""
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("options", metavar="OPTION", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return _top


def _top(parsed: argparse.Namespace) -> int:
    if parsed.options:
        raise UsageError("top: options of ps(1) are not offered; `sandbox exec CONTAINER ps ...` asks the container's own")
    kept = find(parsed.container)
    found = processes(kept)
    print(tables.table(_HEADINGS, [process.row() for process in found]), end="")
    return 0


@frozen
class Process:
    """One, by proc(5)."""

    pid: int
    parent: int
    uid: int
    started: float  # since 1970
    cpu_s: float
    terminal: int
    command: str

    def row(self) -> list[str]:
        """As ``ps -ef`` writes it."""
        now = time.time()
        share = int(100 * self.cpu_s / max(now - self.started, 1.0))
        began = datetime.fromtimestamp(self.started).astimezone()
        major, minor = self.terminal >> 8 & 0xFFF, (self.terminal & 0xFF) | (self.terminal >> 12 & 0xFFF00)
        minutes, seconds = divmod(int(self.cpu_s), 60)
        hours, minutes = divmod(minutes, 60)
        return [
            str(self.uid), str(self.pid), str(self.parent), str(min(share, 99)), f"{began:%H:%M}" if now - self.started < _DAY_S else f"{began:%b%d}",
            f"pts/{(major - _PTS.start) * 256 + minor}" if major in _PTS else "?", f"{hours:02}:{minutes:02}:{seconds:02}", self.command,
        ]  # fmt: skip


def processes(kept: Kept) -> list[Process]:
    """All in the container but its init: they are that one's descendants, as orphans become its children. Its keeper is not asked.

    Raises: UsageError: it does not run.
    """
    state = kept.state
    if not state.is_up or not state.init:
        raise UsageError(f"container {kept.name} is not running")
    every = {process.pid: process for process in _every()}
    children: dict[int, list[int]] = {}
    for process in every.values():
        children.setdefault(process.parent, []).append(process.pid)
    inside, look = list[int](), [state.init]
    while look:
        pid = look.pop()
        inside += children.get(pid, [])
        look += children.get(pid, [])
    if kept.status == "dead":  # then the number may be another's by now
        raise UsageError(f"container {kept.name} has just ended")
    return [every[pid] for pid in sorted(inside)]


def _uid(name: str) -> int:
    """By its status: the directory of one that may not be looked into belongs to root."""
    with open(f"/proc/{name}/status", "rb") as file:
        return next((int(line.split()[2]) for line in file if line.startswith(b"Uid:")), 0)


def _every() -> Iterator[Process]:
    tick = os.sysconf("SC_CLK_TCK")
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", "rb") as file:
                head, _, rest = file.read().rpartition(b")")
            with open(f"/proc/{name}/cmdline", "rb") as file:
                words = file.read(_MOST).rstrip(b"\0").replace(b"\0", b" ")
            uid = _uid(name)
        except OSError:  # it has just ended, or is hidden from us
            continue
        fields = rest.split()
        command = words or b"[" + head.partition(b"(")[2] + b"]"
        yield Process(
            int(name), int(fields[1]), uid, booted + int(fields[19]) / tick, (int(fields[11]) + int(fields[12])) / tick, int(fields[4]),
            command.decode(errors="backslashreplace"),
        )  # fmt: skip
