"""The descriptors of one run, in subprocess's words: PIPE, DEVNULL, STDOUT, a file or a descriptor."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Final

from attrs import define, field

from sandbox._types import DEVNULL, PIPE, STDOUT
from sandbox.errors import UsageError

NULL: Final = -1  # in place of a descriptor of ours: the container's own /dev/null


@define
class Wiring:
    """The descriptors of one run: what the program gets (number inside -> ours), and our ends of its pipes."""

    inside: dict[int, int] = field(factory=dict[int, int])
    stdin: int | None = None
    stdout: int | None = None
    stderr: int | None = None
    _lent: list[int] = field(factory=list[int])
    _lent_outputs: list[int] = field(factory=list[int])
    is_plain: bool = True  # there is nothing to move, nor to close
    sinks: dict[int, Callable[[Any], object]] | None = None  # functions of the caller that get the output
    is_quiet: bool = False  # all three standard streams are /dev/null, and there is nothing else

    def lend(self, fd: int, *, is_output: bool) -> int:
        """Note a descriptor to be closed once the program has its copy."""
        self.is_plain = False
        (self._lent_outputs if is_output else self._lent).append(fd)
        return fd

    def close_lent(self, *, outputs: bool = True) -> None:
        """Close the program's ends here; without *outputs*, those that it writes to stay open, and its end wakes nobody who reads."""
        while self._lent:
            os.close(self._lent.pop())
        while outputs and self._lent_outputs:
            os.close(self._lent_outputs.pop())

    def close(self) -> None:
        """Close everything."""
        if self.is_quiet:
            return
        self.close_lent()
        ours = (self.stdin, self.stdout, self.stderr)
        self.stdin = self.stdout = self.stderr = None
        for fd in ours:
            if fd is not None:
                os.close(fd)


def wire_up(stdin: Any, stdout: Any, stderr: Any, pass_fds: Mapping[int, int], *, tty: bool) -> Wiring:  # noqa: ANN401 - subprocess's vocabulary
    """Make the pipes and choose the descriptors, with subprocess's words: PIPE, DEVNULL, STDOUT, a file or a descriptor."""
    is_quiet = (stdout is DEVNULL or _is_null(stdout)) and (stderr is DEVNULL or _is_null(stderr)) and (stdin is None or _is_null(stdin))
    if is_quiet and not pass_fds and not tty:
        return _quiet[0] if _quiet else _make_quiet()
    w = Wiring()
    inside = w.inside
    try:
        if not tty:
            inside[0] = _end(stdin, w, 0)
            inside[1] = _end(stdout, w, 1)
            is_joined = stderr == STDOUT and not hasattr(stderr, "fileno")
            inside[2] = inside[1] if is_joined else _end(stderr, w, 2)
        if pass_fds:
            inside.update(pass_fds)
    except BaseException:
        w.close()
        raise
    return w


_quiet: list[Wiring] = []


def _make_quiet() -> Wiring:
    """``/dev/null`` three times, of which a container has its own."""
    _quiet.append(Wiring({0: NULL, 1: NULL, 2: NULL}, is_quiet=True))
    return _quiet[0]


def _is_null(target: Any) -> bool:  # noqa: ANN401
    return target is None or (isinstance(target, int) and target == DEVNULL)


def _end(target: Any, w: Wiring, number: int) -> int:  # noqa: ANN401
    """What the program gets as standard stream *number*."""
    if number and callable(target) and not hasattr(target, "fileno"):
        w.sinks = {**(w.sinks or {}), number: target}
        target = PIPE
    if isinstance(target, int) and target == PIPE:
        read, write = os.pipe2(os.O_CLOEXEC)
        if number == 0:
            w.stdin = write
            return w.lend(read, is_output=False)
        if number == 1:
            w.stdout = read
        else:
            w.stderr = read
        return w.lend(write, is_output=True)
    if _is_null(target):
        return NULL
    return _fileno(target, "stdin" if number == 0 else "stdout or stderr")


def _fileno(target: Any, what: str) -> int:  # noqa: ANN401
    if isinstance(target, int) and not isinstance(target, bool) and target >= 0:
        return _open_one(target, what)
    try:
        fd: int = getattr(target, "fileno")()  # noqa: B009 - whatever it is, it is asked
    except (AttributeError, TypeError):
        if what == "stdin" and (hasattr(target, "read") or isinstance(target, (str, bytes, bytearray))):
            raise UsageError(f"stdin: {target!r} has no descriptor; give {_as_input(target)} to exec, or PIPE to popen and write to it") from None
        raise UsageError(f"{what}: {target!r} is not PIPE, DEVNULL, STDOUT, a descriptor, a file or (for output) a function") from None
    except (OSError, ValueError) as error:  # closed, or a file in memory
        advice = f"give {_as_input(target)} to exec, or a real file" if what == "stdin" else "use PIPE, or a real file"
        raise UsageError(f"{what}: {target!r} has no descriptor ({type(error).__name__}); {advice}") from None
    return _open_one(fd, what)


def _as_input(target: object) -> str:
    return "input=file.read()" if hasattr(target, "read") else "input=data"


def _open_one(fd: int, what: str) -> int:
    try:
        os.fstat(fd)
    except OSError:
        raise UsageError(f"{what}: {fd} is not an open descriptor") from None
    return fd
