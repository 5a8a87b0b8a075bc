"""Operations on files that are asked for together: a round trip for hundreds of small files, and data that are copied once."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from attrs import define, field

from sandbox import _plan as plan
from sandbox._files.inside import ROOT, Inside
from sandbox._sys.fds import write_memory

MOST_DATA: Final = 1 << 20
MOST_OPS: Final = 512  # init has programs' deadlines to keep between two requests
IN_REQUEST: Final = 16384  # up to here, data travel in the request
_DATA: Final = "data"
_DIR: Final = "dir"


@define
class Batch:
    """Operations on one user's files. *base* is what paths are below, with the descriptor *directory*; None: the root.

    *flushed* is called when what was put in before has been carried out. Close it, for it may hold memory.
    """

    inside: Inside
    uid: int
    gid: int
    base: str = ""
    directory: int | None = None
    flushed: Callable[[], object] | None = None
    _ops: list[plan.Op] = field(factory=list[plan.Op])
    _size: int = 0  # of the data in the operations
    _memory: int | None = None  # a memfd for larger data
    _used: int = 0  # of it

    @property
    def at(self) -> str:
        """The slot that paths start from."""
        return ROOT if self.directory is None else _DIR

    def add(self, *ops: plan.Op) -> None:
        """Put operations in; they, and what was put in before, may be carried out now."""
        self._ops += ops
        if self._size + self._used >= MOST_DATA or len(self._ops) >= MOST_OPS:
            self.flush()

    def write(self, path: str, data: bytes | memoryview, *, mode: int, offset: int = plan.NEW_FILE) -> None:
        """Put in the writing of a file, or of a piece of one. *data* are copied, at most `MOST_DATA`."""
        if len(data) <= IN_REQUEST:
            self._size += len(data)
            self.add(plan.WriteFile(path, bytes(data), self.at, mode, self.uid, self.gid, offset))
            return
        if self._memory is None:
            self._memory = os.memfd_create("sandbox-data", os.MFD_CLOEXEC)
        start, self._used = self._used, self._used + len(data)
        write_memory(self._memory, data, at=start, what=f"{self.inside.what}: {path}")
        self.add(plan.WriteFrom(path, self.at, _DATA, start, len(data), mode, self.uid, self.gid, offset))

    def flush(self) -> None:
        """Carry out what was put in. Raises: SetupError: the first that failed; those after it have not been tried."""
        if self._ops:
            fds = {name: fd for name, fd in ((_DIR, self.directory), (_DATA, self._memory if self._used else None)) if fd is not None}
            ops, self._ops, self._size, self._used = self._ops, [], 0, 0
            self.inside.do(ops, (), fds, base=self.base)
        if self.flushed is not None:
            self.flushed()

    def close(self) -> None:
        """Let go of what it holds."""
        if self._memory is not None:
            os.close(self._memory)
            self._memory = None
