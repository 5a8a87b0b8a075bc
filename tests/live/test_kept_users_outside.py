"""Networks that ordinary users keep, and that reach outside: each process by a program of its own, whoever else comes, leaves or is killed.

The host of these tests is a network namespace with another host beside it, as in `test_network_outlet`.
"""

from __future__ import annotations

import pytest

from tests.live.test_network_outlet import OURS, THEIRS, in_world, outside
from tests.support import needs

pytestmark = pytest.mark.usefixtures("no_leftovers")

# Another process with a container in the network: it runs what it reads, ``NAME``: what `SERVER` serves there.
BEGIN = '''
import shutil, signal, subprocess, tempfile, time
from sandbox import Join, NetworkStore
home = tempfile.mkdtemp()
os.environ["SANDBOX_NETWORKS"] = home + "/networks"
store = NetworkStore()
SOON = TCP.replace("timeout=3", "timeout=0.4")
OTHER = """
import sys
from sandbox import PIPE, Container
python, server, *ports = sys.argv[1:]
with Container(net="shop", name="other", ports=ports) as c, c.popen([python, "-c", server], stdout=PIPE) as process:
    process.stdout.readline()
    print(c.address, c.network.live.outlet.pid, flush=True)
    for line in sys.stdin: print(repr(c.exec([python, "-c", *eval(line)], text=True, timeout=30).stdout.strip()), flush=True)
    process.kill()
"""
class Other:
    def __init__(self, *ports):
        self.process = subprocess.Popen([sys.executable, "-c", OTHER, PYTHON, SERVER, *ports], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.address, pid = self.process.stdout.readline().split()
        self.outlet = int(pid)
    def ask(self, code, address, port):
        print([code, address, str(port)], file=self.process.stdin, flush=True)
        return eval(self.process.stdout.readline())
    def kill(self):
        self.process.kill(); self.end()
    def end(self):
        self.process.stdin.close(); self.process.wait(); self.process.stdout.close()
        await_true(lambda: self.address not in [place.address for place in store.containers("shop")])
def await_true(condition):
    end = time.monotonic() + 20
    while not condition():
        if time.monotonic() > end: raise TimeoutError
def in_switch(c, *words):
    switch = c.network.live.switch
    with switch.owner() as owner:
        fds = owner.fileno(), switch.fileno()
        enter = ["nsenter", "--preserve-credentials", f"--user=/proc/self/fd/{fds[0]}", f"--net=/proc/self/fd/{fds[1]}"]
        return subprocess.run([*enter, *words], pass_fds=fds, text=True, stdout=subprocess.PIPE, check=True).stdout
def outlets(c): return [word for word in in_switch(c, "ip", "-brief", "link").split() if word.startswith("outlet")]
def rules(c): return in_switch(c, "ip", "rule").count("fwmark")
'''
END = """
store.remove("shop")
shutil.rmtree(home)
"""
users = outside


@users
def test_containers_of_all_processes_reach_outside_and_nothing_that_is_this_hosts_alone() -> None:
    found = in_world(
        BEGIN
        + """
store.create("shop")
with socket.create_server(("127.0.0.1", 0)) as alone, Container(net="shop") as c:
    port = alone.getsockname()[1]
    found["mine"] = ask(c, TCP, THEIRS, 7), ask(c, UDP, THEIRS, 7)
    other = Other()
    found["other"] = other.ask(TCP, THEIRS, 7), other.ask(UDP, THEIRS, 7)
    found["one another"] = ask(c, TCP, other.address, 8080) == c.address
    found["outlets"], found["rules"] = len(outlets(c)), rules(c)
    for address in ("127.0.0.1", c.network.gateway, "198.18.255.2", "198.18.255.3", "198.18.255.100", "0.0.0.0", OURS):
        found[address] = ask(c, SOON, address, port)
    alone.setblocking(False)
    try: alone.accept(); found["accepted"] = True
    except BlockingIOError: found["accepted"] = False
    other.end()
    found["left"] = len(outlets(c)), rules(c), ask(c, TCP, THEIRS, 7)
store.create("few", allow=[THEIRS + ":7/tcp"], ipv6=True)
with Container(net="few") as c:
    found["six"] = c.endpoints["few"].address6 is not None, c.exec(["ip", "-6", "route", "show", "default"], text=True).stdout
    found["allowed"] = ask(c, TCP, THEIRS, 7), ask(c, TCP, THEIRS, 9)
store.remove("few")
"""
        + END
    )
    assert found.pop("mine") == found.pop("other") == [OURS, OURS]
    assert (found.pop("one another"), found.pop("outlets"), found.pop("rules"), found.pop("accepted")) == (True, 2, 2, False)
    assert found.pop("left") == [1, 1, OURS]
    assert found.pop("six") == [True, ""]
    assert found.pop("allowed") == [OURS, "OSError"]  # at once: EHOSTUNREACH
    assert len(found) == 7
    assert set(found.values()) <= {"ConnectionRefusedError", "TimeoutError", "OSError"}


