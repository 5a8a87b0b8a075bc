"""Peers leave files, directories and empty control groups at well-known places of the host: remove what was not there before."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator

FILES = ("/dev/shm/libpod_lock", "/etc/docker", "/opt/containerd", "/run/containerd", "/run/crun", "/run/docker", "/run/libpod", "/run/runc")
GROUPS = ("docker", "libpod_parent")


@contextlib.contextmanager
def removed() -> Iterator[None]:
    """Note what is there now; at the end, when all peers have ended, remove what came. A place that existed is left alone."""
    files = [path for path in FILES if not os.path.exists(path)]
    known = set(_groups())
    try:
        yield
    finally:
        for path in files:
            _remove(path)
        for path in _groups():
            if path not in known:
                _remove_group(path)


def _groups() -> list[str]:
    patterns = [f"/sys/fs/cgroup/{hierarchy}{name}" for hierarchy in ("", "*/") for name in GROUPS]
    return [path for pattern in patterns for path in glob.glob(pattern)]


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)  # whatever stays is shown by the next run, which finds it there
    elif os.path.lexists(path):
        os.unlink(path)


def _remove_group(path: str) -> None:
    for directory, _, _ in os.walk(path, topdown=False):
        with contextlib.suppress(OSError):  # a process is in it: it was made by someone else, meanwhile
            os.rmdir(directory)
