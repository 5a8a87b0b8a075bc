"""OCI image layouts: ``oci-layout``, ``index.json`` and ``blobs/``, in a directory or in a tar of one; which images there are, and their names.

A name stands in an annotation of `index.json`: ``io.containerd.image.name`` has it in full; ``org.opencontainers.image.ref.name`` has a tag alone
(Docker, containerd, umoci), or a name with a tag (podman, skopeo). A tag alone is no name of an image, which takes a repository: whoever
loads may give one.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from typing import Final

from attrs import evolve, frozen

from sandbox._types import StrPath
from sandbox.errors import ImageError, UsageError
from sandbox.image._members import DirectoryMembers, Members, read, write_all
from sandbox.image.digest import Digest, Verifier
from sandbox.image.documents import INDEXES, Descriptor, Index, MediaType, Platform, decode, encode, parse_document
from sandbox.image.reference import Reference

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
LAYOUT_VERSION: Final = b'{"imageLayoutVersion":"1.0.0"}'
FULL_NAME: Final = "io.containerd.image.name"
REF_NAME: Final = "org.opencontainers.image.ref.name"
_MAX_DEPTH: Final = 4  # an index of indexes of indexes; real ones have two


@frozen
class Entry:
    """An image of a layout: what points to its manifest, and its names."""

    manifest: Descriptor
    names: tuple[Reference, ...] = ()


def blob_path(digest: Digest) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


# ---- Reading ----


def is_layout(members: Members) -> bool:
    """Whether it says itself to be a layout, of a version that we read. Raises: ImageError: of another version."""
    if members.size(LAYOUT_FILE) is None:
        return False
    version = decode(read(members, LAYOUT_FILE), what=LAYOUT_FILE).get("imageLayoutVersion")
    if not isinstance(version, str) or not version.startswith("1."):
        raise ImageError(f"{LAYOUT_FILE}: version {str(version)[:100]!r}; 1.x is read")
    return True


def entries(members: Members, *, platform: Platform | None = None, repository: Reference | None = None) -> list[Entry]:
    """The images of a layout for *platform* (None: this machine's), each once, with all of its names.

    *repository* is what a tag alone is a tag of. Raises: ImageError: there is no image, none for this platform, or the index is refused.
    """
    index = parse_document(read(members, INDEX_FILE), what=INDEX_FILE, media_type=MediaType.OCI_INDEX)
    if not isinstance(index, Index):
        raise ImageError(f"{INDEX_FILE}: it is a manifest, not an index")
    wanted = platform or Platform.of_this_machine()
    found: dict[Digest, Entry] = {}
    for name, group in _by_name(index, repository).items():
        for descriptor in _choose(group, wanted, named=name is not None):
            manifest = _descend(members, descriptor, wanted)
            entry = found.get(manifest.digest) or Entry(manifest)
            found[manifest.digest] = entry if name is None else evolve(entry, names=(*entry.names, name))
    if not found:
        raise ImageError(f"{INDEX_FILE}: no image is in it")
    return list(found.values())


def _by_name(index: Index, repository: Reference | None) -> dict[Reference | None, list[Descriptor]]:
    groups: dict[Reference | None, list[Descriptor]] = {}
    for descriptor in (entry for entry in index.manifests if not entry.is_attestation):
        group = groups.setdefault(_name_of(descriptor, repository), [])
        if not any(descriptor.digest == other.digest for other in group):
            group.append(descriptor)
    return groups


def _name_of(descriptor: Descriptor, repository: Reference | None) -> Reference | None:
    annotations = dict(descriptor.annotations)
    text = annotations.get(FULL_NAME) or annotations.get(REF_NAME)
    if not text:
        return repository
    try:
        if FULL_NAME not in annotations and not {":", "/", "@"} & set(text):
            return evolve(repository, tag=Reference.parse(f"a:{text}").tag) if repository is not None else None
        return evolve(Reference.parse(text), digest=None)
    except UsageError as error:
        raise ImageError(f"{INDEX_FILE}: a name that is none ({error})") from None


def _choose(group: list[Descriptor], wanted: Platform, *, named: bool) -> list[Descriptor]:
    """Of what has one name, the one for *wanted*; of what has none, all that may be for it."""
    if named and len(group) > 1:
        return [Index(tuple(group)).select(wanted)]
    fitting = [entry for entry in group if entry.platform is None or wanted.fits(entry.platform)]
    return fitting or [Index(tuple(group)).select(wanted)]  # which says what there is


def _descend(members: Members, descriptor: Descriptor, wanted: Platform) -> Descriptor:
    """Go down from an index to the manifest for *wanted*."""
    for _ in range(_MAX_DEPTH):
        if descriptor.media_type not in INDEXES:
            return descriptor
        document = parse_document(read_blob(members, descriptor), media_type=descriptor.media_type, what=f"index {descriptor.digest}")
        if not isinstance(document, Index):
            raise ImageError(f"index {descriptor.digest}: it is a manifest")
        descriptor = document.select(wanted)
    raise ImageError(f"index {descriptor.digest}: more than {_MAX_DEPTH} indexes in one another; it is refused")


def read_blob(members: Members, descriptor: Descriptor) -> bytes:
    """Read a document by what points to it, and check that it is that. Raises: ImageError."""
    data = read(members, blob_path(descriptor.digest), what=str(descriptor.digest))
    verifier = Verifier(descriptor.digest, descriptor.size, what="document")
    verifier.update(data)
    verifier.finish()
    return data


# ---- Writing ----


def describe(manifests: Iterable[tuple[Descriptor, Iterable[Reference]]]) -> list[Descriptor]:
    """The entries of an `index.json`, one for each name.

    ``ref.name`` is the tag, as Docker and umoci have it; where two images have the same tag it is the whole name, as skopeo and podman
    have it, so that each can be told from the other.
    """
    pairs = [(descriptor, name) for descriptor, names in manifests for name in (tuple(names) or (None,))]
    tags = [name.tag for _, name in pairs if name is not None]
    return [_named(descriptor, name, unique=name is not None and tags.count(name.tag) == 1) for descriptor, name in pairs]


def _named(descriptor: Descriptor, name: Reference | None, *, unique: bool) -> Descriptor:
    if name is None:
        return descriptor
    tag = name.tag if unique and name.tag else str(name)
    return evolve(descriptor, annotations=((FULL_NAME, str(name)), (REF_NAME, tag)))


class LayoutWriter:
    """Writes into a layout directory: a new one, an empty one, or one that is a layout already, whose other images stay.

    Blobs come into being by rename(2), and `index.json` last: whoever reads meanwhile sees the layout before or after.
    """

    def __init__(self, path: StrPath) -> None:
        """Raises: UsageError: *path* is a file, or a directory with other things in it."""
        self._path = os.fspath(path)
        try:
            os.makedirs(self._path, exist_ok=True)
            names = os.listdir(self._path)
        except OSError as error:
            raise UsageError(f"{self._path}: {error.strerror}") from None
        self._before = _existing(self._path) if names else {}

    def has(self, digest: Digest, size: int) -> bool:
        """Whether the blob is there."""
        members = DirectoryMembers(self._path)
        try:
            return members.size(blob_path(digest)) == size
        finally:
            members.close()

    def add(self, digest: Digest, chunks: Iterable[bytes]) -> None:
        """Write a blob; it is checked."""
        self._write(blob_path(digest), Verifier(digest, None).check(chunks))

    def finish(self, added: Iterable[Descriptor]) -> None:
        """Write `index.json`: what is *added*, and what was there and has none of its names."""
        found = self._before | {_key(descriptor): descriptor.to_json() for descriptor in added}
        self._write(LAYOUT_FILE, [LAYOUT_VERSION])
        self._write(INDEX_FILE, [encode({"schemaVersion": 2, "mediaType": MediaType.OCI_INDEX, "manifests": list(found.values())})])

    def _write(self, name: str, chunks: Iterable[bytes]) -> None:
        target = f"{self._path}/{name}"
        os.makedirs(os.path.dirname(target), exist_ok=True)
        partial = f"{os.path.dirname(target)}/.{os.urandom(8).hex()}.partial"
        fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            for chunk in chunks:
                write_all(fd, chunk)
            os.rename(partial, target)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):  # an interrupt came when it had its name already
                os.unlink(partial)
            raise
        finally:
            os.close(fd)


def _existing(path: str) -> dict[object, object]:
    """The entries of a layout that is there, by their keys, as they stand in it: with all that we do not know of."""
    members = DirectoryMembers(path)
    try:
        if not is_layout(members):
            raise UsageError(f"{path}: a directory with files in it that is no image layout; name a new or an empty one")
        data = read(members, INDEX_FILE)
    finally:
        members.close()
    index = parse_document(data, what=INDEX_FILE, media_type=MediaType.OCI_INDEX)
    if not isinstance(index, Index):
        raise ImageError(f"{path}/{INDEX_FILE}: it is a manifest, not an index")
    return dict(zip(map(_key, index.manifests), decode(data, what=INDEX_FILE)["manifests"], strict=True))


def _key(descriptor: Descriptor) -> object:
    """What an entry is known by: its name, or what it points to."""
    annotations = dict(descriptor.annotations)
    return annotations.get(FULL_NAME) or annotations.get(REF_NAME) or descriptor.digest
