"""Reaching outside, and being reached, without the host's forwarding: by slirp4netns.

The host of these tests is a network namespace, with another host beside it; an ordinary user works there, who may open /dev/net/tun.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import sandbox
from sandbox import Container, Network, UnsupportedError, UsageError
from tests.leak.killed import run_and_kill
from tests.support import import_path, known, needs, patience

pytestmark = pytest.mark.usefixtures("no_leftovers")

PYTHON = "/usr/bin/python3"
OURS, THEIRS = "192.0.2.2", "192.0.2.1"
OURS6, THEIRS6 = "2001:db8::2", "2001:db8::1"
# A device file of one's own: the machine's may be for root only, and is not ours to change.
TUN = "mount -t tmpfs tun /mnt && mknod -m 666 /mnt/tun c 10 200 && mount --bind /mnt/tun /dev/net/tun && umount -l /mnt"
WORLD = f"""
set -e
{TUN}
ip link set lo up
unshare --net sleep 100 & other=$!
while [ "$(readlink /proc/$other/ns/net)" = "$(readlink /proc/self/ns/net)" ]; do :; done
ip link add near type veth peer name far netns $other
ip addr add {OURS}/24 dev near; ip link set near up; ip route add default via {THEIRS}  # which pasta asks for
nsenter -t $other -n sh -c 'ip link set lo up; ip addr add {THEIRS}/24 dev far; ip link set far up'
if [ "$IPV6" ]; then
    ip addr add {OURS6}/64 dev near nodad; nsenter -t $other -n ip addr add {THEIRS6}/64 dev far nodad; ip route add default via {THEIRS6}
fi
nsenter -t $other -n {PYTHON} -c "$ECHO" & echo=$!
until nsenter -t $other -n grep -q ':0009 ' /proc/net/udp; do kill -0 $echo; done  # which it binds last
status=0
OTHER=$other setpriv --reuid=1000 --regid=1000 --clear-groups "$@" || status=$?
kill $other $echo
exit $status
"""
# Says to TCP and UDP who asks; on request (UDP to port 9) connects to us, and says what it got.
ECHO = f"""
import select, socket
tcp = socket.create_server(("", 7)); udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("", 7))
work = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); work.bind(("", 9))
while True:
    for sock in select.select([tcp, udp, work], [], [])[0]:
        if sock is tcp:
            peer, address = sock.accept(); peer.sendall(address[0].encode()); peer.close()
        elif sock is udp:
            data, address = sock.recvfrom(100); sock.sendto(address[0].encode(), address)
        else:
            data, address = sock.recvfrom(100)
            try:
                with socket.create_connection(("{OURS}", int(data)), timeout=3) as s: said = s.recv(100)
            except OSError as error: said = type(error).__name__.encode()
            sock.sendto(said, address)
"""
PRELUDE = f"""
import json, os, socket, sys
from ipaddress import IPv4Address
from sandbox import PIPE, Container, Network
OURS, THEIRS, PYTHON = {OURS!r}, {THEIRS!r}, {PYTHON!r}
TCP = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3).recv(100).decode())"
UDP = '''import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3)
s.sendto(b"?", (sys.argv[1], int(sys.argv[2]))); print(s.recv(100).decode())'''
SERVER = '''import select, socket
tcp = socket.create_server(("", 8080)); udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); udp.bind(("", 8080)); print(flush=True)
while True:
    for sock in select.select([tcp, udp], [], [])[0]:
        if sock is tcp: peer, address = sock.accept(); peer.sendall(address[0].encode()); peer.close()
        else: data, address = sock.recvfrom(9); sock.sendto(address[0].encode(), address)'''
found = {{}}
def ask(c, code, address, port):
    result = c.exec([PYTHON, "-c", code, address, str(port)], text=True)
    return result.stdout.strip() or result.stderr.strip().splitlines()[-1].partition(":")[0]
def from_here(port, address="127.0.0.1"):
    try:
        with socket.create_connection((address, port), timeout=3) as s: return s.recv(100).decode()
    except OSError as error: return type(error).__name__
