"""The program that a detached container is for, while it runs once: its process, and its output on the way to the log."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import define, field

from sandbox import Container, Process, UnsupportedError
from sandbox.keep._log import CHUNK, LogWriter

_TIOCGPTPEER: Final = 0x5441  # ioctl_tty(2), Linux 4.13: no path is looked up


@define(eq=False)
class Program:
    """One run. *streams*: descriptors to read from, and the stream that each is; *ended*: hangs up at the end, for all who wait."""

    process: Process
    streams: dict[int, int]
    ended: int = field(init=False)
    _ending: int = field(init=False)
    owned: list[int] = field(factory=list[int])
    input: int | None = None  # where what it reads is written to: one of *owned*, or the terminal

    def __attrs_post_init__(self) -> None:
        self.ended, self._ending = os.pipe()

    @classmethod
    def start(cls, container: Container, argv: Sequence[Any], options: Mapping[str, Any], *, tty: bool, interactive: bool, strict: bool) -> Program:
        """Start it. Raises: as `Container.popen`."""
        if tty:
            process = _popen(container, argv, {**options, "tty": True}, strict=strict)
            terminal = process.terminal
            if terminal is None:
                raise AssertionError("a program with tty=True has a terminal")
            os.set_blocking(terminal, False)
            # Its other end stays open here. Otherwise the first moment in which no program has it would be the end of the output for us, and a
            # terminal without anybody behind it is always "ready": what a program that opens it later writes could be had by asking again and again.
            try:
                peer = fcntl.ioctl(terminal, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            except BaseException:
                process.kill()
                process.close()
                raise
            return cls(process, {terminal: 1}, owned=[peer], input=terminal)
        with contextlib.ExitStack() as undo, contextlib.ExitStack() as theirs:
            ends: list[int] = []
            words: dict[str, Any] = {}
            for name in ("stdout", "stderr"):
                reader, words[name] = os.pipe()
                undo.callback(os.close, reader)
                theirs.callback(os.close, words[name])
                os.set_blocking(reader, False)
                ends.append(reader)
            feed = None
            if interactive:  # open as long as it runs, as Docker's: whoever is attached may go, and another one come
                words["stdin"], feed = os.pipe()
                undo.callback(os.close, feed)
                theirs.callback(os.close, words["stdin"])
                os.set_blocking(feed, False)
            process = _popen(container, argv, {**options, **words}, strict=strict)
            undo.pop_all()
        return cls(process, {ends[0]: 1, ends[1]: 2}, owned=[*ends, *([] if feed is None else [feed])], input=feed)

    def move(self, fd: int, log: LogWriter) -> bool:
        """Take what is there into the log, once; whether anything came."""
        try:
            data = os.read(fd, CHUNK)
        except BlockingIOError:
            return False
        if not data:
            del self.streams[fd]
            return False
        log.write(self.streams[fd], data)
        return True

    def drain(self, log: LogWriter, limit: float) -> None:
        """Take the rest; those who wrote are being killed, which takes no longer than *limit* seconds."""
        deadline = time.monotonic() + limit
        for fd in tuple(self.streams):
            while self.move(fd, log) and time.monotonic() < deadline:
                pass

    def close(self) -> None:
        """Tell those who wait, and close everything but `ended`, which has its readers."""
        self.process.close()
        for fd in self.owned:
            os.close(fd)
        self.owned.clear()
        self.streams.clear()
        if self._ending >= 0:
            os.close(self._ending)
            self._ending = -1

    def watch(self) -> int:
        """A descriptor of the caller's own that hangs up at the end of the run."""
        return os.dup(self.ended)

    def dup_input(self) -> int | None:
        """A descriptor of the caller's own: of the terminal, or of what its input is written to; None: it is empty."""
        return None if self.input is None else os.dup(self.input)

    def forget(self) -> None:
        """Close `ended`; nobody asks for it any more."""
        os.close(self.ended)


def _popen(container: Container, argv: Sequence[Any], options: Mapping[str, Any], *, strict: bool) -> Process:
    try:
        return container.popen(argv, **options)
    except UnsupportedError:
        if strict:
            raise
        return container.popen(argv, accounting=False, **options)  # as `sandbox run --best-effort` does
