"""What `Container` tells of its namespaces."""

from __future__ import annotations

import os
from errno import ENOENT
from typing import TYPE_CHECKING, Any

from sandbox.errors import BrokenError, SetupError, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sandbox._networks.wishes import Wishes
    from sandbox._session import Session
    from sandbox.ns import Namespace


class NamespaceAccess:
    """A container and its namespaces."""

    _wishes: Wishes

    if TYPE_CHECKING:

        def _session(self) -> Session: ...

    def _take_shares(self, share: Iterable[str] | Mapping[str, Any], hostname: str, **said: object) -> tuple[Iterable[str], str]:
        """Note whose namespaces it is to have; gives the kinds that are not its own, and the name in /etc/hosts. Raises: UsageError."""
        from sandbox._sharing import to_shares

        kinds, self._wishes, name = to_shares(share, self._wishes, hostname, said)
        return kinds, name

    def namespace(self, kind: str) -> Namespace:
        """Open the namespace of *kind* that its init is in, for `sandbox.ns`; the caller's to close.

        Init hands it out itself: as it is not dumpable, /proc/PID/ns is closed to all but root.
        Raises: UsageError: no such kind; UnsupportedError: the kernel has no such namespaces; ClosedError: it does not run.
        """
        from sandbox import ns
        from sandbox.ns.namespace import file_of

        name = file_of(kind)
        (fd,) = self._open_namespaces([name])
        found = ns.Namespace.adopt(fd)
        if file_of(found.kind) != name.removesuffix("_for_children"):
            found.close()
            raise BrokenError(f"the container's init gave a namespace of kind {found.kind!r} for {kind!r}")
        return found

    def namespaces(self) -> Mapping[str, int]:
        """The namespaces that its init is in, as `sandbox.ns.list_namespaces` lists them. Raises: ClosedError: it does not run."""
        names = sorted(os.listdir("/proc/self/ns"))  # of this kernel
        fds = self._open_namespaces(names)
        try:
            return {name: os.fstat(fd).st_ino for name, fd in zip(names, fds, strict=True)}
        finally:
            for fd in fds:
                os.close(fd)

    def _open_namespaces(self, names: Sequence[str]) -> list[int]:
        from sandbox import _plan as plan

        ops = [plan.Open(name, f"/proc/self/ns/{name}", os.O_RDONLY) for name in names]
        try:
            return self._session().request(ops, names)
        except SetupError as error:
            if error.errno != ENOENT:
                raise
            raise UnsupportedError("this kernel has no such namespaces", feature="namespaces", remedy="use a kernel that has them") from None
