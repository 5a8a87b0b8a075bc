"""What a volume holds when it comes into being: nothing, or a copy of what the image has at that place; see `volumes`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from typing import Final

from attrs import frozen

from sandbox.fs._fill import Filling, Merged, MergedTree
from sandbox.fs._volume_images import IMAGE, make_image, mount_image, opened_top
from sandbox.fs._volume_places import DATA, make_data
from sandbox.fs._volume_use import DIRECTORY

_DIRECTORY_PATH: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen
class Content:
    """What an empty volume gets: the directory at *path* of the root behind the descriptor *root*, or of its layers *names*, the lowest first."""

    root: int
    path: str
    names: tuple[str, ...] | None = None

    @contextlib.contextmanager
    def opened(self) -> Generator[tuple[MergedTree, Merged | None]]:
        """The root as a tree, and the directory in it; None when there is none."""
        with contextlib.ExitStack() as stack:
            tops: list[int] = [self.root] if self.names is None else []
            for name in reversed(self.names or ()):
                tops.append(os.open(name, _DIRECTORY_PATH, dir_fd=self.root))
                stack.callback(os.close, tops[-1])
            tree = MergedTree(tops)
            yield tree, tree.find(self.path)


@contextlib.contextmanager
def _opened(name: str, directory: int) -> Generator[int]:
    fd = os.open(name, DIRECTORY, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def fill_directory(tree: MergedTree, source: Merged, staging: int, directory: int) -> None:
    make_data(staging)
    with _opened(DATA, staging) as target:
        Filling(tree, target).fill(source)
        mode = os.fstat(target).st_mode
        os.fchmod(target, mode | 0o700)  # to move a directory is to write to it
        os.rename(DATA, DATA, src_dir_fd=staging, dst_dir_fd=directory)
        os.fchmod(target, mode)


def fill_image(tree: MergedTree, source: Merged, staging: int, directory: int, size: int) -> None:
    make_image(staging, size)
    mount = mount_image(staging)
    try:
        with opened_top(mount) as target:
            Filling(tree, target).fill(source)
    finally:
        os.close(mount)  # all that was written is in the file then
    os.rename(IMAGE, IMAGE, src_dir_fd=staging, dst_dir_fd=directory)


def make_content(directory: int, size: int | None) -> None:
    """Make what containers will see."""
    if size is None:
        make_data(directory)
    else:
        make_image(directory, size)
