"""What the store takes on disk, and who needs it."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from attrs import frozen

from sandbox.image import _cache, _layers, _sweep
from sandbox.image._disk import Root, blob_name
from sandbox.image._leases import live
from sandbox.image.digest import Digest
from sandbox.image.images import Image
from sandbox.image.outcomes import HistoryRow, Usage, UsageRow


@frozen
class _Sizes:
    """Bytes on disk of what is there."""

    blobs: dict[Digest, int]
    layers: dict[Digest, int]

    def of(self, needed: _sweep.Reached) -> int:
        blobs = sum(size for digest, size in self.blobs.items() if digest in needed.blobs)
        return blobs + sum(size for digest, size in self.layers.items() if digest in needed.layers)

    @property
    def all(self) -> int:
        return sum(self.blobs.values()) + sum(self.layers.values())


def count(root: Root, images: Iterable[Image]) -> Usage:
    """See `Store.usage`."""
    images = tuple(images)
    with root.locked():
        alive = live(root)
        steps = list(_cache.steps(root))
        sizes = _Sizes(_blobs(root), _layers_of(root))
        by_images, by_used = _sweep.Reached(), _sweep.Reached()
        for image in images:
            by_images.add_manifest(root, image.manifest)
        for digest in alive.kept:
            by_used.add_leased(root, digest)
        by_images.add_folds(root)
        by_used.add_folds(root)
        pieces = sum(root.size(f"staging/{name}/data") or 0 for name in root.names("staging") if name.startswith(("blob-", "new-")))
    cached = _sweep.Reached()
    for _, step in steps:
        cached.add_step(step)
    cached.add_folds(root)
    cached.blobs -= by_images.blobs
    cached.layers -= by_images.layers
    return Usage(
        images=_rows(images, sizes.layers, alive.used),
        layers=sum(sizes.layers.values()),
        blobs=sum(sizes.blobs.values()),
        reclaimable=sizes.all - sizes.of(by_used),
        cache_entries=len(steps),
        cache=sizes.of(cached),
        staging=pieces,
    )


def _blobs(root: Root) -> dict[Digest, int]:
    return {digest: root.size(blob_name(digest)) or 0 for digest in _sweep.blobs_of(root)}


def _layers_of(root: Root) -> dict[Digest, int]:
    return {digest: known.disk for digest in _sweep.layers_of(root) if (known := _layers.facts(root, digest)) is not None}


def _rows(images: tuple[Image, ...], sizes: dict[Digest, int], used: collections.Counter[Digest]) -> tuple[UsageRow, ...]:
    owners = collections.Counter(diff_id for image in images for diff_id in set(image.config.diff_ids))
    rows: list[UsageRow] = []
    for image in images:
        shared = sum(sizes.get(diff_id, 0) for diff_id in set(image.config.diff_ids) if owners[diff_id] > 1)
        unique = sum(sizes.get(diff_id, 0) for diff_id in set(image.config.diff_ids) if owners[diff_id] == 1)
        rows.append(UsageRow(image, shared, unique, used[image.id]))
    return tuple(rows)


def history(root: Root, image: Image) -> list[HistoryRow]:
    """See `Store.history`."""
    sizes = [known.disk if (known := _layers.facts(root, diff_id)) is not None else 0 for diff_id in image.config.diff_ids]
    left = iter(sizes)
    steps = [HistoryRow(step, 0 if step.empty_layer else next(left, 0)) for step in image.config.history]
    return list(reversed(steps))
