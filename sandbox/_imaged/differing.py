"""What a container has written over its image, as Docker lists it: looked at from outside, in its upper layer."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Iterator, Sequence
from typing import Final, Literal

from attrs import define, field, frozen

from sandbox.errors import LimitError
from sandbox.fs._fill import Merged, MergedTree

MAX_ENTRIES: Final = 1_000_000


@frozen(order=True)
class Change:
    """One difference: *kind* is "A" (added), "C" (changed) or "D" (deleted)."""

    path: str
    kind: Literal["A", "C", "D"]

    def __str__(self) -> str:
        return f"{self.kind} {self.path}"


@define(eq=False)
class Difference:
    """The differences of a tree whose uppermost part is what was written. *shift* is taken off its owners; *leave_out* are paths."""

    tree: MergedTree
    shift: int
    leave_out: Collection[str]
    _found: dict[str, Literal["A", "C", "D"]] = field(factory=dict[str, Literal["A", "C", "D"]])

    def changes(self) -> list[Change]:
        """All of them, sorted by path; a directory has changed when something in it has. Raises: LimitError: there are too many."""
        waiting = [Merged(".", tuple(range(len(self.tree.tops))))]
        while waiting:
            waiting += self._look_into(waiting.pop())
        for path in [*self._found]:
            parent = os.path.dirname(path)
            while parent not in ("/", "") and parent not in self._found:
                self._found[parent] = "C"
                parent = os.path.dirname(parent)
        return sorted(Change(path, kind) for path, kind in self._found.items())

    def _look_into(self, directory: Merged) -> list[Merged]:
        below: list[Merged] = []
        with self.tree.opened(directory) as fds:
            names = os.listdir(fds[0])
            for name in names:
                path = f"{directory.path[1:]}/{name}"
                now = _look(name, fds[0])
                if path in self.leave_out or now is None:
                    continue
                before = _first(name, fds[1:])
                if stat.S_ISDIR(now.st_mode):
                    parts = self.tree.below(directory, fds, name, 0)
                    if not parts:
                        raise FileNotFoundError(errno.ENOENT, "it moved while it was looked at", path)
                    below.append(Merged(f"{directory.path}/{name}", parts))
                    self._on_directory(path, now, before)
                    self._note_hidden(directory, fds, name, path)
                elif _is_whiteout(now):
                    if before is not None:
                        self._note(path, "D")
                else:
                    self._note(path, "A" if before is None else "C")
        return below

    def _on_directory(self, path: str, now: os.stat_result, before: os.stat_result | None) -> None:
        if before is None:
            self._note(path, "A")
        elif (now.st_mode, now.st_uid - self.shift, now.st_gid - self.shift) != (before.st_mode, before.st_uid, before.st_gid):
            self._note(path, "C")

    def _note_hidden(self, directory: Merged, fds: Sequence[int], name: str, path: str) -> None:
        """What a directory that is new hides of one that was there by its name: an opaque one."""
        all_below = self.tree.below(Merged(directory.path, directory.layers[1:]), fds[1:], name, 0) if len(fds) > 1 else ()
        if not all_below or len(self.tree.below(directory, fds, name, 0)) > 1:
            return
        with self.tree.opened(Merged(f"{directory.path}/{name}", (0, *all_below))) as parts:
            mine = set(os.listdir(parts[0]))
            for entry in {entry for fd in parts[1:] for entry in os.listdir(fd)} - mine:
                if _first(entry, parts[1:]) is not None:
                    self._note(f"{path}/{entry}", "D")

    def _note(self, path: str, kind: Literal["A", "C", "D"]) -> None:
        self._found[path] = kind
        if len(self._found) > MAX_ENTRIES:
            raise LimitError(f"diff: more than {MAX_ENTRIES} changes", limit="max_entries")


def _look(name: str, directory: int) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _parts(name: str, directories: Sequence[int]) -> Iterator[os.stat_result]:
    for directory in directories:
        if (found := _look(name, directory)) is not None:
            yield found


def _first(name: str, directories: Sequence[int]) -> os.stat_result | None:
    """What *name* was before anything was written; None: there was nothing."""
    found = next(_parts(name, directories), None)
    return None if found is None or _is_whiteout(found) else found


def _is_whiteout(found: os.stat_result) -> bool:
    return stat.S_ISCHR(found.st_mode) and found.st_rdev == 0