def from_there(port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(10); s.sendto(str(port).encode(), (THEIRS, 9)); return s.recv(100).decode()
"""
outside = needs("root", "userns", "program:slirp4netns", "program:ip", "program:setpriv", "program:nsenter")


def in_world(code: str, *, beyond: str = "", ipv6: bool = False) -> dict[str, Any]:
    """What *code*, run by an ordinary user of the host of these tests, leaves in ``found``. *beyond*: what the other host does besides.

    ipv6: the two hosts have addresses of it, and this one a default route.
    """
    command = ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", WORLD, "sh", sys.executable, "-c"]
    env = {**os.environ, "ECHO": beyond + ECHO, "IPV6": "yes" * ipv6, "PYTHONPATH": import_path(), "PYTHONDONTWRITEBYTECODE": "1"}
    text = PRELUDE + code + "\nprint(json.dumps(found))"
    done = subprocess.run([*command, text], capture_output=True, text=True, check=False, env=env, cwd="/", timeout=patience(60))
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@outside
def test_containers_of_an_ordinary_user_reach_other_hosts_and_nothing_that_is_this_hosts_alone() -> None:
    found = in_world(
        """
with socket.create_server(("127.0.0.1", 0)) as alone, Network() as net, Container(net=net) as c:
    port = alone.getsockname()[1]
    found["tcp"], found["udp"] = ask(c, TCP, THEIRS, 7), ask(c, UDP, THEIRS, 7)
    found["default"] = c.exec(["ip", "route", "show", "default"], text=True).stdout.split()[:3] == ["default", "via", net.gateway]
    for address in ("127.0.0.1", net.gateway, "198.18.255.2", "198.18.255.3", "198.18.255.100", "0.0.0.0", OURS):
        found[address] = ask(c, TCP, address, port)
    alone.setblocking(False)
    try: alone.accept(); found["accepted"] = True
    except BlockingIOError: found["accepted"] = False
"""
    )
    assert found.pop("tcp") == found.pop("udp") == OURS
    assert found.pop("default")
    assert not found.pop("accepted")
    assert len(found) == 7
    assert set(found.values()) <= {"ConnectionRefusedError", "TimeoutError", "OSError"}


@needs("program:pasta")
@outside
def test_pasta_does_as_well_but_for_ports() -> None:
    found = in_world(
        """
with socket.create_server(("127.0.0.1", 0)) as alone, Network(uplink="pasta") as net, Container(net=net) as c:
    found["comm"] = open(f"/proc/{net.live.outlet.pid}/comm").read()
    found["tcp"], found["udp"] = ask(c, TCP, THEIRS, 7), ask(c, UDP, THEIRS, 7)
    for address in ("127.0.0.1", net.gateway, "198.18.255.2", "198.18.255.100", OURS):
        found[address] = ask(c, TCP, address, alone.getsockname()[1])
    with c.popen([PYTHON, "-c", SERVER], stdout=PIPE) as process:
        process.stdout.readline()
        found["published"] = from_here(8080), from_there(8080)  # by itself it publishes nothing
        process.kill()
    try: Container(net=net, ports=["20081:8080"]).create()
    except Exception as error: found["refused"] = type(error).__name__, error.remedy
    try: net.live.outlet.publish("tcp", (IPv4Address(0), 20080), (IPv4Address(c.address), 8080))
    except Exception as error: found["error"] = type(error).__name__, error.remedy
"""
    )
    assert found.pop("comm").startswith("pas")  # passt.avx2, where the machine has that
    assert found.pop("tcp") == found.pop("udp") == OURS
    assert found.pop("published") == ["ConnectionRefusedError"] * 2
    for name in ("error", "refused"):  # the latter before anything is touched
        kind, remedy = found.pop(name)
        assert (kind, "slirp4netns" in remedy) == ("UnsupportedError", True)
    assert len(found) == 5
    assert set(found.values()) <= {"ConnectionRefusedError", "TimeoutError", "OSError"}


@needs("program:pasta")
@outside
def test_pasta_outlives_neither_the_process_nor_a_launcher_that_is_killed_with_it() -> None:
    found = in_world(
        """
import select, signal, subprocess
code = "import os; from sandbox import Network; from sandbox._launch import driver; net = Network(uplink='pasta').create(); " \\
    "print(net.live.outlet.pid, flush=True); os.kill(driver.known().own_pid, 9); os.kill(os.getpid(), 9)"
pid = int(subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE).stdout)
try: watch = os.pidfd_open(pid)
except ProcessLookupError: found["ended"] = True
else: found["ended"] = bool(select.select([watch], [], [], 20)[0])
"""
    )
    assert found == {"ended": True}


@needs("root")
def test_pasta_is_not_for_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox._networks.outlet.shutil.which", lambda name: f"/usr/bin/{name}")
    with pytest.raises(UnsupportedError, match="slirp4netns"):
        Network(uplink="pasta").create()


@outside
def test_two_networks_that_reach_outside_do_not_reach_each_other() -> None:
    found = in_world(
        """
with Network() as left, Network() as right, Container(net=left) as a, Container(net=right) as b:
    with b.popen([PYTHON, "-c", SERVER], stdout=PIPE) as process:
        process.stdout.readline()
        found["listens"] = ask(b, TCP, "127.0.0.1", 8080)
        found["reached"] = ask(a, TCP, b.address, 8080)
        process.kill()
"""
    )
    assert found["listens"] == "127.0.0.1"
    assert found["reached"] in {"ConnectionRefusedError", "TimeoutError", "OSError"}


@outside
def test_what_is_published_is_reached_as_long_as_it_is() -> None:
    found = in_world(
        """
