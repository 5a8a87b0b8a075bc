"""Root file systems without a history: `import_rootfs` makes an image of one layer of a directory or a tar, `export` a tar of an image."""

from __future__ import annotations

import hashlib
import os
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import IO, TYPE_CHECKING, cast

from attrs import define

from sandbox._types import Size, StrPath, to_size
from sandbox.errors import LimitError, UsageError
from sandbox.image._members import MAX_SPOOL, Source, chunks_of
from sandbox.image._taking import LAYER_TYPES
from sandbox.image.archives import Target, writing_to
from sandbox.image.changes import apply_changes
from sandbox.image.compression import decompress, kind_of
from sandbox.image.digest import Digest
from sandbox.image.documents import Config, Descriptor, History, Manifest, MediaType, Platform, Settings
from sandbox.image.pack import pack
from sandbox.image.reference import Reference
from sandbox.image.store import Store
from sandbox.image.tar import UnpackLimits
from sandbox.image.unpack import Unpacked, unpack

if TYPE_CHECKING:
    from sandbox.image._leases import Lease
    from sandbox.image.images import Image

__all__ = ["export", "import_rootfs"]


def import_rootfs(
    source: Source,
    name: str | Reference | None = None,
    *,
    settings: Settings | None = None,
    changes: Iterable[str] = (),
    message: str = "",
    author: str = "",
    platform: Platform | None = None,
    store: Store | None = None,
    limits: UnpackLimits | None = None,
    max_size: Size = MAX_SPOOL,
) -> Image:
    """Make an image of one layer of a root file system: a directory, or a tar (a path, a descriptor, something to read from), compressed or not.

    *settings*: what containers of it do by default, after *changes* in a Dockerfile's words (``CMD ["sh"]``); *platform*: what its programs
    are for (None: this machine). Owners stay as they are; of a directory that an ordinary user imports, all is root's. Devices and
    sockets are left out. SOURCE_DATE_EPOCH, if set, is the time of the image, and no file of a directory is newer than that.
    Raises: UsageError; LimitError: more than *max_size* bytes; ImageError: no tar, or one that cannot be a root (whiteouts, owners above 65535).
    """
    named = [] if name is None else [name if isinstance(name, Reference) else Reference.parse(name)]
    settings = apply_changes(settings or Settings(), changes)
    store = store or Store()
    epoch = _epoch()
    with store.lease() as lease:
        if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
            layer, diff_id = _take_directory(store, lease, source, epoch)
        else:
            layer, diff_id = _take_stream(store, lease, source, to_size(max_size, what="max_size"))
        store.add_layer(lease, diff_id, partial(_unpack, store, layer, limits))
        created = datetime.fromtimestamp(time.time() if epoch is None else epoch, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        config = Config(
            platform=platform or Platform.of_this_machine(),
            diff_ids=(diff_id,),
            settings=settings,
            history=(History(created=created, created_by="sandbox import", comment=message),),
            created=created,
            author=author,
        ).encode()
        store.put_document(lease, config)
        manifest = Manifest(Descriptor.of(MediaType.OCI_CONFIG, config), (layer,))
        return store.add_image(lease, store.put_document(lease, manifest.encode()), named, built_here=True)


def _epoch() -> int | None:
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 12):
        raise UsageError(f"SOURCE_DATE_EPOCH: {text[:50]!r} is not a number of seconds since 1970")
    return int(text) if text else None


def _take_directory(store: Store, lease: Lease, path: StrPath, epoch: int | None) -> tuple[Descriptor, Digest]:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        owner = None if os.geteuid() == 0 else (0, 0)
        with store.write_blob(lease) as writer:
            diff_id = pack(directory, writer.write, clamp_mtime=epoch, whiteouts=False, owner=owner)
            writer.commit()
    finally:
        os.close(directory)
    return Descriptor(MediaType.OCI_LAYER, diff_id, store.blob_size(diff_id)), diff_id


def _take_stream(store: Store, lease: Lease, source: Source, max_size: int) -> tuple[Descriptor, Digest]:
    """Keep a tar as it came, if images have a media type for how it is compressed; plain otherwise."""
    head = _Head(chunks_of(source))
    kind = kind_of(head.start)
    plain = hashlib.sha256()
    with store.write_blob(lease) as writer:
        as_it_came = kind in LAYER_TYPES
        size = 0
        for chunk in decompress(_passing_through(head, writer.write) if as_it_came else head):
            size += len(chunk)
            if size > max_size:
                raise LimitError(f"the root file system is larger than {max_size} bytes (max_size)", limit="max_size")
            plain.update(chunk)
            if not as_it_came:
                writer.write(chunk)
        digest = writer.commit()
    media_type = LAYER_TYPES.get(kind, MediaType.OCI_LAYER)
    return Descriptor(media_type, digest, store.blob_size(digest)), Digest("sha256", plain.hexdigest())


class _Head:
    """An iterator whose first bytes can be looked at."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self.start = b""
        while len(self.start) < 6 and (chunk := next(chunks, None)) is not None:
            self.start += chunk

    def __iter__(self) -> Iterator[bytes]:
        yield self.start
        yield from self._chunks


def _passing_through(chunks: Iterator[bytes] | _Head, write: Callable[[bytes], object]) -> Iterator[bytes]:
    for chunk in chunks:
        write(chunk)
        yield chunk


def _unpack(store: Store, layer: Descriptor, limits: UnpackLimits | None, directory: int) -> Unpacked:
    blob = store.open_blob(layer.digest)
    try:
        chunks = decompress(chunks_of(blob), media_type=layer.media_type)
        return unpack(chunks, directory, limits=limits, keep_owners=os.geteuid() == 0, rootfs=True)
    finally:
        os.close(blob)


def export(image: str | Reference | Digest | Image, target: Target, *, store: Store | None = None) -> None:
    """Write the root of *image* as one tar to *target*: its layers over one another, and no container.

    A path is replaced when all is written. In a store of an ordinary user the owners that layers name are lost: all is root's.
    Raises: UsageError: *target* is a terminal, or cannot be opened; ImageNotFoundError.
    """
    from sandbox.image.images import Image

    store = store or Store()
    found = store.get(image.id if isinstance(image, Image) else image)
    with store.use(found):
        export_layers(found.layers, target)


def export_layers(layers: Sequence[str], target: Target, *, upper: int | None = None, shift: int = 0, max_size: int | None = None) -> None:
    """As `export`, of layers by their paths, the lowest first, and of what a container has written over them: the directory behind *upper*.

    *shift* is taken off the owners of the latter. Raises: LimitError: more than *max_size* bytes.
    """
    from sandbox.image._merged import write_merged

    with writing_to(target) as write:
        file = cast("IO[bytes]", _Stream(write if max_size is None else _bounded(write, max_size)))
        owner = None if os.geteuid() == 0 else (0, 0)
        with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape") as tar:
            write_merged(layers, tar, owner=owner, upper=upper, shift=shift)


def _bounded(write: Callable[[bytes], object], most: int) -> Callable[[bytes], object]:
    written = 0

    def write_on(data: bytes) -> object:
        nonlocal written
        written += len(data)
        if written > most:
            raise LimitError(f"export: more than {most} bytes (max_size)", limit="max_size")
        return write(data)

    return write_on


@define
class _Stream:
    """What tarfile writes a stream to."""

    write: Callable[[bytes], object]
