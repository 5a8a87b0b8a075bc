"""The programs of the short way of published ports, on the kernel's own machine: what they make of a packet, and which they leave alone."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Generator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Final

import pytest
from attrs import field, frozen

from sandbox._sys import bpf
from sandbox.net import shortcut
from sandbox.net.shortcut import FAMILIES, KNOWN, SLOTS, Ends, Family, slot, slot_of, swapped
from tests.programs_of_bpf import corrects_ipv6, keys, run
from tests.support import needs
from tests.tcp_frames import ACK, FIN, PSH, RST, SYN, packet

pytestmark = [needs("root", "bpf")]

LOOPBACK: Final = 1  # the interface that packets of such trials come by: it plays all parts
INNER, OWN, CLIENT_PORT = 4711, 8080, 45678
BRIDGE_MAC, UPLINK_MAC, HOST_MAC, MAC = (bytes([2, 0x42, 10, 89, 0, last]) for last in (1, 9, 8, 2))
PASS, REDIRECT = (1 << 32) - 1, 7  # TC_ACT_UNSPEC: nothing is said
NOW_AND_LATER: Final = (1 << 64) - (1 << 17)


@frozen
class Machine:
    """The maps and programs of a network whose uplink and port are one; and who is there."""

    there: IPv4Address | IPv6Address
    container: IPv4Address | IPv6Address
    client: IPv4Address | IPv6Address
    other: IPv4Address | IPv6Address
    slots: int
    flows: int
    programs: dict[str, int] = field(factory=dict[str, int])

    @property
    def ip(self) -> Family:
        return FAMILIES[self.there.version]

    def lead(self, inner: int = INNER, interface: int = LOOPBACK, address: IPv4Address | IPv6Address | None = None, port: int = OWN) -> None:
        """Have a port of the uplink lead there."""
        value = slot(inner, interface, address or self.container, port, mac=MAC, bridge_mac=BRIDGE_MAC)
        bpf.update(self.slots, struct.pack("=I", slot_of(INNER)), value)

    def know(self, other_port: int, *, until: int = NOW_AND_LATER, interface: int = LOOPBACK, inner: int = INNER) -> None:
        key = self.ip.flow.pack(self.client.packed, swapped(CLIENT_PORT), swapped(other_port), interface)
        bpf.update(self.flows, key, KNOWN.pack(until & ~0xFFFF | swapped(inner)))


WHO: Final = {
    4: [*map(ip_address, ("10.87.9.1", "10.89.0.2", "203.0.113.7", "10.89.0.3"))],
    6: [*map(ip_address, ("fd87:9::1:1", "fd89:5:6:7:8:9:a:2", "2001:db8:77:ffff::7", "fd89:5:6:7:8:9:a:3"))],
}


@pytest.fixture(params=[4, 6])
def machine(request: pytest.FixtureRequest) -> Generator[Machine]:
    ip = FAMILIES[request.param]
    there, container, client, other = WHO[request.param]
    if request.param == 6 and not corrects_ipv6():
        pytest.skip("a program cannot correct sums of IPv6 (Linux 6.16)")
    with ExitStack() as stack:
        made = Machine(
            there,
            container,
            client,
            other,
            bpf.make_map(bpf.ARRAY, 4, ip.slot.size, SLOTS, "sandbox_slots"),
            bpf.make_map(bpf.LRU_HASH, ip.flow.size, KNOWN.size, 64, "sandbox_flows"),
        )
        ends = Ends(made.slots, made.flows, LOOPBACK, made.there, 1500, BRIDGE_MAC, UPLINK_MAC, HOST_MAC)
        for program in (shortcut.inward, shortcut.outward, shortcut.learner):
            made.programs[program.__name__] = bpf.load_program(bpf.SCHED_CLS, program(ends), f"sandbox_{program.__name__}", log=1 << 18)
        for fd in (made.slots, made.flows, *made.programs.values()):
            stack.callback(os.close, fd)
        made.lead()
        made.know(INNER)
        made.know(OWN)
        yield made


def asked(it: Machine, **other: object) -> bytes:
    """From the client to the published port, as it comes by the uplink."""
    return packet((it.client, CLIENT_PORT), (it.there, INNER), **{"macs": UPLINK_MAC + HOST_MAC, **other})  # type: ignore[arg-type]


def answered(it: Machine, **other: object) -> bytes:
    """From the container to the client, as it comes by its port."""
    return packet((it.container, OWN), (it.client, CLIENT_PORT), **{"macs": BRIDGE_MAC + MAC, **other})  # type: ignore[arg-type]


@pytest.mark.parametrize("data", [b"", b"data", bytes(range(256)) * 5])
def test_a_known_flow_gets_its_addresses_and_sums_in_both_directions(machine: Machine, data: bytes) -> None:
    want = packet((machine.client, CLIENT_PORT), (machine.container, OWN), macs=MAC + BRIDGE_MAC, hops=63, flags=ACK | PSH, data=data)
    assert run(machine.programs["inward"], asked(machine, flags=ACK | PSH, data=data)) == (REDIRECT, want)
    want = packet((machine.there, INNER), (machine.client, CLIENT_PORT), macs=HOST_MAC + UPLINK_MAC, hops=63, flags=ACK | PSH, data=data)
    assert run(machine.programs["outward"], answered(machine, flags=ACK | PSH, data=data)) == (REDIRECT, want)


@pytest.mark.parametrize("hops", range(2, 256, 23))
def test_sums_of_heads_are_right_whatever_they_carry_over(machine: Machine, hops: int) -> None:
    for fragment in (0x4000, 0x0000, 0x8000):  # the last one is a reserved bit, which is as good as any
        want = packet((machine.client, CLIENT_PORT), (machine.container, OWN), macs=MAC + BRIDGE_MAC, hops=hops - 1, fragment=fragment)
        assert run(machine.programs["inward"], asked(machine, hops=hops, fragment=fragment)) == (REDIRECT, want)


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
    "another version": {"kind": 0x86DD},
    "a tag": {"kind": 0x8100},
}
OF_IPV6: Final[dict[str, dict[str, object]]] = {
    "options": {"protocol": 0},
    "the first fragment": {"protocol": 44},
    "a later fragment": {"protocol": 44},
    "another version": {"kind": 0x0800},
}


def long(it: Machine, what: str) -> dict[str, object]:
    return OF_IPV6.get(what, LONG[what]) if it.there.version == 6 else LONG[what]


@pytest.mark.parametrize("what", LONG)
def test_what_is_not_plain_takes_the_long_way_as_it_is(machine: Machine, what: str) -> None:
    for name, made in (("inward", asked(machine, **long(machine, what))), ("outward", answered(machine, **long(machine, what)))):
        assert run(machine.programs[name], made) == (PASS, made), name


def test_packets_that_are_many_are_measured_one_by_one(machine: Machine) -> None:
    most = 1500 - machine.ip.head - 20
    for name, made in (("inward", asked(machine, data=bytes(3000))), ("outward", answered(machine, data=bytes(3000)))):
        assert run(machine.programs[name], made, gso_size=most)[0] == REDIRECT
        assert run(machine.programs[name], made, gso_size=most + 1) == (PASS, made)


def test_frames_that_are_cut_short_take_the_long_way(machine: Machine) -> None:
    for length in (machine.ip.tcp, machine.ip.tcp + 6, machine.ip.tcp + 19):
        for name, made in (("inward", asked(machine)), ("outward", answered(machine))):
            assert run(machine.programs[name], made[:length])[0] == PASS


STRANGE: Final[dict[str, tuple[str, Callable[[Machine], None], Callable[[Machine], bytes]]]] = {
    "to another port": ("inward", lambda _: None, lambda it: packet((it.client, CLIENT_PORT), (it.there, INNER + 1))),
    "to another port of the same slot": ("inward", lambda _: None, lambda it: packet((it.client, CLIENT_PORT), (it.there, INNER + SLOTS))),
    "to another address": ("inward", lambda _: None, lambda it: packet((it.client, CLIENT_PORT), (it.other, INNER))),
    "from another client": ("inward", lambda _: None, lambda it: packet((it.other, CLIENT_PORT), (it.there, INNER))),
    "from another port": ("inward", lambda _: None, lambda it: packet((it.client, CLIENT_PORT + 1), (it.there, INNER))),
    "withdrawn": ("inward", lambda it: it.lead(0), asked),
    "another's now": ("inward", lambda it: it.lead(INNER + SLOTS), asked),
    "its time is over": ("inward", lambda it: it.know(INNER, until=1 << 17), asked),
    "a flow of another port": ("inward", lambda it: it.know(INNER, inner=INNER + 1), asked),
    "an answer from another address": ("outward", lambda _: None, lambda it: packet((it.other, OWN), (it.client, CLIENT_PORT), macs=BRIDGE_MAC + MAC)),
    "an answer from another port": ("outward", lambda _: None, lambda it: packet((it.container, OWN + 1), (it.client, CLIENT_PORT), macs=BRIDGE_MAC + MAC)),
    "an answer to another": ("outward", lambda _: None, lambda it: packet((it.container, OWN), (it.other, CLIENT_PORT), macs=BRIDGE_MAC + MAC)),
    "an answer to a sister's MAC": ("outward", lambda _: None, lambda it: answered(it, macs=MAC + MAC)),
    "an answer by a sister's port": ("outward", lambda it: it.lead(interface=LOOPBACK + 1), answered),
    "an answer of a withdrawn port": ("outward", lambda it: it.lead(0), answered),
    "an answer too late": ("outward", lambda it: it.know(OWN, until=1 << 17), answered),
    "an answer from where the port leads no more": ("outward", lambda it: it.lead(address=it.other), answered),
    "an answer from which port it leads no more": ("outward", lambda it: it.lead(port=OWN + 1), answered),
}


@pytest.mark.parametrize("what", STRANGE)
def test_what_is_not_of_a_known_flow_takes_the_long_way_as_it_is(machine: Machine, what: str) -> None:
    name, prepare, make = STRANGE[what]
    prepare(machine)
    made = make(machine)
    assert run(machine.programs[name], made) == (PASS, made)


# ---- Learning ----


def learnt(it: Machine) -> set[bytes]:
    return {it.ip.flow.pack(it.client.packed, swapped(CLIENT_PORT), swapped(port), LOOPBACK) for port in (INNER, OWN)}


def forget_all(machine: Machine) -> None:
    for key in keys(machine.flows, machine.ip.flow.size):
        bpf.update(machine.flows, key, KNOWN.pack(0))


def known(machine: Machine) -> set[bytes]:
    return {key for key in keys(machine.flows, machine.ip.flow.size) if bpf.lookup(machine.flows, key, KNOWN.size) != KNOWN.pack(0)}


def going(it: Machine, **other: object) -> bytes:
    """What leaves by the container's port."""
    return packet((it.client, CLIENT_PORT), (it.container, OWN), **{"macs": MAC + BRIDGE_MAC, **other})  # type: ignore[arg-type]


