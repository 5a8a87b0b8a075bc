"""A Docker daemon for the time of one benchmark: its own store and socket, no bridge, no packet filter rules, nothing left."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import IO

from benchmarks.peers import QUIET, Field, Refused, run_quietly
from benchmarks.programs import Programs

START_S = 30.0
IMAGE = "sandbox-benchmark"


def add(peers: Field, p: Programs, stack: ExitStack, *, live: bool) -> None:
    """Start the daemon and add ``docker run``, or with *live* ``docker exec``; *stack* stops it. Needs: root."""
    try:
        client = daemon(p.scratch, stack)
        _import(client, p)
    except (RuntimeError, OSError, subprocess.CalledProcessError) as error:
        peers.refused.append(Refused("docker", str(error)))
        return
    limits = ["--network", "none", "--memory", "64m", "--pids-limit", "32", "--cpus", "1"]
    if live:
        name = f"bench-{os.getpid()}"
        stack.callback(run_quietly, [*client, "rm", "--force", name])
        subprocess.run([*client, "run", "--detach", "--name", name, *limits, IMAGE, "/work", "sleep"], **QUIET, check=False)
        peers.add("docker exec", _always([*client, "exec", name, "/true"]))
    else:
        peers.add("docker", _always([*client, "run", "--rm", *limits, IMAGE, "/true"]))


def _always(command: list[str]) -> Callable[[], Callable[[], list[str]]]:
    return lambda: lambda: command


def with_network(p: Programs, stack: ExitStack) -> list[str]:
    """Start a daemon with its usual bridge and rules, which belong into a network namespace of their own: the caller's. Raises: RuntimeError."""
    client = daemon(p.scratch, stack, network=())
    _import(client, p)
    return client


def daemon(scratch: str, stack: ExitStack, *, network: Sequence[str] = ("--bridge=none", "--iptables=false", "--ip-forward=false")) -> list[str]:
    """Start one with all that it keeps below *scratch*, until *stack* ends; how its client is called. Raises: RuntimeError. Needs: root."""
    for program in ("dockerd", "docker"):
        if shutil.which(program) is None:
            raise RuntimeError(f"{program} is not installed")
    home = os.path.join(scratch, "docker")
    os.makedirs(home, exist_ok=True)
    stack.callback(_tidy, home)
    socket = f"unix://{home}/socket"
    places = ["--data-root", f"{home}/data", "--exec-root", f"{home}/exec", "--pidfile", f"{home}/pid", "--host", socket]
    log = open(f"{home}/log", "w+")  # noqa: SIM115 - closed by the stack
    stack.callback(log.close)
    process = subprocess.Popen(["dockerd", *places, *network], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.callback(_stop, process)
    client = ["docker", "--config", f"{home}/config", "--host", socket]
    deadline = time.monotonic() + START_S
    while subprocess.run([*client, "version"], **QUIET, check=False).returncode != 0:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"dockerd did not start: {_last_line(log)}")
        time.sleep(0.1)
    return client


def _last_line(log: IO[str]) -> str:
    log.seek(0)
    lines = log.read().strip().splitlines()
    return lines[-1][:300] if lines else "no message"


def _import(client: list[str], p: Programs) -> None:
    with subprocess.Popen(["tar", "-C", p.root, "-c", "."], stdout=subprocess.PIPE) as tar:
        subprocess.run([*client, "import", "-", IMAGE], stdin=tar.stdout, stdout=subprocess.DEVNULL, check=True)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()  # its containerd is its child, and goes with it
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tidy(home: str) -> None:
    with open("/proc/self/mounts") as file:
        places = [line.split()[1] for line in file]
    for place in reversed([place for place in places if place.startswith(f"{home}/")]):
        subprocess.run(["umount", "--lazy", place], check=False)
    shutil.rmtree(home, ignore_errors=True)
