"""The process that answers containers' DNS queries: one for all networks of the embedding process. It runs apart, and nothing here is imported there.

Theory of operation
-------------------
One loop over epoll; nothing blocks. Each network has a UDP and a TCP socket, which were made inside its namespace and keep it, while the
process is in the host's: what a container asks of outside goes out from there, one socket a question, so that port and number are
of the kernel's choosing, and only the server that was asked can answer. The answer goes back as it came, over the way the query came.

Who asks is told by its address: of a network's containers, each has one. Others are not heard. For each there is a bound on questions a
second, on those that are on their way, and on connections; whoever is above gets silence, or "server failure". What comes from outside is
looked at only as far as it is passed on. An exception ends the one packet or connection that it is about.

Where a network has a list of names, only those are asked for, by a query that is made anew, and the answer is what `opener` makes of it.

The roster of a network (`sandbox.net.roster`) is read whenever somebody asks: what was written before a query was sent counts for it.
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

from sandbox._networks.opener import Host, Opener, Quota, answered
from sandbox.net import dns
from sandbox.net.openings import question_alone
from sandbox.net.roster import Roster
from sandbox.net.shared_roster import SharedRoster

_BATCH: Final = 32  # packets of one socket before others have their turn
_RATE: Final = 1000.0  # queries a second of one container, in the long run
_BURST: Final = 2000.0
_MOST_CLIENTS: Final = 1 << 16  # whose rate is remembered
_MOST_OF_CLIENT: Final = 64  # questions on their way outside
_MOST_OF_ZONE: Final = 128  # of all containers of one network
_MOST_OUTSIDE: Final = 512  # of all containers together
_TRY_S: Final = 2.0  # for one server's answer; the C library asks again after 5 s (resolv.conf(5))
_TRIES: Final = 3
_MOST_CONNECTIONS: Final = 8  # of a container
_MOST_OF_CONNECTION: Final = 16  # questions at once
_IDLE_S: Final = 10.0  # RFC 7766, 6.2.3: "on the order of a few seconds"
_MOST_UNSENT: Final = 1 << 18  # bytes of answers that somebody does not read
_PORT: Final = 53
_READ, _WRITE = select.EPOLLIN, select.EPOLLOUT

Reply = Callable[[bytes], None]
Handler = Callable[[int], None]


class Loop:
    """Descriptors and times that something is to be done for."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._times: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def later(self, delay_s: float, what: Callable[[], None]) -> None:
        """Not to be taken back: *what* has to look whether it is still wanted."""
        heapq.heappush(self._times, (time.monotonic() + delay_s, next(self._numbers), what))

    def turn(self) -> None:
        """Wait, and do what there is to do."""
        wait_s = max(0.0, self._times[0][0] - time.monotonic()) if self._times else -1
        for fd, events in self._epoll.poll(wait_s):
            handler = self._handlers.get(fd)
            if handler is not None:  # else one before it in this turn has closed it
                _guarded(partial(handler, events))
        while self._times and self._times[0][0] <= time.monotonic():
            _guarded(heapq.heappop(self._times)[2])


def _guarded(what: Callable[[], object]) -> None:
    """Whatever a packet does to us, the next one is answered."""
    with suppress(Exception):
        what()


