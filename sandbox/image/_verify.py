"""Verifying: every blob is hashed again; every unpacked layer is compared with its blob, which is unpacked once more beside it; documents must fit.

Others may work in the store meanwhile: what is looked at is on a lease first, and what was removed before that is no fault.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
from collections.abc import Callable, Generator
from typing import Final

from attrs import define, field

from sandbox.errors import ImageError, UsageError
from sandbox.image import _cache, _catalog, _folds, _layers, _sweep
from sandbox.image._blobs import chunks_of
from sandbox.image._disk import OPEN_DIRECTORY, Root, Stage, blob_name, layer_name
from sandbox.image._leases import Lease
from sandbox.image.digest import Digest, Verifier
from sandbox.image.outcomes import Fault

Unpack = Callable[[int, int, str], object]  # (blob, directory, media type)
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@define(eq=False)
class Verification:
    """One look at all of a store."""

    _root: Root
    _lease: Lease
    _unpack: Unpack
    _faults: list[Fault] = field(factory=list[Fault], init=False)
    _sources: dict[Digest, tuple[Digest, str]] = field(factory=dict[Digest, tuple[Digest, str]], init=False)  # diff_id: (blob, media type)

    def run(self) -> list[Fault]:
        """What is wrong."""
        blobs, layers = list(_sweep.blobs_of(self._root)), list(_sweep.layers_of(self._root))
        self._lease.add(*blobs, *layers)
        self._images()
        self._names()
        self._cache()
        for digest in blobs:
            self._blob(digest)
        for diff_id in layers:
            self._layer(diff_id)
        return self._faults

    @contextlib.contextmanager
    def _reporting(self, kind: str, subject: object) -> Generator[None, None, None]:
        try:
            yield
        except (ImageError, UsageError) as error:
            self._faults.append(Fault(kind, str(subject), str(error)))

    def _images(self) -> None:
        for entry in self._root.names("images"):
            with self._reporting("image", entry):
                image_id = _catalog.to_digest(entry)
                if image_id is None:
                    raise ImageError("this is no id")
                known = _catalog.record(self._root, image_id)
                if known is not None:
                    self._image(image_id, known.manifest)

    def _image(self, image_id: Digest, manifest_digest: Digest) -> None:
        manifest = _catalog.read_manifest(self._root, manifest_digest)
        if manifest.config.digest != image_id:
            raise ImageError(f"its manifest {manifest_digest} is of another image, {manifest.config.digest}")
        config = _catalog.read_config(self._root, manifest)
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True):
            self._sources[diff_id] = (layer.digest, layer.media_type)
        _catalog.require_complete(self._root, manifest, config)

    def _names(self) -> None:
        for entry in self._root.names("names"):
            with self._reporting("name", entry):
                data = self._root.read(f"names/{entry}")
                if data is not None:
                    self._name(entry, *_catalog.Named.decode(data))

    def _name(self, entry: str, name: str, named: _catalog.Named) -> None:
        if _catalog.name_file(name) != f"names/{entry}":
            raise ImageError(f"it holds the name {name!r}, which belongs elsewhere")
        if _catalog.record(self._root, named.image) is None and self._root.exists(f"names/{entry}"):
            raise ImageError(f"{name} stands for {named.image}, which is not there")
        self._image(named.image, named.manifest)

    def _cache(self) -> None:
        for entry in self._root.names("cache"):
            with self._reporting("cache", entry):
                data = self._root.read(f"cache/{entry}")
                key, step = _cache.read_step(data) if data is not None else ("", None)
                if step is not None and not _cache.is_complete(self._root, step) and self._root.exists(_cache.cache_file(key)):
                    raise ImageError("something of the step is not in the store")
                if step is not None and step.layer is not None and step.diff_id is not None:
                    self._sources[step.diff_id] = (step.layer.digest, step.layer.media_type)

    def _blob(self, digest: Digest) -> None:
        with self._reporting("blob", digest), contextlib.suppress(FileNotFoundError):
            fd = self._root.open_file(blob_name(Digest.parse(str(digest))))
            try:
                check = Verifier(digest, None)
                for chunk in chunks_of(fd):
                    check.update(chunk)
                check.finish()
            finally:
                os.close(fd)

    def _layer(self, diff_id: Digest) -> None:
        with self._reporting("layer", diff_id):
            if not _layers.has(self._root, diff_id):
                if self._root.exists(layer_name(diff_id)):
                    raise ImageError("it was not written to its end; remove its images and pull them again")
                return
            _layers.link_of(self._root, diff_id)
            source = self._sources.get(diff_id)
            if (folded := _layers.folded(self._root, diff_id)) is not None:
                self._fold(diff_id, folded)
            elif source is not None and self._root.exists(blob_name(source[0])):
                self._compare(diff_id, functools.partial(self._unpack_again, *source))

    def _fold(self, digest: Digest, folded: _layers.Folded) -> None:
        first, chain = folded.first, folded.chain
        if _folds.digest_of(chain, first) != digest:
            raise ImageError("it is a fold of other layers; remove its images and pull them again")
        if all(_layers.has(self._root, one) for one in chain):  # otherwise nothing uses it, and the next prune takes it
            from sandbox.image._folding import fold

            self._compare(digest, functools.partial(fold, self._root, digest, chain[:first], chain[first:]))

    def _compare(self, diff_id: Digest, fill: Callable[[int], object]) -> None:
        """Compare a layer with what *fill* makes in an empty directory."""
        stage = Stage.fresh(self._root)
        try:
            os.mkdir("tree", 0o700, dir_fd=stage.fileno())
            with contextlib.ExitStack() as opened:
                fresh = os.open("tree", OPEN_DIRECTORY, dir_fd=stage.fileno())
                opened.callback(os.close, fresh)
                os.fchmod(fresh, 0o755)
                fill(fresh)
                found = self._root.open_directory(f"{layer_name(diff_id)}/tree")
                opened.callback(os.close, found)
                _require_same(found, fresh)
        finally:
            stage.discard(self._root)

    def _unpack_again(self, blob: Digest, media_type: str, directory: int) -> None:
        source = self._root.open_file(blob_name(blob))
        try:
            self._unpack(source, directory, media_type)
        finally:
            os.close(source)


# ---- Two trees ----


def _require_same(found: int, expected: int) -> None:
    """Compare two directories with all below. Raises: ImageError: the first difference."""
    waiting = ["."]
    while waiting:
        path = waiting.pop()
        names = _names(expected, path)
        if (other := _names(found, path)) != names:
            strange = min({*names} ^ {*other})
            raise ImageError(f"{_join(path, strange)!r} {'is missing' if strange in names else 'is not in its blob'}")
        for name in names:
            inner = _join(path, name)
            if difference := _difference(found, expected, inner):
                raise ImageError(f"{inner!r}: {difference}, other than in its blob")
            if stat.S_ISDIR(os.stat(inner, dir_fd=expected, follow_symlinks=False).st_mode):
                waiting.append(inner)
    if difference := _difference(found, expected, "."):
        raise ImageError(f"its own directory: {difference}, other than in its blob")


def _join(path: str, name: str) -> str:
    return name if path == "." else f"{path}/{name}"


def _names(root: int, path: str) -> list[str]:
    try:
        fd = os.open(path, OPEN_DIRECTORY, dir_fd=root)
    except PermissionError:  # a directory that its owner may not list, and we are an ordinary user: that it is so is compared
        return []
    try:
        return sorted(os.listdir(fd))
    finally:
        os.close(fd)


def _difference(found: int, expected: int, path: str) -> str:
    """In what two files differ; "" when in nothing."""
    one, two = (os.stat(path, dir_fd=root, follow_symlinks=False) for root in (found, expected))
    for what in ("mode", "uid", "gid", "rdev"):
        if getattr(one, f"st_{what}") != getattr(two, f"st_{what}"):
            return f"its {what} is {getattr(one, f'st_{what}'):#o}"
    if stat.S_ISLNK(two.st_mode):
        return "" if os.readlink(path, dir_fd=found) == os.readlink(path, dir_fd=expected) else "it leads elsewhere"
    if not (stat.S_ISREG(two.st_mode) or stat.S_ISDIR(two.st_mode)):
        return ""
    if stat.S_ISREG(two.st_mode) and (one.st_size, one.st_nlink) != (two.st_size, two.st_nlink):
        return f"{one.st_size} bytes, and {one.st_nlink} names"
    return _content_difference(found, expected, path, is_file=stat.S_ISREG(two.st_mode))


def _content_difference(found: int, expected: int, path: str, *, is_file: bool) -> str:
    with contextlib.ExitStack() as stack:
        opened: list[int] = []
        for root in (found, expected):
            try:
                opened.append(os.open(path, _READ, dir_fd=root))
            except PermissionError:  # see `_names`
                return ""
            stack.callback(os.close, opened[-1])
        one, two = opened
        if {name: os.getxattr(one, name) for name in os.listxattr(one)} != {name: os.getxattr(two, name) for name in os.listxattr(two)}:
            return "its extended attributes are"
        if is_file and any(left != right for left, right in zip(chunks_of(one), chunks_of(two), strict=False)):
            return "its content is"
    return ""


def verify(root: Root, lease: Lease, unpack: Unpack) -> list[Fault]:
    """See `Store.verify`."""
    return Verification(root, lease, unpack).run()
