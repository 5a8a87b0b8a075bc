"""Unpacked layers: each is ``layers/<hex>/tree``, with what is known of it in ``layers/<hex>/facts``; both come into being at once."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from attrs import frozen

from sandbox.errors import ImageError
from sandbox.image._disk import OPEN_DIRECTORY, Root, Stage, layer_name, write_all
from sandbox.image._leases import Lease
from sandbox.image.digest import Digest
from sandbox.image.documents import encode

_SHORTEST: Final = 12  # digits of a link's name; 120 of them and their colons are 1560 bytes of the 4096 that mount options may have
_FACTS_LIMIT: Final = 4096
_FOLDED: Final = "folded"  # beside the tree of a fold


class Unpacked(Protocol):
    """What unpacking tells of a layer."""

    @property
    def diff_id(self) -> Digest: ...
    @property
    def size(self) -> int: ...
    @property
    def entries(self) -> int: ...
    @property
    def bytes_on_disk(self) -> int: ...


@frozen(repr=False)
class Folded:
    """What a fold (see `_folds`) was made of: the layers ``chain[first:]``, over the others of *chain*, the lowest first."""

    first: int
    chain: tuple[Digest, ...]

    def encode(self) -> bytes:
        return "".join(f"{line}\n" for line in (self.first, *self.chain)).encode()

    @classmethod
    def decode(cls, data: bytes) -> Folded:
        """What was written; of something else, a fold of nothing, which is none of the digest that it has."""
        first, *chain = data.decode("ascii", "replace").splitlines() or [""]
        try:
            return cls(int(first), tuple(map(Digest.parse, chain)))
        except ValueError:
            return cls(0, ())


@frozen(repr=False)
class Facts:
    """What is known of an unpacked layer."""

    size: int  # of its tar
    entries: int
    disk: int  # bytes that its files take


def has(root: Root, diff_id: Digest) -> bool:
    """Whether the layer is there, unpacked. One whose facts are empty, short or zeros was the newest one in a power cut: it is not."""
    return _raw_facts(root, diff_id) is not None


def facts(root: Root, diff_id: Digest) -> Facts | None:
    """What is known of an unpacked layer; None when it is not there."""
    data = _raw_facts(root, diff_id)
    return None if data is None else Facts(**json.loads(data))


def _raw_facts(root: Root, diff_id: Digest) -> bytes | None:
    data = root.read(f"{layer_name(diff_id)}/facts", limit=_FACTS_LIMIT)
    return data if data is not None and data.startswith(b"{") and data.endswith(b"}") else None


def folded(root: Root, diff_id: Digest) -> Folded | None:
    """Of a fold, what it was made of; None for a layer."""
    data = root.read(f"{layer_name(diff_id)}/{_FOLDED}")
    return None if data is None else Folded.decode(data)


def add(root: Root, lease: Lease, diff_id: Digest, unpack: Callable[[int], Unpacked], *, folded: Folded | None = None) -> bool:
    """Have *unpack* fill a directory that becomes the layer; False: the layer was there, or somebody else was at it, and has done it meanwhile.

    *folded*: it is no layer, but a fold of some.
    Raises: ImageError: the content is not what *diff_id* says; nothing of it is kept.
    """
    lease.add(diff_id)
    if has(root, diff_id):
        return False
    stage = Stage.claim(root, f"layer-{diff_id.algorithm}-{diff_id.hex}")
    try:
        if not has(root, diff_id):
            _fill(root, stage, diff_id, unpack, folded)
            return True
    finally:
        with contextlib.suppress(OSError):
            _end(root, stage)
    return False


def _fill(root: Root, stage: Stage, diff_id: Digest, unpack: Callable[[int], Unpacked], folded: Folded | None) -> None:
    from sandbox.image._removal import empty

    empty(stage.fileno())  # of what somebody who was killed has left
    os.mkdir("tree", 0o700, dir_fd=stage.fileno())
    tree = os.open("tree", OPEN_DIRECTORY, dir_fd=stage.fileno())
    try:
        os.fchmod(tree, 0o755)  # not by mkdir, whose mode the umask cuts
        found = unpack(tree)
    finally:
        os.close(tree)
    if found.diff_id != diff_id:
        raise ImageError(f"layer {diff_id}: unpacked, it is {found.diff_id}; it was damaged or exchanged")
    if folded is not None:
        _write(stage, _FOLDED, folded.encode())
    known = Facts(found.size, found.entries, found.bytes_on_disk)
    _write(stage, "facts", encode({"size": known.size, "entries": known.entries, "disk": known.disk}))
    with root.locked():
        _link(root, diff_id)
        if root.exists(layer_name(diff_id)):  # a broken one, see `has`
            root.move(layer_name(diff_id), f"staging/broken-{os.urandom(8).hex()}")
        root.move(stage.path, layer_name(diff_id))


def _write(stage: Stage, name: str, data: bytes) -> None:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=stage.fileno())
    try:
        os.fchmod(fd, 0o600)
        write_all(fd, data)
    finally:
        os.close(fd)


def _end(root: Root, stage: Stage) -> None:
    """Give the stage up, and remove it unless it has become the layer."""
    if stage.is_there(root):
        stage.discard(root)
    else:
        stage.release()


# ---- Short names ----


def _link(root: Root, diff_id: Digest) -> None:
    """Make the short link to a layer. Before the layer comes: whoever is killed between leaves a link that leads nowhere, until it comes again."""
    target = f"../{layer_name(diff_id)}/tree"
    for name in _candidates(diff_id):
        with contextlib.suppress(FileExistsError):
            os.symlink(target, f"short/{name}", dir_fd=root.fileno())
            return
        if _target(root, name) == target:
            return


def link_of(root: Root, diff_id: Digest) -> str:
    """The name of the short link to a layer. Raises: ImageError: there is none, and so no layer."""
    target = f"../{layer_name(diff_id)}/tree"
    for name in _candidates(diff_id):
        found = _target(root, name)
        if found == target:
            return name
        if found is None:
            break
    raise ImageError(f"layer {diff_id}: it is not in the store, or its short name is lost; pull the image again")


def unlink(root: Root, diff_id: Digest) -> None:
    """Remove the short link to a layer that has gone; the mutex is held exclusively."""
    for name in _candidates(diff_id):
        if _target(root, name) == f"../{layer_name(diff_id)}/tree":
            root.unlink(f"short/{name}")
            return


def _candidates(diff_id: Digest) -> Iterator[str]:
    return (diff_id.hex[:length] for length in range(_SHORTEST, len(diff_id.hex) + 1))


def _target(root: Root, name: str) -> str | None:
    try:
        return os.readlink(f"short/{name}", dir_fd=root.fileno())
    except FileNotFoundError:
        return None
