"""Folded layers: one directory that shows what several small ones show together, so that an image of many layers is mounted as one of few.

Theory of operation
-------------------
What overlay takes to mount grows with the number of layers, not with their size: 10 us and more for each. Images of very many layers have mostly
small ones, one file or a few. So where an image has more than `ENOUGH`, small layers that lie on each other are copied together into one, a *fold*,
which lies in the store as a layer does: made once, shared by all images that have the same ones in the same order, mounted like a layer.

A fold shows what its parts show over the layers below it. A directory that hides what is below is opaque, and whiteouts stay where there is something
to hide: only there, for overlay lists a whiteout in a directory that no other layer has. So a fold belongs to all layers from the lowest one to its
own highest, its chain; a document beside its tree names them, and its digest is a hash of that, which no layer's can be. It goes as soon as one of
them goes.

Which layers are folded is told from the lowest on, so that images that begin alike have the same folds. What cannot be copied (as an ordinary user,
a file that its owner may not read) is not folded, and the image has its layers as they are: nothing ever depends on a fold.

Alternatives: hard links instead of copies cost no space, but show (a program sees how many names a file has; cron refuses a crontab with
two), and change the times of layers; an overlay as the lower layer of others cannot be id-mapped, so each container would need its own.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Final

from sandbox.errors import ImageError
from sandbox.image import _layers
from sandbox.image._disk import Root
from sandbox.image._layers import Facts
from sandbox.image._leases import Lease
from sandbox.image.digest import Digest

ENOUGH: Final = 16  # images of no more layers stay as they are: overlay takes 0.2 ms for so many
MOST: Final = 16  # layers of a fold
_LEAST: Final = 4  # a shorter run, between large layers, is not worth a copy
_SMALL: Final = Facts(size=2 << 20, entries=256, disk=1 << 20)  # of a layer that is folded
_WHOLE: Final = Facts(size=0, entries=1024, disk=4 << 20)  # of all layers of a fold; their tars' sizes do not count

Span = tuple[int, int]  # of an image's layers, the first of a fold and how many it has


def digest_of(chain: Sequence[Digest], first: int) -> Digest:
    """The digest under which the fold of the layers ``chain[first:]``, the lowest first, is kept."""
    return Digest.of("\n".join([f"sandbox: layers folded from {first} on", *map(str, chain)]).encode())


def stack(diff_ids: Sequence[Digest], folds: Sequence[Span]) -> tuple[Digest, ...]:
    """What is mounted, the lowest first: folds in the place of their layers."""
    found: list[Digest] = []
    at = 0
    for first, count in folds:
        found += [*diff_ids[at:first], digest_of(diff_ids[: first + count], first)]
        at = first + count
    return (*found, *diff_ids[at:])


def choose(layers: Sequence[Facts]) -> Iterator[Span]:
    """Which of *layers*, the lowest first, are to be folded. A run that is not full yet, at the top, is not: more may come to lie on it."""
    if len(layers) <= ENOUGH:
        return
    first = entries = disk = 0
    for at, one in enumerate(layers):
        fits = entries + one.entries <= _WHOLE.entries and disk + one.disk <= _WHOLE.disk
        if not _is_small(one) or not fits or at - first == MOST:
            if at - first >= _LEAST:
                yield first, at - first
            first, entries, disk = at + (not _is_small(one)), 0, 0
        if _is_small(one):
            entries, disk = entries + one.entries, disk + one.disk
    if len(layers) - first == MOST:
        yield first, MOST


def _is_small(one: Facts) -> bool:
    return one.size <= _SMALL.size and one.entries <= _SMALL.entries and one.disk <= _SMALL.disk


def make(root: Root, lease: Lease, diff_ids: Sequence[Digest], layers: Sequence[Facts]) -> tuple[Span, ...]:
    """Have the folds of an image, whose layers are on *lease*; return those that are there then. Never fails: there are fewer then."""
    found: list[Span] = []
    for first, count in choose(layers):
        from sandbox.image._folding import fold  # needed by few

        below, chain = stack(diff_ids[:first], found), diff_ids[: first + count]
        with contextlib.suppress(OSError, ImageError):
            digest = digest_of(chain, first)
            _layers.add(root, lease, digest, functools.partial(fold, root, digest, below, chain[first:]), folded=_layers.Folded(first, tuple(chain)))
            found.append((first, count))
    return tuple(found)