class Client:
    """What one container has under way."""

    __slots__ = ("asked_at", "connections", "outside", "quota", "tokens")

    def __init__(self) -> None:
        self.quota = Quota()
        self.tokens, self.asked_at = _BURST, time.monotonic()
        self.outside = self.connections = 0

    def may_ask(self) -> bool:
        now = time.monotonic()
        self.tokens = min(_BURST, self.tokens + (now - self.asked_at) * _RATE)
        self.asked_at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Zone:
    """One network: its roster, and its two sockets; further descriptors are told by what they are.

    One of netlink is a kept network's, see `SharedRoster`; another one is to have addresses opened by, where there is a list of names.
    """

    def __init__(self, server: Server, fds: list[int]) -> None:
        self._server = server
        self._udp, self._tcp, *more = (socket.socket(fileno=fd) for fd in fds[1:])
        presence = next((sock.detach() for sock in more if sock.family == socket.AF_NETLINK), None)
        self.roster = Roster(fds[0]) if presence is None else SharedRoster(fds[0], presence)
        self.opener = Opener(next((sock for sock in more if sock.fileno() >= 0), None), is_shared=presence is not None)
        self._clients: dict[str, Client] = {}
        self._connections: set[Connection] = set()
        self.questions: set[Question] = set()
        self.is_open = True
        for sock, handler in ((self._udp, self._on_packets), (self._tcp, self._on_connections)):
            sock.setblocking(False)
            server.loop.watch(sock.fileno(), _READ, handler)

    def close(self) -> None:
        self.is_open = False
        for connection in [*self._connections]:
            connection.close()
        for question in [*self.questions]:
            question.close()
        for sock in (self._udp, self._tcp):
            self._server.loop.forget(sock.fileno())
            sock.close()
        self.opener.close()
        self.roster.close()

    def client(self, address: str) -> Client | None:
        """Who asks; None: nobody of this network."""
        self.roster.refresh()
        if self.roster.at(address) is None:
            return None
        found = self._clients.get(address)
        if found is None:
            if len(self._clients) >= _MOST_CLIENTS:
                self._clients.clear()
            found = self._clients[address] = Client()
        return found

    def _on_packets(self, _: int) -> None:
        for _ in range(_BATCH):
            try:
                packet, source = self._udp.recvfrom(dns.MOST + 1)
            except BlockingIOError:
                return
            client = self.client(source[0])
            if client is not None and client.may_ask() and len(packet) <= dns.MOST:
                reply = partial(self._send, to=source)
                _guarded(partial(self._server.answer, self, source[0], client, packet, reply, over_tcp=False))

    def _send(self, answer: bytes, *, to: tuple[str, int]) -> None:
        if self.is_open:
            with suppress(OSError):  # it has gone, or its network is full: it asks again
                self._udp.sendto(answer, to)

    def _on_connections(self, _: int) -> None:
        for _ in range(_BATCH):
            try:
                sock, source = self._tcp.accept()
            except BlockingIOError:
                return
            client = self.client(source[0])
            if client is None or client.connections >= _MOST_CONNECTIONS:
                sock.close()
            else:
                self._connections.add(Connection(self, sock, source[0], client))

    @property
    def server(self) -> Server:
        return self._server

    def lost(self, connection: Connection) -> None:
        self._connections.discard(connection)


class Connection:
    """A client over TCP: messages with their length before them, each way (RFC 1035, 4.2.2)."""

    def __init__(self, zone: Zone, sock: socket.socket, address: str, client: Client) -> None:
        self._zone, self._sock, self._address, self._client = zone, sock, address, client
        self._got, self._unsent = b"", b""
        self._pending = 0
        self._used_at = time.monotonic()
        self._is_open = True
        client.connections += 1
        sock.setblocking(False)
        zone.server.loop.watch(sock.fileno(), _READ, self._on_event)
        zone.server.loop.later(_IDLE_S, self._look)

    def _look(self) -> None:
        if not self._is_open:
            return
        left_s = self._used_at + _IDLE_S - time.monotonic()
        if left_s <= 0:
            self.close()
        else:
            self._zone.server.loop.later(left_s, self._look)

    def _on_event(self, events: int) -> None:
        try:
            if events & _WRITE:
                self._flush()
            if events & ~_WRITE and self._is_open:
                self._read()
        except BaseException:
            self.close()
            raise

    def _read(self) -> None:
        try:
            data = self._sock.recv(dns.MOST + 2)
        except BlockingIOError:
            return
        if not data:
            self.close()
            return
        self._got += data
        while len(self._got) >= 2 and self._is_open:
            size = int.from_bytes(self._got[:2], "big")
            if not dns.HEAD <= size <= dns.MOST:
                self.close()
                return
            if len(self._got) < size + 2:
                return
            packet, self._got = self._got[2 : size + 2], self._got[size + 2 :]
            self._take(packet)

    def _take(self, packet: bytes) -> None:
        if not self._client.may_ask() or self._pending >= _MOST_OF_CONNECTION:
            self.close()
            return
        self._used_at = time.monotonic()
        self._pending += 1
        if not self._zone.server.answer(self._zone, self._address, self._client, packet, self._reply, over_tcp=True):
            self.close()

    def _reply(self, answer: bytes) -> None:
        self._pending -= 1
        if self._is_open:
            self._unsent += len(answer).to_bytes(2, "big") + answer
            self._used_at = time.monotonic()
            self._flush()

    def _flush(self) -> None:
        had = bool(self._unsent)
        try:
            self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            had = True
        except OSError:
            self.close()
            return
        if len(self._unsent) > _MOST_UNSENT:
            self.close()
        elif had:
            self._zone.server.loop.change(self._sock.fileno(), _READ | _WRITE if self._unsent else _READ)

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            self._client.connections -= 1
            self._zone.lost(self)
            self._zone.server.loop.forget(self._sock.fileno())
            self._sock.close()


