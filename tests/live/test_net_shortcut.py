"""The programs of the short way of published ports, on the kernel's own machine: what they make of a packet, and which they leave alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Generator
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import Final

import pytest
from attrs import field, frozen

from sandbox._sys import bpf
from sandbox.net import shortcut
from sandbox.net.shortcut import FLOW, KNOWN, SLOT, SLOTS, Ends, slot, slot_of, swapped
from tests.programs_of_bpf import keys, run
from tests.support import needs
from tests.tcp_frames import ACK, FIN, PSH, RST, SYN, packet

pytestmark = [needs("root", "bpf")]

LOOPBACK: Final = 1  # the interface that packets of such trials come by: it plays all parts
THERE, CONTAINER, CLIENT = IPv4Address("10.87.9.1"), IPv4Address("10.89.0.2"), IPv4Address("203.0.113.7")
INNER, OWN, CLIENT_PORT = 4711, 8080, 45678
BRIDGE_MAC, UPLINK_MAC, HOST_MAC, MAC = (bytes([2, 0x42, 10, 89, 0, last]) for last in (1, 9, 8, 2))
PASS, REDIRECT = (1 << 32) - 1, 7  # TC_ACT_UNSPEC: nothing is said
NOW_AND_LATER: Final = (1 << 64) - (1 << 17)


@frozen
class Machine:
    """The maps and programs of a network whose uplink and port are one."""

    slots: int
    flows: int
    programs: dict[str, int] = field(factory=dict[str, int])

    def lead(self, inner: int = INNER, interface: int = LOOPBACK, address: IPv4Address = CONTAINER, port: int = OWN) -> None:
        """Have a port of the uplink lead there."""
        bpf.update(self.slots, struct.pack("=I", slot_of(INNER)), slot(inner, interface, address, port, mac=MAC, bridge_mac=BRIDGE_MAC))

    def know(self, other_port: int, *, until: int = NOW_AND_LATER, interface: int = LOOPBACK, inner: int = INNER) -> None:
        key = FLOW.pack(CLIENT.packed, swapped(CLIENT_PORT), swapped(other_port), interface)
        bpf.update(self.flows, key, KNOWN.pack(until & ~0xFFFF | swapped(inner)))


@pytest.fixture
def machine() -> Generator[Machine]:
    with ExitStack() as stack:
        made = Machine(
            bpf.make_map(bpf.ARRAY, 4, SLOT.size, SLOTS, "sandbox_slots"), bpf.make_map(bpf.LRU_HASH, FLOW.size, KNOWN.size, 64, "sandbox_flows")
        )
        ends = Ends(made.slots, made.flows, LOOPBACK, THERE, 1500, BRIDGE_MAC, UPLINK_MAC, HOST_MAC)
        for program in (shortcut.inward, shortcut.outward, shortcut.learner):
            made.programs[program.__name__] = bpf.load_program(bpf.SCHED_CLS, program(ends), f"sandbox_{program.__name__}", log=1 << 18)
        for fd in (made.slots, made.flows, *made.programs.values()):
            stack.callback(os.close, fd)
        made.lead()
        made.know(INNER)
        made.know(OWN)
        yield made


def asked(**other: object) -> bytes:
    """From the client to the published port, as it comes by the uplink."""
    return packet((CLIENT, CLIENT_PORT), (THERE, INNER), **{"macs": UPLINK_MAC + HOST_MAC, **other})  # type: ignore[arg-type]


def answered(**other: object) -> bytes:
    """From the container to the client, as it comes by its port."""
    return packet((CONTAINER, OWN), (CLIENT, CLIENT_PORT), **{"macs": BRIDGE_MAC + MAC, **other})  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"data", bytes(range(256)) * 5])
def test_a_known_flow_gets_its_addresses_and_sums_in_both_directions(machine: Machine, data: bytes) -> None:
    want = packet((CLIENT, CLIENT_PORT), (CONTAINER, OWN), macs=MAC + BRIDGE_MAC, hops=63, flags=ACK | PSH, data=data)
    assert run(machine.programs["inward"], asked(flags=ACK | PSH, data=data)) == (REDIRECT, want)
    want = packet((THERE, INNER), (CLIENT, CLIENT_PORT), macs=HOST_MAC + UPLINK_MAC, hops=63, flags=ACK | PSH, data=data)
    assert run(machine.programs["outward"], answered(flags=ACK | PSH, data=data)) == (REDIRECT, want)


@pytest.mark.parametrize("hops", range(2, 256, 23))
def test_sums_of_heads_are_right_whatever_they_carry_over(machine: Machine, hops: int) -> None:
    for fragment in (0x4000, 0x0000, 0x8000):  # the last one is a reserved bit, which is as good as any
        want = packet((CLIENT, CLIENT_PORT), (CONTAINER, OWN), macs=MAC + BRIDGE_MAC, hops=hops - 1, fragment=fragment)
        assert run(machine.programs["inward"], asked(hops=hops, fragment=fragment)) == (REDIRECT, want)


LONG: Final[dict[str, dict[str, object]]] = {
    "the first packet": {"flags": SYN},
    "its answer": {"flags": SYN | ACK},
    "the last packet": {"flags": FIN | ACK},
    "a reset": {"flags": RST},
    "a reset with an acknowledgement": {"flags": RST | ACK},
    "no acknowledgement": {"flags": 0},
    "options": {"head": 0x46},
    "the first fragment": {"fragment": 0x2000},
    "a later fragment": {"fragment": 0x0001},
    "the last hop": {"hops": 1},
    "no hop": {"hops": 0},
    "another protocol": {"protocol": 17},
    "too large": {"data": bytes(1462)},
    "IPv6": {"kind": 0x86DD, "head": 0x45},
    "a tag": {"kind": 0x8100},
}


@pytest.mark.parametrize("what", LONG)
def test_what_is_not_plain_takes_the_long_way_as_it_is(machine: Machine, what: str) -> None:
    for name, made in (("inward", asked(**LONG[what])), ("outward", answered(**LONG[what]))):
        assert run(machine.programs[name], made) == (PASS, made), name


def test_packets_that_are_many_are_measured_one_by_one(machine: Machine) -> None:
    made = asked(data=bytes(3000))
    assert run(machine.programs["inward"], made, gso_size=1460)[0] == REDIRECT
    assert run(machine.programs["inward"], made, gso_size=1461) == (PASS, made)
    made = answered(data=bytes(3000))
    assert run(machine.programs["outward"], made, gso_size=1460)[0] == REDIRECT
    assert run(machine.programs["outward"], made, gso_size=1461) == (PASS, made)


def test_frames_that_are_cut_short_take_the_long_way(machine: Machine) -> None:
    for length in (34, 40, 53):
        for name, made in (("inward", asked()), ("outward", answered())):
            assert run(machine.programs[name], made[:length])[0] == PASS


OTHER: Final = IPv4Address("10.89.0.3")
STRANGE: Final[dict[str, tuple[str, Callable[[Machine], None], bytes]]] = {
    "to another port": ("inward", lambda _: None, packet((CLIENT, CLIENT_PORT), (THERE, INNER + 1))),
    "to another port of the same slot": ("inward", lambda _: None, packet((CLIENT, CLIENT_PORT), (THERE, INNER + SLOTS))),
    "to another address": ("inward", lambda _: None, packet((CLIENT, CLIENT_PORT), (OTHER, INNER))),
    "from another client": ("inward", lambda _: None, packet((OTHER, CLIENT_PORT), (THERE, INNER))),
    "from another port": ("inward", lambda _: None, packet((CLIENT, CLIENT_PORT + 1), (THERE, INNER))),
    "withdrawn": ("inward", lambda it: it.lead(0), asked()),
    "another's now": ("inward", lambda it: it.lead(INNER + SLOTS), asked()),
    "its time is over": ("inward", lambda it: it.know(INNER, until=1 << 17), asked()),
    "a flow of another port": ("inward", lambda it: it.know(INNER, inner=INNER + 1), asked()),
    "an answer from another address": ("outward", lambda _: None, packet((OTHER, OWN), (CLIENT, CLIENT_PORT), macs=BRIDGE_MAC + MAC)),
    "an answer from another port": ("outward", lambda _: None, packet((CONTAINER, OWN + 1), (CLIENT, CLIENT_PORT), macs=BRIDGE_MAC + MAC)),
    "an answer to another": ("outward", lambda _: None, packet((CONTAINER, OWN), (OTHER, CLIENT_PORT), macs=BRIDGE_MAC + MAC)),
    "an answer to a sister's MAC": ("outward", lambda _: None, answered(macs=MAC + MAC)),
    "an answer by a sister's port": ("outward", lambda it: it.lead(interface=LOOPBACK + 1), answered()),
    "an answer of a withdrawn port": ("outward", lambda it: it.lead(0), answered()),
    "an answer too late": ("outward", lambda it: it.know(OWN, until=1 << 17), answered()),
    "an answer from where the port leads no more": ("outward", lambda it: it.lead(address=OTHER), answered()),
    "an answer from which port it leads no more": ("outward", lambda it: it.lead(port=OWN + 1), answered()),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_is_not_of_a_known_flow_takes_the_long_way_as_it_is(machine: Machine, what: str) -> None:
    name, prepare, made = STRANGE[what]
    prepare(machine)
    assert run(machine.programs[name], made) == (PASS, made)


# ---- Learning ----

LEARNT: Final = {FLOW.pack(CLIENT.packed, swapped(CLIENT_PORT), swapped(port), LOOPBACK) for port in (INNER, OWN)}


def forget_all(machine: Machine) -> None:
    for key in keys(machine.flows, FLOW.size):
        bpf.update(machine.flows, key, KNOWN.pack(0))


def known(machine: Machine) -> set[bytes]:
    return {key for key in keys(machine.flows, FLOW.size) if bpf.lookup(machine.flows, key, KNOWN.size) != KNOWN.pack(0)}


def going(**other: object) -> bytes:
    """What leaves by the container's port."""
    return packet((CLIENT, CLIENT_PORT), (CONTAINER, OWN), **{"macs": MAC + BRIDGE_MAC, **other})  # type: ignore[arg-type]


