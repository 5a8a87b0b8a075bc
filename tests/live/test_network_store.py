"""Networks that are kept: processes that share one, who may remove it, and what is left of those that were killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from ipaddress import ip_network
from pathlib import Path

import pytest

import sandbox
from sandbox import Container, Join, Network, NetworkInUseError, NetworkNotFoundError, NetworkStore, UnsupportedError, UsageError
from sandbox._networks import directories
from tests.leak.snapshot import Snapshot
from tests.live.test_network import PYTHON, addresses_of, ask, serving
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip"), pytest.mark.usefixtures("no_leftovers")]

SERVE = """
import sys
from sandbox import PIPE, Container, Join
with Container(net=Join("shop", aliases=["db"]), hostname="server") as c:
    code = "import socket; s = socket.create_server(('', 8080)); print(flush=True)\\nwhile True: s.accept()[0].sendall(b'hello')"
    process = c.popen([sys.argv[1], "-c", code], stdout=PIPE)
    process.stdout.readline()
    print(c.address, c.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def store(no_leftovers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[NetworkStore]:
    """A store of the test's own, which is the default one of this process and its children."""
    monkeypatch.setenv("SANDBOX_NETWORKS", str(tmp_path / "networks"))
    store = NetworkStore()
    yield store
    await_true(lambda: bool(store.prune()) or store.names() == [])  # containers of a process that was killed may be ending just now
    assert store.names() == []


@contextmanager
def another_process() -> Generator[tuple[subprocess.Popen[str], str, int]]:
    """A process with a container in the network ``shop``, on which somebody listens; its address and pid."""
    with subprocess.Popen([sys.executable, "-c", SERVE, PYTHON], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address, pid = process.stdout.readline().split()
            yield process, address, int(pid)
        finally:
            process.kill()


def ports_of(store: NetworkStore, name: str) -> list[str]:
    """The interfaces in a network's switch, but for its own."""
    said = subprocess.run(["nsenter", f"--net={store.path}/{name}/namespace", "ip", "-json", "link"], capture_output=True, check=True).stdout
    return [link["ifname"] for link in json.loads(said) if link["ifname"] not in ("lo", "bridge")]


def await_true(condition: object, seconds: float = 30.0) -> None:
    """Wait until *condition* holds; the kernel frees a namespace at its leisure."""
    import time

    assert callable(condition)
    deadline = time.monotonic() + patience(seconds)
    while not condition():
        assert time.monotonic() < deadline


def test_a_network_is_made_found_listed_and_removed(store: NetworkStore) -> None:
    made = store.create("shop", internal=True, labels={"a": "b"}, mtu=1400)
    assert store.get("shop") == store.get(made.id) == store.get(made.id[:8]) == made
    assert (store.networks(), store.names(), store.containers("shop")) == ([made], ["shop"], ())
    assert os.stat(store.path).st_mode & 0o777 == 0o700
    with pytest.raises(UsageError, match="exists"):
        store.create("shop", internal=True)
    store.remove("shop")
    for gone in (lambda: store.get("shop"), lambda: store.remove("shop"), lambda: store.open("shop"), lambda: Container(net="shop")):
        with pytest.raises(NetworkNotFoundError, match="no network 'shop'"):
            gone()
    store.remove("shop", force=True)
    assert os.listdir(store.path) == []


def test_containers_of_two_processes_reach_each_other(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another_process() as (_, address, pid), Container(net="shop", hostname="client") as c:
        assert ask(c, address).stdout == "hello\n"
        assert c.address != address
        assert [(place.hostname, place.address, place.pid, place.aliases) for place in store.containers("shop")] == [
            ("server", address, pid, ("db",)),
            ("client", c.address, c.pid, ()),
        ]
        assert c.network is not None
        assert c.network.containers == store.containers("shop")
        places = store.inspect("shop")["Containers"].values()
        assert {place["IPv4Address"] for place in places} == {f"{address}/24", f"{c.address}/24"}


def test_a_network_outlives_the_process_that_made_it(store: NetworkStore) -> None:
    code = "from sandbox import NetworkStore; print(NetworkStore().create('shop', internal=True).id)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert store.get("shop").id == said
    with Container(net="shop") as one, Container(net="shop") as two, serving(one):
        assert ask(two, str(one.address)).stdout == f"{two.address}\n"


def test_what_is_in_use_is_not_removed_and_a_killed_process_holds_nothing(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another_process() as (process, address, pid):
        for force in (False, True):
            with pytest.raises(NetworkInUseError, match=rf"server \({address}, pid {pid}\)"):
                store.remove("shop", force=force)
        assert store.prune() == ()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        await_true(lambda: store.containers("shop") == ())
        await_true(lambda: ports_of(store, "shop") == [])
        with Container(net=Join("shop", address=address)) as c:  # nobody has it any more
            assert c.address == address
    store.remove("shop")


def test_a_container_that_has_ended_holds_nothing(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with Container(net="shop") as c:
        assert [place.pid for place in store.containers("shop")] == [c.pid]
    assert store.containers("shop") == ()
    assert json.loads(Path(store.path, "shop", "state.json").read_text())["leases"] == []


def test_a_running_container_comes_and_goes(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with Container() as c:
        place = c.connect("shop")
        assert addresses_of(c)[-1] == place.address
        with pytest.raises(UsageError, match="in 'shop' already"):
            c.connect("shop")
        c.disconnect("shop")
        assert addresses_of(c) == ["127.0.0.1", "::1"]
        assert ports_of(store, "shop") == []
        store.remove("shop")


def test_a_container_is_in_kept_and_other_networks_at_once(store: NetworkStore) -> None:
    store.create("one", internal=True)
    store.create("two", internal=True, ipv6=True)
    with Network(internal=True) as third, Container(net=["one", Join("two", aliases=["x"]), third]) as c:
        assert list(c.endpoints) == ["one", "two", third.name]
        assert len({place.address.rpartition(".")[0] for place in c.endpoints.values()}) == 3
        assert c.endpoints["two"].address6 in addresses_of(c)


def test_static_addresses_and_macs_are_taken_once_across_processes(store: NetworkStore) -> None:
    store.create("shop", internal=True, subnet="10.77.9.0/24", gateway="10.77.9.254")
    taken = Join("shop", address="10.77.9.7", mac="02:00:00:00:00:07")
    code = "import sys; from sandbox import *; Container(net=Join('shop', **eval(sys.argv[1]))).create()"
    with Container(net=taken) as c:
        assert c.address == "10.77.9.7"
        for said, why in (("{'address': '10.77.9.7'}", "taken"), ("{'mac': '02:00:00:00:00:07'}", "taken"), ("{'address': '10.77.9.254'}", "gateway"), ("{'address': '10.77.8.1'}", "not an address")):
            done = subprocess.run([sys.executable, "-c", code, said], capture_output=True, text=True, check=False)
            assert (done.returncode, why in done.stderr) == (1, True), done.stderr


def test_two_processes_and_their_threads_get_different_addresses(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    code = (
        "import threading\n"
        "from sandbox import Container\n"
        "kept = []\n"
        "def join(): kept.append(Container(net='shop').create())\n"
        "threads = [threading.Thread(target=join) for _ in range(5)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
        "print(*(c.address for c in kept), flush=True); input()\n"
    )
    start = [subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found: list[str] = []
    for process in start:
        assert process.stdout is not None
        found += process.stdout.readline().split()
    assert len(found) == len(set(found)) == 10
    assert sorted(place.address for place in store.containers("shop")) == sorted(found)
    for process in start:
        process.communicate("\n")
    await_true(lambda: store.containers("shop") == ())


def test_processes_and_threads_that_make_networks_at_once_get_different_subnets(store: NetworkStore) -> None:
    code = (
        "import sys, threading\n"
        "from sandbox import NetworkStore\n"
        "make = lambda n: NetworkStore().create(f'{sys.argv[1]}{n}', internal=True)\n"
        "threads = [threading.Thread(target=make, args=(n,)) for n in range(3)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]\n"
    )
    with Network(internal=True) as ours:
        for process in [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]:
            assert process.wait() == 0
        found = [ip_network(info.subnet) for info in store.networks()]
        with Network(internal=True) as later:
            nets = [*found, ip_network(ours.subnet), ip_network(later.subnet)]
            # What another process has for itself is not known to others; what this one has, and all that is kept, is.
            pairs = [(a, b) for at, a in enumerate(nets) for b in nets[:at] if a.overlaps(b) and ip_network(ours.subnet) not in (a, b)]
    assert (len(found), pairs) == (6, [])
    with pytest.raises(UsageError, match=r"overlaps with .* of the network"):
        store.create("c", internal=True, subnet=str(found[0]))


@pytest.mark.parametrize("step", ["write_document", "write_state", "pin", "rename"])
def test_a_process_that_is_killed_while_it_makes_a_network_leaves_what_the_next_one_sweeps(store: NetworkStore, step: str) -> None:
    code = (
        "import os, signal, sys\n"
        "from sandbox import NetworkStore\n"
        "from sandbox._networks.directories import Directory\n"
        "die = lambda *a, **o: os.kill(os.getpid(), signal.SIGKILL)\n"
        "os.rename = die if sys.argv[1] == 'rename' else os.rename\n"
        "hasattr(Directory, sys.argv[1]) and setattr(Directory, sys.argv[1], die)\n"
        "NetworkStore().create('shop', internal=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, step], check=False)
    assert done.returncode == -signal.SIGKILL
    assert store.names() == []
    (left,) = os.listdir(store.path)
    assert left.startswith(".new-")
    assert store.create("shop", internal=True).subnet
    assert os.listdir(store.path) == ["shop"]


def test_a_process_that_is_killed_while_it_removes_a_network_leaves_what_the_next_one_sweeps(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    code = (
        "import os, signal\n"
        "from sandbox import NetworkStore\n"
        "from sandbox._networks import directories\n"
        "directories.clear = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "NetworkStore().remove('shop')\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert store.names() == []
    assert store.prune() == ()
    assert os.listdir(store.path) == []


def test_what_is_of_another_boot_is_swept(store: NetworkStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("old", internal=True)
    subprocess.run(["umount", f"{store.path}/old/namespace"], check=True)
    with pytest.raises(UnsupportedError, match="not mounted"), Container(net="old"):
        pass
    store.create("other", internal=True)
    assert store.names() == ["old", "other"]  # of this boot: perhaps it is mounted elsewhere
    monkeypatch.setattr(directories, "boot_id", lambda: "another")
    store.create("later", internal=True)
    assert os.listdir(store.path) == ["later"]
    store.remove("later")


def test_damaged_documents_are_told_and_removed_by_force_only(store: NetworkStore) -> None:
    for name, document in (("a", "network.json"), ("b", "state.json")):
        store.create(name, internal=True)
        Path(store.path, name, document).write_text('{"version": 1}')
        with pytest.raises(UsageError, match="damaged"):
            store.inspect(name)
    with pytest.raises(UsageError, match="damaged"):
        store.remove("b")
    for name in ("a", "b"):
        store.remove(name, force=True)
    assert os.listdir(store.path) == []


def test_a_store_that_others_can_look_into_is_refused(store: NetworkStore) -> None:
    os.mkdir(store.path, 0o755)
    with pytest.raises(UsageError, match="open to other users"):
        store.create("shop", internal=True)
    os.rmdir(store.path)


@pytest.mark.parametrize("name", ["\ud800", "a\0b", "../x", ".x", "x" * 300])
def test_what_is_no_name_is_refused_whether_or_not_there_is_a_store(store: NetworkStore, name: str) -> None:
    for _ in range(2):
        with pytest.raises(UsageError):
            Container(net=name)
        with pytest.raises(UsageError):
            store.get(name)
        Path(store.path).mkdir(mode=0o700, exist_ok=True)


def test_what_cannot_be_is_refused_before_anything_is_touched(store: NetworkStore) -> None:
    for name in ("", "../x", ".x", "a/b", "none", "host", "new", "x" * 64):
        with pytest.raises(UsageError):
            store.create(name, internal=True)
    with pytest.raises(UsageError, match="allow"):
        store.create("shop", allow=["10.0.0.1:x"])
    assert not os.path.exists(store.path)


def test_a_warm_network_stays_ready_and_lets_go_without_its_containers(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with store.open("shop") as net, Container(net=net) as c, Container(net="shop") as d:
        assert c.network is d.network is net is store.open("shop")
        net.close()
        assert addresses_of(c)[-1] == c.address
    store.remove("shop")
    with pytest.raises(NetworkNotFoundError), Container(net=net):
        pass


def test_threads_come_and_go_and_nothing_is_lost(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    failures: list[BaseException] = []

    def live() -> None:
        try:
            for _ in range(4):
                with Container(net="shop") as c:
                    assert addresses_of(c)[-1] == c.address
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=live) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.containers("shop") == ()
    await_true(lambda: ports_of(store, "shop") == [])


def test_a_forked_child_has_containers_of_its_own_there(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with Container(net="shop") as c, serving(c):
        child = os.fork()
        if not child:
            code = 1
            try:
                with Container(net="shop") as mine:
                    code = 0 if ask(mine, str(c.address)).stdout == f"{mine.address}\n" else 2
                sandbox.shut_down()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert [place.pid for place in store.containers("shop")] == [c.pid]


def test_the_host_sees_nothing_of_a_kept_network_but_its_mount(store: NetworkStore) -> None:
    before = Snapshot.take()
    store.create("shop", internal=True)
    with Container(net="shop"):
        kinds = {line.partition(":")[0] for line in before.left_behind(Snapshot.take())}
    assert not kinds & {"links", "rules"}
    assert "mounts" in kinds
