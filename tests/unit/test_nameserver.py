"""The name server's loop on loopback addresses: what is passed on and what comes back, and what those who ask cannot do."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import dnslib
import pytest

from sandbox._networks import nameserver
from sandbox._networks.nameserver import Server
from sandbox._networks.opener import Host, Opener, Quota
from sandbox.net.openings import Found
from sandbox.net.roster import Member, Writer

PATIENCE_S = 10.0
pytestmark = pytest.mark.unprivileged


def question(name: str, kind: str = "A") -> bytes:
    return bytes(dnslib.DNSRecord.question(name, kind).pack())


def response(packet: bytes, *addresses: str, tc: int = 0, rcode: int = 0) -> bytes:
    reply = dnslib.DNSRecord.parse(packet).reply()
    reply.header.tc, reply.header.rcode = tc, rcode
    for address in addresses:
        reply.add_answer(dnslib.RR(reply.q.qname, 1, rdata=dnslib.A(address), ttl=9))
    return bytes(reply.pack())


def sharing(*addresses: str) -> list[tuple[socket.socket, socket.socket]]:
    """Sockets for UDP and TCP at each address, all with one number: what the kernel gives for the first, another process may have at the next."""
    while True:
        with ExitStack() as opened:
            try:
                pairs, port = [], 0
                for address in addresses:
                    udp = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                    udp.bind((address, port))
                    port = udp.getsockname()[1]
                    pairs.append((udp, opened.enter_context(socket.create_server((address, port)))))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
            else:
                opened.pop_all()
                return pairs


class Upstream:
    """A server outside, at *sockets*; *answers* makes all datagrams that it sends for one that it gets, and the one message over TCP."""

    def __init__(self, sockets: tuple[socket.socket, socket.socket], answers: Callable[[bytes, bool], list[bytes]]) -> None:
        self.asked: list[tuple[bytes, int]] = []
        self._answers = answers
        self._udp, self._tcp = sockets
        self.port = self._udp.getsockname()[1]
        self._stop, self._stopped = os.pipe()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while True:
            ready, _, _ = select.select([self._udp.fileno(), self._tcp.fileno(), self._stop], [], [])
            if self._stop in ready:
                return
            if self._udp.fileno() in ready:
                packet, source = self._udp.recvfrom(4096)
                self.asked.append((packet, source[1]))
                for answer in self._answers(packet, False):
                    self._udp.sendto(answer, source)
            if self._tcp.fileno() in ready:
                with self._tcp.accept()[0] as peer:
                    packet = receive(peer)
                    self.asked.append((packet, 0))
                    for answer in self._answers(packet, True):
                        peer.sendall(len(answer).to_bytes(2, "big") + answer)

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        os.close(self._stop)
        self._udp.close()
        self._tcp.close()


def receive(sock: socket.socket) -> bytes:
    """One message over TCP; b"": the other side has closed."""
    data = b""
    while len(data) < 2 or len(data) < 2 + int.from_bytes(data[:2], "big"):
        try:
            more = sock.recv(65535)
        except ConnectionResetError:
            return b""
        if not more:
            return b""
        data += more
    return data[2:]


class Nameserver:
    """One network, 127.0.0.0/8, in which *members* are; run by a thread."""

    def __init__(self, *, forwards: bool = True, host_servers: tuple[str, ...] = (), **options: object) -> None:
        self.writer = Writer("net", ["127.0.0.0/8"], forwards=forwards, **options)
        udp, tcp = sharing("127.0.0.1")[0]
        self.at = udp.getsockname()
        self.server = Server(lambda: self.server.loop.later(0, lambda: self.server.set_host_servers(host_servers)))
        self.knocks, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.knocks.settimeout(PATIENCE_S)
        self.server.add(1, [os.dup(self.writer.fd), udp.detach(), tcp.detach(), theirs.detach()])
        self._stop, self._stopped = os.pipe()
        self._is_over = False
        self.server.loop.watch(self._stop, select.EPOLLIN, self._end)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _end(self, _: int) -> None:
        self._is_over = True

    def _run(self) -> None:
        while not self._is_over:
            self.server.loop.turn()

    def close(self) -> None:
        os.close(self._stopped)
        self._thread.join()
        self.server.drop(1)
        self.knocks.close()
        os.close(self._stop)
        self.server.loop._epoll.close()
        self.server.host.close()
        self.writer.close()

    def client(self, address: str, kind: int = socket.SOCK_DGRAM) -> socket.socket:
        sock = socket.socket(socket.AF_INET, kind)
        sock.settimeout(PATIENCE_S)
        sock.bind((address, 0))
        sock.connect(self.at)
        return sock

    def ask(self, packet: bytes, client: str = "127.0.0.2") -> dnslib.DNSRecord:
        with self.client(client) as sock:
            sock.send(packet)
            return dnslib.DNSRecord.parse(sock.recv(65535))

    def ask_tcp(self, packet: bytes, client: str = "127.0.0.2") -> dnslib.DNSRecord:
        with self.client(client, socket.SOCK_STREAM) as sock:
            sock.sendall(len(packet).to_bytes(2, "big") + packet)
            return dnslib.DNSRecord.parse(receive(sock))


Make = Callable[..., Nameserver]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Nameserver, Upstream]]]:
    running: list[Nameserver | Upstream] = []

    def build(answers: Callable[[bytes, bool], list[bytes]] = lambda packet, _: [response(packet, "192.0.2.7")], **options: object) -> tuple[Nameserver, Upstream]:
        upstream = Upstream(sharing("127.0.0.53")[0], answers)
        running.append(upstream)
        monkeypatch.setattr(nameserver, "_PORT", upstream.port)
        names = Nameserver(host_servers=("127.0.0.53",), **options)
        running.append(names)
        names.writer.join(Member("a", ["127.0.0.2"], ["web"]))
        names.writer.join(Member("b", ["127.0.0.3"], ["db"]))
        return names, upstream

    yield build
    for one in reversed(running):
        one.close()


def addresses(record: dnslib.DNSRecord) -> list[str]:
    return [str(rr.rdata) for rr in record.rr]


def test_names_are_answered_over_both_ways_and_what_is_written_counts_at_once(make) -> None:
    names, upstream = make()
    assert addresses(names.ask(question("db"))) == addresses(names.ask_tcp(question("db"))) == ["127.0.0.3"]
    for number in range(100):
        names.writer.join(Member("c", ["127.0.0.4"], [f"c{number}"]))
        assert addresses(names.ask(question(f"c{number}"))) == ["127.0.0.4"]
        names.writer.leave("c")
    assert addresses(names.ask(question("c99"))) == ["192.0.2.7"]
    assert len(upstream.asked) == 1


def test_what_is_passed_on_comes_back_with_its_number_and_goes_out_with_another_from_another_port(make) -> None:
    names, upstream = make()
    packet = question("example.org")
    for _ in range(20):
        record = names.ask(packet)
        assert record.header.id == int.from_bytes(packet[:2], "big")
        assert addresses(record) == ["192.0.2.7"]
    assert {sent[2:] for sent, _ in upstream.asked} == {packet[2:]}
    assert len({sent[:2] for sent, _ in upstream.asked}) > 15
    assert len({port for _, port in upstream.asked}) > 15


def test_no_such_name_is_what_the_server_outside_says(make) -> None:
    names, _ = make(lambda packet, _: [response(packet, rcode=3)])
    assert names.ask(question("example.org")).header.rcode == 3


def test_false_answers_from_outside_are_not_taken(make) -> None:
    def answers(packet: bytes, _: bool) -> list[bytes]:
        good = response(packet, "192.0.2.7")
        other_number = bytes([good[0] ^ 1, *good[1:]])
        return [b"", good[:11], other_number, response(packet[:2] + question("evil.org")[2:], "192.0.2.66"), packet, good]

    names, _ = make(answers)
    assert addresses(names.ask(question("example.org"))) == ["192.0.2.7"]


def test_what_is_too_long_for_udp_comes_over_tcp(make) -> None:
    many = [f"192.0.2.{number}" for number in range(200)]
    names, upstream = make(lambda packet, over_tcp: [response(packet, *many) if over_tcp else response(packet, tc=1)])
    assert names.ask(question("example.org")).header.tc == 1
    assert addresses(names.ask_tcp(question("example.org"))) == many
    assert len(upstream.asked) == 2


def test_an_answer_that_is_larger_than_the_client_takes_is_cut(make) -> None:
    many = [f"192.0.2.{number}" for number in range(100)]
    names, _ = make(lambda packet, _: [response(packet, *many)])
    record = names.ask(question("example.org"))
    assert (record.header.tc, addresses(record)) == (1, [])


def test_the_next_server_is_asked_when_one_refuses_fails_or_is_silent(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "_TRY_S", 0.1)
    names, _ = make()
    good, *others = sharing("127.0.0.53", "127.0.0.54", "127.0.0.55")
    willing = Upstream(good, lambda packet, _: [response(packet, "192.0.2.7")])
    silent = Upstream(others[0], lambda *_: [])
    failing = Upstream(others[1], lambda packet, _: [response(packet, rcode=2)])
    monkeypatch.setattr(nameserver, "_PORT", willing.port)
    try:
        for first in ("127.0.0.54", "127.0.0.55", "127.0.0.56"):  # nobody listens at the last
            names.writer.join(Member("a", ["127.0.0.2"], ["web"], servers=[first, "127.0.0.53"]))
            for ask in (names.ask, names.ask_tcp):
                assert addresses(ask(question("example.org"))) == ["192.0.2.7"]
        names.writer.join(Member("a", ["127.0.0.2"], ["web"], servers=["127.0.0.54", "127.0.0.55", "127.0.0.56"]))
        assert names.ask(question("example.org")).header.rcode == 2
        assert names.server.outside == 0
        assert len(silent.asked) == 3
    finally:
        for server in (willing, silent, failing):
            server.close()


def test_without_servers_the_answer_is_server_failure(make) -> None:
    names = Nameserver()
    try:
        names.writer.join(Member("a", ["127.0.0.2"], ["web"]))
        assert names.ask(question("example.org")).header.rcode == 2
    finally:
        names.close()


def test_an_internal_network_asks_nobody(make) -> None:
    names, upstream = make(forwards=False)
    for ask in (names.ask, names.ask_tcp):
        assert ask(question("secret.example.org")).header.rcode == 3
    assert upstream.asked == []


def test_strangers_are_not_heard(make) -> None:
    names, upstream = make()
    with names.client("127.0.0.9") as sock, names.client("127.0.0.9", socket.SOCK_STREAM) as stream:
        sock.send(question("web"))
        assert receive(stream) == b""
        assert addresses(names.ask(question("db"))) == ["127.0.0.3"]  # which came later
        sock.settimeout(0)
        with pytest.raises(BlockingIOError):
            sock.recv(1)
    assert upstream.asked == []


def test_one_who_floods_is_not_heard_for_a_while_and_others_are(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "_BURST", 50.0)
    monkeypatch.setattr(nameserver, "_RATE", 0.0)
    names, _ = make()
    with names.client("127.0.0.2") as sock:
        got = 0
        for _ in range(60):
            sock.send(question("web"))
            sock.settimeout(PATIENCE_S if got < 50 else 0.05)
            try:
                sock.recv(512)
                got += 1
            except TimeoutError:
                break
    assert got == 50
    assert addresses(names.ask(question("web"), "127.0.0.3")) == ["127.0.0.2"]


def test_questions_on_their_way_are_bounded_for_each_who_asks(make) -> None:
    names, upstream = make(lambda *_: [])
    packet = question("example.org")
    with names.client("127.0.0.2") as sock:
        for _ in range(nameserver._MOST_OF_CLIENT + 5):
            sock.send(packet)
        refused = [dnslib.DNSRecord.parse(sock.recv(512)) for _ in range(5)]
    assert {record.header.rcode for record in refused} == {2}
    assert names.server.outside == nameserver._MOST_OF_CLIENT
    assert addresses(names.ask(question("web"))) == ["127.0.0.2"]
    assert len(upstream.asked) <= nameserver._MOST_OF_CLIENT


def test_questions_on_their_way_are_bounded_for_each_network(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "_MOST_OF_ZONE", 10)
    names, _ = make(lambda *_: [])
    packet = question("example.org")
    with names.client("127.0.0.2") as one, names.client("127.0.0.3") as two:
        for sock in (one, two):
            for _ in range(8):
                sock.send(packet)
        refused = [dnslib.DNSRecord.parse(two.recv(512)) for _ in range(6)]
    assert ({record.header.rcode for record in refused}, names.server.outside) == ({2}, 10)
    assert nameserver._MOST_OF_ZONE < nameserver._MOST_OUTSIDE


def test_what_the_kernel_refuses_to_open_counts_for_nobody() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    opener, quota = Opener(ours), Quota()
    first, second = (Found(bytes([8, 1, 2, number]), 9) for number in (3, 4))
    assert opener.open(quota, first, [0])
    theirs.close()
    assert not opener.open(quota, first, [0])
    assert not opener.open(quota, second, [0])
    assert (quota.until((first.address, 0)) is None, quota.until((second.address, 0))) == (False, None)
    opener.close()


def test_where_several_servers_open_none_takes_from_what_another_has_told() -> None:
    for is_shared, number in ((False, 0), (True, 6)):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        opener = Opener(ours, is_shared=is_shared)
        assert opener.open(Quota(), Found(bytes((8, 1, 2, 3)), 9), [7])
        assert theirs.recv(100) == bytes((4, number, 0, 7, 8, 1, 2, 3))
        theirs.close()
        opener.close()


def test_connections_are_bounded_and_idle_ones_end(make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nameserver, "_IDLE_S", 1.0)
    names, _ = make()
    held = [names.client("127.0.0.2", socket.SOCK_STREAM) for _ in range(nameserver._MOST_CONNECTIONS)]
    for sock in held:
        sock.sendall(b"\0")  # half of a length
    with names.client("127.0.0.2", socket.SOCK_STREAM) as more:
        assert receive(more) == b""
    assert addresses(names.ask_tcp(question("web"), "127.0.0.3")) == ["127.0.0.2"]
    for sock in held:
        assert receive(sock) == b""
        sock.close()
    assert addresses(names.ask_tcp(question("web"))) == ["127.0.0.2"]


def test_many_questions_on_one_connection_are_all_answered_or_it_ends(make) -> None:
    names, _ = make()
    packets = [question("web", kind) for kind in ("A", "AAAA") * 8]
    with names.client("127.0.0.2", socket.SOCK_STREAM) as sock:
        sock.sendall(b"".join(len(packet).to_bytes(2, "big") + packet for packet in packets))
        data = b""
        while data.count(b"\3web") < len(packets):
            data += sock.recv(65535)
        assert {data.index(packet[:2]) >= 0 for packet in packets} == {True}
    with names.client("127.0.0.2", socket.SOCK_STREAM) as sock:  # who does not read
        packet = question("web")
        sock.settimeout(0.5)
        flood = (len(packet).to_bytes(2, "big") + packet) * 1_000_000
        with pytest.raises((TimeoutError, ConnectionError)):
            sock.sendall(flood)
    assert addresses(names.ask(question("db"), "127.0.0.3")) == ["127.0.0.3"]


def test_rubbish_neither_ends_nor_blocks_it(make) -> None:
    names, _ = make(forwards=False)
    chance = random.Random(1)
    good = question("web")
    with names.client("127.0.0.2") as sock:
        for number in range(1500):
            packet = chance.randbytes(chance.randrange(600)) if number % 2 else good[: chance.randrange(len(good))] + chance.randbytes(chance.randrange(9))
            sock.send(packet)
        sock.send(bytes(60000))
    for data in (b"\0\0", b"\xff\xff" + bytes(100), b"\0\5abcde", len(good).to_bytes(2, "big") + good[:-1] + b"\xff"):
        with names.client("127.0.0.2", socket.SOCK_STREAM) as stream:
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            receive(stream)
    for _ in range(5):  # what was sent may fill its socket: programs ask again, too
        with contextlib.suppress(TimeoutError):
            assert addresses(names.ask(question("db"), "127.0.0.3")) == ["127.0.0.3"]
            break
    else:
        raise AssertionError("no answer")
    assert names._thread.is_alive()


def test_an_allowed_name_is_opened_before_it_is_told_and_others_are_not_asked_for(make) -> None:
    names, upstream = make(only={"example.org": 7})
    packet = question("Example.org")
    names.ask(packet)
    assert names.knocks.recv(99) == bytes([4, 0, 0, 7, 192, 0, 2, 7])
    query = dnslib.DNSRecord.question("example.org")
    query.add_ar(dnslib.EDNS0(udp_len=4096, opts=[dnslib.EDNSOption(65001, b"secret" * 50)]))
    record = names.ask(bytes(query.pack()))
    assert (addresses(record), record.rr[0].ttl, len(record.ar)) == (["192.0.2.7"], 9, 1)
    for name in ("secret.example.org", "example.com", "other.org"):
        assert names.ask(question(name)).header.rcode == 3
    (first, _), (second, _) = upstream.asked
    assert first[2:] == packet[2:]
    assert b"secret" not in second
    assert b"\0\0\x29\4\xd0" in second


def test_no_answer_leads_inside(make) -> None:
    inside = ("127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "198.18.255.2", "127.0.0.53")
    names, _ = make(lambda packet, _: [response(packet, *inside, *(f"8.1.{number}.7" for number in range(40)))], only={"*.org": 0})
    record = names.ask_tcp(question("example.org"))
    assert addresses(record) == [f"8.1.{number}.7" for number in range(26)]  # the first 32, but those
    names, _ = make(lambda packet, _: [response(packet, *inside)], only={"*.org": 0})
    record = names.ask(question("example.org"))
    assert (record.header.rcode, record.rr) == (0, [])
    names.knocks.setblocking(False)
    with pytest.raises(BlockingIOError):
        names.knocks.recv(99)


def test_one_container_has_so_many_opened_at_a_time_and_others_have_theirs(make) -> None:
    names, _ = make(lambda packet, _: [response(packet, *(f"8.1.{number}.{packet[18]}" for number in range(32)))], only={"*.org": 0})

    def ask(letter: int, client: str = "127.0.0.2") -> int:
        code = names.ask_tcp(question(f"aaaaa{chr(letter)}.org"), client).header.rcode
        for _ in range(0 if code else 32):
            names.knocks.recv(99)
        return int(code)

    letters = [letter for letter in range(33, 127) if chr(letter) not in ".\\"]
    assert [ask(letter) for letter in letters[:33]] == [0] * 32 + [2]  # SERVFAIL
    assert [ask(letter) for letter in letters[:33]] == [0] * 32 + [2]  # the same again are no more
    assert ask(letters[33], "127.0.0.3") == 0


def test_the_hosts_addresses_are_its_own() -> None:
    host = Host()
    assert [host.is_own(socket.inet_aton(address)) for address in ("127.0.0.1", "127.255.255.255")] == [True, True]
    assert not host.is_own(socket.inet_aton("8.8.8.8"))
    assert host.is_own(socket.inet_pton(socket.AF_INET6, "::1")) == os.path.exists("/proc/sys/net/ipv6")
    host.close()


def test_a_network_that_goes_takes_its_questions_with_it(make) -> None:
    names, _ = make(lambda *_: [])
    with names.client("127.0.0.2") as sock, names.client("127.0.0.2", socket.SOCK_STREAM) as stream:
        sock.send(question("example.org"))
        assert addresses(names.ask_tcp(question("web"))) == ["127.0.0.2"]  # so both others have been heard
        names.server.loop.later(0, lambda: names.server.drop(1))
        os.write(names._stopped, b"x")  # it wakes up
        assert receive(stream) == b""
    names._thread.join()
    assert names.server.zones == {}
