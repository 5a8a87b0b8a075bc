"""What tests need of the machine, and how they say so: ``@needs("root", "cgroup:memory", "program:gcc")``.

A need is a name, or ``kind:argument``. It is probed when the first test asks, by means other than the library under test.
A test whose needs are not met is skipped; the reasons are counted and printed at the end. A need named in the environment
variable SANDBOX_TESTS_REQUIRE (separated by blanks) must be met: there, a skip is a failure.

========================  ==================================================================================================
``root``, ``user``        effective uid 0, or any other
``cgroup:CONTROLLER``     a cgroup of this controller (v1 or v2) can be made below our own, and limits be written there
``cgroup-v1``, ``-v2``    the hierarchy in which the memory controller lives
``userns``                we may make user namespaces
``subids``                newuidmap and a range of subordinate ids for our user
``overlay``               the kernel mounts overlayfs
``idmap``                 the file system of the temporary directory can be mounted id-mapped (Linux >= 5.12)
``landlock``              Landlock is active
``nft``                   nftables rules can be listed
``kernel:5.12``           this release or a later one
``arch:x86_64``           this machine
``program:NAME``          found in PATH
``qdisc:KIND``            the kernel has such queues (sch_netem, say), as tc says
``module:NAME``           can be imported by this Python
========================  ==================================================================================================
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import platform
import pwd
import re
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox import SandboxError
from sandbox.cg import Cgroup, Limits

# "" when the need is met, or why not.
Probe = Callable[[str], str]

CGROUP_ROOT = Path("/sys/fs/cgroup")
USUAL_START_S = 0.0015  # in which the machines that these tests were written on start a program, and see it end
ROOM = "sandbox-supervisor"  # where the library moves the processes of a v2 cgroup that is to have groups in it


def needs(*names: str) -> pytest.MarkDecorator:
    """Mark a test, a class or (as `pytestmark`) a module with what it needs of the machine.

    Raises: KeyError for a name that is not in the table: a misspelt need would skip for ever, or never.
    """
    for name in names:
        _split(name)
    return pytest.mark.needs(*names)


def known(value: object) -> Any:
    """Give *value*, which a host that meets a test's needs must tell: it is not None."""
    assert value is not None
    return value


@functools.cache
def why_not(name: str) -> str:
    """Say why the machine does not offer *name*; "" when it does."""
    kind, argument = _split(name)
    return PROBES[kind](argument)


@functools.cache
def slowness() -> float:
    """How many times slower this machine starts programs than the machines that tests were written on; never less than 1.

    Ten to thirty in a machine that is emulated in software. The best of a few starts counts: other work on the machine is not meant.
    """
    return max(1.0, min(_start_s() for _ in range(10)) / USUAL_START_S)


def patience(seconds: float) -> float:
    """How long to wait here for what takes less than *seconds* on a usual machine."""
    return seconds * slowness()


def import_path() -> str:
    """PYTHONPATH for a program that imports what its test does: this checkout, then what was given to us, where an emulated machine has the rest."""
    return os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))


