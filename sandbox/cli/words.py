"""What the library's errors say, for who uses the command line: of options, where they speak of arguments, and of the command but once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

# By the first word of an error, which is the argument that it is about.
_OPTIONS: Final[Mapping[str, str]] = {
    "address6": "--ip6", "changes": "--change", "cpus": "--cpus", "cpuset": "--cpuset-cpus", "cwd": "--workdir", "dns": "--dns",
    "dns_search": "--dns-search", "extra_hosts": "--add-host", "gateway": "--gateway", "hostname": "--hostname", "mac": "--mac-address",
    "memory": "--memory", "pids": "--pids-limit", "ports": "--publish", "publish_all": "--publish-all", "restart": "--restart", "shm": "--shm-size",
    "subnet": "--subnet", "subnet6": "--subnet", "user": "--user",
}  # fmt: skip
# What is to be done. Each is in an error of the library, and none is like what somebody says on a command line.
REMEDIES: Final[Mapping[str, str]] = {
    "give uplink='slirp4netns', or internal=True": "give --internal to sandbox network create",
    "give ipv6=False, or internal=True": "leave --ipv6 out, or give --internal to sandbox network create",
    "; or give internal=True": "; or give --internal to sandbox network create",
    "give one with internal=False as well": "give one that was made without --internal as well",
    "make it with ipv6=True": "make it with --ipv6",
    "give net=Network(ipv6=True)": "give one that was made with --ipv6",
    "give it as subnet6=, with ipv6=True, beside one of IPv4": "give --ipv6 too, and one of IPv4 beside it",
    "give ipv6=True too": "give --ipv6 too",
    "give subnet= too": "give --subnet too",
    "give subnet=, or": "give --subnet, or",
    "give net=Network()": "give --network new",
    "put both on a Network()": "put both into one network (sandbox network create)",
    "start it with net=None": "start it without --network",
    "give ports=[80], say": "give --publish 80, say",
    "(memory=, pids= ...)": "(--memory, --pids-limit ...)",
    "the container's memory= is used up": "the container's --memory is used up",
    "(pids=, RLIMIT_NPROC,": "(--pids-limit, RLIMIT_NPROC,",
    "the container's memory is used up (memory=)": "the container's memory is used up (--memory)",
    "give another cwd=": "give another --workdir",
    "give another user=": "give another --user",
    "give it a larger scratch= or Tmpfs": "mount a --tmpfs or a --volume there",
    "mount a Tmpfs there, or a Bind or Volume without read_only": "mount a --tmpfs there, or a --volume that is not read-only",
    "give scratch= more bytes, Scratch(..., inodes=...) more files, or its disk more room": "mount a --tmpfs or a --volume for what is large",
    "; or have it copied into memory, by scratch='copy'": "",
    "pass read_only=True, or": "mount it read-only (:ro), or",
    "rlimits=Rlimits(fsize=...)": "--ulimit fsize=...",
}
_REMEDY: Final = re.compile("|".join(map(re.escape, REMEDIES)))
_ALSO: Final[Mapping[str, tuple[str, ...]]] = {"cp": ("copy_in", "copy_out"), "unpause": ("resume",)}  # what the library calls a command


def said(command: str, text: str) -> str:
    """*text*, of an error, as *command* says it after its own name."""
    verb = command.rpartition(" ")[2]
    first, colon, rest = text.partition(": ")
    if colon and first in (verb, *_ALSO.get(verb, ())):
        text = rest
    elif colon and first in _OPTIONS:
        text = f"{_OPTIONS[first]}: {rest}"
    return _REMEDY.sub(lambda found: REMEDIES[found[0]], text)
