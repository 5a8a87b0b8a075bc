"""Images for tests, small and made here; a store to put them into, and a look at what is in it."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

from attrs import frozen

from sandbox.image import Config, Descriptor, Digest, Image, Lease, Manifest, MediaType, Platform, Reference, Settings, Store


@frozen
class Layer:
    """A layer of plain files: its tar, and the compressed blob of it."""

    tar: bytes
    blob: bytes

    @property
    def diff_id(self) -> Digest:
        return Digest.of(self.tar)

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor.of(MediaType.OCI_LAYER_GZIP, self.blob)


def layer(files: dict[str, bytes]) -> Layer:
    """A layer of *files*; a name with a slash at its end is a directory."""
    buffer = io.BytesIO()
    owner = os.geteuid()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name.rstrip("/"))
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            member.size, member.mode, member.mtime = len(content), 0o755 if name.endswith("/") else 0o644, 1_700_000_000
            member.uid = member.gid = owner
            archive.addfile(member, io.BytesIO(content))
    return layer_of(buffer.getvalue())


def layer_of(tar: bytes) -> Layer:
    """A layer that is *tar*."""
    return Layer(tar, gzip.compress(tar, 1, mtime=0))


def layers(seed: str, count: int = 2, size: int = 100) -> list[Layer]:
    """Layers with content that no other *seed* gives."""
    return [layer({"d/": b"", f"d/{number}": hashlib.shake_128(f"{seed} {number}".encode()).digest(size)}) for number in range(count)]


def put(
    store: Store,
    lease: Lease,
    parts: Iterable[Layer],
    names: Iterable[str] = (),
    *,
    built_here: bool = False,
    settings: Settings | None = None,
    config: Config | None = None,
) -> Image:
    """Put an image of *parts* into *store*, as a pull would."""
    parts = list(parts)
    for part in parts:
        with store.write_blob(lease, part.descriptor.digest, len(part.blob)) as writer:
            if not writer.is_complete:
                writer.write(part.blob[writer.offset :])
            writer.commit()
        fd = store.open_blob(part.descriptor.digest)
        try:
            store.unpack_layer(lease, part.diff_id, fd, part.descriptor.media_type)
        finally:
            os.close(fd)
    if settings is not None or config is None:
        config = Config(Platform(), tuple(part.diff_id for part in parts), settings or Settings())
    document = config.encode()
    store.put_document(lease, document)
    manifest = Manifest(Descriptor.of(MediaType.OCI_CONFIG, document), tuple(part.descriptor for part in parts)).encode()
    digest = store.put_document(lease, manifest)
    return store.add_image(lease, digest, [Reference.parse(name) for name in names], built_here=built_here)


def make(store: Store, name: str, seed: str | None = None, *, count: int = 2) -> Image:
    """A whole image under *name*."""
    with store.lease() as lease:
        return put(store, lease, layers(seed or name, count), [name])


def files_of(store: Store) -> list[str]:
    """Everything in a store, but for its locks and directories of its own."""
    root = Path(store.path)
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
