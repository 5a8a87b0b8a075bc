"""What an answer about an allowed name opens, and what the container is told: whatever is in the answer."""

from __future__ import annotations

import ipaddress

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.net.openings import (
    AAAA,
    INSIDE,
    MOST_ADDRESSES,
    MOST_S,
    MOST_TTL_S,
    TIMES_S,
    A,
    Found,
    addresses_of,
    answer_with,
    class_of,
    is_inside,
    knock,
    question_alone,
)


def packet(name: str = "example.org", kind: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, kind).pack())


def answer(*lines: str, name: str = "example.org", kind: str = "A") -> bytes:
    """Of records in the form of zone files."""
    reply = dnslib.DNSRecord.question(name, kind).reply()
    for line in lines:
        reply.add_answer(*dnslib.RR.fromZone(line))
    return bytes(reply.pack())


def read(data: bytes, kind: int = A) -> list[tuple[str, int]]:
    end = len(packet("example.org"))
    return [(str(ipaddress.ip_address(found.address)), found.ttl) for found in addresses_of(data, end, kind)]


def test_the_names_own_addresses_are_found_and_no_others() -> None:
    found = read(answer("example.org. 60 A 8.8.8.8", "EXAMPLE.org. 0 A 8.8.4.4", "evil.org. 60 A 6.6.6.6", "a.example.org. 60 A 6.6.6.7", "example.org. 60 MX 1 x."))
    assert found == [("8.8.8.8", 60), ("8.8.4.4", 0)]
    assert read(answer("example.org. 60 AAAA 2606::1", "example.org. 60 A 8.8.8.8", kind="AAAA"), AAAA) == [("2606::1", 60)]


def test_aliases_are_followed_as_far_as_they_lead_in_whatever_order_and_the_least_time_counts() -> None:
    chain = ["c.net. 100 A 8.8.8.8", "example.org. 9999999 CNAME b.net.", "b.net. 40 CNAME c.net.", "d.net. 9 A 6.6.6.6"]
    assert read(answer(*chain)) == [("8.8.8.8", 40)]
    assert read(answer("example.org. 9 CNAME b.net.", "c.net. 9 A 6.6.6.6")) == []


def test_aliases_without_end_open_nothing() -> None:
    assert read(answer("example.org. 9 CNAME b.net.", "b.net. 9 CNAME example.org.")) == []
    long = [f"a{number}.net. 9 CNAME a{number + 1}.net." for number in range(99)]
    assert read(answer("example.org. 9 CNAME a0.net.", *long, "a99.net. 9 A 6.6.6.6")) == []


def test_of_a_huge_answer_so_many_are_taken() -> None:
    assert len(read(answer(*(f"example.org. 9 A 8.8.{number // 250}.{number % 250}" for number in range(2000))))) == MOST_ADDRESSES


def test_a_record_of_another_class_or_length_is_no_address() -> None:
    data = bytearray(answer("example.org. 9 A 8.8.8.8"))
    data[data.rindex(b"\0\1\0\1") + 3] = 3  # of CHAOS
    assert read(bytes(data)) == []
    short = answer("example.org. 9 A 8.8.8.8")
    assert read(short[:-6] + b"\0\3\6\6\6") == []


END = len(packet())


@pytest.mark.parametrize("at", range(END, len(answer("example.org. 9 A 8.8.8.8"))))
def test_an_answer_that_is_cut_off_is_refused(at: int) -> None:
    with pytest.raises(ValueError, match=r"name|record"):
        read(answer("example.org. 9 A 8.8.8.8")[:at])


@pytest.mark.parametrize("name", [b"\xc0\x1d", b"\xc0\xff", b"\xc0", b"\x40a\0", b"\x05ab", b"\xc0\x1f\xc0\x1d"])
def test_a_name_that_leads_nowhere_or_in_a_circle_is_refused(name: bytes) -> None:
    with pytest.raises(ValueError, match="name"):
        read(answer()[:6] + b"\0\1" + answer()[8:] + name)


@given(st.binary(max_size=200), st.integers(0, 3000))
def test_whatever_is_answered_is_addresses_or_an_error_of_value(data: bytes, count: int) -> None:
    whole = answer()[:6] + count.to_bytes(2, "big") + answer()[8:] + data
    try:
        found = addresses_of(whole, END, A)
    except ValueError:
        return
    assert all(len(one.address) == 4 and 0 <= one.ttl <= MOST_TTL_S for one in found)


