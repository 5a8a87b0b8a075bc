"""Names and images: which names there are, what each stands for, and the documents behind it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import time
from collections.abc import Iterable
from typing import Final

from attrs import frozen

from sandbox.errors import ImageError, ImageNotFoundError, UsageError
from sandbox.image import _folds, _layers
from sandbox.image._blobs import read_document
from sandbox.image._disk import Root, blob_name
from sandbox.image.digest import Digest
from sandbox.image.documents import Config, Index, Manifest, decode, encode, parse_config, parse_document
from sandbox.image.images import Image
from sandbox.image.reference import Reference

_ID: Final = re.compile(r"[0-9a-f]{4,128}", re.ASCII)  # the first digits of an id, as git wants at least
_SMALL: Final = 1 << 17  # bytes of documents whose meaning is remembered
_ALGORITHM: Final = {64: "sha256", 128: "sha512"}


@frozen(repr=False)
class Record:
    """What is kept of an image beside its blobs."""

    manifest: Digest
    built_here: bool
    size: int
    folds: tuple[_folds.Span, ...] = ()

    def encode(self) -> bytes:
        folds = {"folds": [list(span) for span in self.folds]} if self.folds else {}
        return encode({"manifest": str(self.manifest), "built_here": self.built_here, "size": self.size, **folds})

    @classmethod
    def decode(cls, data: bytes, what: str) -> Record:
        fields = decode(data, what=what)
        try:
            folds = tuple((int(first), int(count)) for first, count in fields.get("folds", []))
        except (TypeError, ValueError):
            raise ImageError(f"{what}: its folds are {fields['folds']!r}") from None
        return cls(Digest.parse(fields.get("manifest")), bool(fields.get("built_here")), int(fields.get("size", 0)), folds)


@frozen(order=True)
class Named:
    """What a name stands for: an image, and the manifest by which it came."""

    manifest: Digest
    image: Digest

    def encode(self, name: str) -> bytes:
        return encode({"name": name, "manifest": str(self.manifest), "image": str(self.image)})

    @classmethod
    def decode(cls, data: bytes) -> tuple[str, Named]:
        fields = decode(data, what="image store: a name")
        return str(fields.get("name")), cls(Digest.parse(fields.get("manifest")), Digest.parse(fields.get("image")))


Names = dict[str, Named]
_KNOWN: Final[dict[tuple[int, ...], tuple[str, Named]]] = {}  # by device, inode, times and size
_KNOWN_LIMIT: Final = 10_000
_THERE: Final[dict[tuple[object, ...], None]] = {}  # images whose layers were all there, by the state of the layers' directory
_SETTLED_NS: Final = 100_000_000  # a file system may keep times in steps of 10 ms: what changes twice within one has one time


def image_name(image_id: Digest) -> str:
    """Where the record of an image is in a store."""
    return f"images/{image_id.hex}"


def name_file(name: str) -> str:
    """Where what a name stands for is in a store; a hash, so that no name can be a path."""
    return f"names/{Digest.of(name.encode()).hex}"


def to_digest(hexadecimal: str) -> Digest | None:
    """The digest of which only the digits are the name of a file; None for what is none."""
    if len(hexadecimal) not in _ALGORITHM or not _ID.fullmatch(hexadecimal):
        return None
    return Digest(_ALGORITHM[len(hexadecimal)], hexadecimal)


def key_of(reference: Reference) -> str:
    """The name under which an image is kept: a digest decides, and a tag beside it says nothing more."""
    return str(reference if reference.digest is None else reference.pinned(reference.digest))


def names(root: Root) -> Names:
    """All names, sorted, each with what it stands for."""
    found: Names = {}
    fd = root.open_directory("names")
    try:
        with os.scandir(fd) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):  # somebody has just taken it away
                    name, named = _named(root, entry)
                    found[name] = named
    finally:
        os.close(fd)
    return dict(sorted(found.items()))


def _named(root: Root, entry: os.DirEntry[str]) -> tuple[str, Named]:
    """Read a name, or know it from the last time: a container's start shall not grow with the number of names.

    Names are replaced by new files, never written in: a file of the same number and times is the same, if it was a second old when it was read.
    """
    status = entry.stat(follow_symlinks=False)
    key = (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_ctime_ns, status.st_size)
    if (known := _KNOWN.get(key)) is not None:
        return known
    data = root.read(f"names/{entry.name}")
    if data is None:
        raise FileNotFoundError(entry.name)
    found = Named.decode(data)
    if time.time() - status.st_ctime > 1.0:
        if len(_KNOWN) >= _KNOWN_LIMIT:
            _KNOWN.clear()
        _KNOWN[key] = found
    return found


def record(root: Root, image_id: Digest) -> Record | None:
    """What is kept of an image; None when there is no such image."""
    data = root.read(image_name(image_id))
    return None if data is None else Record.decode(data, f"image {image_id}")


def records(root: Root) -> dict[Digest, Record]:
    """All images."""
    found: dict[Digest, Record] = {}
    for entry in root.names("images"):
        image_id = to_digest(entry)
        if image_id is not None and (known := record(root, image_id)) is not None:
            found[image_id] = known
    return found


# ---- Documents ----


def _parsed_document(data: bytes) -> Manifest | Index:
    """Parse a manifest or index, or know it from the last time: with 120 layers it takes a millisecond."""
    return _cached_document(data) if len(data) <= _SMALL else parse_document(data, what="manifest")


@functools.lru_cache(64)
def _cached_document(data: bytes) -> Manifest | Index:
    return parse_document(data, what="manifest")


def _parsed_config(data: bytes) -> Config:
    return _cached_config(data) if len(data) <= _SMALL else parse_config(data)


@functools.lru_cache(64)
def _cached_config(data: bytes) -> Config:
    return parse_config(data)


def read_manifest(root: Root, digest: Digest) -> Manifest:
    """Raises: ImageError: it is not there, or no manifest."""
    document = _parsed_document(read_document(root, digest))
    if not isinstance(document, Manifest):
        raise ImageError(f"{digest} is an index of several images; add one of its manifests")
    return document


def read_config(root: Root, manifest: Manifest) -> Config:
    """Raises: ImageError: it is not there, or does not fit the manifest."""
    digest = manifest.config.digest
    config = _parsed_config(read_document(root, digest))
    if len(config.diff_ids) != len(manifest.layers):
        raise ImageError(f"configuration {digest}: {len(config.diff_ids)} layers, and its manifest has {len(manifest.layers)}")
    return config


def require_complete(root: Root, manifest: Manifest, config: Config) -> dict[Digest, _layers.Facts]:
    """See that all of an image is there; return what is known of its unpacked layers. Raises: ImageError."""
    for blob in (manifest.config, *manifest.layers):
        size = root.size(blob_name(blob.digest))
        if size != blob.size:
            raise ImageError(f"blob {blob.digest}: {'it is not in the store' if size is None else f'{size} bytes instead of {blob.size}'}")
    found: dict[Digest, _layers.Facts] = {}
    for diff_id in config.diff_ids:
        known = _layers.facts(root, diff_id)
        if known is None:
            raise ImageError(f"layer {diff_id}: it is not in the store, unpacked")
        found[diff_id] = known
    return found


def folds_there(root: Root, folds: Iterable[_folds.Span], config: Config) -> tuple[_folds.Span, ...]:
    """Those of *folds* that can be used: one may have been the newest directory in a power cut, and its image works without."""
    ends = [(first, count, first + count) for first, count in folds]
    return tuple((first, count) for first, count, end in ends if _layers.has(root, _folds.digest_of(config.diff_ids[:end], first)))


# ---- Looking up ----


def load(root: Root, path: str, found: Named, all_names: Names) -> Image:
    """An image. Raises: ImageNotFoundError: it is gone. ImageError: something of it is not there, or damaged."""
    known = require_record(root, found.image)
    manifest = read_manifest(root, found.manifest)
    config = read_config(root, manifest)
    return Image(
        store=path,
        id=found.image,
        manifest=found.manifest,
        names=tuple(name for name, named in all_names.items() if named.image == found.image),
        config=config,
        size=known.size,
        built_here=known.built_here,
        folds=folds_there(root, known.folds, config),
        links=tuple(_layers.link_of(root, diff_id) for diff_id in config.diff_ids),
    )


def resolve(root: Root, name: str | Reference | Digest, all_names: Names) -> Named:
    """What *name* means: a name, a digest of an image or manifest, or the first digits of an id.

    Raises: ImageNotFoundError; UsageError: it is no name, or the digits fit several images.
    """
    if isinstance(name, str) and re.match(r"sha(256|512):", name):
        name = Digest.parse(name)
    if isinstance(name, Digest):
        found, shown = _by_digest(root, name, all_names), str(name)
    else:
        reference = name if isinstance(name, Reference) else _parse(name)
        found = None if reference is None else _by_reference(reference, all_names)
        if found is None and isinstance(name, str):
            found = _by_digits(root, name)
        shown = str(name) if reference is None else reference.familiar
    if found is None:
        raise ImageNotFoundError(f"no image {shown} in the store; sandbox images lists those that there are, sandbox pull gets others")
    return found


def _parse(name: str) -> Reference | None:
    """Read a name; a bare id of 64 digits is no name, as in Docker."""
    return None if isinstance(name, str) and to_digest(name) is not None else Reference.parse(name)


def _by_reference(reference: Reference, all_names: Names) -> Named | None:
    if (found := all_names.get(key_of(reference))) is not None or reference.digest is None:
        return found
    same = (named for name, named in all_names.items() if Reference.parse(name).name == reference.name)
    return next((named for named in same if named.manifest == reference.digest), None)


def _by_digest(root: Root, digest: Digest, all_names: Names) -> Named | None:
    if (known := record(root, digest)) is not None:
        return Named(known.manifest, digest)
    for image_id, known in records(root).items():
        if known.manifest == digest:
            return Named(digest, image_id)
    # Another manifest of an image, or an index by which it was pulled.
    return next((named for name, named in all_names.items() if named.manifest == digest or name.endswith(f"@{digest}")), None)


def _by_digits(root: Root, digits: str) -> Named | None:
    if not _ID.fullmatch(digits):
        return None
    found = [image_id for image_id in map(to_digest, root.names("images")) if image_id is not None and image_id.hex.startswith(digits)]
    if len(found) > 1:
        raise UsageError(f"image: {digits!r} is the beginning of {len(found)} ids; give more digits")
    known = record(root, found[0]) if found else None
    return None if known is None else Named(known.manifest, found[0])


def check_names(references: Iterable[Reference]) -> list[str]:
    """The keys of new names. Raises: UsageError."""
    found: list[str] = []
    for reference in references:
        if not isinstance(reference, Reference):
            raise UsageError(f"image: {reference!r} is not a Reference; read it with Reference.parse")
        _check_name(reference)
        found.append(key_of(reference))
    return found


def _check_name(reference: Reference) -> None:
    """See that what somebody has put together is a name, and none that reads as a digest. Raises: UsageError."""
    Reference.parse(str(reference))
    if reference.familiar.partition(":")[0] in _ALGORITHM.values():
        raise UsageError(f"image: {reference} would be taken for a digest; give another name")


def require_tag(reference: Reference) -> None:
    """Raises: UsageError: a digest is part of it; what a digest names is not ours to say."""
    if reference.digest is not None:
        raise UsageError(f"image: {reference} has a digest, and so cannot be given to an image; give name:tag")
    _check_name(reference)


def require_record(root: Root, image_id: Digest) -> Record:
    """Raises: ImageNotFoundError: the image is gone."""
    known = record(root, image_id)
    if known is None:
        raise ImageNotFoundError(f"image {image_id}: it has been removed")
    return known


def require_there(root: Root, image: Image) -> None:
    """See that an image, which is on a lease, has not been removed before: its record, and what is mounted. Raises: ImageNotFoundError."""
    require_record(root, image.id)
    # To look at 120 layers takes as long as to mount them. They never change, and one that goes leaves their directory with another time;
    # but not within one tick of the clock, so a directory that was changed a moment ago is looked at again.
    now = root.status("layers")
    key = (str(image.id), image.folds, now.st_dev, now.st_ino, now.st_mtime_ns, now.st_ctime_ns)
    if key in _THERE:
        return
    for diff_id in dict.fromkeys(image.stack):
        if not _layers.has(root, diff_id):
            raise ImageNotFoundError(f"image {image.id}: its layer {diff_id} has been removed")
    if time.time_ns() - max(now.st_mtime_ns, now.st_ctime_ns) > _SETTLED_NS:
        if len(_THERE) >= _KNOWN_LIMIT:
            _THERE.clear()
        _THERE[key] = None
