"""`Resident`: a process whose namespaces are meant, held by its pidfd."""

from __future__ import annotations

from typing import Self

from attrs import define, field

from sandbox._plan import IdMap
from sandbox._sys import calls, procfs
from sandbox._sys.fds import Fd
from sandbox.errors import ClosedError
from sandbox.ns._handle import Handle
from sandbox.ns.namespace import Namespace, open_process

__all__ = ["Resident"]


@define(eq=False, repr=False)
class Resident(Handle):
    """A process, a container's init say, whose namespaces others are to share. Its number cannot become another's unnoticed, while this is open.

    *hostname*: that of its UTS namespace, if it is known.
    """

    pid: int
    hostname: str | None
    _fd: Fd = field(alias="fd")

    @classmethod
    def of(cls, pid: int, *, hostname: str | None = None) -> Self:
        """Hold process *pid*. Raises: UsageError: there is none; SetupError."""
        return cls(pid, hostname, Fd(open_process(pid)))

    def namespace(self, kind: str) -> Namespace:
        """Open one of its namespaces. Raises: as `Namespace.of`; ClosedError: it has ended."""
        self.check()
        found = Namespace.of(self.pid, kind)
        try:
            self.check()  # so that it was this one's
        except BaseException:
            found.close()
            raise
        return found

    def id_map(self) -> tuple[IdMap, ...]:
        """Which uids of ours those of its user namespace are. Raises: ClosedError: it has ended."""
        try:
            found = procfs.read_id_map("uid", pid=self.pid)
        except OSError:
            found = ()
        self.check()
        return found

    def check(self) -> None:
        """Raises: ClosedError: it has ended."""
        try:
            calls.pidfd_send_signal(self._fd.fileno(), 0)
        except ProcessLookupError:
            raise ClosedError(f"process {self.pid}, whose namespaces were to be shared, has ended") from None
        except PermissionError:
            return  # alive, and not ours

    def __repr__(self) -> str:
        return f"Resident({self.pid})"
