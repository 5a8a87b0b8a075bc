"""Other ways to run a program in a container: each is probed, and one that does not work is listed with its reason."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

from attrs import define, field, frozen

from benchmarks.measure import Case, timed
from benchmarks.programs import Programs

_serial = itertools.count()
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@frozen
class Refused:
    """A peer that cannot take part, and why."""

    name: str
    reason: str


@define
class Field:
    """Those who take part, and those who do not."""

    cases: list[Case] = field(factory=list)
    refused: list[Refused] = field(factory=list)

    def add(self, name: str, make: Callable[[], Callable[[], list[str]]]) -> None:
        """Probe a peer: *make* sets it up (RuntimeError: it cannot) and returns what makes the command of each run."""
        try:
            command = make()
            probe(command())
        except (RuntimeError, OSError) as error:
            self.refused.append(Refused(name, str(error)))
        else:
            self.cases.append(Case(name, timed(lambda: subprocess.run(command(), **QUIET, check=True))))

    def add_case(self, name: str, make: Callable[[], Callable[[], float]]) -> None:
        """Probe something that measures itself."""
        try:
            call = make()
            call()
        except (RuntimeError, OSError) as error:
            self.refused.append(Refused(name, str(error)))
        else:
            self.cases.append(Case(name, call))


def probe(command: Sequence[str]) -> None:
    """Run *command* once. Raises: RuntimeError with what it said, when it fails."""
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=60, check=False)
    except subprocess.TimeoutExpired:
        raise RuntimeError("no end after 60 s") from None
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise RuntimeError(f"exit code {done.returncode}: {words[-1][:300]}")


def run_quietly(command: Sequence[str]) -> int:
    """Run *command* with all streams on /dev/null; return its exit code."""
    return subprocess.run(command, **QUIET, check=False).returncode


def _installed(program: str) -> None:
    if shutil.which(program) is None:
        raise RuntimeError("not installed")


def plain(program: str, command: Sequence[str]) -> Callable[[], Callable[[], list[str]]]:
    """A peer that is one command and no preparation."""

    def make() -> Callable[[], list[str]]:
        _installed(program)
        return lambda: list(command)

    return make


def bwrap(p: Programs, *more: str) -> list[str]:
    return ["bwrap", "--unshare-all", *more, "--ro-bind", p.root, "/", "--proc", "/proc", "--dev", "/dev", "--", "/true"]


def unshare(p: Programs, *, net: bool) -> list[str]:
    kinds = ["--mount-proc", "--ipc", "--uts", "--cgroup", *(["--net"] if net else [])]
    return ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child", *kinds, p.true]


def firejail(p: Programs) -> list[str]:
    return ["firejail", "--quiet", "--noprofile", "--net=none", "--private-dev", "--caps.drop=all", "--seccomp", "--", p.true]


def bundle(p: Programs, runtime: str, args: Sequence[str]) -> str:
    """Write an OCI bundle for *args* in our root, with the same limits as ours, and the defaults of ``RUNTIME spec`` else."""
    _installed(runtime)
    directory = os.path.join(p.scratch, f"bundle-{runtime}-{next(_serial)}")
    os.mkdir(directory)
    subprocess.run([runtime, "spec"], cwd=directory, check=True, **QUIET)
    path = os.path.join(directory, "config.json")
    with open(path) as file:
        config = json.load(file)
    config["root"] = {"path": p.root, "readonly": True}
    config["process"].update({"terminal": False, "args": list(args)})
    limits = {"memory": {"limit": 64 << 20}, "pids": {"limit": 32}, "cpu": {"quota": 100_000, "period": 100_000}}
    config["linux"].setdefault("resources", {}).update(limits)
    with open(path, "w") as file:
        json.dump(config, file)
    return directory


def oci(p: Programs, runtime: str) -> Callable[[], Callable[[], list[str]]]:
    """Runc or crun: a bundle, made once; each run has an id of its own."""

    def make() -> Callable[[], list[str]]:
        directory = bundle(p, runtime, ["/true"])
        state = os.path.join(p.scratch, f"state-{runtime}")
        return lambda: [runtime, "--root", state, "run", "--bundle", directory, f"bench-{os.getpid()}-{next(_serial)}"]

    return make


def oci_exec(p: Programs, runtime: str, stack: ExitStack) -> Callable[[], Callable[[], list[str]]]:
    """``RUNTIME exec`` in a container that sleeps; *stack* ends it."""

    def make() -> Callable[[], list[str]]:
        directory = bundle(p, runtime, ["/work", "sleep"])
        base = [runtime, "--root", os.path.join(p.scratch, f"state-{runtime}")]
        name = f"bench-{os.getpid()}-{next(_serial)}"
        stack.callback(run_quietly, [*base, "delete", "--force", name])
        # Not through pipes: the container would keep them open.
        if code := run_quietly([*base, "run", "--detach", "--bundle", directory, name]):
            raise RuntimeError(f"the container did not start: exit code {code}")
        return lambda: [*base, "exec", name, "/true"]

    return make


def podman(p: Programs) -> Callable[[], Callable[[], list[str]]]:
    """Podman without an image: our directory as its root, its store and locks in our scratch directory."""

    def make() -> Callable[[], list[str]]:
        _installed("podman")
        home = os.path.join(p.scratch, "podman")
        os.mkdir(home)
        base = ["podman", "--root", f"{home}/root", "--runroot", f"{home}/run", "--tmpdir", f"{home}/tmp", "--storage-driver", "vfs"]
        base += ["--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        tail = ["run", "--rm", "--network", "none", "--log-driver", "none", "--memory", "64m", "--pids-limit", "32", "--cpus", "1"]
        # Its own default lies above the hard limit of many machines, and raising that takes a capability.
        tail += ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024"]
        tail += ["--rootfs", p.root, "/true"]
        refusals = []
        for runtime in ("crun", "runc"):
            command = [*base, "--runtime", runtime, *tail]
            try:
                probe(command)
            except RuntimeError as error:
                refusals.append(f"with {runtime}: {error}")
            else:
                return lambda: command
        raise RuntimeError("; ".join(refusals))

    return make


def add_run_peers(peers: Field, p: Programs) -> None:
    """Everyone who creates, runs and destroys."""
    peers.add("subprocess", plain(p.true, [p.true]))
    peers.add("unshare", plain("unshare", unshare(p, net=True)))
    peers.add("unshare, host net", plain("unshare", unshare(p, net=False)))
    peers.add("bwrap", plain("bwrap", bwrap(p)))
    peers.add("bwrap, host net", plain("bwrap", bwrap(p, "--share-net")))
    peers.add("firejail", plain("firejail", firejail(p)))
    peers.add("runc", oci(p, "runc"))
    peers.add("crun", oci(p, "crun"))
    peers.add("podman", podman(p))


def versions() -> dict[str, str]:
    """The first line of what each installed peer says of its version."""
    found = {}
    for program in ("unshare", "bwrap", "firejail", "runc", "crun", "podman", "dockerd"):
        if shutil.which(program):
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
            found[program] = said.splitlines()[0] if said else "?"
    return found
