"""The descriptors of one run, in subprocess's words: PIPE, DEVNULL, STDOUT, a file or a descriptor."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from attrs import define, field

from sandbox._types import DEVNULL, PIPE, STDOUT
from sandbox.errors import UsageError


@define
class Wiring:
    """The descriptors of one run: what the program gets (number inside -> ours), and our ends of its pipes."""

    inside: dict[int, int] = field(factory=dict[int, int])
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    _lent: list[int] = field(factory=list[int])

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to move."""
        return self.stdin is None and self.stdout is None and self.stderr is None

    def lend(self, fd: int) -> int:
        """Note a descriptor to be closed once the program has its copy."""
        self._lent.append(fd)
        return fd

    def close_lent(self) -> None:
        """Close the program's ends here."""
        while self._lent:
            os.close(self._lent.pop())

    def close(self) -> None:
        """Close everything."""
        self.close_lent()
        for name in ("stdin", "stdout", "stderr"):
            fd = getattr(self, name)
            if fd is not None:
                os.close(fd)
                setattr(self, name, None)


def wire_up(stdin: Any, stdout: Any, stderr: Any, pass_fds: Mapping[int, int], *, tty: bool) -> Wiring:  # noqa: ANN401 - subprocess's vocabulary
    """Make the pipes and choose the descriptors, with subprocess's words: PIPE, DEVNULL, STDOUT, a file or a descriptor."""
    w = Wiring()
    try:
        if not tty:
            w.inside[0], w.stdin = _input_end(stdin, w)
            w.inside[1], w.stdout = _output_end(stdout, w)
            if stderr == STDOUT and not hasattr(stderr, "fileno"):
                w.inside[2] = w.inside[1]
            else:
                w.inside[2], w.stderr = _output_end(stderr, w)
        w.inside.update(pass_fds)
    except BaseException:
        w.close()
        raise
    return w


_null: dict[int, int] = {}


def _devnull() -> int:
    """``/dev/null``, opened once per process (a fork may share it: it has no state)."""
    fd = _null.get(0)
    if fd is None:
        fd = _null[0] = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    return fd


def _input_end(stdin: Any, w: Wiring) -> tuple[int, int | None]:  # noqa: ANN401
    if stdin is None or (isinstance(stdin, int) and stdin == DEVNULL):
        return _devnull(), None
    if isinstance(stdin, int) and stdin == PIPE:
        read, write = os.pipe2(os.O_CLOEXEC)
        return w.lend(read), write
    return _fileno(stdin, "stdin"), None


def _output_end(target: Any, w: Wiring) -> tuple[int, int | None]:  # noqa: ANN401
    if isinstance(target, int) and target == PIPE:
        read, write = os.pipe2(os.O_CLOEXEC)
        return w.lend(write), read
    if target is None or (isinstance(target, int) and target == DEVNULL):
        return _devnull(), None
    return _fileno(target, "stdout or stderr"), None


def _fileno(target: Any, what: str) -> int:  # noqa: ANN401
    if isinstance(target, int) and not isinstance(target, bool) and target >= 0:
        return _open_one(target, what)
    try:
        fd: int = getattr(target, "fileno")()  # noqa: B009 - whatever it is, it is asked
    except (AttributeError, TypeError):
        raise UsageError(f"{what}: {target!r} is not PIPE, DEVNULL, STDOUT, a descriptor or a file") from None
    except (OSError, ValueError) as error:  # closed, or a file in memory
        raise UsageError(f"{what}: {target!r} has no descriptor ({type(error).__name__}); use PIPE, or a real file") from None
    return _open_one(fd, what)


def _open_one(fd: int, what: str) -> int:
    try:
        os.fstat(fd)
    except OSError:
        raise UsageError(f"{what}: {fd} is not an open descriptor") from None
    return fd
