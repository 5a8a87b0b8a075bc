"""Packet filters on the real kernel, each test in a network namespace of its own: what nft says of them, and whose they are."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import time
from ipaddress import ip_network
from typing import Any

import pytest

from sandbox.errors import SetupError, UnsupportedError
from sandbox.net import netlink
from sandbox.net.nft import (
    ETHERTYPE,
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
    Nftables,
    Range,
    Set,
    Table,
    Transaction,
    accept,
    arp_saddr_ip,
    counter,
    ct_state,
    ct_status,
    dnat,
    dnat_to,
    drop,
    ether_saddr,
    ether_type,
    fib_daddr,
    goto,
    iifname,
    in_set,
    ip6_daddr,
    ip_daddr,
    ip_saddr,
    jump,
    l4proto,
    limit,
    masquerade,
    oifname,
    redirect,
    reject,
    return_,
    rule,
    set_mark,
    snat,
    tcp_dport,
    th_dport,
    udp_dport,
    vmap,
)
from tests.netns import alone, said
from tests.support import needs, patience

pytestmark = [needs("root", "program:nft", "program:ip"), pytest.mark.usefixtures("no_leftovers")]

INET, IP, BRIDGE = Table("inet", "t"), Table("ip", "t"), Table("bridge", "t")


def listed(kind: str) -> list[dict[str, Any]]:
    return [item[kind] for item in json.loads(said("nft", "-j", "list", "ruleset"))["nftables"] if kind in item]


def lines() -> list[str]:
    return [line.strip() for line in said("nft", "list", "ruleset").splitlines()]


@alone
def test_chains_are_as_nft_lists_them() -> None:
    netdev = Table("netdev", "n")
    wanted = [
        Chain(IP, "nat", hook="prerouting", type="nat", priority=-100),
        Chain(INET, "walls", hook="forward", priority=10, policy="drop"),
        Chain(BRIDGE, "ports", hook="prerouting", priority=-300),
        Chain(netdev, "in", hook="ingress", device="lo", priority=-500),
        Chain(IP, "plain"),
    ]
    with Nftables.here() as kernel:
        work = Transaction()
        for table in (IP, INET, BRIDGE, netdev):
            work.add(table)
        for chain in wanted:
            work.add(chain)
        assert kernel.commit(work) == ()
        found = {item["name"]: item for item in listed("chain")}
        for chain in wanted:
            item = found[chain.name]
            assert (item["family"], item.get("hook"), item.get("prio", 0)) == (chain.table.family, chain.hook, chain.priority)
            assert item.get("policy") == (chain.policy if chain.hook else None)
        assert {(c.family, c.name, c.priority, c.policy) for c in kernel.chains()} == {
            (c.table.family, c.name, c.priority, c.policy if c.hook else None) for c in wanted
        }
        assert [chain.name for chain in kernel.chains("inet")] == ["walls"]
        assert kernel.tables() == [IP, INET, BRIDGE, netdev]


@alone
def test_rules_are_as_nft_lists_them() -> None:
    nat, after = Chain(IP, "nat", hook="prerouting", type="nat", priority=-100), Chain(IP, "after", hook="postrouting", type="nat", priority=100)
    walls, sub = Chain(INET, "walls", hook="forward"), Chain(INET, "sub")
    ports = Chain(BRIDGE, "ports", hook="prerouting", priority=-300)
    wanted = [
        (nat, [iifname("eth0"), tcp_dport(80), dnat("10.0.0.5", 8080)], 'iifname "eth0" tcp dport 80 dnat to 10.0.0.5:8080'),
        (nat, [tcp_dport(81), redirect(8081)], "tcp dport 81 redirect to :8081"),
        (after, [oifname("uplink"), masquerade()], 'oifname "uplink" masquerade'),
        (after, [ip_saddr(ip_network("10.0.0.0/9")), snat("192.0.2.1")], "ip saddr 10.0.0.0/9 snat to 192.0.2.1"),
        (walls, [ct_state("established", "related"), accept], "ct state established,related accept"),
        (walls, [ct_state("new"), ct_status("dnat"), return_], "ct state new ct status dnat return"),
        (walls, [iifname("sandbox*"), oifname.is_not("eth0"), drop], 'iifname "sandbox*" oifname != "eth0" drop'),
        (walls, [udp_dport(Range(8000, 8010)), counter(), accept], "udp dport 8000-8010 counter packets 0 bytes 0 accept"),
        (walls, [tcp_dport.is_not(22), limit(5, "minute", burst=7), jump(sub)], "tcp dport != 22 limit rate 5/minute burst 7 packets jump sub"),
        (walls, [ip6_daddr(ip_network("fd00::/64")), limit(9, over=True), goto(sub)], "ip6 daddr fd00::/64 limit rate over 9/second goto sub"),
        (walls, [fib_daddr("local"), reject()], "fib daddr type local reject with icmpx admin-prohibited"),
        (walls, [tcp_dport(443), reject(tcp_reset=True)], "tcp dport 443 reject with tcp reset"),
        (walls, [l4proto("udp"), set_mark(7)], "meta l4proto udp meta mark set 0x00000007"),
        (ports, [iifname("p1"), ether_saddr.is_not("02:42:0a:00:00:02"), drop], 'iifname "p1" ether saddr != 02:42:0a:00:00:02 drop'),
        (ports, [arp_saddr_ip.is_not("10.0.0.2"), drop], "arp saddr ip != 10.0.0.2 drop"),
        (ports, [ether_type(0x86DD), drop], "ether type ip6 drop"),
    ]
    with Nftables.here() as kernel:
        work = Transaction()
        for thing in (IP, INET, BRIDGE, nat, after, walls, sub, ports):
            work.add(thing)
        for number, (chain, statements, _) in enumerate(wanted):
            work.add(rule(chain, statements, comment=f"number {number}"))
        handles = kernel.commit(work)
        assert len(handles) == len(wanted)
        said_by_nft = lines()
        for number, (_, _, text) in enumerate(wanted):
            assert f'{text} comment "number {number}"' in said_by_nft
        assert [found.comment for found in kernel.rules(nat)] == ["number 0", "number 1"]
        assert [item["handle"] for item in listed("rule") if item["family"] == "inet"] == list(handles[4:-3])


@alone
def test_sets_and_maps_are_as_nft_lists_them() -> None:
    pairs = Set(INET, "pairs", (IPV4, PORT))
    wide = Set(INET, "wide", (IPV4,), intervals=True, timeouts=True)
    wide6 = Set(INET, "wide6", (IPV6,), intervals=True)
    both = Set(INET, "both", (IPV4, PROTOCOL, PORT), intervals=True)
    verdicts, targets = Set(INET, "verdicts", (PORT,), data=VERDICT), Set(INET, "targets", (PROTOCOL, PORT), data=(IPV4, PORT))
    others = [Set(INET, "others1", (MAC,)), Set(INET, "others2", (IFNAME, MARK)), Set(INET, "others3", (ETHERTYPE,)), Set(INET, "others4", (IFNAME,), data=(MARK,))]
    chain, sub = Chain(INET, "walls", hook="forward"), Chain(INET, "sub")
    nat = Chain(INET, "nat", hook="prerouting", type="nat", priority=-100)
    work = Transaction().add(INET).add(chain).add(sub).add(nat)
    for one in (pairs, wide, wide6, both, verdicts, targets, *others):
        work.add(one)
    work.add_elements(pairs, [Element(("10.0.0.1", 80)), Element(("10.0.0.2", 81))])
    work.add_elements(wide, [Element(ip_network("10.0.0.0/8"), timeout_s=3600), Element(Range("192.0.2.1", "192.0.2.9")), Element("255.255.255.255")])
    work.add_elements(wide6, [Element(ip_network("fd00::/8"))])
    work.add_elements(both, [Element((ip_network("10.0.0.0/8"), "tcp", Range(1, 9))), Element(("192.0.2.1", "udp", 53))])
    work.add_elements(verdicts, [Element(80, accept), Element(81, jump(sub))])
    work.add_elements(targets, [Element(("tcp", 80), ("10.0.0.7", 8080))])
    work.add_elements(others[1], [Element(("eth0", 7))]).add_elements(others[3], [Element("eth9", 9)])
    work.add(rule(chain, [in_set(pairs, ip_daddr, tcp_dport), accept])).add(rule(chain, [in_set(wide, ip_saddr, negate=True), drop]))
    work.add(rule(chain, [in_set(both, ip_daddr, l4proto, th_dport), accept])).add(rule(chain, [vmap(verdicts, tcp_dport)]))
    work.add(rule(nat, [dnat_to(targets, l4proto, th_dport)]))
    with Nftables.here() as kernel:
        kernel.commit(work)
        ruleset = said("nft", "list", "ruleset").replace(",\n", ",").replace("\t", " ")
        for text in (
            "type ipv4_addr . inet_service",
            "10.0.0.1 . 80",
            "10.0.0.0/8 timeout 1h",
            "192.0.2.1-192.0.2.9",
            "255.255.255.255",
            "fd00::/8",
            "10.0.0.0/8 . tcp . 1-9",
            "192.0.2.1 . udp . 53",
            "80 : accept",
            "81 : jump sub",
            "tcp . 80 : 10.0.0.7 . 8080",
            '"eth0" . 0x00000007',
            '"eth9" : 0x00000009',
            "ip daddr . tcp dport @pairs accept",
            "ip saddr != @wide drop",
            "ip daddr . meta l4proto . th dport @both accept",
            "tcp dport vmap @verdicts",
            "meta l4proto . th dport map @targets",
        ):
            assert text in ruleset
        assert sorted(kernel.elements(pairs)) == [bytes((10, 0, 0, n, 0, 79 + n, 0, 0)) for n in (1, 2)]
        kernel.commit(Transaction().delete_elements(pairs, [Element(("10.0.0.1", 80))]).delete_elements(wide, [Element(ip_network("10.0.0.0/8"))]))
        assert kernel.elements(pairs) == [bytes((10, 0, 0, 2, 0, 81, 0, 0))]
        assert len(kernel.elements(wide)) == 2
        kernel.commit(Transaction().add_elements(pairs, [Element(("10.0.0.2", 81))], exist_ok=True))
        with pytest.raises(SetupError, match=r"add elements to inet t pairs: EEXIST .*already"):
            kernel.commit(Transaction().add_elements(pairs, [Element(("10.0.0.2", 81))]))
        kernel.commit(Transaction().flush(pairs))
        assert kernel.elements(pairs) == []


@alone
def test_ten_thousand_elements_go_in_at_once() -> None:
    many = Set(IP, "many", (IPV4, PORT))
    with Nftables.here() as kernel:
        kernel.commit(Transaction().add(IP).add(many).add_elements(many, [Element((f"10.0.{n >> 8}.{n & 255}", n)) for n in range(10000)]))
        deadline = time.monotonic() + patience(60)
        while len(found := set(kernel.elements(many))) < 10000 and time.monotonic() < deadline:
            pass  # the kernel still moves them to a larger table, and says fewer
        assert len(found) == 10000


@alone
def test_rules_are_inserted_flushed_and_deleted_by_handle() -> None:
    chain = Chain(IP, "c")
    with Nftables.here() as kernel:
        kernel.commit(Transaction().add(IP).add(chain))
        (second,) = kernel.commit(Transaction().add(rule(chain, [accept], comment="second")))
        first, third = kernel.commit(Transaction().insert(rule(chain, [drop], comment="first")).add(rule(chain, [return_], comment="third")))
        assert [(found.handle, found.comment) for found in kernel.rules(chain)] == [(first, "first"), (second, "second"), (third, "third")]
        assert kernel.rules(chain)[0].expressions == ("immediate",)
        kernel.commit(Transaction().delete_rule(chain, second))
        assert [found.handle for found in kernel.rules(chain)] == [first, third]
        kernel.commit(Transaction().flush(chain))
        assert kernel.rules(chain) == []
        kernel.commit(Transaction().delete(chain).delete(IP))
        assert kernel.tables() == []


@alone
def test_a_transaction_is_carried_out_whole_or_not_at_all() -> None:
    chain = Chain(IP, "c")
    with Nftables.here() as kernel:
        with pytest.raises(SetupError, match="add rule to ip t missing: immediate: ENOENT") as caught:
            kernel.commit(Transaction().add(IP).add(chain).add(rule(Chain(IP, "missing"), [accept])).add(rule(chain, [drop])))
        assert (caught.value.errno, caught.value.step) == (errno.ENOENT, "nftables")
        assert said("nft", "list", "ruleset") == ""
        with pytest.raises(SetupError, match="delete table ip t: ENOENT"):
            kernel.commit(Transaction().delete(IP))
        kernel.commit(Transaction().add(IP).add(IP, exist_ok=True))  # the socket still serves
        with pytest.raises(SetupError, match=r"add table ip t: EEXIST .*already"):
            kernel.commit(Transaction().add(IP))
        assert kernel.commit(Transaction()) == ()


@alone
def test_counters_count() -> None:
    out = Chain(IP, "out", hook="output")
    said("ip", "link", "set", "lo", "up")
    with Nftables.here() as kernel, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        kernel.commit(Transaction().add(IP).add(out).add(rule(out, [udp_dport(9), counter()])))
        for _ in range(3):
            sender.sendto(b"12345", ("127.0.0.1", 9))
        (found,) = kernel.rules(out)
        assert (found.packets, found.octets) == (3, 3 * (20 + 8 + 5))


@alone
def test_an_owned_table_is_nobody_elses_and_goes_with_its_socket() -> None:
    mine = Table("ip", "mine", owner=True)
    chain = Chain(mine, "c", hook="forward")
    with Nftables.here() as other:
        with Nftables.here() as kernel:
            kernel.commit(Transaction().add(mine).add(chain).add(rule(chain, [drop])))
            other.commit(Transaction().add(INET))
            assert set(other.tables()) == {mine, INET}
            said("nft", "flush", "ruleset")
            assert other.tables() == [mine]
            assert len(kernel.rules(chain)) == 1
            for change in (Transaction().delete(mine), Transaction().add(rule(chain, [accept])), Transaction().flush(chain)):
                with pytest.raises(SetupError, match=r"EPERM .*owner"):
                    other.commit(change)
        assert other.tables() == []


@alone
def test_sockets_are_closed_in_time_and_are_not_handed_on() -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with Nftables.here() as kernel:
        assert not os.get_inheritable(kernel.fileno())
        kernel.commit(Transaction().add(IP))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_kernel_that_lacks_it_is_named_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_socket(*_: object, **__: object) -> socket.socket:
        raise OSError(errno.EPROTONOSUPPORT, "Protocol not supported")

    with monkeypatch.context() as patched:
        patched.setattr("sandbox.net._nft_kernel.socket.socket", no_socket)
        with pytest.raises(UnsupportedError, match="modprobe nf_tables"):
            Nftables.here()


@alone
@pytest.mark.parametrize(
    ("at", "code", "feature"),
    [(0, errno.EOPNOTSUPP, "nf_tables"), (1, errno.EOPNOTSUPP, "NFT_TABLE_F_OWNER"), (1, errno.EINVAL, "NFT_TABLE_F_OWNER"), (2, errno.EAFNOSUPPORT, "nf_tables ip")],
)
def test_an_older_kernel_is_named_in_words(monkeypatch: pytest.MonkeyPatch, at: int, code: int, feature: str) -> None:
    def refuse(_: Nftables):
        body = struct.pack("=i", -code) + netlink.HEAD.pack(netlink.HEAD.size, 0, 0, 1 + at, 0)
        yield netlink.ERROR, 0, 1 + at, body

    monkeypatch.setattr(Nftables, "_answers", refuse)
    with Nftables.here() as kernel, pytest.raises(UnsupportedError) as caught:
        kernel.commit(Transaction().add(Table("ip", "mine", owner=True)).add(Chain(IP, "c")))
    assert caught.value.feature == feature
