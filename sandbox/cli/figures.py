"""What the programs of containers that outlive their command use, in Docker's words: ``sandbox stats``."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from attrs import define, field

from sandbox import BrokenError, ContainerNotFoundError, SandboxError
from sandbox.cli import tables
from sandbox.cli.outcome import FAILED, complain
from sandbox.cli.parser import Parser
from sandbox.keep import SHORT_ID, Kept, containers, find

Carry = Callable[[argparse.Namespace], int]
EVERY_S: Final = 1.0
SILENT_S: Final = 30.0  # until a keeper that gave no answer is asked again
_CLEAR: Final = "\033[H\033[J"
_COLUMNS: Final = {
    "CONTAINER ID": "ID", "NAME": "Name", "CPU %": "CPUPerc", "CPU TIME": "CPUTime", "MEM USAGE / LIMIT": "MemUsage", "MEM %": "MemPerc",
    "PIDS": "PIDs",
}  # fmt: skip
_NOTHING: Final = "--"


def add_stats(parser: Parser) -> Carry:
    """``sandbox stats``."""
    parser.add_argument("--no-stream", action="store_true", help="say it once; without, again each second")
    parser.add_argument("--all", "-a", action="store_true", help="also those that do not run")
    parser.add_argument("--no-trunc", action="store_true", help="whole ids")
    tables.add_format(parser)
    parser.add_argument("containers", metavar="CONTAINER", nargs="*", help="without: all that run")
    return _stats


def _stats(parsed: argparse.Namespace) -> int:
    watch = _Watch(parsed)
    rows = watch.rows()
    if parsed.no_stream:
        _show(rows, parsed.format)
        return FAILED if watch.has_failed else 0
    clears = parsed.format == "table" and sys.stdout.isatty()
    while not watch.are_gone:
        print(end=_CLEAR if clears else "")
        _show(rows, parsed.format)
        sys.stdout.flush()
        time.sleep(EVERY_S)
        rows = watch.rows()
    return FAILED


def _show(rows: list[dict[str, str]], form: str) -> None:
    tables.show(rows, _COLUMNS, form=form)


@define
class _Watch:
    """What is asked again and again, and what was told before."""

    parsed: argparse.Namespace
    has_failed: bool = False
    are_gone: bool = False  # all that were named
    _before: dict[str, tuple[float, float]] = field(factory=dict[str, tuple[float, float]])  # CPU time, and when
    _silent: dict[str, float] = field(factory=dict[str, float])
    _told: set[str] = field(factory=set[str])

    def rows(self) -> list[dict[str, str]]:
        found: list[dict[str, str]] = []
        missing = 0
        for name in self.parsed.containers or [kept.id for kept in containers()]:
            try:
                kept = find(name)
                is_up = kept.state.is_up
                if is_up or self.parsed.all or self.parsed.containers:
                    found.append(self._row(kept, self._ask(kept)))
            except ContainerNotFoundError as error:  # it has just gone
                missing += 1
                self._complain(name, error)
            except SandboxError as error:
                self._complain(name, error)
        self.are_gone = missing > 0 and missing == len(self.parsed.containers)
        return found

    def _complain(self, name: str, error: SandboxError) -> None:
        self.has_failed = True
        if name not in self._told:  # once is enough
            self._told.add(name)
            complain("sandbox stats", str(error))

    def _ask(self, kept: Kept) -> dict[str, Any]:
        """What it says; nothing where it says nothing."""
        if not kept.state.is_up or time.monotonic() < self._silent.get(kept.id, 0.0):
            return {}
        try:
            return kept.stats()
        except BrokenError as error:  # so that a keeper that is stopped does not keep us from the others each time
            self._silent[kept.id] = time.monotonic() + SILENT_S
            self._complain(kept.id, error)
        except ContainerNotFoundError:
            raise
        except SandboxError as error:  # it has no control group
            self._complain(kept.id, error)
        return {}

    def _row(self, kept: Kept, said: dict[str, Any]) -> dict[str, str]:
        config = kept.config
        cpu, memory, pids = (said.get(name) for name in ("cpu_time", "memory", "pids"))
        limit = _limit(config.options.get("memory"))
        return {
            "CPUPerc": self._share(kept.id, cpu),
            "CPUTime": _NOTHING if cpu is None else f"{cpu:.2f}s",
            "ID": kept.id if self.parsed.no_trunc else kept.id[:SHORT_ID],
            "MemPerc": _NOTHING if memory is None or not limit else f"{100 * memory / limit:.2f}%",
            "MemUsage": f"{_NOTHING if memory is None else tables.size(memory)} / {tables.size(limit) if limit else _NOTHING}",
            "Name": config.name,
            "PIDs": _NOTHING if pids is None else str(pids),
        }

    def _share(self, ident: str, cpu: float | None) -> str:
        """Of one CPU, since we looked last."""
        before, now = self._before.pop(ident, None), time.monotonic()
        if cpu is None:
            return _NOTHING
        self._before[ident] = (cpu, now)
        if before is None or now <= before[1]:
            return _NOTHING
        return f"{100 * max(cpu - before[0], 0.0) / (now - before[1]):.2f}%"


def _limit(said: object) -> int:
    if isinstance(said, int):
        return said
    from sandbox.cli.options import to_bytes

    return to_bytes("memory", said) if isinstance(said, str) else 0