def repeats(number: int) -> int:
    """How often to do here what is done *number* times on a usual machine, so that it does not take for ever; a tenth at least."""
    return max(round(number / slowness()), number // 10, 1)


def _start_s() -> float:
    began = time.monotonic()
    os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
    return time.monotonic() - began


def _split(name: str) -> tuple[str, str]:
    kind, colon, argument = name.partition(":")
    if bool(colon) != (kind in WITH_ARGUMENT) or kind not in PROBES:
        raise KeyError(f"unknown need {name!r}; known are {', '.join(PROBES)}")
    return kind, argument


def _bpf(_: str) -> str:
    from sandbox import features

    return "" if features.packet_programs() else "may not load programs of BPF for packets"


def _tcx(_: str) -> str:
    from sandbox import features

    return "" if features.packet_links() else "the kernel has no links for programs of BPF to interfaces (tcx, Linux 6.6)"


def _root(_: str) -> str:
    return "" if os.geteuid() == 0 else f"runs as uid {os.geteuid()}"


def _user(_: str) -> str:
    return "" if os.geteuid() != 0 else "runs as root"


def _cgroup(controller: str) -> str:
    directory = cgroup_of_self(controller)
    if directory is None:
        return f"no hierarchy has the {controller} controller"
    probe = directory / f"sandbox-probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.mkdir()
    except OSError as error:
        return f"cannot make a cgroup below {directory}: {error.strerror}"
    try:
        # v2 shows a controller's files only where the parent hands it down; the library may enable that, as we may here.
        v2 = (directory / "cgroup.controllers").exists()
        usable = not v2 or controller in (directory / "cgroup.controllers").read_text().split()
        if v2 and usable:
            _make_room()
        return "" if usable else f"the {controller} controller is not delegated to {directory}"
    finally:
        probe.rmdir()


@functools.cache
def _make_room() -> None:
    """The first group with limits takes this process one level down, on v2. Programs that tests start could make none before: we would be there."""
    with contextlib.suppress(SandboxError), Cgroup("tests-make-room", Limits(pids=1000)):  # who needs a group will say what is wrong
        pass


def cgroup_of_self(controller: str) -> Path | None:
    """Give the directory of the cgroup that this process is in, for *controller*; None when no hierarchy has it."""
    unified = None
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return _v1_mount(controller) / path.lstrip("/")
        if not controllers:
            unified = _v2_mount() / path.lstrip("/").removesuffix(f"/{ROOM}")
    if unified is None or controller not in (unified / "cgroup.controllers").read_text().split():
        return None
    return unified


def _v1_mount(controller: str) -> Path:
    return _mount(lambda fstype, options: fstype == "cgroup" and controller in options)


def _v2_mount() -> Path:
    return _mount(lambda fstype, _options: fstype == "cgroup2")


def _mount(wanted: Callable[[str, list[str]], bool]) -> Path:
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, path, fstype, options = line.split()[:4]
        if wanted(fstype, options.split(",")):
            return Path(path)
    return CGROUP_ROOT


def _cgroup_v1(_: str) -> str:
    directory = cgroup_of_self("memory")
    return "" if directory is not None and not (directory / "cgroup.controllers").exists() else "the memory controller is not in a v1 hierarchy"


def _cgroup_v2(_: str) -> str:
    directory = cgroup_of_self("memory")
    return "" if directory is not None and (directory / "cgroup.controllers").exists() else "the memory controller is not in the v2 hierarchy"


def _systemd(_: str) -> str:
    if not os.path.isdir("/run/systemd/system"):
        return "systemd does not run this machine"
    return _succeeds("busctl", "--system" if os.geteuid() == 0 else "--user", "status", "org.freedesktop.systemd1")


def _userns(_: str) -> str:
    return _succeeds("unshare", "--user", "--map-root-user", "true")


def _subids(_: str) -> str:
    if shutil.which("newuidmap") is None:
        return "no newuidmap (Debian: uidmap)"
    try:
        name = pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        name = ""
    owners = {line.partition(":")[0] for path in ("/etc/subuid",) for line in Path(path).read_text().splitlines()}
    return "" if {name, str(os.geteuid())} & owners else f"no line for {name or os.geteuid()} in /etc/subuid"


def _overlay(_: str) -> str:
    return "" if re.search(r"\boverlay$", Path("/proc/filesystems").read_text(), re.MULTILINE) else "the kernel has no overlayfs (modprobe overlay)"


def _idmap(_: str) -> str:
    with tempfile.TemporaryDirectory() as directory:
        mount = f"mkdir {directory}/a {directory}/b && mount --bind -o X-mount.idmap=0:0:1 {directory}/a {directory}/b"
        said = _succeeds("unshare", "--mount", "sh", "-c", mount)
    return said and f"no id-mapped mounts: {said}"


def _landlock(_: str) -> str:
    path = Path("/sys/kernel/security/lsm")
    if path.exists():
        return "" if "landlock" in path.read_text().split(",") else "Landlock is not among the active security modules"
    # securityfs may not be mounted; the version query of landlock_create_ruleset(2) (syscall 444 everywhere) always works.
    query = "import ctypes,sys; sys.exit(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), 1) < 1)"
    return _succeeds("python3", "-c", query) and "the kernel has no Landlock"


def _loop(_: str) -> str:
    return "" if os.access("/dev/loop-control", os.R_OK | os.W_OK) else "no loop devices (modprobe loop)"


def _nft(_: str) -> str:
    return _succeeds("nft", "list", "ruleset")


def _kernel(release: str) -> str:
    ours = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    return "" if ours >= tuple(int(part) for part in release.split(".")) else f"this is Linux {platform.release()}"


def _arch(machine: str) -> str:
    return "" if platform.machine() == machine else f"this is {platform.machine()}"


def _module(name: str) -> str:
    return "" if importlib.util.find_spec(name) else "not installed"


def _program(name: str) -> str:
    return "" if shutil.which(name) else "not installed"


def _succeeds(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=120)
    except FileNotFoundError:
        return f"no {argv[0]}"
    return "" if done.returncode == 0 else (done.stderr.strip().splitlines() or [f"{argv[0]} failed"])[-1]


def _qdisc(kind: str) -> str:
    options = {"netem": "delay 1ms", "tbf": "rate 1mbit burst 10000 limit 10000"}
    return _succeeds("unshare", "--net", "sh", "-c", f"tc qdisc add dev lo root {kind} {options.get(kind, '')}")


WITH_ARGUMENT = frozenset({"arch", "cgroup", "kernel", "module", "program", "qdisc"})
PROBES: dict[str, Probe] = {
    "arch": _arch,
    "bpf": _bpf,
    "cgroup": _cgroup,
    "systemd": _systemd,
    "cgroup-v1": _cgroup_v1,
    "cgroup-v2": _cgroup_v2,
    "idmap": _idmap,
    "kernel": _kernel,
    "landlock": _landlock,
    "loop": _loop,
    "module": _module,
    "nft": _nft,
    "overlay": _overlay,
    "program": _program,
    "qdisc": _qdisc,
    "root": _root,
    "subids": _subids,
    "tcx": _tcx,
    "user": _user,
    "userns": _userns,
}
