"""File systems of a container: what its root is made of, what is mounted where, and what may be written, as plain values.

`FilesystemSpec` says it, `ops` turns it into plan operations and opens the sources that they need:

>>> spec = FilesystemSpec(root=HostView(), mounts=(Tmpfs("/tmp", size="16M"),))
>>> with ops(spec, privileged=True) as plan:
...     init_ops = plan.init_ops(plan.names("box"))
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox.fs._host import host_trees
from sandbox.fs._layers import read_file
from sandbox.fs._names import name_ops, resolv_text, to_address, to_host_name
from sandbox.fs._open import FsPlan, ops
from sandbox.fs._resolver import MAX_SERVERS, Resolver, host_resolver
from sandbox.fs._seen import Seen
from sandbox.fs._specs import (
    MASKED_PATHS,
    READ_ONLY_PATHS,
    Bind,
    Directory,
    FilesystemSpec,
    HostView,
    Layers,
    Mount,
    Root,
    Scratch,
    Tmpfs,
    Volume,
    no_overlay,
)

if TYPE_CHECKING:
    from sandbox.fs._volume_documents import VolumeInfo
    from sandbox.fs.strings import parse_mount, parse_tmpfs, parse_volume, to_mount
    from sandbox.fs.volumes import PrunedVolumes, VolumeStore

__all__ = [
    "MASKED_PATHS",
    "MAX_SERVERS",
    "READ_ONLY_PATHS",
    "Bind",
    "Directory",
    "FilesystemSpec",
    "FsPlan",
    "HostView",
    "Layers",
    "Mount",
    "PrunedVolumes",
    "Resolver",
    "Root",
    "Scratch",
    "Seen",
    "Tmpfs",
    "Volume",
    "VolumeInfo",
    "VolumeStore",
    "host_resolver",
    "host_trees",
    "name_ops",
    "no_overlay",
    "ops",
    "parse_mount",
    "parse_tmpfs",
    "parse_volume",
    "read_file",
    "resolv_text",
    "to_address",
    "to_host_name",
    "to_mount",
]


def __getattr__(name: str) -> object:
    """Load at its first use what a container without volumes does not need."""
    value: object
    match name:
        case "PrunedVolumes" | "VolumeStore":
            from sandbox.fs import volumes

            value = getattr(volumes, name)
        case "VolumeInfo":
            from sandbox.fs import _volume_documents

            value = _volume_documents.VolumeInfo
        case "parse_mount" | "parse_tmpfs" | "parse_volume" | "to_mount":
            from sandbox.fs import strings

            value = getattr(strings, name)
        case _:
            raise AttributeError(f"module 'sandbox.fs' has no attribute {name!r}")
    globals()[name] = value  # the next use finds it there
    return value
