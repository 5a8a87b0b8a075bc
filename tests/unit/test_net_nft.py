"""What goes to nf_tables as bytes, what is refused before, and what is read of the kernel's answers."""

from __future__ import annotations

import contextlib
import struct
from ipaddress import IPv4Address, IPv4Network, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import ProtocolError, UsageError
from sandbox.net import _nft_wire as wire
from sandbox.net import netlink
from sandbox.net.nft import (
    IFNAME,
    IPV4,
    IPV6,
    MAC,
    MARK,
    PORT,
    PROTOCOL,
    VERDICT,
    Chain,
    Element,
    Range,
    Set,
    Table,
    Transaction,
    accept,
    arp_saddr_ip,
    constant,
    dnat,
    dnat_to,
    ether_saddr,
    iifname,
    in_set,
    ip6_saddr,
    ip_daddr,
    l4proto,
    limit,
    mark,
    masquerade,
    reject,
    rule,
    tcp_dport,
    tcp_sport,
    th_dport,
    update,
)

IP, INET, BRIDGE = Table("ip", "t"), Table("inet", "t"), Table("bridge", "t")
CHAIN = Chain(INET, "c")
NAMES = st.text("abcdefghijklmnopqrstuvwxyz_-0123456789", min_size=1, max_size=12)
PORTS = st.integers(0, 65535)


def messages(work: Transaction, first: int = 7) -> list[wire.Message]:
    """What is in a batch, between its beginning and its end, which are looked at too."""
    found = list(netlink.messages(work.encode(first)))
    assert [sequence for _, _, sequence, _ in found] == list(range(first, first + len(found)))
    assert (found[0][0], found[-1][0]) == (wire.BATCH_BEGIN, wire.BATCH_END)
    assert found[0][3] == b"\0\0\0\x0a"  # for the subsystem of nf_tables
    return [wire.decode(kind, flags, body) for kind, flags, _, body in found[1:-1]]


def inside(message: wire.Message, number: int) -> list[dict[int, Any]]:
    """The members of a list among a message's attributes."""
    members: Any = dict(message.attributes)[number]
    return [dict(tree) for _, tree in members]


@st.composite
def matches(draw: st.DrawFn):
    addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
    low, high = sorted(draw(st.tuples(PORTS, PORTS)))
    return draw(
        st.sampled_from([
            iifname(draw(NAMES)), iifname.is_not(draw(NAMES) + "*"), tcp_dport(Range(low, high)), tcp_sport.is_not(low), ip_daddr(draw(addresses)),
            ip_daddr(IPv4Network((int(draw(addresses)), draw(st.integers(1, 32))), strict=False)), mark(high), l4proto("udp"),
            ip6_saddr("fd00::1"), ether_saddr("02:42:0a:00:00:01"), limit(low + 1, "minute"), reject(),
        ])
    )  # fmt: skip


@given(st.lists(matches(), max_size=6), NAMES, st.sampled_from(["inet", "bridge"]), st.one_of(st.none(), NAMES))
def test_rules_are_read_as_they_were_written(found, name: str, family, comment: str | None) -> None:
    chain = Chain(Table(family, name), "c", hook="forward", priority=-5, policy="drop")
    work = Transaction().add(chain.table).add(chain).add(rule(chain, [*found, accept], comment=comment))
    read = messages(work)
    assert [message.kind for message in read] == [wire.NEWTABLE, wire.NEWCHAIN, wire.NEWRULE]
    assert [message.attributes for message in read] == [step.message.attributes for step in work.steps]
    assert {message.family for message in read} == {family}
    assert [bool(message.flags & netlink.ACK) for message in read] == [False, False, True]


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), PORTS, st.one_of(st.none(), st.floats(0.001, 1e6))), max_size=1000))
def test_elements_of_a_set_are_read_as_they_were_written_however_many(elements) -> None:
    where = Set(INET, "s", (IPV4, PORT), timeouts=True)
    work = Transaction().add_elements(where, [Element((str(IPv4Address(a)), p), timeout_s=t) for a, p, t in elements])
    keys = [dict(tree[1])[1] for message in messages(work) for tree in inside(message, 3)]
    assert keys == [struct.pack(">IHH", a, p, 0) for a, p, _ in elements]
    assert all(len(data) < 1 << 16 for _, _, _, data in netlink.messages(work.encode(1)))


@given(st.binary(max_size=200))
def test_no_bytes_lead_the_reader_astray(data: bytes) -> None:
    for schema in (wire.EXPRESSION, {3: {1: wire.EXPRESSION}}):
        try:
            found = wire.unpack(data, schema)
        except ProtocolError:
            continue
        assert wire.unpack(wire.pack(found), schema) == found
    with contextlib.suppress(ProtocolError):
        assert all(len(body) <= len(data) for *_, body in netlink.messages(data))


def test_a_flipped_length_is_no_endless_loop() -> None:
    good = Transaction().add(IP).add(rule(Chain(IP, "c"), [tcp_dport(80), accept])).encode(1)
    for at in range(len(good)):
        for value in (0, 1, 255):
            bad = good[:at] + bytes([value]) + good[at + 1 :]
            try:
                for kind, flags, _, body in netlink.messages(bad):
                    wire.decode(kind, flags, body)
            except ProtocolError:
                continue


def names(statements, family) -> list[str]:
    (message,) = messages(Transaction().add(rule(Chain(Table(family, "t"), "c"), statements)))
    return [tree[1].rstrip(b"\0").decode() for tree in inside(message, 4)]


