"""What the launcher is told to remove when this process has ended: our control groups, and the scratch layers on disk."""

from __future__ import annotations

import os
import threading

from sandbox._launch import driver
from sandbox.cg import count_as_ours, owner_paths

_announced: dict[int, tuple[driver.Launcher, tuple[str, ...], tuple[str, ...]]] = {}
_announcing = threading.Lock()


def announce(tree: str | None = None) -> None:
    """Tell it, if there is something new; *tree*: one more scratch layer. Raises: BrokenError, SetupError."""
    launcher, pid, groups = driver.current(), os.getpid(), owner_paths()
    with _announcing:
        known = _announced.get(pid)
        trees = known[2] if known is not None else ()
        if tree is not None:
            trees = (*(path for path in trees if os.path.lexists(path)), tree)
        if known != (launcher, groups, trees):
            count_as_ours(launcher.own_pid)
            launcher.set_cleanup(tuple(map(os.fsencode, groups)), tuple(map(os.fsencode, trees)))
            _announced.clear()
            _announced[pid] = launcher, groups, trees


def forget() -> None:
    """The launcher is no more."""
    _announced.clear()


def _after_fork_in_child() -> None:
    global _announcing
    _announcing = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork_in_child)