class Question:
    """One that was passed on, from server to server until one answers."""

    def __init__(
        self, zone: Zone, client: Client, packet: bytes, forward: dns.Forward, reply: Reply, *, ways: list[Zone], over_tcp: bool
    ) -> None:
        self._zone, self._server, self._client = zone, zone.server, client
        self._original, self._forward, self._reply = packet, forward, reply
        self._query = question_alone(packet, forward.end, edns=forward.edns) if forward.is_listed else packet
        self._ways = [(ways[number].opener, groups) for number, groups in forward.opens]
        self._kind = socket.SOCK_STREAM if over_tcp else socket.SOCK_DGRAM
        self._servers = list(forward.servers)[:_TRIES]
        self._sock: socket.socket | None = None
        self._packet = self._unsent = self._got = b""
        self._try = 0
        client.outside += 1
        self._server.outside += 1
        zone.questions.add(self)

    @property
    def is_open(self) -> bool:
        return self in self._zone.questions

    def ask_of_host(self) -> None:
        """Ask the servers that the host has just now."""
        self._servers = list(self._server.host_servers)
        self.ask()

    def ask(self) -> None:
        """Ask the next server; if there is none left, say so."""
        self._drop()
        while self._servers:
            if self._begin(self._servers.pop(0)):
                self._try += 1
                self._server.loop.later(_TRY_S, partial(self._is_late, self._try))
                return
        self._end(dns.bare(self._original, dns.SERVFAIL))

    def _begin(self, address: str) -> bool:
        self._packet = os.urandom(2) + self._query[2:]
        self._got = b""
        try:
            sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, self._kind)
        except OSError:
            return False
        try:
            sock.setblocking(False)
            with suppress(BlockingIOError):
                sock.connect((address, _PORT))
            if self._kind == socket.SOCK_DGRAM:
                sock.send(self._packet)
        except OSError:
            sock.close()
            return False
        self._sock = sock
        self._unsent = b"" if self._kind == socket.SOCK_DGRAM else len(self._packet).to_bytes(2, "big") + self._packet
        self._server.loop.watch(sock.fileno(), _READ | (_WRITE if self._unsent else 0), self._on_event)
        return True

    def _is_late(self, number: int) -> None:
        if self._sock is not None and number == self._try:
            self.ask()

    def _on_event(self, events: int) -> None:
        try:
            answer = self._stream(events) if self._kind == socket.SOCK_STREAM else self._datagram()
        except BlockingIOError:
            return
        except OSError:  # refused, reset, unreachable
            self.ask()
            return
        if answer is not None:
            self._take(answer)

    def _datagram(self) -> bytes | None:
        answer = self._socket().recv(dns.MOST)
        return answer if dns.matches(self._packet, answer, self._forward.end) else None

    def _stream(self, events: int) -> bytes | None:
        if events & _WRITE and self._unsent:
            self._unsent = self._unsent[self._socket().send(self._unsent) :]
            if not self._unsent:
                self._server.loop.change(self._socket().fileno(), _READ)
        if not events & ~_WRITE:
            return None
        data = self._socket().recv(1 << 16)
        self._got += data
        if len(self._got) >= 2 and len(self._got) >= (size := int.from_bytes(self._got[:2], "big") + 2):
            answer = self._got[2:size]
            if dns.matches(self._packet, answer, self._forward.end):
                return answer
            data = b""
        if not data:
            raise ConnectionResetError
        return None

    def _socket(self) -> socket.socket:
        if self._sock is None:
            raise BlockingIOError
        return self._sock

    def _take(self, answer: bytes) -> None:
        failed = answer[3] & 0xF in (dns.SERVFAIL, dns.REFUSED, dns.NOTIMP)
        if failed and self._servers:  # as the C library does
            self.ask()
            return
        never = [subnet for zone in self._server.zones.values() for subnet in zone.roster.subnets]
        host, quota = self._server.host, self._client.quota
        self._end(answered(self._original, answer, self._forward, self._ways, quota=quota, host=host, never=never))

    def _end(self, answer: bytes) -> None:
        self.close()
        self._reply(answer)

    def close(self) -> None:
        """Nobody waits for it any more."""
        self._drop()
        if self in self._zone.questions:
            self._zone.questions.discard(self)
            self._client.outside -= 1
            self._server.outside -= 1

    def _drop(self) -> None:
        if self._sock is not None:
            self._server.loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None


