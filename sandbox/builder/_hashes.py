"""Hashes of the files of a build context, remembered by what the kernel says of a file: device, inode, size, and both times.

A file that was changed has another time of change (ctime), which nobody can set. One that was changed just now may be changed again within the
same tick of the clock: its hash is not remembered.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from contextlib import suppress
from typing import Any, Final, cast

from attrs import define, field

from sandbox.builder._tree import Entry, Tree

MAX_REMEMBERED: Final = 200_000
_FRESH_NS: Final = 2_000_000_000
_VERSION: Final = 1


@define(eq=False, repr=False)
class Hashes:
    """The hashes of one context; *path*: the file that keeps them from one build to the next, None for none. Thread-safe."""

    path: str | None = None
    known: dict[str, str] = field(factory=dict[str, str])
    used: dict[str, str] = field(factory=dict[str, str])
    _lock: threading.Lock = field(factory=threading.Lock, init=False)

    def load(self) -> None:
        """Read what the last build kept; a damaged file is as none."""
        if self.path is None:
            return
        try:
            with open(self.path, "rb") as file:
                found: Any = json.load(file)
        except (OSError, ValueError):
            return
        if isinstance(found, dict) and cast("dict[str, Any]", found).get("version") == _VERSION:
            hashes: Any = cast("dict[str, Any]", found).get("hashes")
            if isinstance(hashes, dict):
                self.known = {str(key): str(value) for key, value in cast("dict[str, Any]", hashes).items()}

    def save(self) -> None:
        """Keep what this build has used, if that is new; that it cannot be kept costs time only."""
        if self.path is None or self.used == self.known:
            return
        import tempfile  # as nothing is new mostly

        with suppress(OSError):
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=os.path.dirname(self.path), delete=False) as file:
                json.dump({"version": _VERSION, "hashes": dict(list(self.used.items())[:MAX_REMEMBERED])}, file)
            os.replace(file.name, self.path)

    def of(self, tree: Tree, entry: Entry) -> str:
        """The sha256 of a file's content."""
        status = entry.status
        key = f"{status.st_dev}:{status.st_ino}:{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}"
        found = self.known.get(key) or self.used.get(key)
        if found is None:
            fd = tree.open(entry)
            try:
                found = _hash(fd)
            finally:
                os.close(fd)
        if time.time_ns() - status.st_ctime_ns > _FRESH_NS:
            with self._lock:
                self.used[key] = found
        return found


def _hash(fd: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(fd, 1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
