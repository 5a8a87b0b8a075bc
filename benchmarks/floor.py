"""Drive floor.c: a process that makes one iteration for each line it gets, and answers with the microseconds it took."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack

CONTROLLERS = ("memory", "pids", "cpu", "cpuacct")
CGROUPS = "/sys/fs/cgroup"
ROOM = "sandbox-supervisor"


def start(stack: ExitStack, command: Sequence[str]) -> Callable[[], float]:
    """Start it; the result is a case's call. *stack* ends it, upon which it removes its control groups.

    The call raises RuntimeError, with what it said, when it fails.
    """
    process = stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    ask, answers, complaints = process.stdin, process.stdout, process.stderr
    assert ask is not None
    assert answers is not None
    assert complaints is not None

    def call() -> float:
        try:
            ask.write("\n")
            ask.flush()
        except BrokenPipeError:
            raise RuntimeError(complaints.read().strip()) from None
        line = answers.readline()
        if not line:
            raise RuntimeError(complaints.read().strip())
        return float(line) / 1e6

    return call


def cgroup_options() -> list[str]:
    """The floor's options for this process's own control groups; empty where it may make none."""
    lines = [line.split(":", 2) for line in _read("/proc/self/cgroup").splitlines()]
    v1 = [(found, path) for _, names, path in lines if (found := [name for name in names.split(",") if name in CONTROLLERS])]
    if v1:
        return [part for names, path in v1 for part in ("--v1", f"{','.join(names)}={_v1_directory(names[0])}{path.rstrip('/')}")]
    own = next((path for _, names, path in lines if not names), None)
    if own is None or not os.access(f"{CGROUPS}{own}", os.W_OK):
        return []
    return ["--v2", _room(f"{CGROUPS}{own.rstrip('/')}")]


def _room(directory: str) -> str:
    """Where there may be groups with limits: not beside this process, so that it moves one level down first."""
    from sandbox.cg import make_room

    directory = directory.removesuffix(f"/{ROOM}")
    make_room()
    for controller in set(_read(f"{directory}/cgroup.controllers").split()) & set(CONTROLLERS):
        with open(f"{directory}/cgroup.subtree_control", "w") as file:
            file.write(f"+{controller}")
    return directory


def _v1_directory(controller: str) -> str:
    for line in _read("/proc/self/mounts").splitlines():
        _, place, kind, options, *_ = line.split()
        if kind == "cgroup" and controller in options.split(","):
            return place
    return f"{CGROUPS}/{controller}"


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()
