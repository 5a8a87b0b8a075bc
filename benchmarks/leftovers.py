"""Count what one embedding process has left on the host. All that is ours bears its pid, so others' containers do not count."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import attrs
from attrs import frozen

CGROUPS = "/sys/fs/cgroup"
PATIENCE_S = 1.0
PLACES = ("/tmp", "/run", "/dev/shm", os.environ.get("XDG_RUNTIME_DIR", "/run"))


@frozen
class Leftovers:
    """What there is of process *pid* now, each thing as a line that names it."""

    processes: tuple[str, ...]
    cgroups: tuple[str, ...]
    mounts: tuple[str, ...]
    files: tuple[str, ...]

    @classmethod
    def of(cls, pid: int, before: Leftovers | None = None) -> Leftovers:
        """Look. A mount does not tell whose it is: those that were there *before* are left out."""
        mounts = tuple(line for line in _lines("/proc/self/mountinfo") if "sandbox" in line)
        names = (f"{place}/{name}" for place in sorted(set(PLACES)) for name in os.listdir(place))
        files = tuple(name for name in names if "sandbox" in name and str(pid) in name)
        if before is not None:
            mounts = tuple(set(mounts) - set(before.mounts))
        return cls(tuple(_launchers(pid)), tuple(_cgroups(pid)), mounts, files)

    def __len__(self) -> int:
        return sum(map(len, attrs.astuple(self, recurse=False)))

    def lines(self) -> list[str]:
        return [f"{kind}: {line}" for kind, lines in attrs.asdict(self).items() for line in lines]


def _launchers(pid: int) -> list[str]:
    """The launcher of *pid* and its clones, the inits, which share its command line."""
    command = b"sandbox-launcher\0%d\0" % pid
    return [f"pid {entry}" for entry in os.listdir("/proc") if entry.isdigit() and _bytes(f"/proc/{entry}/cmdline") == command]


def _cgroups(pid: int) -> list[str]:
    name = f"sandbox-{pid}-"
    return [os.path.join(at, directory) for at, directories, _ in os.walk(CGROUPS) for directory in directories if directory.startswith(name)]


def _lines(path: str) -> list[str]:
    with open(path) as file:
        return file.read().splitlines()


def _bytes(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it ended while we looked
        return b""


def wait_until_clean(pid: int, before: Leftovers, patience_s: float = PATIENCE_S) -> Leftovers:
    """Look again until nothing is there or *patience_s* has gone by: the kernel tells nobody when all is gone."""
    deadline = time.monotonic() + patience_s
    while len(left := Leftovers.of(pid, before)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def kill_at(code: str, delay_s: float, environment: dict[str, str]) -> Leftovers:
    """Run Python *code*, kill it *delay_s* after it has printed a line, and tell what it has left a second later.

    Raises: RuntimeError when it ends by itself.
    """
    before = Leftovers.of(0)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay_s)  # the moment of the kill is what is being tried out
        process.kill()
    if process.returncode != -signal.SIGKILL:
        raise RuntimeError(f"the embedding process ended with code {process.returncode} before it was killed")
    return wait_until_clean(process.pid, before)
