"""Take images out of archives and layouts into a store: documents first, then layers, several at once; the image last.

What a layer is, its digest and its diffID say; where it came from is of no account. So a layer that the store has is not read again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, TypeVar

from sandbox.errors import ImageError
from sandbox.image._members import Members, chunks_of
from sandbox.image.compression import decompress, kind_of
from sandbox.image.digest import Digest
from sandbox.image.documents import Config, Descriptor, Manifest, MediaType, parse_config, parse_document
from sandbox.image.layouts import Entry, blob_path, read_blob

if TYPE_CHECKING:
    from sandbox.image._leases import Lease
    from sandbox.image.store import Store
    from sandbox.image.tar import UnpackLimits

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R")
CONFIGS: Final = frozenset({MediaType.OCI_CONFIG, MediaType.DOCKER_CONFIG})
LAYER_TYPES: Final = {"none": MediaType.OCI_LAYER, "gzip": MediaType.OCI_LAYER_GZIP, "zstd": MediaType.OCI_LAYER_ZSTD}


def take_entry(store: Store, lease: Lease, members: Members, entry: Entry, limits: UnpackLimits | None) -> Digest:
    """Take all of an image of a layout but the image itself; give the digest of its manifest.

    Raises: ImageError: something of it is missing, damaged, or no image.
    """
    data = read_blob(members, entry.manifest)
    manifest = parse_document(data, media_type=entry.manifest.media_type, what=f"manifest {entry.manifest.digest}")
    if not isinstance(manifest, Manifest):
        raise ImageError(f"manifest {entry.manifest.digest}: it is an index")
    if manifest.config.media_type not in CONFIGS:
        raise ImageError(f"manifest {entry.manifest.digest}: its configuration is a {manifest.config.media_type!r}; it is no image")
    config_data = read_blob(members, manifest.config)
    config = parse_config(config_data, what=f"configuration {manifest.config.digest}")
    require_as_many(config, manifest.layers)

    def take(layer: Descriptor, diff_id: Digest) -> None:
        copy_blob(store, lease, layer.digest, layer.size, lambda: members.chunks(blob_path(layer.digest)))
        unpack(store, lease, diff_id, layer, limits)

    in_parallel(take, manifest.layers, config.diff_ids)
    store.put_document(lease, config_data)
    return store.put_document(lease, data)


def take_saved(
    store: Store, lease: Lease, members: Members, config_data: bytes, layers: Sequence[str], *, limits: UnpackLimits | None
) -> Digest:
    """Take an image of a `docker save` archive, whose documents name files, and write the manifest that it lacks; see `take_entry`."""
    config = parse_config(config_data)
    require_as_many(config, layers)

    def take(name: str, diff_id: Digest) -> Descriptor:
        descriptor = _take_file(store, lease, members, name, diff_id)
        unpack(store, lease, diff_id, descriptor, limits)
        return descriptor

    found = tuple(in_parallel(take, layers, config.diff_ids))
    store.put_document(lease, config_data)
    manifest = Manifest(Descriptor.of(MediaType.OCI_CONFIG, config_data), found)
    return store.put_document(lease, manifest.encode())


def _take_file(store: Store, lease: Lease, members: Members, name: str, diff_id: Digest) -> Descriptor:
    """Take the layer in the file *name*: as it is; but what images have no media type for, plain."""
    size = members.size(name)
    if size is None:
        raise ImageError(f"the layer {name} is missing")
    kind = kind_of(next(members.chunks(name), b"")[:6])
    if kind in LAYER_TYPES:
        # A plain one is what its diffID says, or it is wrong.
        digest = diff_id if kind == "none" else None
        found = copy_blob(store, lease, digest, size, lambda: members.chunks(name))
    else:
        found = copy_blob(store, lease, diff_id, None, lambda: decompress(members.chunks(name)))
    return Descriptor(LAYER_TYPES.get(kind, MediaType.OCI_LAYER), found, store.blob_size(found))


def copy_blob(store: Store, lease: Lease, digest: Digest | None, size: int | None, chunks: Callable[[], Iterator[bytes]]) -> Digest:
    """Copy a blob into the store unless it is there. Raises: ImageError: it is not what *digest* and *size* say."""
    with store.write_blob(lease, digest, size) as writer:
        if not writer.is_complete:
            if writer.offset:
                writer.restart()  # the other half is somebody's download; this one costs nothing
            for chunk in chunks():
                writer.write(chunk)
        return writer.commit()


def unpack(store: Store, lease: Lease, diff_id: Digest, layer: Descriptor, limits: UnpackLimits | None) -> None:
    """Unpack a layer, whose blob is there."""
    fd = store.open_blob(layer.digest)
    try:
        store.unpack_layer(lease, diff_id, fd, layer.media_type, limits=limits)
    finally:
        os.close(fd)


def blob_chunks(store: Store, digest: Digest) -> Iterator[bytes]:
    """The content of a blob of the store."""
    fd = store.open_blob(digest)
    try:
        yield from chunks_of(fd)
    finally:
        os.close(fd)


def require_as_many(config: Config, layers: Sequence[object]) -> None:
    """Raises: ImageError: there are more layers or fewer than the configuration tells diffIDs of."""
    if len(layers) != len(config.diff_ids):
        raise ImageError(f"{len(layers)} layers, and the configuration has {len(config.diff_ids)} diffIDs")


def in_parallel(function: Callable[[A, B], R], first: Sequence[A], second: Sequence[B]) -> list[R]:
    """Call *function* with each pair, on all CPUs; the first error is raised when all that had begun has ended."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(function, *pair) for pair in zip(first, second, strict=True)]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for future in futures:
                future.cancel()
            raise