def test_what_the_rules_have_marked_is_known_from_then_on(machine: Machine) -> None:
    forget_all(machine)
    assert run(machine.programs["inward"], asked())[0] == PASS
    assert run(machine.programs["learner"], going(), mark=swapped(INNER)) == (PASS, going())
    assert known(machine) == LEARNT
    assert run(machine.programs["inward"], asked())[0] == REDIRECT
    assert run(machine.programs["outward"], answered())[0] == REDIRECT


@pytest.mark.parametrize("what", ["the first packet", "the last packet", "a reset", "options", "a later fragment", "another protocol"])
def test_nothing_is_learnt_of_what_is_not_plain(machine: Machine, what: str) -> None:
    forget_all(machine)
    assert run(machine.programs["learner"], going(**LONG[what]), mark=swapped(INNER))[0] == PASS
    assert known(machine) == set()


@pytest.mark.parametrize("mark", [0, swapped(INNER + 1), swapped(INNER + SLOTS), swapped(INNER) | 0x10000, 0xFFFFFFFF])
def test_nothing_is_learnt_without_the_mark_of_a_port_that_leads_somewhere(machine: Machine, mark: int) -> None:
    forget_all(machine)
    assert run(machine.programs["learner"], going(), mark=mark)[0] == PASS
    assert known(machine) == set()


@pytest.mark.parametrize("to", [{"inner": 0}, {"interface": LOOPBACK + 1}, {"address": OTHER}, {"port": OWN + 1}])
def test_nothing_is_learnt_of_a_port_that_leads_elsewhere(machine: Machine, to: dict[str, object]) -> None:
    forget_all(machine)
    machine.lead(**to)  # type: ignore[arg-type]
    assert run(machine.programs["learner"], going(), mark=swapped(INNER))[0] == PASS
    assert known(machine) == set()


def test_a_map_that_is_full_forgets_others_and_breaks_nobody(machine: Machine) -> None:
    for number in range(1000):
        client = packet((CLIENT, 1024 + number), (CONTAINER, OWN), macs=MAC + BRIDGE_MAC)
        assert run(machine.programs["learner"], client, mark=swapped(INNER))[0] == PASS
    assert 0 < len(keys(machine.flows, FLOW.size)) <= 64
    assert run(machine.programs["learner"], going(), mark=swapped(INNER))[0] == PASS
    assert run(machine.programs["inward"], asked())[0] == REDIRECT
