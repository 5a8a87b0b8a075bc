"""Killing the members of a group one by one, where the kernel has no cgroup.kill."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack

import pytest

from sandbox._sys import calls
from sandbox.cg import bundle


@pytest.mark.parametrize("thaws", [False, True])
def test_many_are_killed_with_few_descriptors_and_thawed_when_all_are(monkeypatch: pytest.MonkeyPatch, thaws: bool) -> None:
    monkeypatch.setattr(bundle, "AT_ONCE", 3)
    with ExitStack() as stack:
        programs = [stack.enter_context(subprocess.Popen(["sleep", "60"])) for _ in range(8)]
        pids = {program.pid for program in programs}
        before, most, thawed = len(os.listdir("/proc/self/fd")), 0, 0

        def opened(pid: int) -> int:
            nonlocal most
            fd = os.pidfd_open(pid)
            most = max(most, len(os.listdir("/proc/self/fd")) - before)
            return fd

        def thaw() -> None:
            nonlocal thawed
            thawed += 1

        monkeypatch.setattr(calls, "pidfd_open", opened)
        bundle.kill_members(pids, lambda: pids, thaw=thaw if thaws else None)
        assert (most, thawed) == (3, int(thaws))
        assert [program.wait() for program in programs] == [-signal.SIGKILL] * 8
