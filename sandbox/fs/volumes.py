"""Volumes: directories that are kept by name, and outlive containers.

Theory of operation
-------------------
A store is one directory, closed to other users (0700), which any number of processes use at once, without a daemon:

    NAME/volume.json    its document (`_volume_documents`), written once
    NAME/_data          what containers see; any user of a container may write there (1777) until an image says otherwise
    NAME/_image         instead of it, where the volume has a size: a file system in a file (`_volume_images`)
    .new-<random>       a volume, or the content of one, on its way
    .temp-<random>      an anonymous volume of a container that lives
    .gone-<random>      a volume that is being removed

A volume comes into being, and goes, by one rename. Who uses it holds a shared lock on NAME (`_volume_use`), and then looks whether it still is
there; who removes it takes the lock exclusively, without waiting. What begins with a dot is locked by its owner, and removed by the next
one who makes or removes a volume once that owner has died. ``.lock`` is held for a moment by who only asks whether a volume is used, or removes
one; ``NAME/.lock`` by who fills it.

A container's programs own what is in ``_data``. It is never resolved by a path: it is opened by its name with O_NOFOLLOW, a sub-path in it with
openat2(BENEATH | NO_SYMLINKS), and removed by `remove_tree`, which follows nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Generator, Mapping
from typing import Final

from attrs import evolve, field, frozen

from sandbox._sys.calls import openat2
from sandbox._sys.places import absolute, user_directory
from sandbox._types import Size, StrPath, to_text
from sandbox.errors import LimitError, SetupError, UnsupportedError, UsageError, VolumeInUseError, VolumeNotFoundError
from sandbox.fs._fill import BENEATH
from sandbox.fs._scratch import remove_tree
from sandbox.fs._specs import to_volume_name
from sandbox.fs._volume_content import Content, fill_directory, fill_image, make_content
from sandbox.fs._volume_documents import MAX_DOCUMENT, VolumeInfo, decode, encode, size_of, to_labels, to_options
from sandbox.fs._volume_images import IMAGE, check_images, has_image, image_status, mount_below, mount_image
from sandbox.fs._volume_places import (
    DATA,
    DOCUMENT,
    GONE,
    NEW,
    TEMP,
    Announce,
    disk_usage,
    has_entries,
    remove_temporary,
    stage,
    sweep,
    write_document,
)
from sandbox.fs._volume_use import DIRECTORY, VolumeUse, is_there, try_lock, unlock

_DATA_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def default_store() -> str:
    """Return where this user's volumes are: $SANDBOX_VOLUMES, or /var/lib/sandbox/volumes for root, or else below $XDG_DATA_HOME (~/.local/share).

    Raises: UsageError: the variable is not an absolute path.
    """
    return user_directory("volumes")


def _to_store(value: StrPath | None) -> str:
    if value is None:
        return default_store()
    return absolute(os.fsdecode(to_text(value, what="volume store")), what="volume store")


@frozen
class PrunedVolumes:
    """What `VolumeStore.prune` removed: names, and the bytes that their files took on the disk."""

    names: tuple[str, ...]
    size: int


@frozen
class VolumeStore:
    """A directory of volumes, closed to other users (0700), so that what a container leaves in one is theirs neither to read nor to run.

    Any number of threads and processes may use one store; nothing is made before the first volume.
    """

    path: str = field(default=None, converter=_to_store)

    # ---- Volumes as things that one has ----

    def create(self, name: str | None = None, *, labels: Mapping[str, str] | None = None, options: Mapping[str, str] | None = None) -> VolumeInfo:
        """Make the volume *name*, or (None) one with a name of 64 random digits; one that is there already is given back, as Docker does.

        *options*: ``{"size": "1G"}``: it is a file system of its own, in a file of that length, from 16M on.
        Raises: UsageError: the name is none, an option unknown, or there is one of that name with other labels or options.
            UnsupportedError: a ``size`` was asked for, and this user or host mounts no such file system. SetupError: the disk has not so much room.
        """
        wanted_labels, wanted_options = to_labels(labels or {}), to_options(options or {})
        name = os.urandom(32).hex() if name is None else to_volume_name(name)
        with self._opened(make=True) as store:
            found = self._made(store, name, wanted_labels, wanted_options)
        _check_same(found, wanted_labels, wanted_options)
        return found

    def get(self, name: str) -> VolumeInfo:
        """What is known of the volume *name*. Raises: VolumeNotFoundError."""
        to_volume_name(name)
        with self._existing(name) as store, self._directory(store, name) as directory:
            return self._read(store, name, directory)

    def volumes(self) -> list[VolumeInfo]:
        """All volumes, by name; an anonymous one of a container that lives is that container's, and not among them."""
        found: list[VolumeInfo] = []
        for name in self.names():
            with contextlib.suppress(VolumeNotFoundError):  # somebody has just removed it
                found.append(self.get(name))
        return found

    def names(self) -> list[str]:
        """List the volumes, sorted."""
        try:
            with self._opened(make=False) as store:
                return sorted(name for name in os.listdir(store) if _is_name(name))
        except FileNotFoundError:
            return []

    def is_used(self, name: str) -> bool:
        """Whether a container uses the volume *name* just now. Raises: VolumeNotFoundError."""
        to_volume_name(name)
        with self._existing(name) as store, _mutex(store), self._directory(store, name) as directory:
            return not try_lock(directory)

    def size(self, name: str) -> int:
        """The bytes that the files of the volume *name* take on the disk; takes the time to look at each of them."""
        to_volume_name(name)
        with self._existing(name) as store, self._directory(store, name) as directory:
            return disk_usage(directory)

    def remove(self, name: str, *, force: bool = False) -> None:
        """Remove the volume *name* and all that it holds. *force*: one that is not there is no error.

        Raises: VolumeInUseError: a container has it. VolumeNotFoundError. UnsupportedError: files in it belong to ids that this user has not.
        """
        to_volume_name(name)
        try:
            with self._existing(name) as store:
                self._remove(store, name)
                sweep(store)
        except VolumeNotFoundError:
            if not force:
                raise

    def prune(self, *, all: bool = False, label: str | None = None) -> PrunedVolumes:  # noqa: A002 - Docker's word
        """Remove the anonymous volumes that no container uses; with *all*, those with names too. *label*: only those that have it."""
        removed: list[str] = []
        size = 0
        with contextlib.suppress(VolumeNotFoundError), self._existing() as store:
            for name in self.names():
                try:
                    info = self.get(name)
                except (UsageError, VolumeNotFoundError):  # damaged: `volume rm -f` is for those
                    continue
                if not (all or info.is_anonymous) or (label is not None and not info.has_label(label)):
                    continue
                with contextlib.suppress(VolumeInUseError, VolumeNotFoundError):
                    size += self._remove(store, info.name, measure=True)
                    removed.append(info.name)
            sweep(store)
        return PrunedVolumes(tuple(removed), size)

    # ---- Volumes in use ----

    def open(self, name: str) -> int:
        """Return an O_PATH descriptor, the caller's own, of the files of the volume *name*; it is made when there is none.

        It does not keep the volume from being removed; `use` does.
        Raises: UsageError: the name is none, or the store belongs to somebody else.
        """
        with contextlib.closing(self.use(name)) as use:
            return use.take()

    def use(
        self,
        name: str | None,
        *,
        subpath: str = "",
        content: Content | None = None,
        announce: Announce = lambda path: None,
        size: Size | None = None,
    ) -> VolumeUse:
        """Use the volume *name*, made when there is none, until `VolumeUse.close`; None: an anonymous one, which is removed then.

        *content*: what is copied there first, if it is empty and nobody else uses it. *announce*: told an anonymous one's path before it is made.
        *size*: as in `create`; None: whatever the volume has.
        Raises: UsageError: the store is somebody else's, there is no such *subpath*, or the volume is of another *size*; SetupError: copying failed.
        """
        options = to_options({} if size is None else {"size": str(size)})
        with self._opened(make=True) as store:
            use = (
                self._use_anonymous(store, content, announce, options)
                if name is None
                else self._use_named(store, to_volume_name(name), content, options)
            )
            try:
                if subpath:
                    use.fd = self._below(use.take(), subpath, name, is_mount=use.is_mount)
            except BaseException:
                use.close()
                raise
        return use

    def _use_named(self, store: int, name: str, content: Content | None, options: dict[str, str]) -> VolumeUse:
        while True:
            try:
                directory = os.open(name, DIRECTORY, dir_fd=store)
            except FileNotFoundError:
                self._made(store, name, {}, options)
                continue
            except OSError as error:
                raise UsageError(f"volume: {self.path}/{name} is no volume ({error.strerror}); remove it") from error
            try:
                if options:
                    _check_same(self._read(store, name, directory), {}, options)
                if content is not None:
                    self._fill_first(store, directory, name, content)
                fcntl.flock(directory, fcntl.LOCK_SH)
                if is_there(name, store, directory):
                    return VolumeUse(self._open_data(directory, name), directory, is_mount=has_image(directory))
            except BaseException:
                unlock(directory)
                raise
            unlock(directory)

    def _use_anonymous(self, store: int, content: Content | None, announce: Announce, options: dict[str, str]) -> VolumeUse:
        sweep(store)
        if size := size_of(options):
            check_images(store, size)
        place, directory = stage(store, TEMP, lambda name: announce(f"{self.path}/{name}"))
        parent = os.dup(store)
        use = VolumeUse(-1, directory, lambda: remove_temporary(place, parent), is_mount=size is not None)
        try:
            make_content(directory, size)
            if content is not None:
                self._fill(store, directory, content)
            use.fd = self._open_data(directory, place)
        except BaseException:
            use.close()
            raise
        return use

    def _open_data(self, directory: int, name: str) -> int:
        if has_image(directory):
            return mount_image(directory)
        try:
            return os.open(DATA, _DATA_PATH, dir_fd=directory)
        except OSError as error:
            raise UsageError(f"volume: {self.path}/{name} is no volume (no {DATA}); move its files away, and remove it") from error

    def _fill_first(self, store: int, directory: int, name: str, content: Content) -> None:
        """Fill the volume if it is empty and nobody uses it. Who would fill it too waits here, without a lock that says that it is used."""
        if self._has_entries(directory, name):
            return
        with _mutex(directory):
            if not self._has_entries(directory, name) and try_lock(directory) and is_there(name, store, directory):
                self._fill(store, directory, content)

    def _has_entries(self, directory: int, name: str) -> bool:
        data = self._open_data(directory, name)
        try:
            return has_entries(data)
        finally:
            os.close(data)

    def _fill(self, store: int, directory: int, content: Content) -> None:
        """Copy aside, and put the whole in the place of the empty directory at once: who is killed leaves that as it was."""
        with content.opened() as (tree, source):
            if source is None:
                return
            image = image_status(directory)
            place, staging = stage(store, NEW)
            try:
                if image is None:
                    fill_directory(tree, source, staging, directory)
                else:
                    fill_image(tree, source, staging, directory, image.st_size)
            except LimitError as error:
                raise LimitError(f"volume: the image has {error} there; mount it with nocopy", limit=error.limit) from None
            except OSError as error:
                hint = "mount it with nocopy, and no file of the image is copied" + (", or give it more room" if error.errno == errno.ENOSPC else "")
                raise SetupError("copy what the image has into the volume", error.errno or errno.EIO, step="volume", hint=hint) from error
            finally:
                with contextlib.suppress(FileNotFoundError):
                    remove_tree(place, store)
                unlock(staging)

    def _below(self, data: int, subpath: str, name: str | None, *, is_mount: bool) -> int:
        try:
            below = openat2(subpath, os.O_PATH | os.O_DIRECTORY, dir_fd=data, resolve=BENEATH)
        except OSError as error:
            words = {errno.ENOENT: "no such directory", errno.ELOOP: "a link is on the way"}.get(error.errno or 0, os.strerror(error.errno or 0))
            raise UsageError(f"volume {name!r}: subpath {subpath!r}: {words}; make that directory in the volume first") from error
        else:
            if not is_mount:
                return below
            try:
                return mount_below(below)
            finally:
                os.close(below)
        finally:
            os.close(data)

    # ---- The store ----

    @contextlib.contextmanager
    def _opened(self, *, make: bool) -> Generator[int]:
        store = self._open_store(make=make)
        try:
            yield store
        finally:
            os.close(store)

    @contextlib.contextmanager
    def _existing(self, name: str = "") -> Generator[int]:
        try:
            store = self._open_store(make=False)
        except FileNotFoundError:
            raise VolumeNotFoundError(f"volume: no volume {name!r} in {self.path}" if name else f"volume: no volume in {self.path}") from None
        try:
            yield store
        finally:
            os.close(store)

    @contextlib.contextmanager
    def _directory(self, store: int, name: str) -> Generator[int]:
        try:
            directory = os.open(name, DIRECTORY, dir_fd=store)
        except (FileNotFoundError, NotADirectoryError):
            raise VolumeNotFoundError(f"volume: no volume {name!r} in {self.path}") from None
        except OSError as error:
            raise UsageError(f"volume: {self.path}/{name} is no volume ({error.strerror}); remove it") from error
        try:
            yield directory
        finally:
            unlock(directory)

    def _made(self, store: int, name: str, labels: dict[str, str], options: dict[str, str]) -> VolumeInfo:
        """The volume *name*, made now if there is none."""
        info = VolumeInfo(name, self._mountpoint(name, options), int(time.time()), labels, options)
        raw = encode(info)
        while True:
            with contextlib.suppress(VolumeNotFoundError), self._directory(store, name) as directory:
                return self._read(store, name, directory)
            sweep(store)
            if info.size is not None:
                check_images(store, info.size)
            place, staging = stage(store, NEW)
            try:
                write_document(staging, raw)
                make_content(staging, info.size)
                # Over one that somebody made meanwhile: ENOTEMPTY, for a volume never is empty.
                os.rename(place, name, src_dir_fd=store, dst_dir_fd=store)
            except BaseException as error:
                with contextlib.suppress(FileNotFoundError):
                    remove_tree(place, store)
                if not isinstance(error, OSError) or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                return info
            finally:
                unlock(staging)

    def _mountpoint(self, name: str, options: Mapping[str, str]) -> str:
        return f"{self.path}/{name}/{IMAGE if size_of(options) else DATA}"

    def _read(self, store: int, name: str, directory: int) -> VolumeInfo:
        try:
            with open(os.open(DOCUMENT, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory), "rb") as file:
                info = decode(file.read(MAX_DOCUMENT + 1))
                return evolve(info, mountpoint=self._mountpoint(name, info.options))
        except FileNotFoundError:
            if not is_there(name, store, directory):
                raise VolumeNotFoundError(f"volume: no volume {name!r} in {self.path}") from None
            raise UsageError(f"volume: {self.path}/{name} is no volume (no {DOCUMENT}); move its files away, and remove it") from None
        except (OSError, ValueError) as error:
            raise UsageError(f"volume: the document of {name!r} is damaged ({error}); remove the volume") from error

    def _remove(self, store: int, name: str, *, measure: bool = False) -> int:
        with self._directory(store, name) as directory:
            gone = self._move_away(store, name, directory)  # locked until it is gone: nobody sweeps it under our hands
            size = disk_usage(directory) if measure else 0
            try:
                remove_tree(gone, store)
            except PermissionError as error:
                raise UnsupportedError(
                    f"volume: files of {name!r} belong to ids that this user has not",
                    feature="subids",
                    remedy=f"remove {self.path}/{gone} as root, or in a container with subids=True",
                ) from error
            return size

    def _move_away(self, store: int, name: str, directory: int) -> str:
        """Take the volume's name from it, if nobody uses it."""
        with _mutex(store):
            if not try_lock(directory):
                raise VolumeInUseError(f"volume: {name!r} is in use by a container; close that first")
            if not is_there(name, store, directory):
                raise VolumeNotFoundError(f"volume: no volume {name!r} in {self.path}")
            gone = GONE + os.urandom(8).hex()
            os.rename(name, gone, src_dir_fd=store, dst_dir_fd=store)
            return gone

    def _open_store(self, *, make: bool) -> int:
        if make:
            try:
                os.mkdir(self.path, 0o700)
            except FileExistsError:
                pass
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self.path) or "/", mode=0o700, exist_ok=True)
                make_directory(self.path)
        store = os.open(self.path, DIRECTORY)
        status = os.fstat(store)
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            os.close(store)
            raise UsageError(f"volume store: {self.path!r} is open to other users; make it yours alone (chown, chmod 0700)")
        return store


@contextlib.contextmanager
def _mutex(directory: int) -> Generator[None]:
    """Held for moments, or while a volume is filled, by who waits for nobody then."""
    fd = os.open(".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        unlock(fd)


def make_directory(path: str) -> None:
    """Make *path* for its owner alone, whatever the umask; an existing directory stays as it is."""
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return


def _is_name(name: str) -> bool:
    try:
        to_volume_name(name)
    except UsageError:
        return False
    return True


def _check_same(found: VolumeInfo, labels: Mapping[str, str], options: Mapping[str, str]) -> None:
    for what, wanted, has in (("labels", labels, found.labels), ("options", options, found.options)):
        if wanted and wanted != has:
            raise UsageError(f"volume: {found.name!r} exists with other {what}, {dict(has)}; choose another name, or remove it first")
