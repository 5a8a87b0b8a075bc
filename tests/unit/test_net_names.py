"""What a network's name server says, without a socket: the roster that it reads, and its answers, also to those who send it anything."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator

import dnslib
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox._networks.names import listen
from sandbox.errors import SetupError
from sandbox.net import dns
from sandbox.net.dns import Forward, decide
from sandbox.net.roster import Member, Roster, Writer, to_range


class Net:
    def __init__(self, name: str = "net", subnet: str = "10.1.2.0/24", *, forwards: bool = True, **options: object) -> None:
        self.writer = Writer(name, [subnet], forwards=forwards, **options)
        self.roster = Roster(self.writer.fd)

    def join(self, *members: Member) -> None:
        for member in members:
            self.writer.join(member)
        self.roster.refresh()

    def leave(self, key: str) -> None:
        self.writer.leave(key)
        self.roster.refresh()


@pytest.fixture
def net() -> Iterator[Net]:
    made = Net()
    made.join(
        Member("a", ["10.1.2.2"], ["Web", "www"]),
        Member("b", ["10.1.2.3", "fd00::3"], ["db"], servers=["192.0.2.53"]),
        Member("c", ["10.1.2.4"], ["www"], {"DataBase": "b"}),
    )
    yield made
    made.writer.close()


def question(name: str, kind: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, kind).pack())


def ask(packet: bytes, *nets: Net, client: str = "a", over_tcp: bool = False) -> bytes | Forward | None:
    return decide(packet, nets[0].roster.members[client], [net.roster for net in nets], over_tcp=over_tcp)


def answers(name: str, *nets: Net, kind: str = "A", client: str = "a") -> tuple[str, list[str]]:
    found = ask(question(name, kind), *nets, client=client)
    assert isinstance(found, bytes)
    record = dnslib.DNSRecord.parse(found)
    return dnslib.RCODE[record.header.rcode], [str(rr.rdata) for rr in record.rr]


def test_names_and_aliases_are_found_whatever_their_case(net: Net) -> None:
    for name in ("web", "WEB", "web.net", "Web.Net."):
        assert answers(name, net) == ("NOERROR", ["10.1.2.2"])
    assert answers("db", net, kind="AAAA") == ("NOERROR", ["fd00::3"])
    assert answers("db", net, kind="ANY") == ("NOERROR", ["10.1.2.3", "fd00::3"])


def test_what_a_name_here_has_not_is_not_asked_elsewhere(net: Net) -> None:
    for kind in ("AAAA", "MX", "TXT", "HTTPS"):
        assert answers("web", net, kind=kind) == ("NOERROR", [])


def test_those_who_share_a_name_take_turns(net: Net) -> None:
    said = [answers("www", net)[1] for _ in range(4)]
    assert [one[0] for one in said] in (["10.1.2.2", "10.1.2.4"] * 2, ["10.1.2.4", "10.1.2.2"] * 2)
    assert all(sorted(one) == ["10.1.2.2", "10.1.2.4"] for one in said)


def test_a_link_is_for_who_has_it(net: Net) -> None:
    assert answers("database", net, client="c") == ("NOERROR", ["10.1.2.3"])
    assert isinstance(ask(question("database"), net, client="a"), Forward)
    net.leave("b")
    assert answers("database", net, client="c") == ("NXDOMAIN", [])


def test_addresses_have_names(net: Net) -> None:
    assert answers("2.2.1.10.in-addr.arpa", net, kind="PTR") == ("NOERROR", ["web."])
    assert answers("9.2.1.10.in-addr.arpa", net, kind="PTR") == ("NXDOMAIN", [])
    assert isinstance(ask(question("1.0.0.127.in-addr.arpa", "PTR"), net), Forward)
    six = "3." + "0." * 27 + "0.0.d.f.ip6.arpa"
    assert answers(six, net, kind="PTR") == ("NOERROR", ["db."])


def test_strangers_are_asked_for_by_the_containers_servers_then_the_networks() -> None:
    net, other = Net(servers=["192.0.2.1"]), Net("other", "10.9.0.0/24", forwards=False)
    net.join(Member("a", ["10.1.2.2"]), Member("b", ["10.1.2.3"], servers=["192.0.2.53"]))
    assert ask(question("example.org"), net) == Forward(("192.0.2.1",), 512, 29, 1, 0, (), False)
    assert ask(question("example.org"), net, client="b") == Forward(("192.0.2.53",), 512, 29, 1, 0, (), False)
    assert ask(question("example.org"), net, over_tcp=True) == Forward(("192.0.2.1",), 65535, 29, 1, 0, (), False)
    other.join(Member("a", ["10.9.0.2"]))
    assert isinstance(ask(question("example.org"), other, net), Forward)


def test_an_internal_network_asks_nobody_and_an_allow_list_holds() -> None:
    inner, listed, none = Net(forwards=False, servers=["192.0.2.1"]), Net(only={"Example.org": 3}), Net(only={})
    for net in (inner, listed, none):
        net.join(Member("a", ["10.1.2.2"], servers=["192.0.2.53"]))
    for net in (inner, none):
        assert answers("example.org", net) == ("NXDOMAIN", [])
    assert ask(question("EXAMPLE.org"), listed) == Forward(("192.0.2.53",), 512, 29, 1, 0, ((0, (3,)),), True)
    assert answers("example.org", listed, kind="AAAA") == ("NOERROR", [])  # there is no way to one
    assert answers("secret.example.org", listed) == ("NXDOMAIN", [])
    assert answers("1.0.0.127.in-addr.arpa", inner, kind="PTR") == ("NXDOMAIN", [])


def test_a_wildcard_is_for_what_is_below_it_and_a_dot_inside_a_label_is_none() -> None:
    net = Net(only={"*.example.org": 0, "b.example.org": 1, "*.b.example.org": 2, "x.com": 3})
    net.join(Member("a", ["10.1.2.2"], servers=["192.0.2.53"]))
    opens = {"a.example.org": (0,), "b.example.org": (1, 0), "c.b.example.org": (2, 0), "x.com": (3,)}
    for name, groups in opens.items():
        found = ask(question(name), net)
        assert isinstance(found, Forward)
        assert found.opens == ((0, groups),)
    for name in ("example.org", "aexample.org", "example.org.evil.com", "org", "a.x.com", ""):
        assert answers(name, net) == ("NXDOMAIN", [])
    for labels in ((b"x.com",), (b"a.example", b"org"), (b"a.b", b"example", b"org")):
        wire = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
        found = ask(bytes(5) + b"\1" + bytes(6) + wire + b"\0\1\0\1", net)
        assert isinstance(found, bytes)
        assert found[3] & 0xF == dns.NXDOMAIN


def test_each_network_of_a_container_opens_what_its_own_list_says() -> None:
    left, right, free = Net("left", "10.1.0.0/24", only={"x.org": 0}), Net("right", "10.2.0.0/24", only={"y.org": 5}), Net("free", "10.3.0.0/24")
    for number, net in enumerate((left, right, free)):
        net.join(Member("a", [f"10.{number + 1}.0.2"], servers=["192.0.2.53"]))
    found = ask(question("y.org"), left, right)
    assert isinstance(found, Forward)
    assert (found.opens, found.is_listed) == (((1, (5,)),), True)
    found = ask(question("y.org"), left, right, free)
    assert isinstance(found, Forward)
    assert (found.opens, found.is_listed) == (((1, (5,)),), False)
    assert answers("z.org", left, right) == ("NXDOMAIN", [])


def test_a_container_in_two_networks_finds_the_names_of_both_the_first_ones_first() -> None:
    left, right = Net("left", "10.1.0.0/24", forwards=False), Net("right", "10.2.0.0/24", forwards=False)
    left.join(Member("me", ["10.1.0.2"]), Member("x", ["10.1.0.3"], ["same"]))
    right.join(Member("me", ["10.2.0.2"]), Member("y", ["10.2.0.3"], ["same", "only"]))
    assert answers("same", left, right, client="me")[1] == ["10.1.0.3"]
    assert answers("same", right, left, client="me")[1] == ["10.2.0.3"]
    assert answers("only", left, right, client="me")[1] == ["10.2.0.3"]
    assert answers("same.right", left, right, client="me")[1] == ["10.2.0.3"]
    assert answers("only", left, client="x") == ("NXDOMAIN", [])


def test_more_than_fits_is_cut_and_marked_over_udp_only() -> None:
    net = Net(forwards=False)
    net.join(*(Member(f"m{number}", [f"10.1.2.{number}"], ["many"]) for number in range(2, 250)), Member("a", ["10.1.2.250"]))
    short, whole = ask(question("many"), net), ask(question("many"), net, over_tcp=True)
    assert isinstance(short, bytes)
    assert isinstance(whole, bytes)
    parsed = dnslib.DNSRecord.parse(short)
    assert len(short) <= 512
    assert (parsed.header.tc, 0 < len(parsed.rr) < 248) == (1, True)
    parsed = dnslib.DNSRecord.parse(whole)
    assert (parsed.header.tc, len({str(rr.rdata) for rr in parsed.rr})) == (0, 248)
    edns = dnslib.DNSRecord.question("many")
    edns.add_ar(dnslib.EDNS0(udp_len=65535))
    said = ask(bytes(edns.pack()), net)
    assert isinstance(said, bytes)
    assert 512 < len(said) <= dns.MOST_UDP


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda p: p[:2] + b"\x28" + p[3:], "NOTIMP"),  # UPDATE
        (lambda p: p[:4] + b"\0\2" + p[6:], "FORMERR"),
        (lambda p: p[:6] + b"\0\1" + p[8:], "FORMERR"),
        (lambda p: p[:12] + b"\xc0\x0c" + p[14:], "FORMERR"),  # a name that is itself
        (lambda p: p[:-1], "FORMERR"),
        (lambda p: p[:12], "FORMERR"),
        (lambda p: p[:-2] + b"\0\3", "REFUSED"),  # CHAOS
        (lambda p: p[:-4] + b"\0\xfc\0\1", "REFUSED"),  # AXFR
    ],
)
def test_what_is_no_question_is_refused_with_its_number(net: Net, change, code: str) -> None:
    packet = question("web")
    said = ask(change(packet), net)
    assert isinstance(said, bytes)
    assert (said[:2], dnslib.RCODE[said[3] & 0xF], bool(said[2] & 0x80)) == (packet[:2], code, True)
    assert len(said) <= len(packet)


def test_answers_and_scraps_are_not_answered(net: Net) -> None:
    packet = question("web")
    for one in (b"", packet[:11], packet[:2] + b"\x80" + packet[3:]):
        assert ask(one, net) is None


PACKETS = st.one_of(
    st.binary(max_size=600),
    # A good head, and then anything: the parser gets further.
    st.builds(lambda flags, extra, body: b"ab" + flags + b"\0\1\0\0\0\0" + extra.to_bytes(2, "big") + body, st.binary(min_size=2, max_size=2), st.integers(0, 3), st.binary(max_size=300)),
    st.builds(lambda labels, tail: b"ab\1\0\0\1\0\0\0\0\0\1" + b"".join(bytes([len(x)]) + x for x in labels) + b"\0" + tail, st.lists(st.binary(min_size=1, max_size=63), max_size=6), st.binary(max_size=200)),
)


@given(PACKETS, st.booleans())
def test_any_packet_has_a_bounded_answer_or_none(packet: bytes, over_tcp: bool) -> None:
    net = Net(forwards=True)
    net.join(Member("a", ["10.1.2.2"], ["web"]))
    said = ask(packet, net, over_tcp=over_tcp)
    net.writer.close()
    if isinstance(said, bytes):
        assert said[:2] == packet[:2]
        assert said[2] & 0x80
        assert len(said) <= max(len(packet), 12) + 40  # with what it asked for, or less
        if said[3] & 0xF != dns.FORMERR:  # else its name may be what the library could not read
            dnslib.DNSRecord.parse(said)
    elif said is not None:
        assert dns.question_of(packet) == said.end <= len(packet)


@given(st.binary(max_size=600))
def test_no_answer_from_outside_is_taken_for_one_that_was_asked_for(answer: bytes) -> None:
    packet = question("example.org")
    assert dns.matches(packet, answer, len(packet)) == (
        answer[:2] == packet[:2] and len(answer) >= 12 and answer[2] >= 128
        and ((answer[4:6] == b"\0\1" and answer[12 : len(packet)].lower() == packet[12:].lower()) or (answer[4:6] == b"\0\0" and answer[3] & 15 > 0))
    )


def test_an_answer_to_another_question_is_none() -> None:
    packet = question("example.org")
    good = bytes(dnslib.DNSRecord.parse(packet).reply().pack())
    end = len(packet)
    assert dns.matches(packet, good, end)
    assert dns.matches(packet, good.replace(b"example", b"EXAMPLE"), end)
    assert not dns.matches(packet, good.replace(b"example", b"exbmple"), end)
    assert not dns.matches(packet, b"\0\0" + good[2:] if good[:2] != b"\0\0" else b"\1\1" + good[2:], end)
    assert not dns.matches(packet, packet, end)


def test_a_long_answer_becomes_the_word_to_ask_over_tcp() -> None:
    packet = question("example.org")
    answer = bytes(dnslib.DNSRecord.parse(packet).reply().pack()) + bytes(600)
    cut = dns.fitting(packet, answer, 512)
    assert dnslib.DNSRecord.parse(cut).header.tc == 1
    assert len(cut) == len(packet)
    assert dns.fitting(packet, answer, 65535) == answer


def test_the_hosts_servers_are_read_as_the_c_library_does() -> None:
    text = "# nameserver 1.1.1.1\nnameserver 192.0.2.1\nnameserver x\nnameserver\nsearch a\nnameserver fd00::1 # b\nnameserver 10.0.0.1\nnameserver 10.0.0.2\n"
    assert dns.servers_in(text) == ("192.0.2.1", "fd00::1", "10.0.0.1")


# ---- The roster ----

KEYS = st.sampled_from("abcdef")
STEPS = st.lists(st.tuples(st.booleans(), KEYS, st.lists(st.sampled_from(["x", "y", "z"]), max_size=3)), max_size=40)


def state(roster: Roster) -> tuple[object, ...]:
    roster.turn = 0
    return sorted(roster.members), [(name, sorted(member.key for member in roster.named(name))) for name in "xyz"]


@given(STEPS, st.sets(st.integers(0, 39)), st.booleans())
def test_a_reader_sees_what_holds_whenever_it_looks(steps, looks: set[int], compacts: bool) -> None:
    writer = Writer("n", ["10.0.0.0/8"], forwards=True)
    always, late = Roster(writer.fd), Roster(writer.fd)
    expected: dict[str, list[str]] = {}
    for number, (comes, key, names) in enumerate(steps):
        if comes:
            writer.join(Member(key, [f"10.0.0.{ord(key)}"], names))
            expected[key] = names
        else:
            writer.leave(key)
            expected.pop(key, None)
        if compacts and number % 7 == 6:
            writer._compact()
        if number in looks:
            always.refresh()
            assert sorted(always.members) == sorted(expected)
    always.refresh()
    late.refresh()
    assert state(always) == state(late) == (sorted(expected), [(name, sorted(k for k, names in expected.items() if name in names)) for name in "xyz"])
    assert (late.name, late.subnets, late.forwards) == ("n", (to_range("10.0.0.0/8"),), True)
    writer.close()


def test_a_roster_of_many_who_came_and_went_stays_small() -> None:
    writer = Writer("n", ["10.0.0.0/8"], forwards=True)
    slow = Roster(writer.fd)
    writer.join(Member("stays", ["10.0.0.2"], ["stays"]))
    slow.refresh()
    for number in range(5000):
        writer.join(Member(f"k{number}", ["10.0.0.3"], ["comes", "goes"]))
        writer.leave(f"k{number}")
    assert os.fstat(writer.fd).st_blocks * 512 < 1 << 18
    slow.refresh()
    assert list(slow.members) == ["stays"]
    assert slow.at("10.0.0.3") is None
    writer.close()


def test_a_line_counts_once_it_is_whole() -> None:
    writer = Writer("n", ["10.0.0.0/8"], forwards=True)
    roster = Roster(writer.fd)
    line = Member("k", ["10.0.0.3"], ["web"]).line()
    assert json.loads(line)[0] == "join"
    writer._append(line[:20])
    roster.refresh()
    assert not roster.members
    writer._append(line[20:])
    roster.refresh()
    assert roster.named("web")[0].addresses == ("10.0.0.3",)
    writer.close()


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_nobody_listens_where_another_network_does(kind: int) -> None:
    with socket.socket(socket.AF_INET, kind) as one, socket.socket(socket.AF_INET, kind) as two:
        listen([one], "127.0.0.1", 1, 0)
        with pytest.raises(SetupError, match="listen for names"):
            listen([two], "127.0.0.1", 1, one.getsockname()[1])


def test_a_link_by_name_means_whoever_has_that_in_its_network() -> None:
    left, right = Net("left", "10.1.0.0/24", forwards=False), Net("right", "10.2.0.0/24", forwards=False)
    left.join(Member("me", ["10.1.0.2"]), Member("x", ["10.1.0.3"], ["db"]))
    right.join(Member("me", ["10.2.0.2"], links={"store": "@DB"}))
    assert answers("store", left, right, client="me") == ("NXDOMAIN", [])  # not the other network's "db"
    right.join(Member("y", ["10.2.0.3"], ["db"]))
    assert answers("store", left, right, client="me") == ("NOERROR", ["10.2.0.3"])
    assert answers("store", right, client="y") == ("NXDOMAIN", [])
    right.leave("y")
    right.join(Member("z", ["10.2.0.4"], ["db"]))
    assert answers("Store", right, left, client="me") == ("NOERROR", ["10.2.0.4"])
