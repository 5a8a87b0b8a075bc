"""What programs wrote, kept within bounds and made fit to be shown: it comes from inside, and goes to somebody's terminal."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from typing import Final

__all__ = ["Log", "Watch", "printable"]

MAX_LINE: Final = 64 << 10  # bytes that are searched as one line
MAX_KEPT: Final = 256 << 10  # bytes of a service's last lines
MAX_SHOWN: Final = 16 << 10  # characters of one program in a report
# All of C0 but newline and tab, DEL, and C1, which terminals heed too; \r\n is a newline.
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(data: bytes | str, *, keep: int = MAX_SHOWN) -> str:
    """The last *keep* characters as text that moves no cursor and changes no colour: control characters are spelled out."""
    text = data[-4 * keep :].decode("utf-8", "replace") if isinstance(data, bytes) else data
    left_out = len(data) - len(text) if isinstance(data, str) else max(0, len(data) - 4 * keep)
    if len(text) > keep:
        left_out += len(text) - keep
        text = text[-keep:]
    shown = _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))
    return f"[... {left_out} before this left out ...]\n{shown}" if left_out else shown


class Watch:
    """Waits for a line that matches; `fileno` becomes readable when it may have come, or no more lines will."""

    def __init__(self, pattern: re.Pattern[str]) -> None:
        self._pattern = pattern
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.is_found = False

    def fileno(self) -> int:
        """For poll(2)."""
        return self._event

    def look_at(self, line: bytes) -> None:
        """Note whether *line* is the one."""
        if not self.is_found and self._pattern.search(line.decode("utf-8", "replace").rstrip("\r\n")):
            self.is_found = True
            self.wake()

    def wake(self) -> None:
        """Make whoever waits look again."""
        os.eventfd_write(self._event, 1)

    def close(self) -> None:
        os.close(self._event)


class Log:
    """The output of one service, read by a thread of its own for as long as it can be written to; the last lines are kept."""

    def __init__(self, fd: int, name: str) -> None:
        """Take over *fd*, the reading end of a pipe."""
        self._fd = fd
        self._lock = threading.Lock()
        self._lines: deque[bytes] = deque()
        self._kept = 0
        self._rest = b""
        self._watches: list[Watch] = []
        self.total = 0
        self._thread = threading.Thread(target=self._read, name=f"output of {name}", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        try:
            while data := os.read(self._fd, 1 << 16):
                self._add(data)
        finally:
            os.close(self._fd)
            with self._lock:
                for watch in self._watches:
                    watch.wake()

    def _add(self, data: bytes) -> None:
        with self._lock:
            self.total += len(data)
            *lines, rest = (self._rest + data).split(b"\n")
            for line in lines:
                self._keep(line + b"\n")
            while len(rest) > MAX_LINE:
                self._keep(rest[:MAX_LINE])
                rest = rest[MAX_LINE:]
            self._rest = rest
            for watch in self._watches:
                watch.look_at(rest)  # a prompt ends in no newline

    def _keep(self, line: bytes) -> None:
        self._lines.append(line)
        self._kept += len(line)
        while self._kept > MAX_KEPT:
            self._kept -= len(self._lines.popleft())
        for watch in self._watches:
            watch.look_at(line)

    def watch(self, watch: Watch) -> None:
        """Have *watch* look at the lines that are kept, and at each that comes."""
        with self._lock:
            for line in (*self._lines, self._rest):
                watch.look_at(line)
            self._watches.append(watch)
        if not self._thread.is_alive():
            watch.wake()

    def unwatch(self, watch: Watch) -> None:
        with self._lock:
            self._watches.remove(watch)

    def read(self, start: int = 0) -> bytes:
        """What is kept of the output from byte *start* of all on."""
        with self._lock:
            kept = b"".join((*self._lines, self._rest))
            return kept[max(0, start - (self.total - len(kept))) :]

    def join(self, timeout: float) -> None:
        """Wait until everything was read: the end of the program is known, that of its output may be some steps behind."""
        self._thread.join(timeout)