@users
def test_whoever_is_killed_takes_nobody_elses_way_outside_and_leaves_nothing() -> None:
    found = in_world(
        BEGIN
        + """
SLOW = '''import socket, sys, time; s = socket.create_connection((sys.argv[1], int(sys.argv[2]))); print("on", flush=True)
sys.stdin.readline(); s.sendall(b"x"); print(s.recv(9).decode(), flush=True)'''
store.create("shop")
first = Other()
with Container(net="shop") as c:
    with socket.create_server((OURS, 0)) as server:
        with c.popen([PYTHON, "-c", SLOW, OURS, str(server.getsockname()[1])], stdin=PIPE, stdout=PIPE) as process:
            process.stdout.readline()
            peer, _ = server.accept()
            first.kill()  # who has made the switch
            found["others"] = len(outlets(c)), ask(c, TCP, THEIRS, 7)
            process.stdin.write(b"\\n"); process.stdin.flush()
            with peer: found["goes on"] = peer.recv(9).decode(), peer.sendall(b"y")
            found["and back"] = process.stdout.readline().decode()
    with Container(net=Join("shop", address=first.address)) as d:
        found["who has its address"] = ask(d, UDP, THEIRS, 7)
    second = Other()
    found["next"] = second.ask(TCP, THEIRS, 7), len(outlets(c)), rules(c)  # what the killed one left is removed
    os.kill(second.outlet, signal.SIGKILL)
    found["without it"] = second.ask(TCP, second.address, 8080) == second.address, ask(c, TCP, THEIRS, 7)
    found["its containers"] = second.ask(SOON, THEIRS, 7)
    second.end()
    mine = c.network.live.outlet.pid
    os.kill(mine, signal.SIGKILL)
    await_true(lambda: not c.network.live.outlet.is_alive)
    with Container(net="shop") as d:
        found["renewed"] = ask(c, TCP, THEIRS, 7), ask(d, TCP, THEIRS, 7), c.network.live.outlet.pid != mine, len(outlets(c)), rules(c)
found["after"] = os.path.exists(f"/proc/{mine}"), open(home + "/networks/shop/holders").read()
"""
        + END
    )
    assert found.pop("without it") == [True, OURS]
    assert found.pop("its containers") != OURS
    assert found == {
        "others": [1, OURS], "goes on": ["x", None], "and back": "y\n", "who has its address": OURS, "next": [OURS, 2, 2],
        "renewed": [OURS, OURS, True, 1, 1], "after": [False, ""],
    }  # fmt: skip