def test_what_the_rules_have_marked_is_known_from_then_on(machine: Machine) -> None:
    forget_all(machine)
    assert run(machine.programs["inward"], asked(machine))[0] == PASS
    assert run(machine.programs["learner"], going(machine), mark=swapped(INNER)) == (PASS, going(machine))
    assert known(machine) == learnt(machine)
    assert run(machine.programs["inward"], asked(machine))[0] == REDIRECT
    assert run(machine.programs["outward"], answered(machine))[0] == REDIRECT


@pytest.mark.parametrize("what", ["the first packet", "the last packet", "a reset", "options", "a later fragment", "another protocol"])
def test_nothing_is_learnt_of_what_is_not_plain(machine: Machine, what: str) -> None:
    forget_all(machine)
    assert run(machine.programs["learner"], going(machine, **long(machine, what)), mark=swapped(INNER))[0] == PASS
    assert known(machine) == set()


@pytest.mark.parametrize("mark", [0, swapped(INNER + 1), swapped(INNER + SLOTS), swapped(INNER) | 0x10000, 0xFFFFFFFF])
def test_nothing_is_learnt_without_the_mark_of_a_port_that_leads_somewhere(machine: Machine, mark: int) -> None:
    forget_all(machine)
    assert run(machine.programs["learner"], going(machine), mark=mark)[0] == PASS
    assert known(machine) == set()


@pytest.mark.parametrize("to", [{"inner": 0}, {"interface": LOOPBACK + 1}, {"address": None}, {"port": OWN + 1}])
def test_nothing_is_learnt_of_a_port_that_leads_elsewhere(machine: Machine, to: dict[str, object]) -> None:
    forget_all(machine)
    machine.lead(**{name: machine.other if value is None else value for name, value in to.items()})  # type: ignore[arg-type]
    assert run(machine.programs["learner"], going(machine), mark=swapped(INNER))[0] == PASS
    assert known(machine) == set()


def test_a_map_that_is_full_forgets_others_and_breaks_nobody(machine: Machine) -> None:
    for number in range(1000):
        client = packet((machine.client, 1024 + number), (machine.container, OWN), macs=MAC + BRIDGE_MAC)
        assert run(machine.programs["learner"], client, mark=swapped(INNER))[0] == PASS
    assert 0 < len(keys(machine.flows, machine.ip.flow.size)) <= 64
    assert run(machine.programs["learner"], going(machine), mark=swapped(INNER))[0] == PASS
    assert run(machine.programs["inward"], asked(machine))[0] == REDIRECT
