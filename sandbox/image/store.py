"""The image store: where images are kept, for all processes of one user."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Self

from sandbox._types import StrPath, to_bool
from sandbox.errors import ImageError, ImageNotFoundError
from sandbox.image import _blobs, _cache, _catalog, _folds, _layers, _sweep
from sandbox.image._blobs import BlobWriter
from sandbox.image._disk import Disk, blob_name, layer_name
from sandbox.image._layers import Unpacked
from sandbox.image._leases import Kind, Lease
from sandbox.image.digest import Digest
from sandbox.image.images import Image, Step
from sandbox.image.reference import Reference

if TYPE_CHECKING:
    from sandbox.image.outcomes import Fault, HistoryRow, Pruned, Removed, Usage
    from sandbox.image.tar import UnpackLimits

__all__ = ["Store", "Use"]

Name = str | Reference | Digest


class Use:
    """While it is open, its image is in use: `Store.remove` refuses, and its layers stay. A context manager."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease

    def close(self) -> None:
        """The image is not used any more; a second time does nothing."""
        self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class Store:
    """Images, their blobs and unpacked layers, in a directory that is its user's alone.

    Any number of threads and processes may use the same directory at once, and any of them may be killed at any moment. Nothing is made before the
    first use; no descriptor stays open between two calls, but for those of leases, writers and uses.

    Raises, from any method: UsageError: the directory is open to other users, or is no store; ImageError: it is of another version;
    SetupError: what the kernel refused (no space, no rights).
    """

    def __init__(self, path: StrPath | None = None) -> None:
        """*path*: its directory; None: $SANDBOX_IMAGES, or /var/lib/sandbox/images for root, or $XDG_DATA_HOME/sandbox/images."""
        self._disk = Disk(path)

    @property
    def path(self) -> str:
        """The directory."""
        return self._disk.path

    def __repr__(self) -> str:
        return f"Store({self.path!r})"

    def lease(self) -> Lease:
        """A lease, for one operation; what is added to it is not removed before its end. Leftovers of killed processes are removed first."""
        with self._disk.opened("remove leftovers") as root:
            _sweep.sweep(root)
        return Lease(self._disk)

    # ---- Blobs and documents ----

    def has_blob(self, digest: Digest) -> bool:
        """Whether the blob is there. Add it to a lease first, if that should stay true."""
        if not self._disk.exists:
            return False
        with self._disk.opened("look for a blob", make=False) as root:
            return root.exists(blob_name(digest))

    def open_blob(self, digest: Digest) -> int:
        """A descriptor to read the blob by, the caller's own. Raises: ImageError: it is not there."""
        with self._disk.opened("open a blob") as root:
            try:
                return root.open_file(blob_name(digest))
            except FileNotFoundError:
                raise ImageError(f"blob {digest}: it is not in the store") from None

    def blob_size(self, digest: Digest) -> int:
        """Its size in bytes. Raises: ImageError: it is not there."""
        with self._disk.opened("look for a blob") as root:
            size = root.size(blob_name(digest))
        if size is None:
            raise ImageError(f"blob {digest}: it is not in the store")
        return size

    def read_document(self, digest: Digest) -> bytes:
        """The bytes of a manifest, an index or a configuration, hashed again. Raises: ImageError: it is not there, too large, or damaged."""
        with self._disk.opened("read a document") as root:
            return _blobs.read_document(root, digest)

    def put_document(self, lease: Lease, data: bytes) -> Digest:
        """Keep a manifest, an index or a configuration, and add it to *lease*. Raises: ImageError: it is too large."""
        with self._disk.opened("write a document") as root:
            return _blobs.put_document(root, lease, data)

    def write_blob(self, lease: Lease, digest: Digest | None = None, size: int | None = None) -> BlobWriter:
        """Begin to write a blob, or go on at the `offset` at which somebody stopped; waits while another process writes the same.

        *digest*: what it must be (None: it is being made here, and `BlobWriter.commit` says what it is); *size*: how many bytes it must be.
        It is added to *lease*. If it was there all along, or came while we waited, the writer's `is_complete` is true.
        """
        with self._disk.opened("begin a blob") as root:
            return _blobs.begin(self._disk, root, lease, _blobs.Wanted(digest, size))

    # ---- Layers ----

    def has_layer(self, diff_id: Digest) -> bool:
        """Whether the layer is there, unpacked. Add it to a lease first, if that should stay true."""
        if not self._disk.exists:
            return False
        with self._disk.opened("look for a layer", make=False) as root:
            return _layers.has(root, diff_id)

    def layer_path(self, diff_id: Digest) -> str:
        """The directory of the unpacked layer. Raises: ImageError: it is not there."""
        if not self.has_layer(diff_id):
            raise ImageError(f"layer {diff_id}: it is not in the store")
        return f"{self.path}/{layer_name(diff_id)}/tree"

    def add_layer(self, lease: Lease, diff_id: Digest, unpack: Callable[[int], Unpacked]) -> bool:
        """Have *unpack* fill an empty directory, whose descriptor it is given, with the layer; `unpack_layer` is made of it.

        False: the layer is there, or came while we waited for another process; *unpack* was not called.
        Raises: ImageError: what was unpacked is not *diff_id*; nothing of it is kept.
        """
        with self._disk.opened("unpack a layer") as root:
            return _layers.add(root, lease, diff_id, unpack)

    def unpack_layer(
        self, lease: Lease, diff_id: Digest, source: int | Iterable[bytes], media_type: str = "", *, limits: UnpackLimits | None = None
    ) -> bool:
        """Unpack a layer from *source*, a descriptor of its blob (it stays the caller's), or the blob's bytes as they come.

        A process of its own does it, so that several are unpacked at once from several threads. False: the layer is there, or
        came while we waited for another process; then *source* was not read. *media_type*: what the manifest says that the blob is.
        Raises: ImageError: the content is not *diff_id*, or is refused (limits, paths, owners); nothing of it is kept.
        """
        return self.add_layer(lease, diff_id, lambda directory: _unpack(source, directory, media_type, limits))

    # ---- Images ----

    def add_image(self, lease: Lease, manifest: Digest, names: Iterable[Reference] = (), *, built_here: bool = False) -> Image:
        """Make an image of what is there: the manifest, its configuration, and its layers as blobs and unpacked; and give it *names*.

        *built_here*: it was made on this machine, not pulled or loaded. Raises: ImageError: something is not there, or does not fit.
        """
        keys = _catalog.check_names(names)
        lease.add(manifest)  # and with it all that it names
        with self._disk.opened("add an image") as root:
            found = _catalog.read_manifest(root, manifest)
            config = _catalog.read_config(root, found)
            known = _catalog.require_complete(root, found, config)
            size = sum(layer.disk for layer in known.values())
            folds = _folds.make(root, lease, config.diff_ids, [known[diff_id] for diff_id in config.diff_ids])
            named = _catalog.Named(manifest, found.config.digest)
            for algorithm in {found.config.digest.algorithm, manifest.algorithm}:
                root.sync(f"blobs/{algorithm}")  # a name lasts no less than what it names
            with root.locked():
                root.replace(_catalog.image_name(named.image), _catalog.Record(manifest, built_here, size, folds).encode())
                for key in keys:
                    root.replace(_catalog.name_file(key), named.encode(key))
            return _catalog.load(root, self.path, named, _catalog.names(root))

    def get(self, name: Name) -> Image:
        """The image that *name* means: ``"debian:12"``, ``"debian@sha256:..."``, an id or its first digits (4 or more), a `Reference` or `Digest`.

        Raises: ImageNotFoundError; UsageError: it is no name, or the digits fit several; ImageError: something of it is damaged.
        """
        with self._disk.opened("look for an image") as root, root.locked():
            all_names = _catalog.names(root)
            return _catalog.load(root, self.path, _catalog.resolve(root, name, all_names), all_names)

    def images(self) -> list[Image]:
        """All images, by their first names; those without come last. Damaged ones are left out: `verify` tells of them, and `get` refuses them."""
        if not self._disk.exists:
            return []
        with self._disk.opened("list the images", make=False) as root, root.locked():
            all_names = _catalog.names(root)
            found: list[Image] = []
            for image_id, record in _catalog.records(root).items():
                with contextlib.suppress(ImageError):
                    found.append(_catalog.load(root, self.path, _catalog.Named(record.manifest, image_id), all_names))
        return sorted(found, key=lambda image: (image.names or ("~",), image.id))

    def tag(self, source: Name, target: str | Reference) -> Image:
        """Give the image *source* the name *target*, which may have been another's.

        Raises: ImageNotFoundError; UsageError: *target* is no name, or has a digest.
        """
        reference = target if isinstance(target, Reference) else Reference.parse(target)
        _catalog.require_tag(reference)
        with self._disk.opened("name an image") as root, root.locked():
            named = _catalog.resolve(root, source, _catalog.names(root))
            _catalog.require_record(root, named.image)
            root.replace(_catalog.name_file(str(reference)), named.encode(str(reference)))
            return _catalog.load(root, self.path, named, _catalog.names(root))  # while nobody can remove it

    def untag(self, name: str | Reference) -> None:
        """Take a name away; the image stays. Raises: ImageNotFoundError: there is no such name."""
        key = _catalog.key_of(name if isinstance(name, Reference) else Reference.parse(name))
        with self._disk.opened("take a name away") as root, root.locked():
            if not root.unlink(_catalog.name_file(key)):
                raise ImageNotFoundError(f"no image {key} in the store")

    def use(self, image: Image) -> Use:
        """Say that a container uses *image*, until the `Use` is closed or this process ends. Raises: ImageNotFoundError: it is gone."""
        lease = Lease(self._disk, Kind.USE)
        try:
            lease.add(image.id, image.manifest)
            with self._disk.opened("use an image") as root:
                _catalog.require_there(root, image)
        except BaseException:
            lease.close()
            raise
        return Use(lease)

    # ---- Removing ----

    def remove(self, name: Name, *, force: bool = False) -> Removed:
        """Take a name away, and with the last one the image, and what no other image, build or transfer needs of it.

        By its id, an image goes with all its names. *force*: also when a container uses it (which keeps its layers until it ends), or when it has
        names in several repositories. Raises: ImageNotFoundError; ImageInUseError: see *force*; UsageError: it is no name.
        """
        with self._disk.opened("remove an image") as root:
            return _sweep.remove(root, name, force=force)

    def prune(self, *, all: bool = False, build_cache: bool | None = None, older_s: float = 0.0) -> Pruned:  # noqa: A002 - Docker's word
        """Remove images that have no name (with *all*: each that no container uses), and everything that nothing needs any more.

        *build_cache*: the steps of builds too; None: with *all*. *older_s*: only images that came, and steps that were used, that many seconds ago.
        What is on a lease stays. Pieces of blobs that nobody is writing go too.
        """
        to_bool(all, what="all")
        if not self._disk.exists:
            from sandbox.image.outcomes import Pruned

            return Pruned((), (), 0)
        with self._disk.opened("prune", make=False) as root:
            return _sweep.prune(root, everything=all, build_cache=all if build_cache is None else build_cache, older_s=older_s)

    # ---- Looking after it ----

    def verify(self) -> list[Fault]:
        """Hash all blobs again, compare each unpacked layer with its blob, and look whether all documents fit; return what is wrong.

        Takes as long as unpacking everything, and for a while the space of the largest layer.
        """
        from sandbox.image import _verify

        if not self._disk.exists:
            return []
        with Lease(self._disk) as lease, self._disk.opened("verify", make=False) as root:
            return _verify.verify(root, lease, lambda blob, directory, media_type: _unpack(blob, directory, media_type, None))

    def usage(self) -> Usage:
        """What the store takes on disk."""
        from sandbox.image import _usage

        images = self.images()
        if not self._disk.exists:
            from sandbox.image.outcomes import Usage

            return Usage((), 0, 0, 0, 0, 0, 0)
        with self._disk.opened("count", make=False) as root:
            return _usage.count(root, images)

    def history(self, image: Image) -> list[HistoryRow]:
        """How *image* was made, the last step first, and what each step's layer takes."""
        from sandbox.image import _usage

        with self._disk.opened("read a history", make=False) as root:
            return _usage.history(root, image)

    # ---- Build cache ----

    def cached(self, lease: Lease, key: str) -> Step | None:
        """What the step of a local build gave that was remembered under *key*, added to *lease*; None when there is no such step."""
        if not self._disk.exists:
            return None
        with self._disk.opened("look into the build cache", make=False) as root:
            return _cache.find(root, lease, key)

    def remember(self, lease: Lease, key: str, step: Step) -> None:
        """Remember what a step of a build on this machine gave; its blobs and its layer are there.

        *key* must name all that the step depends on. Never call it for what was pulled: whoever can serve an image could then answer for a build.
        Raises: ImageError: something of it is not in the store.
        """
        with self._disk.opened("write into the build cache") as root:
            _cache.keep(root, lease, key, step)


def default_path() -> str:
    """The directory of the store that is used when none is told."""
    return os.fspath(Disk().path)


def _unpack(source: int | Iterable[bytes], directory: int, media_type: str, limits: UnpackLimits | None) -> Unpacked:
    from sandbox.image._worker import unpack_in_process

    return unpack_in_process(source, directory, media_type=media_type, limits=limits, keep_owners=os.geteuid() == 0)
