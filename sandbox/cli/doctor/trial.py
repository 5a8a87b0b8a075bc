"""The proof: containers that are really started."""

from __future__ import annotations

import time
from typing import Any, Final

import sandbox
from sandbox.cli.doctor.finding import Finding, State, reason_of, remedy_of

_SECTION: Final = "trial"
DEFAULT: Final = "a container"
_NO_REMEDY: Final = "see what is missing above; if nothing is, report this as a bug"
_LIMITS: Final = {"memory": "64M", "pids": 16, "accounting": True}


def findings() -> list[Finding]:
    """Start containers; the last finding is the one that counts: whether the default container works."""
    default = _try(DEFAULT)
    if default.state is not State.OK:
        return [default]
    default = _try(DEFAULT)  # again: the first one also started the launcher, and its time would say nothing
    return [_try("... with the profile 'strict'", security="strict"), _limited(), _ids(), *_degraded(), default]


def _try(what: str, **options: Any) -> Finding:  # noqa: ANN401 - those of sandbox.run
    begin = time.perf_counter()
    try:
        result = sandbox.run(["true"], **options)
    except (sandbox.SandboxError, OSError) as error:
        return Finding(_SECTION, what, State.MISSING, f"{type(error).__name__}: {reason_of(error)}", remedy_of(error) or _NO_REMEDY)
    spent = (time.perf_counter() - begin) * 1000
    if result.ok:
        return Finding(_SECTION, what, State.OK, f"works (true, in {spent:.1f} ms)")
    return Finding(_SECTION, what, State.MISSING, f"true ended otherwise: {result.status.value}, {result.returncode}", _NO_REMEDY)


def _limited() -> Finding:
    return _try("... with limits on memory and processes", **_LIMITS)


def _ids() -> Finding:
    what = "... ids inside"
    with sandbox.Container(read_only=True) as container:
        rows = [line.split() for line in container.exec(["cat", "/proc/self/uid_map"]).stdout.decode().splitlines()]
    count = sum(int(row[2]) for row in rows if len(row) == 3)
    words = ", ".join(f"{row[2]} from {row[0]} on, {row[1]} outside" for row in rows if len(row) == 3)
    return Finding(_SECTION, what, State.OK if count > 1 else State.NOTE, words, "" if count > 1 else "give subids=True, or run as root")


def _degraded() -> list[Finding]:
    with sandbox.Container(read_only=True, strict=False) as container:
        return [Finding(_SECTION, "... not in force", State.NOTE, line) for line in container.degraded]
