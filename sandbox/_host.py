"""What this host offers, as far as a container's plan depends on it: probed at the first use, once per process."""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from typing import Final

from sandbox._compile import Host
from sandbox._ids import allot, shape
from sandbox._sys import features
from sandbox.cg import Mode, detect
from sandbox.errors import SetupError


@lru_cache(maxsize=1)
def host() -> Host:
    """The facts. Privileged: root, with the right to mount here and to map ids."""
    return Host(
        privileged=os.geteuid() == 0 and features.privileged(),
        landlock_abi=features.landlock_abi(),
        clone3_exec=detect().mode is Mode.V2,
    )


_mappable: dict[int, bool] = {}
_UNMAPPABLE: Final = (errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS)


def can_map(fd: int) -> bool:
    """Whether the file system behind *fd* can be id-mapped; tried once per file system, by a helper of the launcher."""
    device = os.fstat(fd).st_dev
    known = _mappable.get(device)
    if known is None:
        known = _mappable[device] = _try_to_map(fd)
    return known


def _try_to_map(fd: int) -> bool:
    from sandbox import _plan as plan
    from sandbox._spawner import Helpers
    from sandbox._sys.constants import CLONE_NEWPID, CLONE_NEWUSER

    ids = allot(shape(privileged=True, uid=0))
    planned = plan.Plan(
        clone_flags=CLONE_NEWUSER | CLONE_NEWPID,
        uid_map=ids.maps.uid_map,
        gid_map=ids.maps.gid_map,
        host_ops=(plan.CloneTree("probe", "source", recursive=False), plan.SetAttr("probe", recursive=False, idmap=True)),
        fds={"source": fd},
    )
    try:
        with Helpers().helper(planned):
            return True
    except SetupError as error:
        if error.step == "host" and error.errno in _UNMAPPABLE:
            return False
        raise
    finally:
        ids.release()
