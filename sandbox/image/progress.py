"""What `pull` and `push` tell while they work."""

from __future__ import annotations

import enum
from collections.abc import Callable

from attrs import frozen

from sandbox.image.digest import Digest

__all__ = ["Progress", "Stage"]


class Stage(enum.StrEnum):
    """What has just happened, or goes on."""

    RESOLVED = "resolved"  # the manifest is known; `digest` is its own
    PRESENT = "present"  # where it should go, it is already
    DOWNLOADING = "downloading"
    DOWNLOADED = "downloaded"
    UNPACKING = "unpacking"
    UNPACKED = "unpacked"
    UPLOADING = "uploading"
    UPLOADED = "uploaded"
    MOUNTED = "mounted"  # the registry has taken it from another of its repositories
    RETRYING = "retrying"  # something failed that may go well; `message` says what, and when it is tried again


@frozen
class Progress:
    """One piece of news: of a layer, a configuration or a manifest (*digest*), of which *done* bytes of *total* are there."""

    stage: Stage
    digest: Digest | None = None
    done: int = 0
    total: int = 0
    message: str = ""


# It is called by several threads, one at a time. What it raises ends the transfer, and is raised there.
OnProgress = Callable[[Progress], object]
