"""Every exception that this library raises, as one tree.

A program's fate is a value (`Result`), never an exception; what is raised here is a wrong call, a host
that lacks something, a failed set-up, or, with ``check=True``, the caller's own wish.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from sandbox.process import Result

__all__ = [
    "BrokenError",
    "ClosedError",
    "CommandError",
    "ContainerNotFoundError",
    "DockerfileError",
    "ImageError",
    "ImageInUseError",
    "ImageNotFoundError",
    "LimitError",
    "NameInUseError",
    "NetworkInUseError",
    "NetworkNotFoundError",
    "PortInUseError",
    "ProgramNotFoundError",
    "ProtocolError",
    "RegistryError",
    "SandboxError",
    "SetupError",
    "UnsupportedError",
    "UsageError",
    "VolumeInUseError",
    "VolumeNotFoundError",
]


class SandboxError(Exception):
    """The root of all errors of this library."""


class UsageError(SandboxError, ValueError):
    """The call is wrong; nothing was touched."""


class LimitError(UsageError):
    """There is more to copy or to read than the call allows; *limit* names its argument (``"max_size"`` ...)."""

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class VolumeNotFoundError(UsageError):
    """There is no volume of that name."""


class VolumeInUseError(UsageError):
    """A container has the volume; nothing was removed."""


class NetworkNotFoundError(UsageError):
    """There is no kept network of that name."""


class NetworkInUseError(UsageError):
    """Containers are in the network; nothing was removed."""


class ContainerNotFoundError(UsageError):
    """There is no container of that name or id that outlives its command."""


class NameInUseError(UsageError):
    """The name that a container was to have is another's; nothing was touched. *owner*: the id of that one."""

    def __init__(self, message: str, *, name: str, owner: str) -> None:
        super().__init__(message)
        self.name, self.owner = name, owner

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class PortInUseError(UsageError):
    """A port of the host that is to be published is somebody else's; nothing was touched.

    *port*: as ``"0.0.0.0:8080/tcp"``. *owner*: who has it, in words. *pid*, *program*: the process, where it can be told.
    """

    def __init__(self, message: str, *, port: str, owner: str, pid: int | None = None, program: str | None = None) -> None:
        super().__init__(message)
        self.port, self.owner = port, owner
        self.pid, self.program = pid, program

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class UnsupportedError(SandboxError):
    """This host lacks *feature*; *remedy* says what would provide it."""

    def __init__(self, message: str, *, feature: str, remedy: str) -> None:
        super().__init__(f"{message}; {remedy}" if remedy else message)
        self.feature = feature
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class SetupError(SandboxError, OSError):
    """A step of the set-up failed in the kernel.

    `step` is where (``"init"``, ``"host"``, ``"clone"``, ``"exec"`` ...), `operation` what was tried, `errno` what
    the kernel said, and `hint` what to do about it ("" when unknown).
    """

    def __init__(self, operation: str, errno: int, *, step: str = "", hint: str = "") -> None:
        name = _errno_name(errno)
        tail = f"; {hint}" if hint else ""
        OSError.__init__(self, errno, f"{operation}: {name} ({os.strerror(errno)}){tail}")
        self.step = step
        self.operation = operation
        self.hint = hint

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class ProgramNotFoundError(UsageError, FileNotFoundError):
    """The program named by argv[0] does not exist inside the container, or cannot be executed there.

    `errno` and `filename` are set, as of the FileNotFoundError that subprocess raises.
    """

    def __init__(self, message: str, *, errno: int = 2, filename: str = "") -> None:
        super().__init__(message)
        self.errno = errno
        self.filename = filename

    def __str__(self) -> str:
        return str(self.args[0])


class ImageError(SandboxError):
    """An image is missing, damaged or refused."""


class ImageNotFoundError(ImageError):
    """The store has no such image."""


class ImageInUseError(ImageError):
    """A container uses the image, or several names stand for it; ``force=True`` removes it all the same."""


class RegistryError(ImageError):
    """A registry refused, failed, or sent what is no good; *status* is its HTTP status, None where it is not about one."""

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class DockerfileError(ImageError):
    """A Dockerfile cannot be read, or a step of it failed: `file`, `line` and `column` (from 1) say where.

    `result` is the `Result` of a RUN step whose command did not succeed. The message shows the line, and a caret below what is wrong.
    """

    def __init__(self, message: str, *, file: str, line: int, column: int = 1, text: str = "", width: int = 1) -> None:
        self.reason = message
        self.file, self.line, self.column = file, line, column
        self.result: Result | None = None
        super().__init__(f"{file}:{line}:{column}: {message}{_underlined(line, column, text, width)}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.args, self.__dict__)


class ClosedError(SandboxError):
    """You closed it (or never started it)."""


class BrokenError(SandboxError):
    """The container or the launcher died, or stopped answering."""


class ProtocolError(SandboxError):
    """A message broke the rules of wire.md: a bug of ours, or an init that was taken over."""


class CommandError(SandboxError):
    """A program did not succeed and ``check=True`` was asked; `result` carries all that is known of it."""

    def __init__(self, message: str, result: Result) -> None:
        super().__init__(message)
        self.result = result

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (str(self), self.result)


_SHORTAGES = {
    "EMFILE": "this process has as many files open as it may (RLIMIT_NOFILE, ulimit -n)",
    "ENFILE": "this host has as many files open as it may (fs.file-max)",
    "ENOMEM": "memory is short",
    "ETOOMANYREFS": "too many descriptors of this user are on their way between processes (RLIMIT_NOFILE, ulimit -n)",
    "ENOBUFS": "memory for sockets is short",
    "EFBIG": "RLIMIT_FSIZE (ulimit -f) of this process counts for files in memory too: raise it; for programs there is rlimits=Rlimits(fsize=...)",
}


def raise_shortage(error: OSError, operation: str) -> None:
    """Raise the error of an operation that failed for want of descriptors or memory as one of ours; return when *error* is another.

    Raises: SetupError.
    """
    name = _errno_name(error.errno or 0)
    if name in _SHORTAGES and not isinstance(error, SandboxError):
        raise SetupError(operation, error.errno or 0, step="shortage", hint=_SHORTAGES[name]) from error


@contextmanager
def shortages(operation: str) -> Generator[None]:
    """Within the block, as `raise_shortage`; other errors pass."""
    try:
        yield
    except OSError as error:
        raise_shortage(error, operation)
        raise


def _underlined(line: int, column: int, text: str, width: int) -> str:
    if not text:
        return ""
    gutter, mark = f"{line:>5} | ", "^" * max(1, min(width, len(text) - column + 1))
    before = "".join("\t" if letter == "\t" else " " for letter in text[: column - 1])  # as wide as what stands above
    return f"\n{gutter}{text}\n{' ' * (len(gutter) - 2)}| {before}{mark}"


def _errno_name(errno: int) -> str:
    import errno as table

    return table.errorcode.get(errno, f"errno {errno}")


def _rebuild(kind: type[SandboxError], args: tuple[object, ...], state: dict[str, object]) -> SandboxError:
    """Undo `__reduce__` of an error whose constructor takes other arguments than `args`."""
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(state)
    if isinstance(error, OSError):
        error.errno, error.strerror = args  # type: ignore[assignment]  # OSError's args are (int, str)
    return error
