"""Blobs: content under its digest. It is written in a stage, verified while it passes, and moved to its place whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Final, Protocol, Self

from attrs import define, field, frozen

from sandbox._sys.fds import Fd
from sandbox.errors import ClosedError, ImageError
from sandbox.image._disk import Disk, Root, Stage, blob_name, hold, write_all
from sandbox.image._leases import Lease
from sandbox.image.digest import Digest, Verifier
from sandbox.image.documents import MAX_DOCUMENT

CHUNK: Final = 1 << 20
_SMALL: Final = 1 << 16
_OPEN: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


def read_document(root: Root, digest: Digest) -> bytes:
    """The bytes of a small blob, hashed again. Raises: ImageError: it is not there, too large, or damaged."""
    data = root.read(blob_name(digest), limit=MAX_DOCUMENT)
    if data is None:
        raise ImageError(f"blob {digest}: it is not in the store")
    check = Verifier(digest, None)
    check.update(data)
    check.finish()
    return data


def put_document(root: Root, lease: Lease, data: bytes) -> Digest:
    """Keep a small blob, lastingly."""
    digest = Digest.of(data)
    if len(data) > MAX_DOCUMENT:
        raise ImageError(f"blob {digest}: {len(data)} bytes; a document has at most {MAX_DOCUMENT}")
    lease.add(digest)
    with root.locked():
        root.replace(blob_name(digest), data)
    return digest


def begin(disk: Disk, root: Root, lease: Lease, wanted: Wanted) -> BlobWriter:
    """Begin to write a blob, or go on where somebody stopped; see `Store.write_blob`."""
    if wanted.digest is None:
        return _take_up(BlobWriter(disk, lease, wanted, Stage.fresh(root)))
    lease.add(wanted.digest)
    name = blob_name(wanted.digest)
    stage = None if _is_whole(root, name, wanted) else Stage.claim(root, f"blob-{wanted.digest.algorithm}-{wanted.digest.hex}")
    if stage is not None and _is_whole(root, name, wanted):  # it came while we waited for its writer
        stage.discard(root)
        stage = None
    if stage is None:
        return BlobWriter(disk, lease, wanted, None, offset=root.size(name) or 0)
    return _take_up(BlobWriter(disk, lease, wanted, stage))


def _is_whole(root: Root, name: str, wanted: Wanted) -> bool:
    """Whether the blob is there. One that a power cut left empty, or shorter than it was promised, is not: it is put in its place anew. A small
    one, as configurations are, is hashed again.
    """
    size = root.size(name)
    if size is None or size < (wanted.size or 1):
        return False
    if size > _SMALL or wanted.digest is None:
        return True
    return hashlib.new(wanted.digest.algorithm, root.read(name) or b"").hexdigest() == wanted.digest.hex


def _take_up(writer: BlobWriter) -> BlobWriter:
    try:
        writer.open()
    except BaseException:
        writer.close()
        raise
    return writer


@frozen(eq=False, repr=False)
class Wanted:
    """What a blob has to be; None: not known."""

    digest: Digest | None
    size: int | None


class _Hash(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


@define(eq=False, repr=False)
class BlobWriter:
    """Takes a blob piece by piece. A context manager: what was not committed at its end is kept for another try, if its digest is known.

    `offset` is how many bytes there are already: the writer goes on there. Where the blob was there as a whole, that is all of it, and `commit`
    is all that is left to do.
    """

    _disk: Disk
    _lease: Lease
    _wanted: Wanted
    _stage: Stage | None  # None: the blob is in the store
    offset: int = 0
    _file: Fd | None = field(default=None, init=False)
    _verifier: Verifier | None = field(default=None, init=False)
    _hash: _Hash = field(factory=hashlib.sha256, init=False)

    def open(self) -> None:
        """Part of the making: open the file, and hash what is in it already."""
        if self._stage is None:
            return
        self._file = hold(os.open("data", _OPEN, 0o600, dir_fd=self._stage.fileno()))
        os.fchmod(self._file.fileno(), 0o600)
        if self._wanted.size is not None and os.fstat(self._file.fileno()).st_size > self._wanted.size:
            os.ftruncate(self._file.fileno(), 0)
        self._begin()
        for chunk in chunks_of(self._file.fileno()):
            self._note(chunk)

    def _begin(self) -> None:
        self.offset, self._hash = 0, hashlib.sha256()
        self._verifier = None if self._wanted.digest is None else Verifier(self._wanted.digest, self._wanted.size)

    def _note(self, chunk: bytes) -> None:
        if self._verifier is not None:
            self._verifier.update(chunk)
        elif self._wanted.size is not None and self.offset + len(chunk) > self._wanted.size:
            raise ImageError(f"blob: more than the {self._wanted.size} bytes that were promised")
        else:
            self._hash.update(chunk)
        self.offset += len(chunk)

    def _open_file(self) -> Fd:
        if self._file is None or self._file.closed:
            raise ClosedError("this blob is in the store already" if self._stage is None else "the blob writer has ended")
        return self._file

    @property
    def is_complete(self) -> bool:
        """Whether the store has had it already."""
        return self._stage is None

    def write(self, chunk: bytes) -> None:
        """Take the next bytes, which follow `offset`.

        Raises: ImageError: more than were promised; ClosedError: it has ended, or needs none; SetupError: the disk is full, or broken.
        """
        file = self._open_file()
        self._note(chunk)
        try:
            write_all(file.fileno(), chunk)
        except OSError as error:
            raise self._disk.refused("write a blob", error) from error

    def restart(self) -> None:
        """Begin anew at offset 0: the source cannot go on where somebody stopped."""
        file = self._open_file()
        os.ftruncate(file.fileno(), 0)
        os.lseek(file.fileno(), 0, os.SEEK_SET)
        self._begin()

    def commit(self) -> Digest:
        """Put it in its place, and say what it is.

        Raises: ImageError: it is not what its digest or size promises; then nothing of it is kept. ClosedError: it has ended already.
        """
        if (stage := self._stage) is None:
            return self._existing()
        self._open_file()
        with self._disk.opened("put a blob in its place") as root:
            digest = self._place(root, stage)
        self.close()
        return digest

    def _existing(self) -> Digest:
        if self._wanted.digest is None:
            raise ClosedError("the blob writer has ended")
        self._check_size(self._wanted.digest)
        return self._wanted.digest

    def _check_size(self, digest: Digest) -> None:
        if self._wanted.size not in (None, self.offset):
            raise ImageError(f"blob {digest}: {self.offset} bytes, and its descriptor promises {self._wanted.size}")

    def _place(self, root: Root, stage: Stage) -> Digest:
        try:
            digest = self._verified()
            self._lease.add(digest)
            with root.locked():
                root.move(f"{stage.path}/data", blob_name(digest))
        except ImageError:
            stage.discard(root)
            raise
        stage.discard(root)
        return digest

    def _verified(self) -> Digest:
        if self._verifier is not None and self._wanted.digest is not None:
            self._verifier.finish()
            return self._wanted.digest
        digest = Digest("sha256", self._hash.hexdigest())
        self._check_size(digest)
        return digest

    def close(self) -> None:
        """End it; what was not committed is kept for another try, or removed if nobody could ask for it. A second time does nothing."""
        if self._file is not None:
            self._file.close()
        if self._stage is None or self._stage.lock.closed:
            return
        if self._wanted.digest is not None:
            self._stage.release()
            return
        with self._disk.opened("remove what was not committed") as root:
            self._stage.discard(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def chunks_of(fd: int) -> Iterator[bytes]:
    """What is to be read from *fd*, piece by piece."""
    while chunk := os.read(fd, CHUNK):
        yield chunk
