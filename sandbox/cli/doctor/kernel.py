"""The kernel: its release, and each feature that containers use."""

from __future__ import annotations

import os
from typing import Final

from attrs import frozen

import sandbox
from sandbox import features
from sandbox.cli.doctor.finding import Finding, State

_MACHINES: Final = ("x86_64", "aarch64")
_LANDLOCK: Final = ((3, "truncating", "6.2"), (5, "ioctls of devices", "6.10"), (6, "signals and abstract sockets", "6.12"))


@frozen
class Feature:
    """One probe of `sandbox.features`: what it is for, and since when kernels have it."""

    probe: str
    words: str
    needed_for: str
    remedy: str


_EVERY: Final = "every container"
_FEATURES: Final = (
    *(Feature(need.probe, need.words, _EVERY, need.remedy) for need in features.NEEDS),
    Feature("seccomp_user_notify", "seccomp notifications", "the profile 'strict'", "boot Linux 5.0 or later"),
    Feature("clone_into_cgroup", "clone into a cgroup", "limits on cgroup v2", "boot Linux 5.7 or later; a filter around us must allow clone3"),
    Feature("overlay", "overlay", "a directory as the root with a writable layer", "as root: modprobe overlay"),
    Feature("time_namespace", "time namespaces", "time_offsets=", "boot Linux 5.6 or later with CONFIG_TIME_NS=y"),
)


def findings() -> list[Finding]:
    """All of the kernel."""
    return [_machine(), *map(_feature, _FEATURES), _overlay_for_users(), _idmap(), _landlock()]


def _machine() -> Finding:
    system = os.uname()
    value = f"Linux {system.release}, {system.machine}, {os.cpu_count()} CPUs, uid {os.geteuid()}"
    if system.machine in _MACHINES:
        return Finding("kernel", "host", State.OK, value)
    return Finding("kernel", "host", State.MISSING, f"{value}: not a supported machine", f"run on {' or '.join(_MACHINES)}")


def _feature(feature: Feature) -> Finding:
    if features.PROBES[feature.probe]():
        return Finding("kernel", feature.words, State.OK, "yes")
    remedy = f"a seccomp filter is around us: {features.SECCOMP_REMEDY}; without one: {feature.remedy}" if features.is_filtered() else feature.remedy
    return Finding("kernel", feature.words, State.MISSING, f"no; needed for {feature.needed_for}", remedy)


def _overlay_for_users() -> Finding:
    what = "overlay in a user namespace"
    try:
        works = features.overlay_in_userns()
    except sandbox.UnsupportedError as error:
        return Finding("kernel", what, State.NOTE, "not tried", error.remedy)
    if works and not features.tmpfs_user_xattrs():
        lacking = "yes; in memory, directories of an image that have something new in them cannot be removed, nor removed ones be made again"
        remedy = "boot Linux 6.6 or later, or keep the scratch layer on disk: scratch=Scratch(disk='/var/tmp')"
        return Finding("kernel", what, State.NOTE, lacking, remedy)
    if works:
        return Finding("kernel", what, State.OK, "yes")
    remedy = "boot Linux 5.11 or later, and allow user namespaces; or have directories copied: scratch='copy'"
    return Finding("kernel", what, State.MISSING, "no; needed for a writable layer without root", remedy)


def _idmap() -> Finding:
    what = "id-mapped mounts of /"
    if not features.privileged():
        return Finding("kernel", what, State.NOTE, "not tried: only root can make them, and only root needs them")
    try:
        works = features.idmap_supported("/")
    except (sandbox.SandboxError, OSError) as error:
        return Finding("kernel", what, State.NOTE, f"not tried: {error}")
    if works:
        return Finding("kernel", what, State.OK, "yes")
    remedy = "boot Linux 5.12 or later (overlay: 6.6 or later), or keep roots and volumes on ext4, xfs, btrfs or tmpfs"
    return Finding("kernel", what, State.MISSING, "no; needed by root to show files with their owners", remedy)


def _landlock() -> Finding:
    abi = features.landlock_abi()
    if abi == 0:
        remedy = "boot Linux 5.19 or later with landlock in the boot option lsm="
        return Finding("kernel", "Landlock", State.MISSING, "no; the second wall round files is off", remedy)
    lacking = [f"{what} (Linux {release})" for level, what, release in _LANDLOCK if abi < level]
    if not lacking:
        return Finding("kernel", "Landlock", State.OK, f"ABI {abi}")
    return Finding("kernel", "Landlock", State.NOTE, f"ABI {abi}, which does not cover {', '.join(lacking)}", "boot a later kernel")
