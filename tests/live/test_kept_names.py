"""Names in networks that are kept: containers of different processes find one another, whoever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

import sandbox
from sandbox import Container, Join, Network, NetworkStore
from sandbox._networks.kept_names import KeptNames
from tests.leak.snapshot import descendants
from tests.live.test_network_names import PYTHON, getent, question
from tests.live.test_network_store import await_true
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.support import needs

pytestmark = [needs("root", "userns"), pytest.mark.usefixtures("no_leftovers")]

# Does what it reads: "NAME" has a container of that name join, "-NAME" closes it, "?NAME OTHER" looks OTHER up in it; "!" tells the pid above its name server.
MEMBER = """
import sys
from sandbox import Container, Join
from sandbox._networks import names
there = {}
for line in sys.stdin:
    word, *rest = line.split()
    if word[0] == "-":
        there.pop(word[1:]).close()
        print("gone", flush=True)
    elif word[0] == "!":
        print(names._server.pid, flush=True)
    elif word[0] == "?":
        said = there[word[1:]].exec(["getent", "ahostsv4", *rest], text=True, timeout=30).stdout
        print(*sorted({line.split()[0] for line in said.splitlines()}), flush=True)
    else:
        c = there[word] = Container(net=Join("shop", aliases=[f"{word}-alias"]), name=word, hostname=f"{word}-host").create()
        print(c.address, c.pid, flush=True)
"""


class Other:
    """A process with containers in the network ``shop``."""

    def __init__(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", MEMBER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def say(self, words: str) -> list[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{words}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@contextmanager
def another() -> Generator[Other]:
    other = Other()
    with other.process:
        try:
            yield other
        finally:
            other.kill()


def server_below(pid: int) -> list[int]:
    """The keeper and the child of a process's name server, below an init."""
    found: list[int] = []
    for each in descendants(pid):
        with contextlib.suppress(OSError):  # it has just ended
            if Path(f"/proc/{each}/comm").read_text() == "sandbox-names\n":
                found.append(each)
    assert len(found) == 2
    return found


def test_containers_of_different_processes_find_each_other_both_ways_at_once(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another() as one, another() as two, Container(net="shop", name="mine") as c:
        for number in range(3):
            name = f"a{number}"
            address, _ = one.say(name)
            for known in (name, f"{name}-alias", f"{name}-host", f"{name}.shop"):
                assert getent(c, known) == [address]
            assert two.say(f"b{number}")
            assert two.say(f"?b{number} {name}") == [address]
            assert one.say(f"?{name} mine") == [c.address]
            assert one.say(f"-{name}") == ["gone"]
            assert getent(c, name) == two.say(f"?b{number} {name}") == []
        assert getent(c, "b2-alias") == [str(place.address) for place in store.containers("shop") if place.hostname == "b2-host"]


def test_who_is_killed_is_not_found_any_more_and_nobody_else_notices(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another() as one, another() as two:
        address, _ = one.say("a")
        there, pid = two.say("b")
        two.say("c")
        assert (one.say("?a b"), two.say("?b a")) == ([there], [address])
        os.kill(int(pid), signal.SIGKILL)  # a container alone, and its process notices when it is done with it
        assert two.say("-b") == ["gone"]
        assert one.say("?a b") == []
        assert two.say("?c a") == [address]
        assert one.say("?a c") == one.say("?a c-host") != []
        two.kill()
        await_true(lambda: one.say("?a c") == [])
        with Container(net=Join("shop", address=there), name="new") as new:  # nobody else's name leads there
            assert one.say("?a new") == [there] == [new.address]
            assert getent(new, "a") == [address]
            assert getent(new, "b") == getent(new, "c") == []


def test_a_name_server_that_is_killed_is_its_own_containers_loss_and_comes_back(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with another() as other, Container(net="shop", name="mine") as c:
        address, _ = other.say("a")
        assert other.say("?a mine") == [c.address]
        keeper, child = server_below(int(other.say("!")[0]))
        os.kill(child, signal.SIGKILL)
        assert getent(c, "a") == [address]
        assert other.say("?a mine") == [c.address]  # the keeper has another one
        os.kill(keeper, signal.SIGKILL)
        assert getent(c, "a") == [address]
        other.say("b")
        assert other.say("?a mine") == other.say("?b mine") == [c.address]


def test_a_container_finds_the_names_of_all_its_networks_and_its_links(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    store.create("depot", internal=True)
    with another() as other, Network("own", internal=True) as own:
        address, _ = other.say("a")
        with (
            Container(net="shop", name="db", hostname="db") as db,
            Container(net=[own, "depot"], name="far") as far,
            Container(net=["shop", own, "depot"], name="both", links={"store": db}) as both,
            Container(net="depot", name="near", read_only=True) as near,
        ):
            assert getent(both, "a") == [address]
            assert getent(both, "far") == [far.endpoints["own"].address]
            assert getent(both, "near.depot") == [near.address]
            assert getent(both, "store") == [db.address]
            assert getent(db, "store") == getent(near, "db") == []
            assert getent(near, "both") == [both.endpoints["depot"].address]
            assert "STORE_NAME=/both/store\n" in both.exec(["env"], text=True).stdout
            both.disconnect("shop")
            assert getent(both, "a") == other.say("?a both") == []
            assert getent(both, "near") == [near.address]


def test_nobody_gets_at_a_server_but_by_the_port_of_names(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    ask = "import socket, sys; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(10); s.connect((sys.argv[1], int(sys.argv[2])))\n"
    ask += "s.send(bytes.fromhex(sys.argv[3]))\ntry: print('answer' * bool(s.recv(999)))\nexcept OSError as error: print(type(error).__name__)"
    with store.open("shop") as net, Container(net=net, name="web") as c:
        names = net.live.names
        assert isinstance(names, KeptNames)
        ports = (53, *names.ports.values())
        said = [c.exec([PYTHON, "-c", ask, net.gateway, str(port), question("web").hex()], text=True).stdout.strip() for port in ports]
        assert said == ["answer", "ConnectionRefusedError", "ConnectionRefusedError"]


def test_a_forked_child_answers_its_own_containers(store: NetworkStore) -> None:
    store.create("shop", internal=True)
    with Container(net="shop", name="parent") as c:
        child = os.fork()
        if not child:
            code = 1
            try:
                with Container(net="shop", name="child") as mine:
                    code = 0 if getent(mine, "parent") == [c.address] and getent(mine, "child") == [mine.address] else 2
                sandbox.shut_down()
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert getent(c, "parent") == [c.address]
        assert getent(c, "child") == []
