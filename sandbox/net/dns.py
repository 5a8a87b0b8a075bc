"""What a network's name server says to a query: bytes in; an answer, or where to ask outside. No socket, no clock.

Those who ask are attackers. Of a packet the library (dnslib) sees only what has passed `question_of`: one question, whose name is not
compressed, no answers, and at most two additional records; so what it does for one is bounded. Where it fails nevertheless, the
answer is FORMERR, made of the first bytes of the query.

A container is asked for by those that share a network with it, and it is the asking container's networks that count: the one in which it asks
first, then its others. Links count only for who has them. A name of somebody here is answered here, whatever is asked of it: "no such
data", rather than asking strangers. So is the name of an address in a network's subnet. The time to live is 0: who goes is gone.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import dnslib  # pyright: ignore[reportMissingTypeStubs]

from sandbox.net.roster import BY_NAME, Member, Roster, to_number

HEAD: Final = 12  # bytes of a DNS header (RFC 1035, 4.1.1)
MOST: Final = 4096  # bytes of a query
LEAST_UDP: Final = 512  # bytes that every client takes (RFC 1035, 2.3.4)
MOST_UDP: Final = 1232  # that we send to whoever says that it takes more: never a fragment (https://www.dnsflagday.net/2020/)
MOST_TCP: Final = 65535
NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
_A, _PTR, _AAAA, _OPT, _IXFR, _AXFR, _ANY = 1, 12, 28, 41, 251, 252, 255
_IN: Final = 1
_MOST_ADDITIONAL: Final = 2  # EDNS, and a signature
_MOST_NAME: Final = 255


class Forward(NamedTuple):
    """Ask outside. *servers*: (): the host's. *size*: of the largest answer. *end*: of the question, in the packet; *kind*: what it asks for.

    *opens*: which rosters, by their number, have something opened for an answer, and which groups. *is_listed*: no network lets everything be asked.
    """

    servers: tuple[str, ...]
    size: int
    end: int
    kind: int
    edns: int  # how long an answer to us may be, where the client knows EDNS; or 0
    opens: tuple[tuple[int, tuple[int, ...]], ...]
    is_listed: bool


def decide(packet: bytes, client: Member, rosters: Sequence[Roster], *, over_tcp: bool) -> bytes | Forward | None:
    """What to do with *packet* of *client*, who is in *rosters*, that where it asks first. None: nothing; it is no query."""
    end = question_of(packet)
    if not end:
        return None if len(packet) < HEAD or packet[2] & 0x80 else bare(packet, FORMERR)
    if packet[2] >> 3 & 0xF:
        return bare(packet, NOTIMP)
    try:
        query: Any = dnslib.DNSRecord.parse(packet)  # pyright: ignore[reportUnknownMemberType]
        kind, labels = int(query.q.qtype), _labels(query.q.qname)
    except Exception:  # noqa: BLE001 - the library's errors are of many kinds, and whatever it is, it is the packet
        return bare(packet, FORMERR)
    if query.q.qclass != _IN or kind in (_AXFR, _IXFR):
        return bare(packet, REFUSED)
    found = _find(".".join(labels), kind, client, rosters)
    if found is not None:
        return _reply(query, found[0], found[1], kind, MOST_TCP if over_tcp else size_of(query))
    # A dot inside a label would make two names of what is one.
    ways = [None if any("." in label for label in labels) and roster.only is not None else roster.opens(labels) for roster in rosters]
    if all(groups is None for groups in ways):
        return _reply(query, NXDOMAIN, (), kind, LEAST_UDP)
    opens = tuple((number, groups) for number, groups in enumerate(ways) if groups)
    is_listed = () not in ways
    if is_listed and kind == _AAAA and not any(has_ipv6(rosters[number]) for number, _ in opens):
        return _reply(query, NOERROR, (), kind, LEAST_UDP)
    servers = client.servers or next((roster.servers for roster in rosters if roster.servers), ())
    edns = MOST_UDP if any(record.rtype == _OPT for record in query.ar) else 0
    return Forward(servers, MOST_TCP if over_tcp else size_of(query), end, kind, edns, opens, is_listed)


def has_ipv6(roster: Roster) -> bool:
    """Whether its network has addresses of IPv6."""
    return any(family == socket.AF_INET6 for family, _, _ in roster.subnets)


def question_of(packet: bytes) -> int:
    """Where the question of a query ends; 0: it is no query, or none that anybody sends."""
    if len(packet) < HEAD or packet[2] & 0x80:
        return 0
    questions, answers, authorities, additional = (int.from_bytes(packet[at : at + 2], "big") for at in (4, 6, 8, 10))
    if questions != 1 or answers or authorities or additional > _MOST_ADDITIONAL:
        return 0
    at = HEAD
    while at < len(packet) and packet[at]:
        if packet[at] > 63:  # a pointer, or a kind of label that does not exist
            return 0
        at += packet[at] + 1
    end = at + 5  # the root's label, type and class
    return end if at - HEAD < _MOST_NAME and end <= len(packet) else 0


def bare(packet: bytes, code: int, *, truncated: bool = False) -> bytes:
    """The head of an answer to *packet*, with its question if that can be told."""
    end = question_of(packet)
    flags = bytes([packet[2] & 0x79 | 0x80 | truncated << 1, 0x80 | code])
    return packet[:2] + flags + (1 if end else 0).to_bytes(2, "big") + bytes(6) + packet[HEAD : end or HEAD]


def size_of(query: Any) -> int:  # noqa: ANN401 - dnslib has no types
    """Of the largest answer that the client takes over UDP."""
    said = [int(record.rclass) for record in query.ar if record.rtype == _OPT]
    return min(max([LEAST_UDP, *said]), MOST_UDP)


def fitting(packet: bytes, answer: bytes, size: int) -> bytes:
    """*answer* to *packet*, if it has no more than *size* bytes; else the word that over TCP there is more."""
    return answer if len(answer) <= size else bare(packet, answer[3] & 0xF, truncated=True)


def matches(packet: bytes, answer: bytes, end: int) -> bool:
    """Whether *answer* is one to the query *packet*, whose question ends at *end*: the same number and question."""
    if len(answer) < HEAD or answer[:2] != packet[:2] or not answer[2] & 0x80:
        return False
    if answer[4:6] == b"\0\0" and answer[3] & 0xF:  # a server that fails may leave the question out
        return True
    return answer[4:6] == b"\0\1" and answer[HEAD:end].lower() == packet[HEAD:end].lower()


def _labels(name: Any) -> list[str]:  # noqa: ANN401
    # What a label has beside letters is nobody's name here: it only has to stay what it is.
    return [bytes(label).decode("latin-1").lower() for label in name.label]


# ---- Who is meant ----


def _find(name: str, kind: int, client: Member, rosters: Sequence[Roster]) -> tuple[int, Sequence[str]] | None:
    """The code, and addresses (for PTR: names), of what is ours to say; None: it is not."""
    if kind == _PTR and (address := _reverse(name)):
        return _name_of(address, rosters)
    is_link = False
    for roster in rosters:
        meant = roster.members.get(client.key, client).links.get(name)  # a link may be of one network
        is_link = is_link or meant is not None
        members = ([] if meant is None else _linked(meant, roster)) or _named(name, roster)
        if members:
            return NOERROR, [address for member in members for address in member.addresses]
    # A link to somebody who has gone is nobody else's name.
    return (NXDOMAIN, ()) if is_link else None


def _linked(meant: str, roster: Roster) -> list[Member]:
    """Whom a link means, if he is there."""
    if meant.startswith(BY_NAME):
        return _named(meant.removeprefix(BY_NAME).lower(), roster)
    member = roster.members.get(meant)
    return [] if member is None else [member]


def _named(name: str, roster: Roster) -> list[Member]:
    """By its name, or with the network's name behind it."""
    return roster.named(name) or (roster.named(name.removesuffix(f".{roster.name}")) if name.endswith(f".{roster.name}") else [])


