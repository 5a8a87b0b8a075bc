"""Images as files: what ``docker save``, ``podman save`` and ``skopeo copy`` write, read and written.

Theory of operation. There are two formats, and one that is both:

- **docker**: `manifest.json` lists images: the file of a configuration, the files of the layers, and names. Docker before 25 puts a layer into
  ``<id>/layer.tar``, or a link of this name to another image's; skopeo and podman into ``<digest>.tar``. `repositories` says the same in older words,
  and is not read. What a file is called is of no account, unless it is called by its digest: then it must be that.
- **oci**: a tar of an image layout, see `sandbox.image.layouts`.
- Docker since 25 writes a layout with a `manifest.json` beside it. So do we as ``format="docker"``: every Docker since 1.10 (2016), podman and
  skopeo read it by `manifest.json`, and what reads layouts finds one. As the blobs are the store's own, the digest of the manifest stays
  what the registry said. In an archive that has both, the layout counts.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Final, Protocol, cast

from attrs import define, field, frozen

from sandbox._types import Size, StrPath
from sandbox.errors import ImageError, UsageError
from sandbox.image._members import MAX_SPOOL, Members, Source, checked_name, open_members, read, write_all
from sandbox.image._taking import blob_chunks, take_entry, take_saved
from sandbox.image.compression import decompress
from sandbox.image.digest import Digest
from sandbox.image.documents import MAX_ENTRIES, Descriptor, Index, Manifest, Platform, decode, encode, parse_document
from sandbox.image.images import Image
from sandbox.image.layouts import INDEX_FILE, LAYOUT_FILE, LAYOUT_VERSION, LayoutWriter, blob_path, describe, entries, is_layout
from sandbox.image.reference import Reference
from sandbox.image.store import Store
from sandbox.image.tar import UnpackLimits

__all__ = ["Writable", "load", "save"]

MANIFEST_FILE: Final = "manifest.json"
REPOSITORIES_FILE: Final = "repositories"
FORMATS: Final = ("docker", "oci", "oci-dir")
_NAMED_BY_DIGEST: Final = re.compile(r"(?:blobs/sha256/)?([0-9a-f]{64})(?:\.json)?", re.ASCII)


# ---- Loading ----


def load(
    source: Source,
    *,
    name: str | None = None,
    platform: Platform | None = None,
    store: Store | None = None,
    limits: UnpackLimits | None = None,
    max_size: Size = MAX_SPOOL,
) -> list[Image]:
    """Take all images of an archive (a path, a descriptor, something to read from) or of a layout's directory into the store.

    They get the names that the archive gives them, which other images may have had; where it gives a tag alone, or nothing, *name*, if any, is the
    repository. *platform*: which one of an image for several (None: this machine's). What cannot seek or is compressed is written to $TMPDIR or
    /var/tmp first, *max_size* bytes at most.
    Raises: UsageError: it cannot be opened; LimitError: larger than *max_size*; ImageError: it is refused, and no image of it was added.
    """
    repository = None if name is None else Reference.parse(name)
    store = store or Store()
    with closing(open_members(source, max_size=max_size)) as members, store.lease() as lease:
        if is_layout(members):
            found = entries(members, platform=platform, repository=repository)
            taken = [(take_entry(store, lease, members, entry, limits), entry.names) for entry in found]
            return [store.add_image(lease, manifest, names) for manifest, names in taken]
        if members.size(MANIFEST_FILE) is None:
            raise ImageError(_nothing_known(members))
        saved = parse_manifest_file(read(members, MANIFEST_FILE))
        taken = [(take_saved(store, lease, members, read_config(members, one), one.layers, limits=limits), one.names) for one in saved]
        unnamed = () if repository is None else (repository,)
        return [store.add_image(lease, manifest, names or unnamed) for manifest, names in taken]


@frozen
class Saved:
    """An image in a `manifest.json`: names of files in the archive, and of the image."""

    config: str
    layers: tuple[str, ...]
    names: tuple[Reference, ...]


def parse_manifest_file(data: bytes) -> list[Saved]:
    """Read a `manifest.json`. Raises: ImageError: it is refused; names of files that lead out of the archive are."""
    document: dict[str, object] = decode(b'{"images":%b}' % data, what=MANIFEST_FILE)  # it is a list, and documents are objects
    images = _list(document, "images")
    if not images or len(document) > 1:
        raise ImageError(f"{MANIFEST_FILE}: not a list of 1 to {MAX_ENTRIES} images")
    return [_saved(entry) for entry in images]


def _saved(entry: object) -> Saved:
    if not isinstance(entry, dict):
        raise ImageError(f"{MANIFEST_FILE}: a {type(entry).__name__}, not an object")
    fields = cast("dict[str, object]", entry)
    config = checked_name(fields.get("Config"), what=f"{MANIFEST_FILE}: Config")
    layers = tuple(checked_name(layer, what=f"{MANIFEST_FILE}: Layers") for layer in _list(fields, "Layers"))
    return Saved(config, layers, tuple(_tag(text) for text in _list(fields, "RepoTags")))


def _list(fields: dict[str, object], name: str) -> list[object]:
    found = fields.get(name)
    if found is None:
        return []
    if not isinstance(found, list):
        raise ImageError(f"{MANIFEST_FILE}: {name} is a {type(found).__name__}, not a list")
    values = cast("list[object]", found)
    if len(values) > MAX_ENTRIES:
        raise ImageError(f"{MANIFEST_FILE}: {len(values)} {name}; at most {MAX_ENTRIES} are taken")
    return values


def _tag(text: object) -> Reference:
    try:
        found = Reference.parse(cast("str", text))
    except UsageError as error:
        raise ImageError(f"{MANIFEST_FILE}: RepoTags: {error}") from None
    if found.digest is not None:
        raise ImageError(f"{MANIFEST_FILE}: RepoTags: {found} has a digest, which is no tag")
    return found


def read_config(members: Members, saved: Saved) -> bytes:
    """Read the configuration of an image. Raises: ImageError: it is missing, or is called by a digest that it has not."""
    data = read(members, saved.config, what=MANIFEST_FILE)
    named = _NAMED_BY_DIGEST.fullmatch(saved.config)
    if named is not None and named[1] != Digest.of(data).hex:
        raise ImageError(f"{MANIFEST_FILE}: {saved.config} has the digest {Digest.of(data)}; it was damaged or exchanged")
    return data


def _nothing_known(members: Members) -> str:
    if members.size(REPOSITORIES_FILE) is not None:
        return "the archive is of a Docker before 1.10 (2016), which this does not read; load and save it with a newer one"
    if members.size("etc/passwd") is not None or members.size("etc/os-release") is not None:
        return "this is a root file system, not an archive of images; `sandbox import` takes it"
    return f"neither {LAYOUT_FILE} nor {MANIFEST_FILE} is in it; this is no archive of images"


# ---- Saving ----


class Writable(Protocol):
    """Something to write bytes to, such as an open file."""

    def write(self, data: bytes, /) -> object:
        """Take all of *data*."""
        ...


Target = StrPath | int | Writable  # an int is a descriptor, which stays the caller's


def save(images: Iterable[str | Reference | Digest | Image], target: Target, *, format: str = "docker", store: Store | None = None) -> None:  # noqa: A002
    """Write *images* into one archive at *target*, as others read it: ``"docker"``, ``"oci"``, or ``"oci-dir"``, a layout's directory.

    Of an image that is told by name, this name is written; by id, none; of an `Image`, all of its names. A path is replaced when all is
    written; a directory that is a layout already keeps what is in it. The same images give the same bytes.
    Raises: UsageError: no image, a wrong format, or *target* is a terminal; ImageNotFoundError; ImageError: a blob is damaged.
    """
    if format not in FORMATS:
        raise UsageError(f"format: {format!r} is not one of {', '.join(FORMATS)}")
    store = store or Store()
    with store.lease() as lease:
        chosen = _choose(store, images)
        lease.add(*(one.image.manifest for one in chosen))
        if format == "oci-dir":
            if not isinstance(target, (str, os.PathLike)):
                raise UsageError("format: oci-dir takes the path of a directory")
            _save_directory(store, chosen, target)
        else:
            with writing_to(target) as write:
                _save_tar(store, chosen, TarWriter(write), docker=format == "docker")


@define
class _Chosen:
    """An image, and the names under which it is written."""

    image: Image
    manifest: Manifest
    pointer: Descriptor
    names: list[Reference] = field(factory=list[Reference])

    @property
    def blobs(self) -> list[Descriptor]:
        return [self.manifest.config, *self.manifest.layers, self.pointer]

    @property
    def unreadable(self) -> list[tuple[Descriptor, Digest]]:
        """Layers that Docker before 23 cannot decompress: an archive for it has them plain too, by their diffIDs."""
        pairs = zip(self.manifest.layers, self.image.config.diff_ids, strict=True)
        return [(layer, diff_id) for layer, diff_id in pairs if layer.media_type.endswith("zstd")]


def _choose(store: Store, wanted: Iterable[str | Reference | Digest | Image]) -> list[_Chosen]:
    """Look all images up: each once, with the names that it was asked for by."""
    found: dict[Digest, _Chosen] = {}
    for one in [wanted] if isinstance(wanted, (str, Reference, Digest, Image)) else wanted:
        image = store.get(one.id if isinstance(one, Image) else one)
        if image.manifest not in found:
            found[image.manifest] = _read(store, image)
        names = found[image.manifest].names
        names += [name for name in _names(one, image) if name not in names]
    if not found:
        raise UsageError("save: no image was named")
    return list(found.values())


def _read(store: Store, image: Image) -> _Chosen:
    data = store.read_document(image.manifest)
    manifest = parse_document(data, what=f"manifest {image.manifest}")
    if isinstance(manifest, Index):
        raise ImageError(f"manifest {image.manifest}: it is an index")
    return _Chosen(image, manifest, Descriptor(manifest.media_type, image.manifest, len(data), image.config.platform))


def _names(wanted: str | Reference | Digest | Image, image: Image) -> list[Reference]:
    if isinstance(wanted, Image):
        return [Reference.parse(name) for name in image.names]
    try:
        name = Reference.parse(wanted) if isinstance(wanted, str) else wanted
    except UsageError:
        return []  # the first digits of an id, or sha256:...
    return [name] if isinstance(name, Reference) and name.tag is not None and str(name) in image.names else []


def _save_directory(store: Store, chosen: Sequence[_Chosen], target: StrPath) -> None:
    writer = LayoutWriter(target)
    for blob in _blobs(chosen):
        if not writer.has(blob.digest, blob.size):
            writer.add(blob.digest, blob_chunks(store, blob.digest))
    writer.finish(describe((one.pointer, one.names) for one in chosen))


def _save_tar(store: Store, chosen: Sequence[_Chosen], tar: TarWriter, *, docker: bool) -> None:
    # Documents first: whoever reads from a pipe knows what comes.
    tar.add(LAYOUT_FILE, LAYOUT_VERSION)
    tar.add(INDEX_FILE, Index(tuple(describe((one.pointer, one.names) for one in chosen))).encode())
    if docker:
        tar.add(MANIFEST_FILE, _manifest_file(chosen))
        tar.add(REPOSITORIES_FILE, _repositories(chosen))
    for blob in _blobs(chosen):
        tar.stream(blob_path(blob.digest), blob.size, blob_chunks(store, blob.digest))
    if docker:
        for diff_id, layer in {diff_id: layer for one in chosen for layer, diff_id in one.unreadable}.items():
            size = sum(map(len, decompress(blob_chunks(store, layer.digest))))  # which stands before the content
            tar.stream(blob_path(diff_id), size, decompress(blob_chunks(store, layer.digest)))
    tar.finish()


def _blobs(chosen: Sequence[_Chosen]) -> list[Descriptor]:
    return list({blob.digest: blob for one in chosen for blob in reversed(one.blobs)}.values())


def _manifest_file(chosen: Sequence[_Chosen]) -> bytes:
    found: list[dict[str, object]] = []
    for one in chosen:
        plain = {layer.digest: diff_id for layer, diff_id in one.unreadable}
        layers = [blob_path(plain.get(layer.digest, layer.digest)) for layer in one.manifest.layers]
        names = [name.familiar for name in one.names] or None
        found.append({"Config": blob_path(one.manifest.config.digest), "RepoTags": names, "Layers": layers})
    return json.dumps(found, separators=(",", ":")).encode()


def _repositories(chosen: Sequence[_Chosen]) -> bytes:
    """What Docker before 1.10 read: the topmost layer by its name. Written as newer ones still do; read by nobody that we know."""
    found: dict[str, dict[str, str]] = {}
    for one in chosen:
        for name in one.names:
            top = one.manifest.layers[-1].digest.hex if one.manifest.layers else ""
            found.setdefault(name.familiar.rpartition(":")[0], {})[str(name.tag)] = top
    return encode(found)


# ---- Tar archives of ours ----


class TarWriter:
    """Writes regular files of no particular owner and time: the same content gives the same bytes."""

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self._write = write

    def add(self, name: str, data: bytes) -> None:
        """Add a file."""
        self.stream(name, len(data), iter([data]))

    def stream(self, name: str, size: int, chunks: Iterator[bytes]) -> None:
        """Add a file of *size* bytes. Raises: ImageError: *chunks* are more, or fewer."""
        info = tarfile.TarInfo(name)
        info.size, info.mode = size, 0o644
        self._write(info.tobuf(tarfile.GNU_FORMAT))
        left = size
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                break
            self._write(chunk)
        if left:
            raise ImageError(f"{name}: its size is not the {size} bytes that its descriptor promises")
        self._write(bytes(-size % tarfile.BLOCKSIZE))

    def finish(self) -> None:
        """End the archive."""
        self._write(bytes(2 * tarfile.BLOCKSIZE))


@contextmanager
def writing_to(target: Target) -> Generator[Callable[[bytes], object]]:
    """Open *target*, and give what writes to it; a path comes into being, or is replaced, at the end, if there was no error.

    Raises: UsageError: it is a terminal, or cannot be opened.
    """
    if not isinstance(target, (str, os.PathLike)):
        fd = target if isinstance(target, int) else _fileno(target)
        if fd is not None and os.isatty(fd):
            raise UsageError("this would write an archive to a terminal; name a file, or send the output elsewhere")
        yield (lambda data: write_all(target, data)) if isinstance(target, int) else target.write
        return
    path = os.fspath(target)
    if os.path.exists(path) and not os.path.isfile(path):  # a FIFO, /dev/null; a directory is refused by open
        with _opened(path, os.O_WRONLY) as write:
            yield write
        return
    real = os.path.realpath(path)
    partial = f"{os.path.dirname(real)}/.{os.path.basename(real)[:200]}.{os.urandom(4).hex()}.partial"
    with _opened(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, path) as write:
        try:
            yield write
            os.rename(partial, real)
        except BaseException:
            with suppress(FileNotFoundError):  # an interrupt came when it had its name already
                os.unlink(partial)
            raise


@contextmanager
def _opened(path: str, flags: int, shown: str = "") -> Generator[Callable[[bytes], object]]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except OSError as error:
        raise UsageError(f"{shown or path}: {error.strerror}") from None
    try:
        if os.isatty(fd):
            raise UsageError("this would write an archive to a terminal; name a file, or send the output elsewhere")
        yield lambda data: write_all(fd, data)
    finally:
        os.close(fd)


def _fileno(file: object) -> int | None:
    try:
        return int(file.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError):  # io.UnsupportedOperation is an OSError
        return None