class Server:
    """All networks. *look*: asks for the host's name servers anew; what comes of it is told by `set_host_servers`."""

    def __init__(self, look: Callable[[], object]) -> None:
        self.loop = Loop()
        self.zones: dict[int, Zone] = {}
        self.host_servers: tuple[str, ...] = ()
        self.outside = 0
        self.host = Host()
        self._look = look
        self._waiting: list[Question] = []  # until it is known whom the host asks

    def add(self, number: int, fds: list[int]) -> None:
        """A network came; *fds*: its roster, its UDP and its TCP socket, and what `Zone` says, which are ours from now on."""
        self.drop(number)
        self.zones[number] = Zone(self, fds)

    def drop(self, number: int) -> None:
        """A network went."""
        zone = self.zones.pop(number, None)
        if zone is not None:
            zone.close()

    def set_host_servers(self, servers: tuple[str, ...]) -> None:
        self.host_servers = servers
        waiting, self._waiting = self._waiting, []
        for question in waiting:
            if question.is_open:
                question.ask_of_host()

    def answer(self, zone: Zone, address: str, client: Client, packet: bytes, reply: Reply, *, over_tcp: bool) -> bool:
        """Answer now or later; False: never."""
        member = zone.roster.at(address)
        if member is None:
            return False
        others = [other for other in self.zones.values() if other is not zone]
        for other in others:
            other.roster.refresh()
        mine = [zone, *(other for other in others if member.key in other.roster.members)]
        try:
            decision = dns.decide(packet, member, [one.roster for one in mine], over_tcp=over_tcp)
        except Exception:  # noqa: BLE001 - whatever the library finds in a packet, who sent it shall not wait
            decision = dns.bare(packet, dns.SERVFAIL)
        if isinstance(decision, bytes):
            reply(decision)
        elif decision is not None:
            if client.outside >= _MOST_OF_CLIENT or len(zone.questions) >= _MOST_OF_ZONE or self.outside >= _MOST_OUTSIDE:
                reply(dns.bare(packet, dns.SERVFAIL))
            else:
                self._pass_on(Question(zone, client, packet, decision, reply, ways=mine, over_tcp=over_tcp), decision)
        return decision is not None

    def _pass_on(self, question: Question, forward: dns.Forward) -> None:
        if forward.servers:
            question.ask()
            return
        self._waiting.append(question)
        if len(self._waiting) == 1:
            self._look()