@users
def test_ports_are_published_by_whoever_has_the_container_and_lead_to_nobody_else() -> None:
    found = in_world(
        BEGIN
        + """
store.create("shop")
def udp(sock):
    try: sock.send(b"?"); return sock.recv(100).decode()
    except OSError as error: return type(error).__name__
with Container(net="shop", name="mine", ports=["20080:8080", "20080:8080/udp"]) as c, c.popen([PYTHON, "-c", SERVER], stdout=PIPE) as process:
    process.stdout.readline()
    other = Other("20081:8080", "127.0.0.1:20082:8080", "20081:8080/udp")
    found["mine"], found["its"] = (from_here(20080), from_there(20080)), (from_here(20081), from_there(20081))
    found["alone"] = from_here(20082), from_there(20082)
    found["hairpin"] = ask(c, TCP, OURS, 20081).count("."), other.ask(TCP, OURS, 20080).count(".")
    shown = {place["IPv4Address"].split("/")[0]: place["Ports"] for place in store.inspect("shop")["Containers"].values()}
    found["shown"] = shown[other.address]["8080/udp"], len(shown[other.address]["8080/tcp"]), shown[c.address]["8080/tcp"]
    try: Container(net="shop", ports=["20081:8080"]).create()
    except Exception as error: found["taken"] = type(error).__name__
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(5); client.bind((OURS, 0)); client.connect((OURS, 20081))
        found["udp"] = udp(client).count(".")
        other.kill()
        found["killed"] = from_here(20081), from_there(20081), from_here(20080)
        client.settimeout(0.5)
        with Container(net=Join("shop", address=other.address), ports=["20081:8081/udp", "20081:8080"]) as d, d.popen([PYTHON, "-c", SERVER], stdout=PIPE) as more:
            more.stdout.readline()
            found["udp of the dead"] = [udp(client) for _ in range(2)]
            found["again"] = from_there(20081)
            os.kill(c.network.live.outlet.pid, signal.SIGKILL)
            await_true(lambda: not c.network.live.outlet.is_alive)
            with socket.create_server((OURS, 20080)), Container(net="shop"): found["renewed"] = from_there(20081)  # the other one is taken
            more.kill()
    found["withdrawn"] = from_here(20081)
    process.kill()
found["leases"] = store.inspect("shop")["Containers"]
"""
        + END
    )
    here = "198.18.255.2"
    assert set(found.pop("udp of the dead")) <= {"ConnectionRefusedError", "TimeoutError"}
    shown = {"HostIp": "0.0.0.0", "HostPort": "20081"}
    assert found == {
        "mine": [here, THEIRS], "its": [here, THEIRS], "alone": [here, "ConnectionRefusedError"], "hairpin": [3, 3],
        "shown": [[shown], 2, [{**shown, "HostPort": "20080"}]], "taken": "PortInUseError", "udp": 3,
        "killed": ["ConnectionRefusedError", "ConnectionRefusedError", here], "again": THEIRS, "renewed": THEIRS,
        "withdrawn": "ConnectionRefusedError", "leases": {},
    }  # fmt: skip


@needs("program:pasta")
@users
def test_pasta_does_as_well_but_for_ports() -> None:
    found = in_world(
        BEGIN
        + """
import sandbox._networks.outlet as outlet
real = outlet.shutil.which
outlet.shutil.which = lambda name: None if name == outlet.PROGRAM else real(name)
store.create("shop")
with socket.create_server(("127.0.0.1", 0)) as alone, Container(net="shop") as c:
    found["comm"] = open(f"/proc/{c.network.live.outlet.pid}/comm").read()[:3]
    found["out"] = ask(c, TCP, THEIRS, 7), ask(c, UDP, THEIRS, 7)
    found["alone"] = [ask(c, SOON, address, alone.getsockname()[1]) for address in ("127.0.0.1", c.network.gateway, "198.18.255.2", OURS)]
    try: Container(net="shop", ports=["20081:8080"]).create()
    except Exception as error: found["refused"] = type(error).__name__, "slirp4netns" in error.remedy, len(store.containers("shop"))
"""
        + END
    )
    assert set(found.pop("alone")) <= {"ConnectionRefusedError", "TimeoutError", "OSError"}
    assert found == {"comm": "pas", "out": [OURS, OURS], "refused": ["UnsupportedError", True, 1]}


@users
def test_a_container_that_outlives_its_command_is_published_as_long_as_its_keeper_lives() -> None:
    found = in_world(
        BEGIN
        + """
os.environ["SANDBOX_CONTAINERS"] = home + "/containers"
def run(*words): return subprocess.run([sys.executable, "-m", "sandbox", *words], text=True, stdout=subprocess.PIPE, check=True).stdout.strip()
def is_there(): return from_here(20090) == "198.18.255.2"
store.create("shop")
run("run", "-d", "--name", "web", "--network", "shop", "-p", "20090:8080", "--", PYTHON, "-c", SERVER)
await_true(is_there)
found["there"], found["out"] = from_there(20090), run("exec", "web", PYTHON, "-c", TCP, THEIRS, "7")
from sandbox import keep
os.kill(keep.find("web").config.keeper, signal.SIGKILL)
await_true(lambda: not is_there() and store.containers("shop") == ())
run("rm", "-f", "web")
"""
        + END
    )
    assert found == {"there": THEIRS, "out": OURS}
