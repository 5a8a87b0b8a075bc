"""What a copy may use, and how far it has come."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from attrs import define, field, frozen

from sandbox._types import Size, to_count, to_seconds, to_size
from sandbox.errors import LimitError, UsageError

MOST_DEPTH: Final = 4096
MOST_ENTRIES: Final = 1 << 31


class CopyProgress(NamedTuple):
    """How far a copy has come: what was copied last, and how many entries and bytes so far, holes included.

    The totals are None for a copy to the host: there, nobody knows what will be found.
    """

    path: str
    entries: int
    size: int
    total_entries: int | None
    total_size: int | None


Progress = Callable[[CopyProgress], object]


@frozen
class CopyLimits:
    """Bytes (holes count), entries (files, links and directories), levels of directories, and seconds (None: as long as it takes)."""

    max_size: int
    max_entries: int
    max_depth: int
    timeout: float | None

    @classmethod
    def checked(cls, max_size: Size, max_entries: int, max_depth: int, timeout: float | None) -> CopyLimits:
        """Raises: UsageError."""
        return cls(
            to_size(max_size, what="max_size"),
            to_count(max_entries, what="max_entries", least=0, most=MOST_ENTRIES),
            to_count(max_depth, what="max_depth", least=0, most=MOST_DEPTH),
            None if timeout is None else to_seconds(timeout, what="timeout"),
        )


def checked_progress(progress: Progress | None) -> Progress | None:
    """Raises: UsageError for what cannot be called."""
    if progress is not None and not callable(progress):
        raise UsageError(f"progress: {progress!r} cannot be called; give a function of one CopyProgress")
    return progress


@define
class Copying:
    """One copy under way: what it has used, and what it may. *what* (of *source*) names it in messages."""

    what: str
    source: str
    limits: CopyLimits
    progress: Progress | None = None
    entries: int = 0
    size: int = 0
    copied: int = 0  # of the entries
    total_entries: int | None = None
    total_size: int | None = None
    began: float = field(factory=time.monotonic)

    def again(self) -> Copying:
        """The same, from nothing, with the time that is left."""
        return Copying(self.what, self.source, self.limits, self.progress, began=self.began)

    @property
    def entries_left(self) -> int:
        """How many more entries there may be."""
        return self.limits.max_entries - self.entries

    def take_entries(self, count: int) -> None:
        """Count entries that were found. Raises: LimitError, TimeoutError."""
        self.entries += count
        if self.entries > self.limits.max_entries:
            message = f"more than {self.limits.max_entries} files and directories; pass a larger max_entries"
            raise LimitError(f"{self.what}: {self.source}: {message}", limit="max_entries")
        self.check_time()

    def check_size(self, more: int) -> None:
        """Refuse what will not fit, before it is read. Raises: LimitError."""
        if self.size + more > self.limits.max_size:
            raise LimitError(f"{self.what}: {self.source}: larger than {self.limits.max_size} bytes; pass a larger max_size", limit="max_size")

    def take_size(self, more: int) -> None:
        """Count bytes. Raises: LimitError, TimeoutError."""
        self.check_size(more)
        self.size += more
        self.check_time()

    def check_depth(self, depth: int) -> None:
        """Refuse a directory that is *depth* levels below the top. Raises: LimitError."""
        if depth > self.limits.max_depth:
            message = f"{self.what}: {self.source}: directories nested deeper than {self.limits.max_depth}; pass a larger max_depth"
            raise LimitError(message, limit="max_depth")

    def check_time(self) -> None:
        """Raises: TimeoutError when the time is over."""
        if self.limits.timeout is not None and time.monotonic() - self.began > self.limits.timeout:
            raise TimeoutError(f"{self.what}: {self.source}: not done within {self.limits.timeout:g} s; what was copied until then stays")

    def report(self, path: str, *, entries: int = 0) -> None:
        """Tell the caller that *path* has gone on, or that it is done."""
        self.copied += entries
        if self.progress is not None:
            self.progress(CopyProgress(path, self.copied, self.size, self.total_entries, self.total_size))
