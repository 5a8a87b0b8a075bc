"""Asks init to carry out operations on files, and finds words for what failed."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Protocol

from attrs import frozen

from sandbox import _plan as plan
from sandbox.errors import SetupError

ROOT: Final = f"@{plan.ROLE_ROOT}"
_VERBS: Final[dict[type[plan.Op], str]] = {
    plan.WriteFile: "write",
    plan.WriteFrom: "write",
    plan.MakeDir: "make the directory",
    plan.Symlink: "make the link",
    plan.Open: "open",
    plan.Remove: "remove",
    plan.SetTimes: "set the time of",
}
_HINTS: Final = {
    errno.ENOSPC: "the container's file system is full; give it a larger scratch= or Tmpfs",
    errno.EROFS: "it is read-only in this container; mount a Tmpfs there, or a Bind or Volume without read_only",
    errno.EFBIG: "its file system has no larger files, or this process, whose limits init has, may not write them (RLIMIT_FSIZE, ulimit -f)",
    errno.EBUSY: "something is mounted there",
}


class Request(Protocol):
    """Carries operations out in init, with descriptors in slots; the descriptors of the slots *wanted* come back."""

    def __call__(
        self, ops: Sequence[plan.Op], wanted: Sequence[str], fds: Mapping[str, int] = ..., *, words: Callable[[plan.Op], str] = ...
    ) -> list[int]: ...


@frozen
class Inside:
    """The inside of one container, as seen by one call; *what* names that, for error messages."""

    request: Request
    what: str

    def do(self, ops: Sequence[plan.Op], wanted: Sequence[str] = (), fds: Mapping[str, int] | None = None, *, base: str = "") -> list[int]:
        """Carry operations out; paths in messages are below *base*. Raises: SetupError, with the number of the first that failed."""
        try:
            return self.request(ops, wanted, fds or {}, words=lambda op: f"{self.what}: {_describe(op, base)}")
        except SetupError as error:
            if (hint := _HINTS.get(error.errno or 0)) is None:
                raise
            raise SetupError(error.operation, error.errno or 0, step=error.step, hint=hint) from None

    def open(self, path: str, flags: int) -> int:
        """Open *path* from the container's root."""
        return self.do([plan.Open("file", path, flags, at=ROOT)], ["file"])[0]

    def failed(self, error: OSError, path: str) -> SetupError:
        """Words for what failed on this side, with a descriptor from there."""
        return SetupError(f"{self.what}: {path}", error.errno or errno.EIO, step="files")


def _describe(op: plan.Op, base: str) -> str:
    path = getattr(op, "path", None)
    verb = _VERBS.get(type(op))
    return op.describe() if path is None or verb is None else f"{verb} {base}{path}"
