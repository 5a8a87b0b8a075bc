"""One thing that was found out about the host, and small readers of what the kernel tells."""

from __future__ import annotations

import enum

from attrs import frozen


class State(enum.Enum):
    """What a finding means."""

    OK = "ok"
    MISSING = "missing"  # something does not work here, or works less well
    NOTE = "note"  # neither good nor bad, but worth knowing


@frozen
class Finding:
    """*what* was looked at, what was found, and for what is missing: what it would take."""

    section: str
    what: str
    state: State
    value: str
    remedy: str = ""


def read(path: str) -> str | None:
    """A small file of /proc or /sys without its last newline; None when it is not there or not ours to read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16).strip()
    except OSError:
        return None


def read_number(path: str) -> int | None:
    """The one whole number in a file; None when there is none (``max``, say)."""
    text = read(path)
    return int(text) if text is not None and text.removeprefix("-").isdigit() else None


def reason_of(error: Exception) -> str:
    """What an error says, without the remedy at its end, which a finding has beside."""
    return str(error).removesuffix(f"; {remedy_of(error)}")


def remedy_of(error: Exception) -> str:
    """What would help, as far as the error knows."""
    return str(getattr(error, "remedy", "") or getattr(error, "hint", ""))
