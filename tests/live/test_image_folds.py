"""Folded layers as the kernel shows them: a container of an image of many layers is the same with folds and without."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from attrs import evolve

from sandbox import Container
from sandbox.image import Image, Store
from sandbox.image.pack import pack
from tests.images import layer_of, put
from tests.rootfs import busybox
from tests.support import needs
from tests.tars import archive, directory, file, hard_link, header, pax, symlink

pytestmark = [needs("userns", "program:busybox", "overlay"), pytest.mark.unprivileged, pytest.mark.usefixtures("no_leftovers")]
# Not how many names a file has: a fold has those that show. A directory has one where overlay merges it, and two where it does not.
# Nor the root and what is ours: they are as old as the container.
LISTING = """
find / -xdev -mindepth 1 \\( -path /etc -o -path /dev -o -path /proc -o -path /sys \\) -prune -o -print | sort | while read -r p; do
    stat -c '%n %F %a %u %g %Y' "$p"
    if [ -L "$p" ]; then readlink "$p"; elif [ -f "$p" ]; then stat -c %s "$p"; [ "$p" -ef "${p%/*}/f" ] && echo "is f"; fi
done
find / -xdev \\( -path /proc -o -path /etc \\) -prune -o -type f -size -9 -print | sort | xargs cat
"""


def content(number: int) -> list[bytes]:
    """Members of a layer: each hides, replaces or takes on something of those before it."""
    own, other, older = (f"d/{number - back}".encode() for back in (0, 1, 5))
    found = [directory(b"d", 0o700 + number % 8, mtime=number), directory(own), file(own + b"/f", b"f%d\n" % number, mode=0o600 + number % 64)]
    if number % 2:
        found += [hard_link(own + b"/g", own + b"/f"), symlink(own + b"/l", b"../%d/f" % (number - 1))]
    if number % 3 == 0:
        found += [directory(other), file(other + b"/.wh.f"), pax({b"SCHILY.xattr.user.x": b"%d" % number}), file(other + b"/new", b"new\n")]
    if number % 5 == 0:
        found += [directory(older), file(older + b"/.wh..wh..opq"), file(older + b"/only", b"only\n")]
    if number % 7 == 0:
        found += [file(b"d/.wh.%d" % (number - 3)), header(b"pipe", b"6", mode=0o622)]
    if number % 11 == 0:
        found += [file(b"turns", b"a file\n")]
    if number % 11 == 4:
        found += [directory(b"turns"), file(b"turns/f", b"in a directory\n")]
    return found


@pytest.fixture
def image(tmp_path: Path) -> Image:
    store = Store(tmp_path / "store")
    base: list[bytes] = []
    fd = os.open(busybox(tmp_path / "base"), os.O_RDONLY | os.O_DIRECTORY)
    pack(fd, base.append, owner=None if os.geteuid() == 0 else (0, 0))
    os.close(fd)
    tars = [b"".join(base), *(archive(*content(number)) for number in range(5, 124))]
    with store.lease() as lease:
        return put(store, lease, map(layer_of, tars), ["many"])


def seen(image: Image) -> str:
    with Container(image, store=image.store) as c:
        return c.exec(["sh", "-c", LISTING], text=True, check=True).stdout  # type: ignore[return-value]


def test_a_container_of_120_layers_sees_the_same_with_folds_and_without(image: Image) -> None:
    assert len(image.stack) < 20 < len(image.layers)
    plain = seen(evolve(image, folds=()))
    assert plain.count("\n") > 400
    assert seen(image) == plain


def test_what_is_written_over_folds_is_what_is_committed(image: Image) -> None:
    with Container(image, store=image.store) as c:
        c.exec(["sh", "-c", "rm -r /d/100; mkdir /d/100; echo x > /d/100/y; rm /d/103/f"], check=True)
        changes = {str(change) for change in c.diff()}
        made = c.commit("made")
    with Container(evolve(image, folds=()), store=image.store) as c:
        c.exec(["sh", "-c", "rm -r /d/100; mkdir /d/100; echo x > /d/100/y; rm /d/103/f"], check=True)
        assert {str(change) for change in c.diff()} == changes
    assert made.folds == image.folds
    with Container(made, store=image.store) as c:
        assert c.exec(["ls", "/d/100", "/d/103"], text=True, check=True).stdout == "/d/100:\ny\n\n/d/103:\ng\nl\n"
    assert os.listdir(f"{image.store}/staging") == []
