"""What the programs of containers that outlive their command use, in Docker's words: ``sandbox stats``."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from sandbox import SandboxError, UnsupportedError
from sandbox.cli import tables
from sandbox.cli.arguments import Parser
from sandbox.cli.outcome import FAILED, complain
from sandbox.keep import SHORT_ID, Kept, containers, find

Carry = Callable[[argparse.Namespace], int]


def add_stats(parser: Parser) -> Carry:
    parser.add_argument("--no-stream", action="store_true", help="say it once; the only way so far")
    tables.add_format(parser)
    parser.add_argument("containers", metavar="CONTAINER", nargs="*", help="without: all that run")
    return _stats


def _stats(parsed: argparse.Namespace) -> int:
    if not parsed.no_stream:
        raise UnsupportedError("figures are said once, not again and again", feature="stats as a stream", remedy="give --no-stream")
    rows: list[dict[str, str]] = []
    code = 0
    for name in parsed.containers or [kept.id for kept in containers()]:
        try:
            kept = find(name)
            if parsed.containers or kept.state.is_up:
                rows.append(_figures(kept))
        except SandboxError as error:  # it has just ended, or has no control group
            complain("sandbox stats", str(error))
            code = FAILED
    tables.show(rows, {"CONTAINER ID": "ID", "NAME": "Name", "CPU TIME": "CPUTime", "MEM USAGE": "MemUsage", "PIDS": "PIDs"}, form=parsed.format)
    return code


def _figures(kept: Kept) -> dict[str, str]:
    found = kept.stats()
    cpu, memory, pids = (found.get(name) for name in ("cpu_time", "memory", "pids"))
    return {
        "CPUTime": "--" if cpu is None else f"{cpu:.2f}s",
        "ID": kept.id[:SHORT_ID],
        "MemUsage": "--" if memory is None else tables.size(memory),
        "Name": kept.name,
        "PIDs": "--" if pids is None else str(pids),
    }
