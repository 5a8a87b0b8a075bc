"""Control groups for a process that is ours alone, where this user has none by himself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sandbox import SandboxError, UnsupportedError

T = TypeVar("T")


def with_groups(work: Callable[[], T]) -> T:
    """Do *work*; where it wants control groups that this user cannot have, ask systemd for some. This process is ours alone: it may be moved."""
    try:
        return work()
    except UnsupportedError as error:
        if not error.feature.startswith("cgroup"):
            raise
        from sandbox import cg

        try:
            cg.delegate()
        except SandboxError:  # what is missing was said better already
            raise error from None
    return work()
