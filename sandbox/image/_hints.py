"""What to do about that with which the kernel refuses to write into a store."""

from __future__ import annotations

import errno
from typing import Final

_HINTS: Final = {
    errno.ENOSPC: "the file system is full; sandbox image prune --all frees what is not used",
    errno.EDQUOT: "the quota is used up; sandbox image prune --all frees what is not used",
    errno.EROFS: "the file system is read-only; choose another directory",
    errno.EACCES: "choose a directory that you may write to",
}


def hint_of(error: OSError) -> str:
    """What a `SetupError` says besides; "" for what needs no words."""
    return _HINTS.get(error.errno or errno.EIO, "")
