"""Deadlines for sockets: one thread that shuts down those whose time is over, whatever the thread that reads them waits for.

A socket's own time-out starts anew with each byte. A server that sends one byte each minute, one header after another, or trailers without
end, would keep its reader for ever.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from typing import Final

_TICK_S: Final = 0.1  # how late it may be


class Watch:
    """The deadline of one socket; `expired` once it has been shut down for it."""

    def __init__(self, watchdog: Watchdog, sock: socket.socket, seconds: float) -> None:
        self._watchdog = watchdog
        # A descriptor of its own: whoever closes the other one meanwhile cannot make us shut down somebody else's socket.
        self._socket = socket.socket(fileno=os.dup(sock.fileno()))
        self.deadline = time.monotonic() + seconds
        self.expired = False

    def extend(self, seconds: float) -> None:
        """From now on, *seconds*."""
        self.deadline = time.monotonic() + seconds

    def release(self) -> None:
        """Watch no longer. It may be called twice."""
        self._watchdog.release(self)

    def expire(self) -> None:
        """Shut the socket down: whoever reads or writes it gets an end or an error at once."""
        self.expired = True
        with contextlib.suppress(OSError):  # it was over already
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()


class Watchdog:
    """Watches sockets. Its thread lives only while there are some, or for a moment longer."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._watches: set[Watch] = set()
        self._thread: threading.Thread | None = None
        self._aborted = False

    def watch(self, sock: socket.socket, seconds: float) -> Watch:
        """Shut *sock* down in *seconds* unless that is extended, or released before."""
        watch = Watch(self, sock, seconds)
        with self._changed:
            self._watches.add(watch)
            if self._aborted:
                watch.expire()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sandbox-watchdog", daemon=True)
                self._thread.start()
        return watch

    def release(self, watch: Watch) -> None:
        """Watch it no longer."""
        with self._changed:
            if watch in self._watches:
                self._watches.remove(watch)
                watch.close()
            self._changed.notify()

    def abort(self) -> None:
        """Shut all down, and those that come later at once."""
        with self._changed:
            self._aborted = True
            for watch in self._watches:
                watch.expire()

    def _run(self) -> None:
        with self._changed:
            while self._watches:
                now = time.monotonic()
                for watch in self._watches:
                    if watch.deadline <= now and not watch.expired:
                        watch.expire()
                self._changed.wait(_TICK_S)
            self._thread = None
