"""Removing: what nothing reaches any more is moved away under the mutex, held exclusively, and deleted after it.

Whoever is killed meanwhile leaves names without an image never (names go first, then the image, then what it was made of), and things that nothing
reaches perhaps: the next prune takes them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandbox.errors import ImageError, ImageInUseError
from sandbox.image import _cache, _catalog, _layers
from sandbox.image._blobs import read_document
from sandbox.image._catalog import Names
from sandbox.image._disk import Root, Stage, blob_name, hold, layer_name, release, try_lock
from sandbox.image._leases import Live, live
from sandbox.image.digest import Digest
from sandbox.image.documents import Index, parse_config, parse_document
from sandbox.image.images import Step
from sandbox.image.reference import Reference

if TYPE_CHECKING:
    from sandbox.image.outcomes import Pruned, Removed

_ALGORITHMS: Final = ("sha256", "sha512")
_PIECES_S: Final = 86400.0  # for how long a piece of a blob is kept for a transfer that goes on


@define(eq=False, repr=False)
class Reached:
    """Blobs and layers that something needs."""

    blobs: set[Digest] = field(factory=set[Digest])
    layers: set[Digest] = field(factory=set[Digest])

    def add_manifest(self, root: Root, digest: Digest) -> None:
        """A manifest, and all that it names. Of one that is damaged nothing more is known; `verify` tells of it."""
        self.blobs.add(digest)
        with contextlib.suppress(ImageError):
            manifest = _catalog.read_manifest(root, digest)
            self.blobs.update(layer.digest for layer in manifest.layers)
            self.add_config(root, manifest.config.digest)

    def add_config(self, root: Root, digest: Digest) -> None:
        """A configuration, and the layers that it names."""
        self.blobs.add(digest)
        with contextlib.suppress(ImageError):
            self.layers.update(parse_config(read_document(root, digest)).diff_ids)

    def add_step(self, step: Step) -> None:
        """What a step of a build has given."""
        self.blobs.update([step.config] if step.config is not None else [])
        self.blobs.update([step.layer.digest] if step.layer is not None else [])
        self.layers.update([step.diff_id] if step.diff_id is not None else [])

    def add_folds(self, root: Root) -> None:
        """The folds of layers that are all needed: a fold goes when one of them goes."""
        for digest in layers_of(root):
            if (folded := _layers.folded(root, digest)) is not None and self.layers.issuperset(folded.chain):
                self.layers.add(digest)

    def add_leased(self, root: Root, digest: Digest) -> None:
        """Whatever it is: a blob, a layer, or a document and what that names."""
        self.blobs.add(digest)
        self.layers.add(digest)
        if not _may_be_document(root, digest):
            return
        with contextlib.suppress(ImageError):
            document = parse_document(read_document(root, digest))
            if isinstance(document, Index):
                self.blobs.update(entry.digest for entry in document.manifests)
            else:
                self.add_manifest(root, digest)
            return
        self.add_config(root, digest)


def _may_be_document(root: Root, digest: Digest) -> bool:
    try:
        fd = root.open_file(blob_name(digest))
    except FileNotFoundError:
        return False
    try:
        return os.read(fd, 64).lstrip()[:1] == b"{"
    finally:
        os.close(fd)


def reached(root: Root, alive: Live) -> Reached:
    """What images, the build cache and leases need; the mutex is held."""
    found = Reached()
    manifests = {named.manifest for named in _catalog.names(root).values()} | {known.manifest for known in _catalog.records(root).values()}
    for manifest in manifests:
        found.add_manifest(root, manifest)
    for _, step in _cache.steps(root):
        found.add_step(step)
    for digest in alive.kept:
        found.add_leased(root, digest)
    found.add_folds(root)
    return found


# ---- One image ----


def remove(root: Root, name: str | Reference | Digest, *, force: bool) -> Removed:
    """See `Store.remove`."""
    from sandbox.image.outcomes import Removed

    with _trash(root) as trash, root.locked(exclusive=True):
        all_names = _catalog.names(root)
        named = _catalog.resolve(root, name, all_names)
        own = [other for other, meant in all_names.items() if meant.image == named.image]
        alive = live(root, sweep=True)
        sweep_staging(root, trash)
        key = _key(name, all_names)
        going = own if key is None else [key, *_pinned_alike(key, own)]
        candidates = Reached()
        candidates.add_manifest(root, named.manifest)
        candidates.add_folds(root)
        if set(going) == set(own):
            _check_free(named.image, own, alive, by_id=key is None, force=force)
        for one in going:
            root.unlink(_catalog.name_file(one))
        deleted: tuple[Digest, ...] = ()
        if set(going) == set(own) and root.unlink(_catalog.image_name(named.image)):
            deleted = (named.image,)
        return Removed(tuple(going), deleted, _collect(root, trash, reached(root, alive), candidates))


def _key(name: str | Reference | Digest, all_names: Names) -> str | None:
    """The name that was meant; None when it was a digest or the digits of an id."""
    if isinstance(name, Digest):
        return None
    with contextlib.suppress(ValueError):
        key = _catalog.key_of(name if isinstance(name, Reference) else Reference.parse(name))
        return key if key in all_names else None
    return None


def _pinned_alike(key: str, own: list[str]) -> list[str]:
    """The names by digest that go with the last tag of their repository, as in Docker."""
    repository = Reference.parse(key).name
    others = [Reference.parse(other) for other in own if other != key]
    if any(other.digest is None or other.name != repository for other in others):
        return []
    return [str(other) for other in others]


def _check_free(image: Digest, own: list[str], alive: Live, *, by_id: bool, force: bool) -> None:
    if force:
        return
    if image in alive.used:
        raise ImageInUseError(f"image {image.short}: a container uses it; end the container, or remove it by force")
    if by_id and len({Reference.parse(name).name for name in own}) > 1:
        raise ImageInUseError(f"image {image.short}: it has names in several repositories ({', '.join(own)}); remove it by name, or by force")


# ---- All that is unused ----


def prune(root: Root, *, everything: bool, build_cache: bool, older_s: float) -> Pruned:
    """See `Store.prune`."""
    from sandbox.image.outcomes import Pruned

    before = time.time() - older_s
    with _trash(root) as trash, root.locked(exclusive=True):
        alive = live(root, sweep=True)
        sweep_staging(root, trash, pieces=True)
        entries = _prune_cache(root, before) if build_cache else 0
        untagged, deleted = _prune_images(root, alive, before, everything=everything)
        freed = _collect(root, trash, reached(root, alive), None)
        _sweep_links(root)
        return Pruned(tuple(untagged), tuple(deleted), freed, entries)


def _prune_images(root: Root, alive: Live, before: float, *, everything: bool) -> tuple[list[str], list[Digest]]:
    all_names = _catalog.names(root)
    with_names = {named.image for named in all_names.values()}
    untagged: list[str] = []
    deleted: list[Digest] = []
    for image, known in _catalog.records(root).items():
        if image in alive.kept or known.manifest in alive.kept or (image in with_names and not everything):
            continue
        if (root.changed(_catalog.image_name(image)) or 0) > before:
            continue
        own = [name for name, named in all_names.items() if named.image == image]
        for name in own:
            root.unlink(_catalog.name_file(name))
        root.unlink(_catalog.image_name(image))
        untagged += own
        deleted.append(image)
    return untagged, deleted


def _prune_cache(root: Root, before: float) -> int:
    old = [entry for entry in root.names("cache") if (root.changed(f"cache/{entry}") or 0) <= before]
    return sum(root.unlink(f"cache/{entry}") for entry in old)


# ---- Moving away ----


@contextlib.contextmanager
def _trash(root: Root) -> Generator[Stage, None, None]:
    """A stage for what is to be deleted; it is, at the end, whatever happens."""
    stage = Stage.fresh(root)
    try:
        yield stage
    finally:
        stage.discard(root)


def _collect(root: Root, trash: Stage, needed: Reached, candidates: Reached | None) -> int:
    """Move to *trash* what is not *needed* (of *candidates*; None: of all); return how many bytes on disk that were."""
    freed = 0
    for digest in layers_of(root) if candidates is None else candidates.layers - needed.layers:
        if digest not in needed.layers and root.exists(layer_name(digest)):
            known = _layers.facts(root, digest)
            root.move(layer_name(digest), f"{trash.path}/layer-{digest.hex}")
            _layers.unlink(root, digest)
            freed += 0 if known is None else known.disk
    for digest in blobs_of(root) if candidates is None else candidates.blobs - needed.blobs:
        if digest not in needed.blobs and (size := root.size(blob_name(digest))) is not None:
            root.move(blob_name(digest), f"{trash.path}/blob-{digest.hex}")
            freed += size
    return freed


def layers_of(root: Root) -> Iterable[Digest]:
    return filter(None, map(_catalog.to_digest, root.names("layers")))


def blobs_of(root: Root) -> Iterable[Digest]:
    return (Digest(algorithm, entry) for algorithm in _ALGORITHMS for entry in root.names(f"blobs/{algorithm}"))


def sweep_staging(root: Root, trash: Stage, *, pieces: bool = False) -> None:
    """Move away what nobody writes any more; pieces of blobs only with *pieces*, or when they are old. The mutex is held exclusively."""
    for name in root.names("staging"):
        if name == trash.name:
            continue
        try:
            stage = hold(root.open_directory(f"staging/{name}"))
        except FileNotFoundError:  # its owner has just discarded it: that is done outside the mutex
            continue
        except NotADirectoryError:  # a document, whose writer holds the mutex and so has been killed
            root.unlink(f"staging/{name}")
            continue
        try:
            recent = (root.changed(f"staging/{name}/data") or 0) > time.time() - _PIECES_S
            if try_lock(stage) and not (name.startswith("blob-") and recent and not pieces):
                with contextlib.suppress(FileNotFoundError):  # as above, between our look and our lock
                    root.move(f"staging/{name}", f"{trash.path}/{name}")
        finally:
            release(stage)


def sweep(root: Root) -> None:
    """Remove what was being written by processes that are gone."""
    if not root.names("staging"):
        return
    with _trash(root) as trash, root.locked(exclusive=True):
        sweep_staging(root, trash)


def _sweep_links(root: Root) -> None:
    for name in root.names("short"):
        if not os.access(f"short/{name}", os.F_OK, dir_fd=root.fileno()):
            root.unlink(f"short/{name}")
