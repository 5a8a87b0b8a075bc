"""``sandbox doctor``: what this host offers, and for each thing missing, what it would take. The proof is a container at the end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from sandbox.cli.doctor import groups, identity, kernel, limits, networks, noise, trial
from sandbox.cli.doctor.finding import Finding, State

__all__ = ["Finding", "State", "examine", "main"]

USAGE: Final = """\
usage: sandbox doctor [--json]

Say what this host offers to containers, what is missing and what it would take, and try a container.
Exit code: 0 when the default container works, 1 when not, 2 for wrong use.
"""
_MARKS: Final = {State.OK: "  ok     ", State.MISSING: "  MISSING", State.NOTE: "  note   "}
_WIDTH: Final = 36


def main(arguments: Sequence[str]) -> int:
    """Examine the host and print what was found."""
    if set(arguments) & {"-h", "--help"}:
        print(USAGE, end="")
        return 0
    if unknown := [word for word in arguments if word != "--json"]:
        print(f"sandbox doctor: unknown argument {unknown[0]!r} (see sandbox doctor --help)", file=sys.stderr)
        return 2
    found = examine()
    works = found[-1].state is State.OK
    if "--json" in arguments:
        _print_json(found, works=works)
    else:
        _print_text(found, works=works)
    return 0 if works else 1


def examine() -> list[Finding]:
    """All findings; the last one is the trial of the default container."""
    return [finding for part in (kernel, identity, groups, networks, limits, noise, trial) for finding in part.findings()]


def _print_json(found: list[Finding], *, works: bool) -> None:
    import json

    rows = [{"section": f.section, "what": f.what, "state": f.state.value, "value": f.value, "remedy": f.remedy} for f in found]
    print(json.dumps({"works": works, "findings": rows}, indent=2))


def _print_text(found: list[Finding], *, works: bool) -> None:
    section = remedy = ""
    for finding in found:
        if finding.section != section:
            section = finding.section
            print(f"{section}:")
        print(f"{_MARKS[finding.state]} {finding.what:{_WIDTH}} {finding.value}")
        if finding.remedy and finding.remedy != remedy:  # said once for several in a row
            print(f"{'':{len(_MARKS[State.OK]) + _WIDTH + 2}}-> {finding.remedy}")
        remedy = finding.remedy
    missing = sum(finding.state is State.MISSING for finding in found)
    verdict = "The default container works here" if works else "The default container does not work here"
    print(f"{verdict}; {missing} thing{'s are' if missing != 1 else ' is'} missing." if missing else f"{verdict}; nothing is missing.")
