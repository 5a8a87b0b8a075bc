"""Volumes: directories that are kept by name, and outlive containers."""

from __future__ import annotations

import os
from typing import Final

from attrs import field, frozen

from sandbox._types import StrPath, to_text
from sandbox.errors import UsageError
from sandbox.fs._scratch import remove_tree
from sandbox.fs._specs import Volume

_SYSTEM_STORE: Final = "/var/lib/sandbox/volumes"


def default_store() -> str:
    """Return where this user's volumes are: /var/lib/sandbox/volumes for root, else below $XDG_DATA_HOME (~/.local/share)."""
    if os.geteuid() == 0:
        return _SYSTEM_STORE
    base = os.environ.get("XDG_DATA_HOME", "")
    if not base.startswith("/"):  # the XDG base directory specification: relative paths are to be ignored
        base = os.path.expanduser("~/.local/share")
    return f"{base}/sandbox/volumes"


def _to_store(value: StrPath | None) -> str:
    if value is None:
        return default_store()
    return os.path.join(os.getcwd(), os.fsdecode(to_text(value, what="volume store")))


@frozen
class VolumeStore:
    """A directory of volumes, closed to other users (0700), so that what a container leaves in one is theirs neither to read nor to run."""

    path: str = field(default=None, converter=_to_store)

    def open(self, name: str) -> int:
        """Return an O_PATH descriptor, the caller's own, of the volume *name*; it is made when there is none.

        Its mode is 1777: any user of the container may write, and nobody outside gets through the store.
        Raises: UsageError: the name is none, or the store belongs to somebody else.
        """
        Volume(name, "/volume")
        store = self._open_store(make=True)
        try:
            _make_shared(name, store)
            return os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=store)
        finally:
            os.close(store)

    def names(self) -> list[str]:
        """List the volumes, sorted."""
        try:
            store = self._open_store(make=False)
        except FileNotFoundError:
            return []
        try:
            return sorted(os.listdir(store))
        finally:
            os.close(store)

    def remove(self, name: str) -> None:
        """Remove the volume *name* and all that it holds; no container may be using it.

        Raises: UsageError: there is no such volume.
        """
        Volume(name, "/volume")
        try:
            store = self._open_store(make=False)
        except FileNotFoundError:
            raise UsageError(f"volume: no volume {name!r} in {self.path}") from None
        try:
            remove_tree(name, store)
        except FileNotFoundError:
            raise UsageError(f"volume: no volume {name!r} in {self.path}") from None
        finally:
            os.close(store)

    def _open_store(self, *, make: bool) -> int:
        if make:
            os.makedirs(os.path.dirname(self.path) or "/", mode=0o700, exist_ok=True)
            make_directory(self.path)
        store = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        status = os.fstat(store)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            os.close(store)
            raise UsageError(f"volume store: {self.path!r} is open to other users; make it yours alone (chown, chmod 0700)")
        return store


def make_directory(path: str) -> None:
    """Make *path* for its owner alone, whatever the umask; an existing directory stays as it is."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return


def _make_shared(name: str, store: int) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=store)
    except FileExistsError:
        return
    # By descriptor and not by mkdir's mode, which the umask (the host program's own) would cut.
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=store)
    try:
        os.fchmod(fd, 0o1777)
    finally:
        os.close(fd)
