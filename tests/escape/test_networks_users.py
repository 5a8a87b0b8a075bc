"""Another user of the host against an ordinary user's networks: no way into their namespaces, nor to what works for them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator
from typing import Any

import pytest

from tests.support import import_path, known, needs, patience

pytestmark = [needs("root", "userns", "program:setpriv", "program:nsenter", "program:slirp4netns"), pytest.mark.usefixtures("no_leftovers")]

# As in tests/live/test_network_outlet.py: a device of one's own, which everybody may open.
TUN = 'mount -t tmpfs tun /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun && umount -l /mnt && exec "$@"'
VICTIM = r"""
import json, os, sys
from sandbox import PIPE, Container, Network
SERVER = "import socket; s = socket.create_server(('', 8080)); print(flush=True)\nwhile True: s.accept()[0].sendall(b'victim')"
with Network() as net, Container(net=net) as c, c.popen(["/usr/bin/python3", "-c", SERVER], stdout=PIPE) as process:
    process.stdout.readline()
    found = {"init": c.pid, "switch": net.live.switch.pid, "outlet": net.live.outlet.pid, "process": os.getpid()}
    print(json.dumps({"pids": found, "address": c.address, "gateway": net.gateway}), flush=True)
    sys.stdin.read()
    process.kill()
"""
# For each process: its namespaces, its descriptors, its memory; and the addresses.
ATTACK = """
import json, os, socket, subprocess, sys
said = json.loads(sys.argv[1])
won = []
def attempt(what, action):
    try: action()
    except (OSError, subprocess.CalledProcessError): return
    won.append(what)
def connect(address, port):
    with socket.create_connection((address, port), timeout=1) as sock:  # on some machines every address answers
        if sock.recv(9) != b"victim": raise ConnectionError
for name, pid in said["pids"].items():
    attempt(f"opened the network namespace of {name}", lambda: os.open(f"/proc/{pid}/ns/net", os.O_RDONLY))
    attempt(f"entered {name}", lambda: subprocess.run(["nsenter", "--user", "--net", "-t", str(pid), "true"], check=True, stderr=subprocess.DEVNULL))
    attempt(f"looked at the descriptors of {name}", lambda: os.listdir(f"/proc/{pid}/fd"))
    attempt(f"opened the memory of {name}", lambda: os.open(f"/proc/{pid}/mem", os.O_RDWR))
    attempt(f"went through the root of {name}", lambda: os.stat(f"/proc/{pid}/root/etc"))
    attempt(f"spoke to {name}", lambda: socket.socket(socket.AF_UNIX).connect(f"/proc/{pid}/fd/5/api"))
    attempt(f"killed {name}", lambda: os.kill(pid, 9))
for address in (said["address"], said["gateway"], "198.18.255.100"):
    attempt(f"reached {address}", lambda: connect(address, 8080))
print(json.dumps(won))
"""


def as_user(number: int, *command: str) -> list[str]:
    return ["setpriv", f"--reuid={number}", f"--regid={number}", "--clear-groups", *command]


@pytest.fixture
def victim() -> Generator[dict[str, Any]]:
    env = {**os.environ, "PYTHONPATH": import_path(), "PYTHONDONTWRITEBYTECODE": "1"}
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", TUN, "sh", *as_user(1000, sys.executable, "-c", VICTIM)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, cwd="/") as process:
        yield json.loads(known(process.stdout).readline())
        known(process.stdin).close()


def attack(number: int, victim: dict[str, Any]) -> list[str]:
    done = subprocess.run(as_user(number, sys.executable, "-c", ATTACK, json.dumps(victim)), capture_output=True, text=True, check=True, timeout=patience(60), cwd="/")
    won: list[str] = json.loads(done.stdout)
    return won


def test_another_user_gets_nowhere(victim: dict[str, Any]) -> None:
    assert attack(1001, victim) == []


def test_the_attacks_would_tell(victim: dict[str, Any]) -> None:
    """Root may do all that, so they can succeed; only the addresses are nobody's outside, root's neither."""
    del victim["pids"]["switch"], victim["pids"]["outlet"], victim["pids"]["process"]
    won = attack(0, victim)
    assert {f"{what} init" for what in ("opened the network namespace of", "looked at the descriptors of", "opened the memory of", "killed")} <= set(won)
    assert not [line for line in won if line.startswith("reached")]
