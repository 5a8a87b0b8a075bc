"""What happened to containers that outlive their commands: written by their keepers, read by anybody who may.

Theory of operation
-------------------
``events.0`` in the store's directory is a file of lines, each a JSON object, to which keepers append, each event by one write(2) with O_APPEND: such
writes do not mix, so nobody waits for anybody. When it has half of BOUND, it becomes ``events.1``, and what was that is gone. Who turns to the next
file has a lock on the full one, so that two do not do it at once; he asks for it without waiting, and who does not get it writes on. Somebody may be
stopped, or killed, with the lock: until he goes on the file grows to BOUND, and then what comes is dropped. A write that a kill has cut short spoils
its own line alone, as each begins with the end of the last one; and a reader takes nothing on trust.

A reader looks at the files, again and again if he follows: there is no inotify in Python's library, and two stat(2) cost little.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

from attrs import define, field, frozen

from sandbox.keep._record import ID, Config

BOUND: Final = 1 << 20
MAX_EVENT: Final = 8192
MAX_WORD: Final = 256  # of what a program or a user has chosen
LOOK_S: Final = 0.1  # between two looks of one who follows
CHUNK: Final = 65536
CURRENT: Final = "events.0"
LAST: Final = "events.1"
_FLAGS: Final = os.O_NOFOLLOW | os.O_CLOEXEC


@frozen
class Event:
    """Something that happened to a container. *attributes*: its name and image, its labels, and what belongs to the action."""

    time_ns: int
    action: str
    id: str
    attributes: Mapping[str, str]


def add(store: int, action: str, config: Config, **attributes: object) -> None:
    """Append an event to those of the store behind *store*. What cannot be written is lost."""
    words = {name: str(text)[:MAX_WORD] for name, text in {"image": config.image, "name": config.name, **attributes}.items()}
    raw = _encode(action, config.id, {**config.labels, **words})
    if len(raw) > MAX_EVENT:
        raw = _encode(action, config.id, words)
    with contextlib.suppress(OSError):
        fd = os.open(CURRENT, os.O_WRONLY | os.O_CREAT | os.O_APPEND | _FLAGS, 0o600, dir_fd=store)
        try:
            if os.fstat(fd).st_size < BOUND:
                os.write(fd, raw)
            if os.fstat(fd).st_size >= BOUND // 2:
                _turn(store, fd)
        finally:
            os.close(fd)


def _encode(action: str, ident: str, attributes: Mapping[str, str]) -> bytes:
    return b"\n" + json.dumps({"time": time.time_ns(), "action": action[:MAX_WORD], "id": ident, "attributes": attributes}).encode() + b"\n"


def _turn(store: int, fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    if os.path.samestat(os.fstat(fd), os.stat(CURRENT, dir_fd=store, follow_symlinks=False)):
        os.rename(CURRENT, LAST, src_dir_fd=store, dst_dir_fd=store)


@define
class EventReader:
    """Gives what is new each time. *opened*: gives the store's directory within ``with``, or None while there is none. Closed by `close`."""

    opened: Callable[[], contextlib.AbstractContextManager[int | None]]
    _fd: int = field(default=-1, init=False)
    _rest: bytes = field(default=b"", init=False)

    def read(self) -> Iterator[Event]:
        """What has been written since the last call, as far as it is still there."""
        with self.opened() as store:
            if store is None:
                return
            yield from self._lines()
            # At most both files: who writes without end is not to keep us.
            for name in self._next(store):
                with contextlib.suppress(FileNotFoundError):
                    fd = os.open(name, os.O_RDONLY | _FLAGS, dir_fd=store)
                    yield from self._lines()  # what came between the last look and the turn to the next file
                    self.close()
                    self._fd = fd
                    yield from self._lines()

    def _next(self, store: int) -> tuple[str, ...]:
        """The files after ours, the older first."""
        if self._fd < 0:
            return (LAST, CURRENT)
        ours = os.fstat(self._fd)
        for name, after in ((CURRENT, ()), (LAST, (CURRENT,))):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(ours, os.stat(name, dir_fd=store, follow_symlinks=False)):
                    return after
        return (LAST, CURRENT)

    def _lines(self) -> Iterator[Event]:
        left = 2 * BOUND
        while self._fd >= 0 and left > 0 and (data := os.read(self._fd, CHUNK)):
            left -= len(data)
            *whole, self._rest = (self._rest + data).split(b"\n")
            if len(self._rest) > MAX_EVENT:  # none of ours
                self._rest = b""
            yield from filter(None, map(decode, whole))

    def close(self) -> None:
        """Close the file."""
        self._rest = b""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def decode(line: bytes) -> Event | None:
    """Read a line; None: it is no event."""
    try:
        loaded: object = json.loads(line) if 0 < len(line) <= MAX_EVENT else None
    except (ValueError, RecursionError):
        return None
    found: dict[str, Any] = cast("dict[str, Any]", loaded) if isinstance(loaded, dict) else {}
    moment, action, ident, attributes = (found.get(name) for name in ("time", "action", "id", "attributes"))
    is_sound = (
        type(moment) is int
        and 0 <= moment < 1 << 63
        and isinstance(action, str)
        and isinstance(ident, str)
        and ID.fullmatch(ident)
        and isinstance(attributes, dict)
        and all(isinstance(text, str) for text in cast("dict[str, object]", attributes).values())
    )
    return Event(cast("int", moment), cast("str", action), cast("str", ident), cast("dict[str, str]", attributes)) if is_sound else None


def follow(
    opened: Callable[[], contextlib.AbstractContextManager[int | None]], since: float | None, until: float | None, *, ends: bool
) -> Iterator[Event]:
    """What `sandbox.keep.events` gives; *ends*: do not wait for more."""
    since_ns = time.time_ns() if since is None else int(since * 1e9)
    until_ns = None if until is None else int(until * 1e9)
    reader = EventReader(opened)
    try:
        while True:
            is_over = ends or (until_ns is not None and time.time_ns() >= until_ns)
            for event in reader.read():
                if since_ns <= event.time_ns and (until_ns is None or event.time_ns < until_ns):
                    yield event
            if is_over:
                return
            time.sleep(LOOK_S if until_ns is None else min(LOOK_S, max(until_ns - time.time_ns(), 0) / 1e9))
    finally:
        reader.close()
