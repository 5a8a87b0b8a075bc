"""An image of what a container has become, and its root as a tar."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from attrs import evolve

from sandbox._imaged.differing import Change, Difference
from sandbox._imaged.upper import Upper, at_rest, image_of, opened
from sandbox._types import to_bool
from sandbox.errors import ImageError, SetupError, UsageError
from sandbox.fs._fill import MergedTree
from sandbox.image import Config, Descriptor, History, Image, Lease, Manifest, MediaType, Reference, Store, apply_changes
from sandbox.image.archives import Target
from sandbox.image.documents import parse_document
from sandbox.image.pack import pack
from sandbox.image.rootfs import export_layers

if TYPE_CHECKING:
    from sandbox._started import Started

_MAX_LAYERS: Final = 498  # as sandbox.fs.Layers takes
_MAX_TEXT: Final = 4096
_MOVED: Final = "programs that run change files meanwhile: stop them, or give the container a limit, by which it can be paused"
_CLOSED: Final = "without root's rights only what its mode opens to its owner can be read: open it inside (chmod -R u+rX), or run as root"
_FULL: Final = "what it is written to is full"
_HINTS: Final = {
    **dict.fromkeys((errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.ESTALE, errno.EAGAIN, errno.ENODATA), _MOVED),
    **dict.fromkeys((errno.EACCES, errno.EPERM), _CLOSED),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _FULL),
    errno.EFBIG: "what it is written to has no larger files, or this process may not write them (RLIMIT_FSIZE, ulimit -f)",
    errno.ENAMETOOLONG: "a path there is longer than the kernel takes (4095 bytes); move or remove what lies so deep",
    errno.EPIPE: "nobody reads what is written",
}
_OCI: Final = {MediaType.DOCKER_LAYER_GZIP.value: MediaType.OCI_LAYER_GZIP.value}  # the same bytes by another name


def diff(live: Started) -> list[Change]:
    """See `Container.diff`."""
    image = image_of(live, "diff")
    with opened(live) as upper, _reading("diff"):
        return _changes(image, upper)


def _changes(image: Image, upper: Upper) -> list[Change]:
    layers: list[int] = []
    try:
        for path in reversed(dict.fromkeys(reversed(image.layers))):
            layers.insert(0, os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC))
        return Difference(MergedTree([upper.fd, *layers]), upper.shift, upper.not_ours).changes()
    finally:
        for fd in layers:
            os.close(fd)


def export(live: Started, target: Target, *, pause: bool, max_size: int) -> None:
    """See `Container.export`."""
    image = image_of(live, "export")
    layers = tuple(reversed(dict.fromkeys(reversed(image.layers))))
    with opened(live) as upper, at_rest(live, pause=pause), _reading("export"):
        export_layers(layers, target, upper=upper.fd, shift=upper.shift, max_size=max_size)


def commit(live: Started, name: str | Reference | None, *, author: str, message: str, changes: Iterable[str], pause: bool) -> Image:
    """See `Container.commit`."""
    image = image_of(live, "commit")
    names = [] if name is None else [_tag(name)]
    settings = apply_changes(image.settings, changes)
    for what, text in (("author", author), ("message", message)):
        if not isinstance(text, str) or len(text) > _MAX_TEXT:
            raise UsageError(f"{what}: {text!r:.60} is not a text of at most {_MAX_TEXT} characters")
    if len(image.config.diff_ids) >= _MAX_LAYERS:
        raise ImageError(f"commit: the image has {len(image.config.diff_ids)} layers; more cannot be mounted. Export it, and import that")
    store = Store(image.store)
    with store.lease() as lease:
        with opened(live) as upper, at_rest(live, pause=to_bool(pause, what="pause")):
            with _reading("commit"):
                is_changed = bool(_changes(image, upper))
            layer = _layer(store, lease, upper) if is_changed else None
        step = History(created_by="sandbox commit", comment=message, empty_layer=layer is None)
        config = evolve(image.config, settings=settings, author=author or image.config.author)
        return _image(store, lease, image, layer, config=config, step=step, names=names)


def _tag(name: str | Reference) -> Reference:
    reference = name if isinstance(name, Reference) else Reference.parse(name)
    if reference.digest is not None:
        raise UsageError(f"commit: {reference} has a digest, and no image can be given one; give name:tag")
    return reference


def _layer(store: Store, lease: Lease, upper: Upper) -> Descriptor:
    leave_out = [os.fsencode(path[1:]) for path in upper.not_ours]
    with _reading("commit"), store.write_blob(lease) as writer:
        pack(upper.fd, writer.write, shift=upper.shift, owner=upper.owner, clamp_mtime=_epoch(), leave_out=leave_out)
        digest = writer.commit()
    blob = store.open_blob(digest)
    try:
        store.unpack_layer(lease, digest, blob, MediaType.OCI_LAYER)
    finally:
        os.close(blob)
    return Descriptor(MediaType.OCI_LAYER, digest, store.blob_size(digest))


def _image(
    store: Store,
    lease: Lease,
    base: Image,
    layer: Descriptor | None,
    *,
    config: Config,
    step: History,
    names: list[Reference],
) -> Image:
    found = parse_document(store.read_document(base.manifest), what=f"manifest {base.manifest}")
    if not isinstance(found, Manifest):
        raise ImageError(f"{base.manifest} is no manifest")
    epoch = _epoch()
    created = datetime.fromtimestamp(time.time() if epoch is None else epoch, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    own = () if layer is None else (layer,)
    diff_ids = (*config.diff_ids, *(one.digest for one in own))
    data = evolve(config, diff_ids=diff_ids, history=(*config.history, evolve(step, created=created)), created=created).encode()
    layers = tuple(evolve(one, media_type=_OCI.get(one.media_type, one.media_type)) for one in found.layers)
    store.put_document(lease, data)
    manifest = Manifest(Descriptor.of(MediaType.OCI_CONFIG, data), (*layers, *own))
    return store.add_image(lease, store.put_document(lease, manifest.encode()), names, built_here=True)


def _epoch() -> int | None:
    """The time that what is made here has, instead of now (SOURCE_DATE_EPOCH, reproducible-builds.org)."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 12 else None


class _reading:  # noqa: N801 - as contextlib's
    """Says what an error of reading the container's files, or of writing them elsewhere, means."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, SetupError):
            number = error.errno or errno.EIO
            raise SetupError(f"{self._what}: {error.filename or 'the container'}", number, step=self._what, hint=_HINTS.get(number, "")) from error
