"""Namespaces of all eight kinds: make, share, enter, keep by name, list.

Each kind has a module with a frozen spec and a pure function `pieces`, which says what the kind adds to a container's plan;
`Namespaces` is one choice for each. `Namespace` is a handle of one that exists.
"""

from __future__ import annotations

from sandbox.ns._pieces import Host, Join, Pieces
from sandbox.ns.cgroup import Cgroup
from sandbox.ns.entry import Entered, Spawner, bind_spawner, enter
from sandbox.ns.ipc import Ipc
from sandbox.ns.mount import Mount
from sandbox.ns.namespace import KINDS, Namespace, list_namespaces
from sandbox.ns.net import Net, forget, keep
from sandbox.ns.pid import Pid
from sandbox.ns.resident import Resident
from sandbox.ns.spec import Namespaces, pieces
from sandbox.ns.time import Time
from sandbox.ns.user import IdMaps, IdRange, IdRanges, User, id_ranges
from sandbox.ns.uts import Uts

__all__ = [
    "KINDS",
    "Cgroup",
    "Entered",
    "Host",
    "IdMaps",
    "IdRange",
    "IdRanges",
    "Ipc",
    "Join",
    "Mount",
    "Namespace",
    "Namespaces",
    "Net",
    "Pid",
    "Pieces",
    "Resident",
    "Spawner",
    "Time",
    "User",
    "Uts",
    "bind_spawner",
    "enter",
    "forget",
    "id_ranges",
    "keep",
    "list_namespaces",
    "pieces",
]
