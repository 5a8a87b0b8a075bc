"""What `Namespace` and `Resident` are alike in."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from sandbox._sys.fds import Fd


class Handle:
    """Holds a descriptor until `close`, the end of ``with``, or nobody refers to it."""

    __slots__ = ()

    if TYPE_CHECKING:
        _fd: Fd

    def close(self) -> None:
        """Let go of it; a second time does nothing."""
        self._fd.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __del__(self) -> None:
        # A value to its user: `Namespace.of(pid, "net").enter().run(...)` leaves nobody who could close it.
        fd = getattr(self, "_fd", None)
        if fd is not None:
            fd.close()
