"""Captured packets: a block of the kernel's becomes the records of a file, within every bound."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from sandbox.net import pcap
from sandbox.net.pcap import BLOCK, PACKET, RECORD_HEAD, VLAN, VLAN_TYPE, Budget, records

PLENTY = 1 << 40


@frozen
class Packet:
    data: bytes
    length: int
    seconds: int = 7
    ns: int = 999_999_999
    tag: int | None = None
    tag_type: int | None = None


def block_of(packets: Sequence[Packet]) -> bytes:
    body = b""
    for at, packet in enumerate(packets):
        mac = PACKET.size + 20
        size = (mac + len(packet.data) + 7) & ~7
        status = 1 | (0 if packet.tag is None else VLAN) | (0 if packet.tag_type is None else VLAN_TYPE)
        step = 0 if at == len(packets) - 1 else size
        head = PACKET.pack(step, packet.seconds, packet.ns, len(packet.data), packet.length, status, mac, mac + 14, packet.tag or 0, packet.tag_type or 0)
        body += (head + bytes(20) + packet.data).ljust(size, b"\0")
    return BLOCK.pack(1, len(packets), 48, 48 + len(body)).ljust(48, b"\0") + body


def read(data: bytes) -> list[Packet]:
    found: list[Packet] = []
    at = 0
    while at < len(data):
        seconds, ns, here, length = RECORD_HEAD.unpack_from(data, at)
        at += RECORD_HEAD.size
        assert at + here <= len(data)
        found.append(Packet(data[at : at + here], length, seconds, ns))
        at += here
    return found


@st.composite
def packets(draw: st.DrawFn) -> Packet:
    data = draw(st.binary(min_size=14, max_size=100))
    return Packet(data, len(data) + draw(st.integers(0, 1 << 16)), draw(st.integers(0, 1 << 31)), draw(st.integers(0, 999_999_999)))


def test_structures_are_those_of_the_kernel_as_far_as_they_are_read() -> None:
    assert (PACKET.size, BLOCK.size, RECORD_HEAD.size, pcap.FILE_HEAD.size, pcap.REQUEST.size, pcap.STATISTICS.size) == (40, 24, 16, 24, 28, 12)


def test_a_file_begins_as_tcpdump_expects_it() -> None:
    assert struct.unpack("=IHHiIII", pcap.file_head(65535)) == (0xA1B23C4D, 2, 4, 0, 0, 65535, 1)


@given(st.lists(packets(), max_size=20))
def test_every_packet_comes_out_as_it_went_in(given_: list[Packet]) -> None:
    budget = Budget(PLENTY)
    assert read(b"".join(records(block_of(given_), 65535, budget))) == given_
    assert budget.taken == len(given_)
    assert not budget.is_spent


@given(st.lists(packets(), max_size=10), st.integers(1, 120), st.integers(0, 1000), st.none() | st.integers(1, 12))
def test_no_bound_is_crossed(given_: list[Packet], snaplen: int, octets: int, most: int | None) -> None:
    budget = Budget(octets, most)
    data = b"".join(records(block_of(given_), snaplen, budget))
    assert len(data) == octets - budget.octets <= octets
    found = read(data)
    assert len(found) == budget.taken <= (len(given_) if most is None else most)
    assert [(packet.data, packet.length) for packet in found] == [(packet.data[:snaplen], packet.length) for packet in given_[: len(found)]]
    if len(found) < len(given_):
        assert budget.is_spent
        assert records(block_of(given_), snaplen, budget) == []


def test_a_budget_of_packets_is_spent_with_the_last_one() -> None:
    budget = Budget(PLENTY, 2)
    assert [budget.take(10), budget.is_spent, budget.take(10), budget.is_spent, budget.take(10), budget.taken] == [True, False, True, True, False, 2]


@pytest.mark.parametrize(("tag_type", "octets"), [(None, b"\x81\x00"), (0x88A8, b"\x88\xa8")])
def test_a_tag_that_the_kernel_took_out_is_put_back(tag_type: int | None, octets: bytes) -> None:
    data = bytes(range(14)) + b"payload"
    (found,) = read(b"".join(records(block_of([Packet(data, len(data), tag=0x2005, tag_type=tag_type)]), 65535, Budget(PLENTY))))
    assert (found.data, found.length) == (data[:12] + octets + b"\x20\x05" + data[12:], len(data) + 4)
    (cut,) = read(b"".join(records(block_of([Packet(data, len(data), tag=5)]), 13, Budget(PLENTY))))
    assert cut.data == data[:12] + b"\x81"


@given(st.binary(max_size=300))
def test_bytes_that_are_no_block_are_refused_or_bounded(data: bytes) -> None:
    budget = Budget(4096)
    try:
        parts = records(data, 65535, budget)
    except ValueError:
        return
    assert sum(map(len, parts)) <= 4096
