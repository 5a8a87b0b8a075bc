"""What `Container` offers for files. The work is imported when it is first asked for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from sandbox._types import Size, StrPath, to_bool, to_count, to_inside_path, to_seconds, to_size, to_text
from sandbox.errors import UsageError, raise_shortage

if TYPE_CHECKING:
    from sandbox._files.inside import Inside
    from sandbox._files.limits import Copying, Progress
    from sandbox._session import Session
    from sandbox._spec import ContainerSpec
    from sandbox._started import Started
    from sandbox._users import Identity

MAX_READ: Final = 64 << 20
MAX_COPY: Final = 1 << 30
MAX_ENTRIES: Final = 100_000
MAX_DEPTH: Final = 256
COPY_S: Final = 300.0
REMOVE_S: Final = 60.0


class FileAccess:
    """The files of a container, from `create` to `close`, whether programs run, have ended, were killed or are paused.

    Paths inside are absolute. Links in them are followed inside the container's root only.
    """

    if TYPE_CHECKING:
        spec: ContainerSpec

        def _live(self) -> Started: ...
        def _session(self) -> Session: ...
        def _identity(self, user: str) -> Identity: ...

    def write_bytes(self, path: StrPath, data: bytes, *, mode: int = 0o644, user: int | str | None = None) -> None:
        """Create or replace the file *path* inside; it belongs to *user* (None: the container's). Its directory must exist.

        It can be run at once. One that runs is replaced: its process keeps the old one.
        Raises: SetupError (an OSError): ENOENT, ENOSPC, EROFS, ELOOP when it is a symbolic link ...
        """
        from sandbox._files import content

        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise UsageError(f"data: {type(data).__name__} is not bytes; encode text first")
        to_count(mode, what="mode", least=0, most=0o7777)
        owner = self._owner(user)
        content.write_bytes(self._inside("write_bytes"), to_inside_path(path, what="path"), bytes(data), mode=mode, uid=owner.uid, gid=owner.gid)

    def read_bytes(self, path: StrPath, *, max_size: Size = MAX_READ) -> bytes:
        """Read the regular file *path* inside, up to *max_size* bytes.

        Raises: SetupError: it is not there; LimitError: it is larger; UsageError: it is no regular file.
        """
        from sandbox._files import content

        return content.read_bytes(self._inside("read_bytes"), to_inside_path(path, what="path"), max_size=to_size(max_size, what="max_size"))

    def make_dirs(self, path: StrPath, *, user: int | str | None = None) -> None:
        """Make the directory *path* and its parents inside; what exists stays."""
        from sandbox._files import content

        owner = self._owner(user)
        content.make_dirs(self._inside("make_dirs"), to_inside_path(path, what="path"), uid=owner.uid, gid=owner.gid)

    def listdir(self, path: StrPath, *, max_entries: int = MAX_ENTRIES) -> list[str]:
        """The names in the directory *path* inside, sorted; as os.listdir, names that are no UTF-8 hold surrogates.

        Raises: SetupError: it is not there, or no directory; LimitError: it has more than *max_entries*.
        """
        from sandbox._files import content

        most = to_count(max_entries, what="max_entries", least=0)
        return content.list_dir(self._inside("listdir"), to_inside_path(path, what="path"), max_entries=most)

    def stat(self, path: StrPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """What os.stat would say inside: its owner and group are ids of the container (65534: somebody who is none of its).

        Raises: SetupError: it is not there.
        """
        from sandbox._files import content

        to_bool(follow_symlinks, what="follow_symlinks")
        return content.look(self._inside("stat"), to_inside_path(path, what="path"), self._live().ids, follow_symlinks=follow_symlinks)

    def exists(self, path: StrPath) -> bool:
        """Whether *path* leads to something inside; a link to nothing does not."""
        from sandbox._files import content

        return content.exists(self._inside("exists"), to_inside_path(path, what="path"))

    def remove(self, path: StrPath, *, recursive: bool = False, missing_ok: bool = False, timeout: float | None = REMOVE_S) -> None:
        """Remove a file, a link (not what it leads to) or an empty directory; with *recursive*, all that is in it, however deep.

        What is mounted inside (a `Bind` of yours, say) is never entered nor emptied.
        Raises: SetupError: ENOENT (not with *missing_ok*), ENOTEMPTY, EROFS, EBUSY: something is mounted there; TimeoutError: a program
            adds to it as fast as it is removed.
        """
        from sandbox._files import content

        inside = to_inside_path(path, what="path")
        if inside == "/":
            raise UsageError("remove: '/' stays; close the container to be rid of it")
        limit = None if timeout is None else to_seconds(timeout, what="timeout")
        flags = {"recursive": to_bool(recursive, what="recursive"), "missing_ok": to_bool(missing_ok, what="missing_ok")}
        content.remove(self._inside("remove"), inside, **flags, timeout=limit)

    def copy_in(
        self,
        source: StrPath,
        target: StrPath,
        *,
        user: int | str | None = None,
        max_size: Size = MAX_COPY,
        max_entries: int = MAX_ENTRIES,
        max_depth: int = MAX_DEPTH,
        timeout: float | None = COPY_S,
        progress: Progress | None = None,
    ) -> None:
        """Copy a file or directory of the host to *target*; it then belongs to *user* (None: the container's).

        A file goes into *target* if that is a directory, otherwise it becomes *target*; a directory's content goes into *target*.
        *source* itself may be a link; in a tree, links are copied as links. Modes (but set-id bits), times of change and holes are
        kept, hard links become files of their own, extended attributes are left out. *progress* is called with a `CopyProgress` after each
        entry, and after each mebibyte of a large file; what it raises ends the copy.

        Raises: LimitError: more than *max_size* bytes (holes count), *max_entries*, or *max_depth* levels; UsageError: nothing is there, or
            a FIFO, socket or device (for all of these, nothing has been copied); TimeoutError; SetupError: it cannot be written inside.
        """
        from sandbox._files.into import copy_in

        path = os.fsdecode(to_text(source, what="copy_in"))
        inside_path = to_inside_path(target, what="target")
        copying = _copying("copy_in", path, (max_size, max_entries, max_depth, timeout), progress)
        try:
            copy_in(self._inside("copy_in"), inside_path, self._owner(user), copying)
        except OSError as error:
            raise_shortage(error, f"copy_in: {path}")
            raise

    def copy_out(
        self,
        source: StrPath,
        target: StrPath,
        *,
        max_size: Size = MAX_COPY,
        max_entries: int = MAX_ENTRIES,
        max_depth: int = MAX_DEPTH,
        timeout: float | None = COPY_S,
        progress: Progress | None = None,
    ) -> None:
        """Copy a file or directory to the host; the copy is the caller's. Otherwise as `copy_in`.

        Links stay links and are never followed. A copy that fails leaves what it has copied until then.
        Raises: LimitError, TimeoutError; UsageError: a FIFO, socket or device; SetupError: it is not there, cannot be read, or went away
            meanwhile; OSError: the host's side cannot be written.
        """
        from sandbox._files.out import copy_out

        inside_path = to_inside_path(source, what="source")
        path = os.fsdecode(to_text(target, what="target"))
        copying = _copying("copy_out", inside_path, (max_size, max_entries, max_depth, timeout), progress)
        try:
            copy_out(self._inside("copy_out"), path, copying)
        except OSError as error:
            raise_shortage(error, f"copy_out: {inside_path}")
            raise

    def _inside(self, what: str) -> Inside:
        from sandbox._files.inside import Inside

        return Inside(self._session().request, what)

    def _owner(self, user: int | str | None) -> Identity:
        return self._identity(self.spec.user if user is None else str(user))


def _copying(what: str, source: str, limits: tuple[Size, int, int, float | None], progress: Progress | None) -> Copying:
    from sandbox._files.limits import Copying, CopyLimits, checked_progress

    return Copying(what, source, CopyLimits.checked(*limits), checked_progress(progress))
