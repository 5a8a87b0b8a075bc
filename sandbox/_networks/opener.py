"""How the name server has addresses of allowed names opened in a network's switch, before it tells a container of them.

It has no rights over packet filters: it knocks (`sandbox.net.allow_rules`), by a socket that was made in the switch and is bound to its
loopback. The kernel decides, before sendto(2) returns: it opens what no name may lead to for nobody, and no more than there is room for.
Here is refused what only the host knows: its own addresses, which may change; and each container has a bound on what it may have
opened, so that one of them cannot take all the room.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import Final

from sandbox.net import dns, openings
from sandbox.net.openings import Found, class_of, is_in, is_inside, knock

MOST_OF_CLIENT: Final = 1024  # addresses and groups that one container has had opened, and whose time is not over
_SLACK_S: Final = 30  # between answer and connection
_MOST_KNOWN: Final = 1 << 15
_RTM_NEWROUTE, _RTM_GETROUTE, _REQUEST, _RTA_DST = 24, 26, 1, 1  # <linux/rtnetlink.h>
_UNICAST: Final = 1  # RTN_UNICAST
_ASKING: Final = struct.Struct("=IHHII" + "BBBBBBBBI" + "HH")  # nlmsghdr, rtmsg, rtattr
_ANSWER: Final = struct.Struct("=IHHII" + "BBBBBBBB")

Key = tuple[bytes, int]  # address, group


class Host:
    """The addresses of the namespace that the name server is in."""

    def __init__(self) -> None:
        self._sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)

    def is_own(self, address: bytes) -> bool:
        """Whether it is the host's, or all its neighbours' (broadcast). What is reached by no route is neither."""
        family, length = (socket.AF_INET, 4) if len(address) == 4 else (socket.AF_INET6, 16)
        size = _ASKING.size + length
        head = size, _RTM_GETROUTE, _REQUEST, 1, 0, family, 8 * length, 0, 0, 0, 0, 0, 0, 0, 4 + length, _RTA_DST
        self._sock.sendto(_ASKING.pack(*head) + address, (0, 0))
        while True:
            said, sender = self._sock.recvfrom(4096)
            if sender[0] == 0:  # the kernel, which has answered when sendto(2) returns
                fields = _ANSWER.unpack_from(said)
                return bool(fields[1] == _RTM_NEWROUTE and fields[12] != _UNICAST)

    def close(self) -> None:
        """Close the socket."""
        self._sock.close()


class Quota:
    """What one container has had opened."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[Key, float] = {}

    def takes(self, key: Key, now: float, until: float) -> bool:
        """Whether it may have *key* opened, which is noted."""
        if key not in self._until and len(self._until) >= MOST_OF_CLIENT:
            self._until = {other: end for other, end in self._until.items() if end > now}
            if len(self._until) >= MOST_OF_CLIENT:
                return False
        self._until[key] = max(until, self._until.get(key, 0.0))
        return True


    def until(self, key: Key) -> float | None:
        """Until when it has *key* opened; None: it has not."""
        return self._until.get(key)

    def forget(self, key: Key, before: float | None) -> None:
        """It was not opened: what it had *before* counts."""
        if before is None:
            self._until.pop(key, None)
        else:
            self._until[key] = before


class Opener:
    """Of one network. *sock*: to knock by, connected, and this object's from now on; None: nothing is opened by name.

    *is_shared*: other processes' servers knock there, too. What they have told their containers is not known here: all is open for the longest time.
    """

    def __init__(self, sock: socket.socket | None, *, is_shared: bool = False) -> None:
        self._sock = sock
        self._least_s = openings.MOST_S if is_shared else 0
        self._until: dict[Key, float] = {}
        if self._sock is not None:
            self._sock.setblocking(False)

    def open(self, quota: Quota, found: Found, groups: Iterable[int]) -> bool:
        """Have an address opened for all of *groups*; False: it is not, for one of them at least."""
        if self._sock is None or is_inside(found.address):
            return False
        now = time.monotonic()
        return all(self._open(quota, (found.address, group), now, found.ttl + _SLACK_S) for group in groups)

    def _open(self, quota: Quota, key: Key, now: float, time_s: float) -> bool:
        # The kernel takes the new time, be it shorter: nobody's answer may take from what another container was told.
        number = class_of(max(self._least_s, time_s, self._until.get(key, now) - now))
        until = now + openings.TIMES_S[number]
        before = quota.until(key)
        if self._sock is None or not quota.takes(key, now, until):
            return False
        try:
            self._sock.send(knock(*key, number))
        except OSError:  # EPERM: the kernel refuses it
            quota.forget(key, before)
            return False
        self._note(key, now, until)
        return True

    def _note(self, key: Key, now: float, until: float) -> None:
        if len(self._until) >= _MOST_KNOWN:
            self._until = {other: end for other, end in self._until.items() if end > now}
        self._until[key] = until

    def close(self) -> None:
        """Close the socket."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None


Ways = Sequence[tuple[Opener, tuple[int, ...]]]


def answered(
    packet: bytes, answer: bytes, forward: dns.Forward, ways: Ways, *, quota: Quota, host: Host, never: Sequence[tuple[int, int, int]]
) -> bytes:
    """What the container that has asked *packet* is told of *answer*; what it opens is open then.

    ways: whom to knock at, and for which groups. never: subnets of networks, in which nobody is outside.
    """
    as_it_is = dns.fitting(packet, packet[:2] + answer[2:], forward.size)
    kind, end = forward.kind, forward.end
    if not ways or kind not in (openings.A, openings.AAAA) or answer[3] & 0xF:
        return as_it_is
    try:
        found = openings.addresses_of(answer, end, kind)
    except ValueError:
        return dns.bare(packet, dns.SERVFAIL) if forward.is_listed else as_it_is
    outside = [one for one in found if not (is_inside(one.address) or is_in(one.address, never) or host.is_own(one.address))]
    given = [one for one in outside if all(opener.open(quota, one, groups) for opener, groups in ways)]
    if not forward.is_listed:  # another network of the container's lets it have any
        return as_it_is
    if outside and not given:
        return dns.bare(packet, dns.SERVFAIL)  # there is no room just now
    return openings.answer_with(packet, end, kind, given, size=forward.size, edns=forward.edns, truncated=bool(answer[2] & 2))
