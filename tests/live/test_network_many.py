"""Many containers on one network: all reach all, however they come and go; and when their process is killed, nothing of them stays."""

from __future__ import annotations

import json
import os
import random
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from sandbox import PIPE, Bind, Container, Network, Process
from tests.leak.killed import run_and_kill
from tests.support import known, needs, patience

pytestmark = [needs("root", "userns", "program:ip", "program:nft"), pytest.mark.usefixtures("no_leftovers")]

MESH = Path(__file__).parent / "mesh.py"
SECONDS = float(os.environ.get("SANDBOX_NETWORK_SECONDS", "10"))
MANY = 50


class Member:
    """A container with a program that answers, and asks."""

    def __init__(self, net: Network, **options: Any) -> None:
        with ExitStack() as stack:
            self.container = stack.enter_context(Container(net=net, mounts=[Bind(MESH, "/mesh.py", read_only=True)], **options))
            self.process: Process = stack.enter_context(
                self.container.popen(["/usr/bin/python3", "-I", "-S", "/mesh.py"], stdin=PIPE, stdout=PIPE, text=True)
            )
            assert known(self.process.stdout).readline() == "up\n"
            self.address = known(self.container.address)
            self._stack = stack.pop_all()

    def ask(self, addresses: list[str]) -> None:
        known(self.process.stdin).write(" ".join([str(patience(10.0)), *addresses]) + "\n")
        known(self.process.stdin).flush()

    def missing(self) -> list[str]:
        return [str(address) for address in known(self.process.stdout).readline().split()[1:]]

    def close(self) -> None:
        self._stack.close()


def unreached(members: list[Member]) -> list[tuple[str, str]]:
    """Who does not reach whom."""
    for member in members:
        member.ask([other.address for other in members])
    return [(member.address, address) for member in members for address in member.missing()]


def in_the_switch(net: Network, *command: str) -> str:
    pid = net.live.switch.pid
    return subprocess.run(["nsenter", "-t", str(pid), "-n", *command], capture_output=True, text=True, check=True).stdout


def links(net: Network) -> set[str]:
    return {link["ifname"] for link in json.loads(in_the_switch(net, "ip", "-json", "link"))}


def wait_for_links(net: Network, number: int) -> None:
    """The kernel frees the namespace of a container that has ended, and the pair with it, at its leisure."""
    deadline = time.monotonic() + patience(30.0)
    while len(links(net)) != number and time.monotonic() < deadline:
        pass
    assert len(links(net)) == number


@pytest.mark.timeout(SECONDS * 3 + 300)
def test_fifty_containers_that_come_and_go_at_random_all_reach_all() -> None:
    """33 of them would fill the kernel's table of neighbours; no address, link, or entry of the bridge is lost or left."""
    chance = random.Random(SECONDS)
    starts = rounds = 0
    with Network(internal=True) as net, ThreadPoolExecutor(4) as pool:
        rules = in_the_switch(net, "nft", "list", "ruleset")
        members = list(pool.map(lambda _: Member(net), range(MANY)))
        deadline = time.monotonic() + SECONDS
        while True:
            assert unreached(members) == []
            assert len({member.address for member in members}) == MANY
            assert {place.address for place in net.containers} == {member.address for member in members}
            rounds += 1
            if time.monotonic() > deadline and starts > SECONDS:
                break
            chance.shuffle(members)
            leaving, members = members[: (count := chance.randint(1, 10))], members[count:]
            closing = [pool.submit(member.close) for member in leaving]
            members += pool.map(lambda _: Member(net), range(count))  # some come before others have gone
            for future in closing:
                future.result()
            starts += count
        wait_for_links(net, MANY + 2)  # loopback and the bridge
        assert in_the_switch(net, "nft", "list", "ruleset") == rules
        list(pool.map(Member.close, members))
        wait_for_links(net, 2)
        known = in_the_switch(net, "bridge", "fdb", "show").splitlines()
        assert [line for line in known if "master bridge permanent" in line and " dev bridge " not in line] == []  # the bridge itself may be, by VLAN too
        assert net.containers == ()
    print(f"{starts} containers were replaced, all reached all {rounds} times")


def test_nobody_asks_for_the_macs_of_members_nor_believes_an_answer() -> None:
    with Network(internal=True, ipv6=True) as net, Container(net=net) as one:
        with Container(net=net) as other:
            for inside, beside in ((one, other), (other, one)):
                said = inside.exec(["ip", "neigh"], text=True, check=True).stdout
                lines = {line.split()[0]: line for line in said.splitlines()}
                assert lines.keys() == {net.gateway, net.gateway6, beside.address, beside.endpoints[net.name].address6}
                assert all("PERMANENT" in line for line in lines.values())
                assert beside.endpoints[net.name].mac in lines[known(beside.address)]
        left = one.exec(["ip", "neigh"], text=True, check=True).stdout
        assert {line.split()[0] for line in left.splitlines()} == {net.gateway, net.gateway6}


KILLED = """
import signal
from sandbox import Container, Network, Security
nets = [Network(internal=True, ipv6=bool(number % 2)).create() for number in range(4)]
forger = Security(cap_add=["NET_ADMIN", "NET_RAW"])
every = [Container(net=[nets[number % 4], nets[(number + 1) % 4]] if number % 3 else nets[number % 4], user=0,
                   security=forger if number % 5 == 0 else Security()).create() for number in range(20)]
for c in every:
    c.popen(["sleep", "1000"])
print("ready", flush=True)
signal.pause()
"""


@needs("kernel:5.12")
def test_twenty_networked_containers_of_a_killed_process_leave_nothing() -> None:
    """No process, link, address, rule or namespace, soon afterwards."""
    assert run_and_kill(KILLED, patience_s=2.0) == []