# ---- Inside ----

REBOUND = ["127.0.0.1", "0.0.0.0", "0.1.2.3", "169.254.169.254", "224.0.0.1", "255.255.255.255", "240.0.0.1", "::1", "::", "fe80::1", "ff02::1"]
PRIVATE = ["10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "100.100.100.200", "198.18.255.2", "192.0.0.192", "fd00::1", "fd00:ec2::254", "fec0::1"]
EMBEDDED = ["::ffff:10.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "2002:7f00:1::", "2001:0:7f00:1::1", "64:ff9b::7f00:1", "64:ff9b:1::1", "192.88.99.1"]


@pytest.mark.parametrize("address", [*REBOUND, *PRIVATE, *EMBEDDED])
def test_no_name_leads_to_what_lies_inside(address: str) -> None:
    """DNS rebinding: the owner of a name answers with an address of the victim's."""
    assert is_inside(ipaddress.ip_address(address).packed)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "100.128.0.1", "198.20.0.1", "223.255.255.255", "2606:4700::1111", "2a00::1", "2001:4860:4860::8888"])
def test_names_lead_outside(address: str) -> None:
    assert not is_inside(ipaddress.ip_address(address).packed)


@given(st.ip_addresses())
def test_what_is_outside_is_everybodys_but_for_what_documents_use(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if not is_inside(address.packed):
        assert not any(getattr(address, f"is_{what}") for what in ("loopback", "link_local", "multicast", "unspecified"))
        documents = any(address in ipaddress.ip_network(net) for net in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20"))
        assert address.is_global or documents or address.version == 6


def test_intervals_do_not_overlap() -> None:
    """The kernel would refuse them."""
    for texts in INSIDE.values():
        nets = [ipaddress.ip_network(text) for text in texts]
        assert not any(one is not other and one.overlaps(other) for one in nets for other in nets)


# ---- Times and words ----


def test_a_time_is_never_shorter_than_asked_for_but_has_an_end() -> None:
    assert [TIMES_S[class_of(time)] for time in (0, 60, 61, 3600, 10**9)] == [60, 60, 120, 3840, MOST_S]
    assert MOST_TTL_S + 60 <= MOST_S


def test_a_knock_is_version_class_group_and_address() -> None:
    assert knock(b"\x08\x08\x04\x04", 258, 3) == bytes([4, 3, 1, 2, 8, 8, 4, 4])
    assert knock(bytes(16), 0, 0) == bytes([6, 0, 0, 0]) + bytes(16)


@given(st.lists(st.builds(Found, st.binary(min_size=4, max_size=4), st.integers(0, MOST_TTL_S)), max_size=MOST_ADDRESSES), st.integers(512, 1232), st.sampled_from([0, 1232]))
def test_the_answer_has_what_fits_and_says_whether_there_is_more(found: list[Found], size: int, edns: int) -> None:
    query = packet("Example.org")
    made = answer_with(query, END, A, found, size=size, edns=edns, truncated=False)
    record = dnslib.DNSRecord.parse(made)
    assert len(made) <= size
    assert (record.header.id, record.header.qr, record.header.rcode) == (int.from_bytes(query[:2], "big"), 1, 0)
    assert made[12:END] == query[12:END]
    assert [(str(rr.rdata), rr.ttl) for rr in record.rr] == [(str(ipaddress.ip_address(one.address)), one.ttl) for one in found[: len(record.rr)]]
    assert record.header.tc == (len(record.rr) < len(found))
    assert [rr.rtype for rr in record.ar] == ([41] if edns else [])
    assert dnslib.DNSRecord.parse(answer_with(query, END, A, found, size=size, edns=edns, truncated=True)).header.tc == 1


def test_a_question_goes_out_without_what_was_beside_it() -> None:
    query = dnslib.DNSRecord.question("example.org")
    query.add_ar(dnslib.EDNS0(flags="do", udp_len=4096, opts=[dnslib.EDNSOption(65001, b"secret")]))
    query.header.set_z = 1
    for edns in (0, 1232):
        parsed = dnslib.DNSRecord.parse(question_alone(bytes(query.pack()), END, edns=edns))
        assert (str(parsed.q.qname), parsed.header.rd, [(rr.rclass, rr.rdata) for rr in parsed.ar]) == ("example.org.", 1, [(1232, [])] if edns else [])
