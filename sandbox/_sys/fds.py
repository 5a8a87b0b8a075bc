"""Owned file descriptors: one owner each, close-on-exec from birth."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from attrs import define, field

from sandbox._types import StrPath
from sandbox.errors import ClosedError, raise_shortage

__all__ = ["Fd", "close_all", "write_memory"]


def _take(fd: int) -> list[int]:
    os.set_inheritable(fd, False)
    return [fd]


@define(eq=False, repr=False)
class Fd:
    """The one owner of an open descriptor, which the constructor takes over and makes close-on-exec.

    Thread-safe: of two threads that close (or detach) at once, one does. Numbers are used again by the kernel, so
    closing twice would close a stranger's file.
    """

    # A list, because list.pop() is one step: whoever gets the number is its owner.
    _owned: list[int] = field(alias="fd", converter=_take)

    @classmethod
    def open(cls, path: StrPath | bytes, flags: int, *, mode: int = 0o777, dir_fd: int | None = None) -> Self:
        """Open *path* (os.open sets O_CLOEXEC). Raises: OSError."""
        return cls(os.open(path, flags, mode, dir_fd=dir_fd))

    @classmethod
    def copy(cls, source: int) -> Self:
        """Own a duplicate of *source*, which stays its owner's."""
        return cls(os.dup(source))

    def fileno(self) -> int:
        """The number; it stays this object's.

        Raises: ClosedError after `close` or `detach`.
        """
        try:
            return self._owned[0]
        except IndexError:
            raise ClosedError("this descriptor has been closed") from None

    @property
    def closed(self) -> bool:
        return not self._owned

    def detach(self) -> int:
        """Hand the number over to the caller, who closes it from now on. Raises: ClosedError."""
        try:
            return self._owned.pop()
        except IndexError:
            raise ClosedError("this descriptor has been closed") from None

    def close(self) -> None:
        """Close it; a second time does nothing."""
        try:
            fd = self._owned.pop()
        except IndexError:
            return
        os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Fd({self._owned[0]})" if self._owned else "Fd(closed)"

    def __del__(self) -> None:
        # No plan, only a net: like an open file that nobody closed. At the interpreter's end the process's end closes all.
        if getattr(self, "_owned", None) and not sys.is_finalizing():
            import warnings

            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors."""
    close = os.close
    for fd in fds:
        close(fd)


def write_memory(fd: int, data: bytes | memoryview, *, at: int = 0, what: str) -> None:
    """Write all of *data* to a file in memory; *what* says what for.

    Raises: SetupError: EFBIG, as RLIMIT_FSIZE counts for files in memory as well (a write that only reaches beyond it is cut short).
    """
    rest = memoryview(data)
    try:
        while rest:
            written = os.pwrite(fd, rest, at)
            rest, at = rest[written:], at + written
    except OSError as error:
        raise_shortage(error, what)
        raise
