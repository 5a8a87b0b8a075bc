"""Where this user's things are that outlast a process."""

from __future__ import annotations

import os

from sandbox.errors import UsageError

_SYSTEM = "/var/lib/sandbox"


def user_directory(kind: str) -> str:
    """The directory of *kind*, ``"images"`` say: $SANDBOX_IMAGES, or /var/lib/sandbox/images for root, or else below $XDG_DATA_HOME (~/.local/share).

    Raises: UsageError: the variable is not an absolute path; another directory than the one that was meant would be taken.
    """
    variable = f"SANDBOX_{kind.upper()}"
    told = os.environ.get(variable, "")
    if told and not told.startswith("/"):
        raise UsageError(f"{variable}: {told!r} is relative; give an absolute path")
    if told:
        return told
    if os.geteuid() == 0:
        return f"{_SYSTEM}/{kind}"
    base = os.environ.get("XDG_DATA_HOME", "")
    if not base.startswith("/"):  # the XDG base directory specification: relative paths are to be ignored
        base = os.path.expanduser("~/.local/share")
    return f"{base}/sandbox/{kind}"


def absolute(path: str, *, what: str) -> str:
    """*path*, from the working directory of now where it is relative. Raises: UsageError: that has been removed."""
    if path.startswith("/"):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except FileNotFoundError:
        raise UsageError(f"{what}: {path!r} is relative, and the working directory has been removed; give an absolute path") from None
