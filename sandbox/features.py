"""What this kernel and this host offer: ask ``sandbox.features.landlock_abi()`` and the like. Probed, never guessed from a version.

Each function asks once per process and remembers; `forget` makes all ask anew.
`NEEDS` is what every container takes; `check_floor` says what of that is missing. `is_filtered` and `hidden_proc` tell what an outer container
has put around this process. `networks` asks what networks of containers can do, each time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandbox._sys.attributes import tmpfs_user_xattrs
from sandbox._sys.features import (
    PROBES,
    Obstacle,
    clone3,
    clone_into_cgroup,
    close_range,
    forget,
    idmap_supported,
    idmapped_mounts,
    landlock_abi,
    memfd_exec_flags,
    memfd_executable,
    memfd_seals,
    mount_setattr,
    new_mount_api,
    newuidmap,
    openat2,
    overlay,
    overlay_in_userns,
    overlay_layer_fds,
    overlay_lowerdir_add,
    packet_links,
    packet_programs,
    pidfd,
    pretend,
    privileged,
    seccomp_user_notify,
    seccomp_wait_killable,
    subordinate_ids,
    time_namespace,
    user_namespaces,
    userns_obstacle,
)
from sandbox._sys.floor import FLOOR, NEEDS, Need, check_floor
from sandbox._sys.outer import PROC_REMEDY, SECCOMP_REMEDY, hidden_proc, is_filtered

if TYPE_CHECKING:
    from sandbox.net import Offer

__all__ = [
    "FLOOR",
    "NEEDS",
    "PROBES",
    "PROC_REMEDY",
    "SECCOMP_REMEDY",
    "Need",
    "Obstacle",
    "check_floor",
    "clone3",
    "clone_into_cgroup",
    "close_range",
    "forget",
    "hidden_proc",
    "idmap_supported",
    "idmapped_mounts",
    "is_filtered",
    "landlock_abi",
    "memfd_exec_flags",
    "memfd_executable",
    "memfd_seals",
    "mount_setattr",
    "networks",
    "new_mount_api",
    "newuidmap",
    "openat2",
    "overlay",
    "overlay_in_userns",
    "overlay_layer_fds",
    "overlay_lowerdir_add",
    "packet_links",
    "packet_programs",
    "pidfd",
    "pretend",
    "privileged",
    "seccomp_user_notify",
    "seccomp_wait_killable",
    "subordinate_ids",
    "time_namespace",
    "tmpfs_user_xattrs",
    "user_namespaces",
    "userns_obstacle",
]


def networks() -> Offer:
    """What networks of containers can do here: tried in a namespace made for it, with the rights that we have. Takes about 20 ms."""
    from sandbox._networks.survey import survey

    return survey()
