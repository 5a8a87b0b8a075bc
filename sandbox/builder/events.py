"""What a build tells while it goes on."""

from __future__ import annotations

import enum

from attrs import frozen

__all__ = ["Event", "EventKind"]


class EventKind(enum.StrEnum):
    """What an `Event` is about."""

    BEGIN = "begin"  # a step begins
    CACHED = "cached"  # it was done before, and is taken from the cache
    DONE = "done"  # it is done; `seconds` says how long it took
    OUTPUT = "output"  # `data`: what its command wrote, both streams
    WARNING = "warning"  # `text` says of what


@frozen
class Event:
    """One step of one stage, *number* of *total*; *text* is the instruction. Stages that are built at once mix theirs."""

    kind: EventKind
    stage: str = ""
    number: int = 0
    total: int = 0
    text: str = ""
    data: bytes = b""
    seconds: float = 0.0
