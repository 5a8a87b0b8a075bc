"""Leases: how who uses a thing, or is about to, keeps it from being removed.

A lease is a file that lists digests, and on which its owner holds a lock; the lock ends with the owner's process, and with it the lease. A digest is
added *before* its owner looks whether the thing is there. Who removes holds the mutex exclusively, so that nothing is added meanwhile, and keeps what
any lease lists whose lock is held. A manifest or a configuration stands for all that it names.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import fcntl
import os
import threading
from typing import Final, Self

from attrs import frozen

from sandbox._sys.fds import Fd
from sandbox.errors import SandboxError, UsageError
from sandbox.image._disk import Disk, Root, hold, release, try_lock, write_all
from sandbox.image.digest import Digest

_CREATE: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC


class Kind(enum.StrEnum):
    """What a lease is for."""

    WORK = "work"  # somebody adds, sends or reads
    USE = "use"  # a container runs on it: `Store.remove` refuses


class Lease:
    """Keeps what was added to it until `close`, or the end of the process. A context manager; thread-safe; a forked child has none of it."""

    def __init__(self, disk: Disk, kind: Kind = Kind.WORK) -> None:
        self._disk, self._mutex = disk, threading.Lock()
        self._added: set[Digest] = set()
        self._name = f"leases/{os.urandom(8).hex()}"
        with disk.opened("make a lease") as root:
            self._file = _create(root, self._name, kind)

    def add(self, *digests: Digest) -> None:
        """Keep these from now on, be they there already or not: blobs, unpacked layers, images.

        Raises: ClosedError: it is closed, or was made before a fork.
        """
        with self._mutex, self._disk.opened("add to a lease") as root, root.locked():
            wanted = [digest for digest in digests if digest not in self._added]
            write_all(self._file.fileno(), "".join(f"{digest}\n" for digest in wanted).encode())
            self._added.update(wanted)

    def close(self) -> None:
        """Give all up; what nothing else keeps is removed by the next prune. A second time does nothing."""
        with self._mutex:
            if self._file.closed:
                return
            with contextlib.suppress(OSError, SandboxError), self._disk.opened("end a lease", make=False) as root:
                root.unlink(self._name)
            release(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _create(root: Root, name: str, kind: Kind) -> Fd:
    with root.locked():  # whoever looks for leases without an owner waits until this one has a lock
        file = hold(os.open(name, _CREATE, 0o600, dir_fd=root.fileno()))
        os.fchmod(file.fileno(), 0o600)
        fcntl.flock(file.fileno(), fcntl.LOCK_EX)
        write_all(file.fileno(), f"{kind}\n".encode())
    return file


@frozen(eq=False, repr=False)
class Live:
    """What the leases of living owners list."""

    kept: frozenset[Digest]
    used: collections.Counter[Digest]  # those of them that containers use, and how many do


def live(root: Root, *, sweep: bool = False) -> Live:
    """Read all leases; the mutex is held, exclusively if with *sweep* those are removed whose owners are gone."""
    kept: set[Digest] = set()
    used: collections.Counter[Digest] = collections.Counter()
    for name in root.names("leases"):
        try:
            file = hold(root.open_file(f"leases/{name}"))
        except FileNotFoundError:  # its owner has just ended it
            continue
        try:
            if try_lock(file, fcntl.LOCK_EX if sweep else fcntl.LOCK_SH):
                if sweep:
                    root.unlink(f"leases/{name}")
                continue
            kind, digests = _read(file)
        finally:
            release(file)
        kept |= digests
        used.update(digests if kind == Kind.USE else ())
    return Live(frozenset(kept), used)


def _read(file: Fd) -> tuple[str, set[Digest]]:
    with open(file.fileno(), encoding="ascii", closefd=False) as text:
        kind, *lines = text.read().splitlines() or [""]
    found: set[Digest] = set()
    for line in lines:
        with contextlib.suppress(UsageError):  # the last line of somebody who was killed while writing it
            found.add(Digest.parse(line))
    return kind, found
