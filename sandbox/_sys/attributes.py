"""What files in memory carry beside their content."""

from __future__ import annotations

import os

from sandbox._sys import calls, constants
from sandbox._sys.fds import Fd
from sandbox._sys.features import Probe


@Probe
def tmpfs_user_xattrs() -> bool:
    """Extended attributes in ``user.`` on tmpfs, Linux 6.6 with CONFIG_TMPFS_XATTR: by these an overlay of a container hides what is below."""
    with Fd(calls.memfd_create("sandbox-probe", constants.MFD_CLOEXEC)) as file:
        try:
            os.setxattr(file.fileno(), "user.sandbox", b"1")
        except OSError:
            return False
        return True