def test_a_match_brings_what_it_takes_for_granted_once() -> None:
    assert names([tcp_dport(80)], "ip") == ["meta", "cmp", "payload", "cmp"]
    assert names([tcp_dport(80), tcp_sport(1)], "ip") == ["meta", "cmp", "payload", "cmp", "payload", "cmp"]
    assert names([ip_daddr("10.0.0.1")], "ip") == ["payload", "cmp"]
    assert names([ip_daddr("10.0.0.1")], "inet") == ["meta", "cmp", "payload", "cmp"]
    assert names([dnat("10.0.0.1", 80)], "ip") == ["immediate", "immediate", "nat"]
    assert names([masquerade()], "ip6") == ["masq"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: tcp_dport(65536),
        lambda: tcp_dport("http"),
        lambda: tcp_dport(-1),
        lambda: tcp_dport(Range(9, 1)),
        lambda: iifname(""),
        lambda: iifname("a" * 16),
        lambda: iifname(Range("a", "b")),
        lambda: ip_daddr("fd00::1"),
        lambda: ip_daddr("10.0.0.0/8"),
        lambda: ip_daddr(ip_network("fd00::/8")),
        lambda: ether_saddr("02:42"),
        lambda: l4proto("ftp"),
        lambda: mark(2**32),
        lambda: limit(0),
        lambda: limit(1, "week"),
        lambda: reject(code="no"),
        lambda: dnat("10.0.0.1", 70000),
        lambda: rule(Chain(IP, "c"), [ip6_saddr("fd00::1")]),
        lambda: rule(CHAIN, [arp_saddr_ip("10.0.0.1")]),
        lambda: rule(CHAIN, [accept], comment="x" * 200),
        lambda: Chain(IP, "c", hook="ingress"),
        lambda: Chain(Table("netdev", "t"), "c", hook="ingress"),
        lambda: Chain(IP, "c", hook="input", device="eth0"),
        lambda: Set(IP, "s", ()),
        lambda: Set(IP, "s", (IFNAME,), intervals=True),
        lambda: Set(IP, "s", (IPV4,), data="word"),
        lambda: in_set(Set(IP, "s", (IPV4, PORT)), ip_daddr),
        lambda: in_set(Set(IP, "s", (IPV4,)), th_dport),
        lambda: dnat_to(Set(IP, "s", (PORT,), data=(PORT,)), th_dport),
        lambda: Transaction().add_elements(Set(IP, "s", (IPV4,)), [Element("10.0.0.1", timeout_s=1)]),
        lambda: Transaction().add_elements(Set(IP, "s", (IPV4,), timeouts=True), [Element("10.0.0.1", timeout_s=0)]),
        lambda: Transaction().add_elements(Set(IP, "s", (IPV4,)), [Element(Range("10.0.0.1", "10.0.0.2"))]),
        lambda: Transaction().add_elements(Set(IP, "s", (IPV4, PORT)), [Element(("10.0.0.1",))]),
        lambda: Transaction().add_elements(Set(IP, "s", (PORT,)), [Element(1, accept)]),
        lambda: Transaction().add_elements(Set(IP, "s", (PORT,), data=VERDICT), [Element(1, "accept")]),
        lambda: Transaction().add_elements(Set(IP, "s", (PORT,), intervals=True), [Element(Range(2, 1))]),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(wrong) -> None:
    with pytest.raises(UsageError):
        wrong()


def test_an_interval_ends_behind_its_last_value_or_nowhere() -> None:
    where = Set(IP, "s", (PORT,), intervals=True)
    (message,) = messages(Transaction().add_elements(where, [Element(Range(1, 9)), Element(Range(10, 65535))]))
    found = [(dict(tree[1])[1], 3 in tree) for tree in inside(message, 3)]
    assert found == [(b"\0\x01", False), (b"\0\x0a", True), (b"\0\x0a", False)]


def test_kinds_have_the_lengths_of_the_kernel() -> None:
    values = {IPV4: "10.0.0.1", IPV6: "fd00::1", MAC: "02:00:00:00:00:01", PORT: 1, PROTOCOL: "tcp", MARK: 1, IFNAME: "eth0"}
    assert [len(kind.pack(value)) for kind, value in values.items()] == [4, 16, 6, 2, 1, 4, 16]


def test_rules_put_elements_only_into_sets_that_are_for_that() -> None:
    room = Set(INET, "room", (IPV4, PORT), timeouts=True, dynamic=True, size=16)
    made = rule(CHAIN, [update(room, ip_daddr, constant(PORT, 7), timeout_s=2)])
    assert [step.name for step in made.statements[0].expressions] == ["payload", "immediate", "dynset"]
    (message,) = messages(Transaction().add(room))
    attributes = dict(message.attributes)
    assert attributes[3] == struct.pack(">I", 0x10 | 0x20)  # NFT_SET_TIMEOUT, NFT_SET_EVAL
    assert attributes[9] == ((1, struct.pack(">I", 16)),)
    for wrong in (Set(INET, "s", (IPV4,), timeouts=True), Set(INET, "s", (IPV4,), dynamic=True)):
        with pytest.raises(UsageError, match="dynamic=True"):
            update(wrong, ip_daddr, timeout_s=1)
    with pytest.raises(UsageError, match="above 0"):
        update(room, ip_daddr, constant(PORT, 7), timeout_s=0)
    for options in ({"size": 0}, {"dynamic": True, "intervals": True}):
        with pytest.raises(UsageError, match="size"):
            Set(INET, "s", (IPV4,), **options)
