"""Limits in force on us: what containers can use is never more."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from typing import Final

from sandbox.cli.doctor.finding import Finding, State, read_number

_SECTION: Final = "limits in force"
_FILES_PER_CONTAINER: Final = 8  # descriptors that a container costs the embedding process, about
_FEW_FILES: Final = 1024
_FEW_PROCESSES: Final = 256
_FEW_NAMESPACES: Final = 64
_KINDS: Final = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
_SYSCTLS: Final = ("kernel/pid_max", "kernel/threads-max", "fs/file-max", "fs/pipe-user-pages-soft", "vm/overcommit_memory", "vm/max_map_count")


def findings() -> list[Finding]:
    """All limits."""
    return [_files(), _processes(), *_other_rlimits(), *_namespaces(), *_sysctls()]


def _show(number: int) -> str:
    return "unlimited" if number == resource.RLIM_INFINITY else str(number)


def _pair(number: int) -> tuple[int, str]:
    soft, hard = resource.getrlimit(number)
    return soft, _show(soft) if soft == hard else f"{_show(soft)} (hard: {_show(hard)})"


def _files() -> Finding:
    soft, words = _pair(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= _FEW_FILES:
        return Finding(_SECTION, "open files (nofile)", State.OK, words)
    value = f"{words}: enough for about {soft // _FILES_PER_CONTAINER} containers at once"
    return Finding(_SECTION, "open files (nofile)", State.MISSING, value, "ulimit -n 4096, limits.conf, or systemd's LimitNOFILE=")


def _processes() -> Finding:
    soft, words = _pair(resource.RLIMIT_NPROC)
    if os.geteuid() == 0 or soft == resource.RLIM_INFINITY or soft >= _FEW_PROCESSES:
        return Finding(_SECTION, "processes (nproc)", State.OK, words)
    return Finding(_SECTION, "processes (nproc)", State.MISSING, f"{words}: few", "ulimit -u 4096, limits.conf, or systemd's LimitNPROC=")


def _other_rlimits() -> Iterator[Finding]:
    for name in ("as", "cpu", "data", "fsize", "memlock", "stack"):
        soft, words = _pair(getattr(resource, f"RLIMIT_{name.upper()}"))
        if soft != resource.RLIM_INFINITY:
            yield Finding(_SECTION, f"rlimit {name}", State.NOTE, words)


def _namespaces() -> Iterator[Finding]:
    for kind in _KINDS:
        name = f"user.max_{kind}_namespaces"
        number = read_number(f"/proc/sys/user/max_{kind}_namespaces")
        if number is None:
            yield Finding(_SECTION, name, State.NOTE, "this kernel has no such setting")
        elif number < _FEW_NAMESPACES:
            yield Finding(_SECTION, name, State.MISSING, f"{number}: each container needs one", f"as root: sysctl -w {name}=10000")
        else:
            yield Finding(_SECTION, name, State.OK, str(number))


def _sysctls() -> Iterator[Finding]:
    for path in _SYSCTLS:
        number = read_number(f"/proc/sys/{path}")
        if number is not None:
            yield Finding(_SECTION, path.replace("/", "."), State.NOTE, str(number))
