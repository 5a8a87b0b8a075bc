"""`delegate`: a cgroup subtree of one's own, from systemd.

On a host that systemd runs, the cgroup of a session belongs to systemd, and what it does not delegate it may change at any time. What it
does delegate is asked for over D-Bus: a transient scope with ``Delegate=yes``, into which it puts this process. An ordinary
user asks the manager of his session, which has memory, pids and (since systemd 252) cpu to give.

systemd's own ``busctl`` speaks D-Bus for us: it is there wherever systemd is, and we need one call.
"""

from __future__ import annotations

import os
import time
from typing import Final

from sandbox.cg import files
from sandbox.cg.hosts import ROOM, detect
from sandbox.cg.tree import forget_owner, has_owner, helpers, start_time
from sandbox.errors import UnsupportedError, UsageError

PATIENCE_S: Final = 10.0
_MANAGER: Final = ("org.freedesktop.systemd1", "/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager")


def delegate() -> str:
    """Move this process into a systemd scope of its own, whose control groups are ours; give its directory.

    Call it early, before the first container with limits; what this process has started already stays where it is. The scope ends with its
    last process. Does nothing when this process is in such a scope already.

    Raises: UnsupportedError: cgroup v2 or systemd is not there, or the user has no session. UsageError: there are groups already.
    Needs: systemd 226 or later; as an ordinary user a session of his (``systemctl --user``).
    """
    unified = detect().unified
    if unified is None:
        raise _unsupported("there is no cgroup v2 here")
    unit = f"sandbox-{os.getpid()}-{start_time(os.getpid())}.scope"
    if _is_in(unit):
        return unified.start
    if has_owner():
        raise UsageError("delegate() comes too late: this process has control groups already; call it before the first container with limits")
    _ask(unit)
    _await(unit)
    forget_owner()
    moved = detect(refresh=True).unified
    if moved is None or not os.access(moved.start, os.W_OK):
        raise _unsupported(f"systemd made {unit}, but it is not ours to write to")
    return moved.start


def _await(unit: str) -> None:
    """Wait until the job that was queued is done.

    We may be moved before our helpers are. Whoever enables controllers then makes systemd fail to move the others (EBUSY: no internal
    processes): it gives the scope up, and removes every group in it that is empty, between our mkdir and the first use.
    """
    deadline = time.monotonic() + PATIENCE_S
    while not _is_in(unit) or (state := _state(unit)) == "activating":
        if time.monotonic() > deadline:
            raise _unsupported(f"systemd did not move this process into {unit} within {PATIENCE_S:.0f} s")
        time.sleep(0.005)
    if state != "active":
        raise _unsupported(f"systemd made {unit}, and gave it up: it is {state}")


def _state(unit: str) -> str:
    """Ask what became of *unit*. A manager has one thread: it does not answer while it moves processes."""
    escaped = "".join(letter if letter.isalnum() else f"_{ord(letter):02x}" for letter in unit)  # as sd_bus_path_encode(3) does
    said = _busctl("get-property", _MANAGER[0], f"{_MANAGER[1]}/unit/{escaped}", f"{_MANAGER[0]}.Unit", "ActiveState")
    return said.partition(" ")[2].strip().strip('"')


def _is_in(unit: str) -> bool:
    line = next((line for line in files.read_all("/proc/self/cgroup").splitlines() if line.startswith("0::")), "")
    path = line.removesuffix(f"/{ROOM}")
    return path.rpartition("/")[2] == unit


def _ask(unit: str) -> None:
    pids = [str(pid) for pid in (os.getpid(), *sorted(helpers()))]
    properties = ("PIDs", "au", str(len(pids)), *pids, "Delegate", "b", "true", "Description", "s", "sandbox: control groups of containers")
    _busctl("--quiet", "call", *_MANAGER, "StartTransientUnit", "ssa(sv)a(sa(sv))", unit, "fail", "3", *properties, "0")


def _busctl(*words: str) -> str:
    import subprocess  # needed by few

    bus = "--system" if os.geteuid() == 0 else "--user"
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    if not os.path.isdir("/run/systemd/system"):
        raise _unsupported("systemd does not run this host")
    try:
        done = subprocess.run(
            ["busctl", bus, f"--timeout={PATIENCE_S:.0f}", *words],
            env={**os.environ, "XDG_RUNTIME_DIR": runtime, "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_S,
            check=False,
        )
    except FileNotFoundError:
        raise _unsupported("busctl, a part of systemd, is not installed") from None
    except subprocess.TimeoutExpired:
        raise _unsupported("systemd does not answer") from None
    if done.returncode:
        raise _unsupported(f"systemd refuses: {done.stderr.strip() or f'busctl ended with {done.returncode}'}")
    return done.stdout


def _unsupported(reason: str) -> UnsupportedError:
    return UnsupportedError(
        f"cannot have control groups delegated by systemd: {reason}",
        feature="cgroup:delegation",
        remedy="run as root, or in a session of the user (loginctl enable-linger), or have an administrator delegate a cgroup",
    )
