"""File systems of a container: what its root is made of, what is mounted where, and what may be written, as plain values.

`FilesystemSpec` says it, `ops` turns it into plan operations and opens the sources that they need:

>>> spec = FilesystemSpec(root=HostView(), mounts=(Tmpfs("/tmp", size="16M"),))
>>> with ops(spec, privileged=True) as plan:
...     init_ops = plan.init_ops(plan.names("box"))
"""

from __future__ import annotations

from sandbox.fs._host import host_trees
from sandbox.fs._names import name_ops, to_host_name
from sandbox.fs._open import FsPlan, ops
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
from sandbox.fs._volume_documents import VolumeInfo
from sandbox.fs.strings import parse_mount, parse_tmpfs, parse_volume, to_mount
from sandbox.fs.volumes import PrunedVolumes, VolumeStore

__all__ = [
    "MASKED_PATHS",
    "READ_ONLY_PATHS",
    "Bind",
    "Directory",
    "FilesystemSpec",
    "FsPlan",
    "HostView",
    "Layers",
    "Mount",
    "PrunedVolumes",
    "Root",
    "Scratch",
    "Tmpfs",
    "Volume",
    "VolumeInfo",
    "VolumeStore",
    "host_trees",
    "name_ops",
    "no_overlay",
    "ops",
    "parse_mount",
    "parse_tmpfs",
    "parse_volume",
    "to_host_name",
    "to_mount",
]