with Network() as net, Container(net=net) as c, c.popen([PYTHON, "-c", SERVER], stdout=PIPE) as process:
    process.stdout.readline()
    to = IPv4Address(c.address), 8080
    outlet = net.live.outlet
    everywhere = outlet.publish("tcp", (IPv4Address(0), 20080), to)
    here = outlet.publish("tcp", (IPv4Address("127.0.0.1"), 20081), to)
    udp = outlet.publish("udp", (IPv4Address(0), 20080), to)
    found["here"], found["alone"], found["mine"] = from_here(20080), from_here(20081), from_here(20080, OURS)
    found["there"], found["not there"] = from_there(20080), from_there(20081)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(5); s.sendto(b"?", ("127.0.0.1", 20080)); found["udp"] = s.recv(100).decode()
    found["hairpin"] = ask(c, TCP, OURS, 20080)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for port in (taken.getsockname()[1], 20080, 80):
            try: outlet.publish("tcp", (IPv4Address("127.0.0.1"), port), to)
            except Exception as error: found[f"error {len(found)}"] = str(error)
    for end in (everywhere, here, udp): end()
    found["after"] = from_here(20080), from_there(20080)
    again = outlet.publish("tcp", (IPv4Address(0), 20080), to)
    found["again"] = from_there(20080)
    process.kill()
"""
    )
    errors = [found.pop(name) for name in [*found] if name.startswith("error")]
    assert found == {
        "here": "198.18.255.2", "alone": "198.18.255.2", "mine": found["mine"], "there": THEIRS, "not there": "ConnectionRefusedError",
        "udp": "198.18.255.2", "hairpin": found["hairpin"], "after": ["ConnectionRefusedError"] * 2, "again": THEIRS,
    }  # fmt: skip
    assert found["mine"].count(".") == found["hairpin"].count(".") == 3
    assert [name for message in errors for name in ("EADDRINUSE", "EACCES") if name in message] == ["EADDRINUSE", "EADDRINUSE", "EACCES"]
    assert "ip_unprivileged_port_start" in errors[2]


@outside
def test_nothing_of_it_outlives_a_killed_process() -> None:
    code = (
        "import signal\n"
        "from sandbox import Container, Network\n"
        "nets = [Network(uplink='slirp4netns').create() for _ in range(3)]\n"
        "all = [Container(net=net).create() for net in nets for _ in range(2)]\n"
        "print('ready', flush=True)\n"
        "signal.pause()\n"
    )
    assert run_and_kill(code, patience_s=2.0) == []


@outside
def test_it_ends_with_the_network() -> None:
    with Network(uplink="slirp4netns") as net:
        outlet = known(net.live.outlet)
        pid = outlet.pid
        assert Path(f"/proc/{pid}/comm").read_text() == "slirp4netns\n"
    assert not Path(f"/proc/{pid}").exists()


@outside
def test_it_outlives_neither_the_process_nor_a_launcher_that_is_killed_with_it() -> None:
    """Nobody is left to end it then: it does so itself."""
    code = (
        "import os, signal\n"
        "from sandbox import Network\n"
        "from sandbox._launch import driver\n"
        "net = Network(uplink='slirp4netns').create()\n"
        "print('ready', flush=True)\n"
        "os.kill(driver.known().own_pid, signal.SIGKILL)\n"
        "signal.pause()\n"
    )
    assert run_and_kill(code, patience_s=2.0) == []


@pytest.mark.unprivileged
def test_what_is_missing_is_said_with_what_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox._networks.outlet.shutil.which", lambda _: None)
    with pytest.raises(UnsupportedError, match="apt install slirp4netns") as caught:
        Network(uplink="slirp4netns").create()
    assert caught.value.feature == "slirp4netns"
    monkeypatch.setattr("sandbox._networks.outlet.shutil.which", lambda _: "/usr/bin/slirp4netns")
    monkeypatch.setattr("sandbox._networks.outlet.TUN", "/dev/net/missing")
    with pytest.raises(UnsupportedError, match="modprobe tun"):
        Network(uplink="slirp4netns").create()


@needs("root")
def test_a_program_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandbox._networks.outlet.find_program", lambda *_: "/bin/false")
    with pytest.raises(sandbox.SetupError, match="without a word"):
        Network(uplink="slirp4netns").create()
    monkeypatch.setattr("sandbox._networks.outlet._command", lambda *_: ("/bin/sh", "-c", "echo no such luck >&2; exit 1"))
    with pytest.raises(sandbox.SetupError, match="no such luck"):
        Network(uplink="slirp4netns").create()


@needs("root")
def test_what_it_has_to_say_fills_nobodys_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("/bin/sh", "-c", "head -c 9000000 /dev/zero >&2 2>/dev/null; echo >&3; exec sleep 1000")
    monkeypatch.setattr("sandbox._networks.outlet.find_program", lambda *_: "/bin/sh")
    monkeypatch.setattr("sandbox._networks.outlet._command", lambda *_: command)
    monkeypatch.setattr("sandbox._networks.switch.Switch.forward", lambda *_, **__: None)
    monkeypatch.setattr("sandbox._networks.outlet.Outlet._index", lambda *_: 1)  # it makes no interface; the switch's loopback is one
    with Network(uplink="slirp4netns") as net, Container(net=net) as c:
        assert known(net.live.outlet).is_alive
        assert c.exec(["true"]).ok


@pytest.mark.parametrize(("internal", "uplink", "words"), [(True, "kernel", "internal"), (False, "pppoe", "none of"), (False, 1, "none of")])
def test_a_wrong_uplink_is_refused(internal: bool, uplink: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Network(internal=internal, uplink=uplink)