def _name_of(address: str, rosters: Sequence[Roster]) -> tuple[int, Sequence[str]] | None:
    family, number = to_number(address)
    for roster in rosters:
        member = roster.at(address)
        if member is not None and member.names:
            return NOERROR, member.names[:1]
        if any(kind == family and first <= number <= last for kind, first, last in roster.subnets):
            return NXDOMAIN, ()
    return None


def _reverse(name: str) -> str:
    """The address that a name below in-addr.arpa or ip6.arpa stands for; "": none."""
    labels = name.split(".")
    if name.endswith(".in-addr.arpa") and len(labels) == 6:
        text, family = ".".join(reversed(labels[:4])), socket.AF_INET
    elif name.endswith(".ip6.arpa") and len(labels) == 34 and all(len(label) == 1 for label in labels[:32]):
        digits = "".join(reversed(labels[:32]))
        text, family = ":".join(digits[at : at + 4] for at in range(0, 32, 4)), socket.AF_INET6
    else:
        return ""
    try:
        return socket.inet_ntop(family, socket.inet_pton(family, text))
    except (OSError, ValueError):
        return ""


def _reply(query: Any, code: int, found: Sequence[str], kind: int, size: int) -> bytes:  # noqa: ANN401
    reply: Any = query.reply(ra=1, aa=1)
    reply.header.rcode = code
    if any(record.rtype == _OPT for record in query.ar):
        reply.add_ar(dnslib.EDNS0(udp_len=MOST_UDP))
    answers = _records(query.q.qname, found, kind)
    # An owner that was said before takes two bytes (RFC 1035, 4.1.4), what precedes an address ten, and that sixteen at most.
    most = (size - len(reply.pack())) // 28 if kind != _PTR else 1
    reply.add_answer(*answers[: max(0, most)])
    reply.header.tc = len(answers) > most  # some clients are content with a part (musl before 1.2.4); the others ask again, over TCP
    return bytes(reply.pack())


def _records(owner: Any, found: Sequence[str], kind: int) -> list[Any]:  # noqa: ANN401
    if kind == _PTR:
        return [dnslib.RR(owner, _PTR, rdata=dnslib.PTR(text.encode()), ttl=0) for text in found]  # of text, it would make IDNA
    four = [dnslib.RR(owner, _A, rdata=dnslib.A(text), ttl=0) for text in found if ":" not in text and kind in (_A, _ANY)]
    return four + [dnslib.RR(owner, _AAAA, rdata=dnslib.AAAA(text), ttl=0) for text in found if ":" in text and kind in (_AAAA, _ANY)]


def servers_in(text: str) -> tuple[str, ...]:
    """The name servers of a resolv.conf(5), three at most, as the C library has it."""
    found: list[str] = []
    for line in text.split("\n"):
        words = line.split()
        if len(words) > 1 and words[0] == "nameserver":
            try:
                to_number(words[1])
            except (OSError, ValueError):
                continue
            found.append(words[1])
    return tuple(found[:3])
