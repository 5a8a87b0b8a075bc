"""What came of removing, pruning, verifying and counting. Loaded when one of these is done: a build does none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from sandbox.image.digest import Digest
    from sandbox.image.documents import History
    from sandbox.image.images import Image

__all__ = ["Fault", "HistoryRow", "Pruned", "Removed", "Usage", "UsageRow"]


@frozen
class Removed:
    """What `Store.remove` has done."""

    untagged: tuple[str, ...]  # names taken away
    deleted: tuple[Digest, ...]  # images that are gone
    freed: int  # bytes on disk, of blobs and layers


@frozen
class Pruned:
    """What `Store.prune` has done."""

    untagged: tuple[str, ...]
    deleted: tuple[Digest, ...]
    freed: int
    cache_entries: int = 0


@frozen
class HistoryRow:
    """One step of an image's making, and what its layer takes on disk."""

    step: History
    size: int


@frozen
class Fault:
    """Something that `Store.verify` found wrong."""

    kind: str  # "name", "image", "blob", "layer", "cache"
    subject: str  # its name or digest
    problem: str

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}: {self.problem}"


@frozen
class UsageRow:
    """What one image takes: of `size` bytes on disk, `shared` belong to other images too."""

    image: Image
    shared: int
    unique: int
    containers: int  # how many use it now


@frozen
class Usage:
    """What a store takes on disk, in bytes: layers count once, however many images have them."""

    images: tuple[UsageRow, ...]
    layers: int
    blobs: int
    reclaimable: int  # of layers and blobs, what `prune(all=True)` would free
    cache_entries: int
    cache: int  # of layers and blobs that only the build cache has
    staging: int  # of what is being written, and of transfers that can be taken up again
