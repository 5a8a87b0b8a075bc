"""A container's pair, made before anybody has asked for the container, and what goes with it.

Theory of operation
-------------------
A spare of a network has its interface, up, with an address, a route and the gateway as a neighbour, and its files say so: whoever takes the spare
has nothing left to ask of the kernel but what concerns others. The address is *lent* (`sandbox.net.spec.Addresses`): whoever wants just that one, or
finds no other free, has it, and the spare's interface is removed before he is given it. A spare that has lost its interface, or never had an
address as few were free, is like one that has no interface, or only that.

Of containers that want a certain address or MAC, spares have an interface without any address, which is down.
"""

from __future__ import annotations

import errno
import os
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, NamedTuple

from sandbox.errors import SetupError
from sandbox.net.addresses import mac_of
from sandbox.net.rtnetlink import Requests, removal

if TYPE_CHECKING:
    from sandbox._networks.live import Live
    from sandbox._session import Asked, Session


class Given(NamedTuple):
    """What an interface has."""

    address: IPv4Address
    address6: IPv6Address | None
    mac: str


class Files(NamedTuple):
    """What a spare's init was asked to write into its files; *said*: what that depends on, beside its addresses."""

    session: Session
    asked: Asked
    said: object


class Ahead:
    """Of a spare: its first interface, as the helper has been asked to make it; and a socket in there. *given*: None: it is down, without an address.

    Whoever has it calls one of `take`, `close` and `abandon`. The pair itself goes with the spare, or with the network.
    """

    def __init__(self, live: Live, port: int, asked: Asked, given: Given | None = None) -> None:
        self.live, self.port, self.given = live, port, given
        self.files: Files | None = None
        self._asked: Asked | None = asked

    @property
    def is_done(self) -> bool:
        """Whether `take` would not wait."""
        asked = self._asked
        return asked is None or asked.channel.has_event()

    def take(self) -> Requests:
        """The socket inside; the caller closes it. What was `given` is the container's from now on.

        Raises: SetupError, BrokenError: there is no pair.
        """
        with self.live.lock:
            try:
                requests = Requests(self._answer(), is_known=True)  # the helper's, which is ours
            except BaseException:
                self.live.lender.give_back(self)
                raise
            try:
                self.live.lender.claim(self)
            except BaseException:
                requests.close()
                raise
            return requests

    def _answer(self) -> int:
        asked, self._asked = self._asked, None
        if asked is None:
            raise SetupError("make an interface ahead", errno.ENODEV, step="network")
        return self.live.switch.take_pair(asked)

    def withdraw(self) -> None:
        """Somebody else has need of its address: have no interface. The caller has the network's lock."""
        try:
            os.close(self._answer())
            self.live.requests.send(removal(self.port), "remove an interface that was made ahead")
        except SetupError as error:
            if error.errno != errno.ENODEV:  # the spare has ended
                raise

    def close(self) -> None:
        """Do without it; waits for the helper's answer. Nothing behind `take` or `close`. Raises: as `take`."""
        with self.live.lock:
            files, self.files = self.files, None
            if files is not None:
                files.session.forget(files.asked)
            if self._asked is not None:
                self.live.lender.give_back(self)
                os.close(self._answer())

    def abandon(self) -> None:
        """In a forked child: let go of its copies."""
        if self._asked is not None:
            self._asked.channel.close()


class Lender:
    """Who has which address of a network ahead. The caller has the network's lock. It does not know the network: a cycle would outlive that."""

    def __init__(self) -> None:
        self._holders: dict[IPv4Address | IPv6Address, Ahead] = {}

    def lend(self, live: Live) -> Given | None:
        """Addresses, one of each family, that are nobody's; None: hardly any are free."""
        address = live.addresses.lend()
        if address is None:
            return None
        mac, address6 = mac_of(address), None
        if live.addresses6 is not None:
            address6 = live.addresses6.lend(rather=live.twin_of(address))
        found = Given(address, address6, mac)
        if (live.addresses6 is None) == (address6 is None) and not any(place.endpoint.mac == mac for place in live.places):
            return found
        self.put_back(live, found)
        return None

    @staticmethod
    def put_back(live: Live, given: Given) -> None:
        """Nobody has need of them, who had not told `hold`."""
        live.addresses.give_back(given.address)
        if live.addresses6 is not None and given.address6 is not None:
            live.addresses6.give_back(given.address6)

    def hold(self, ahead: Ahead) -> None:
        """It has what was lent."""
        self._holders.update(dict.fromkeys(_addresses(ahead), ahead))

    def claim(self, ahead: Ahead) -> None:
        """They are its own from now on, until they are released. Raises: SetupError: somebody else has got one."""
        given, live = ahead.given, ahead.live
        if given is None:
            return
        if not self._forget(ahead) or not live.addresses.claim(given.address):
            raise SetupError("take an address that was lent", errno.EADDRINUSE, step="network")
        if live.addresses6 is not None and given.address6 is not None and not live.addresses6.claim(given.address6):
            live.addresses.release(given.address)
            raise SetupError("take an address that was lent", errno.EADDRINUSE, step="network")

    def give_back(self, ahead: Ahead) -> None:
        """It has no need of them, if it still has them."""
        if ahead.given is not None and self._forget(ahead):
            self.put_back(ahead.live, ahead.given)
            ahead.given = None

    def _forget(self, ahead: Ahead) -> bool:
        return [self._holders.pop(address, None) for address in _addresses(ahead)].count(ahead) > 0

    def recall(self, *addresses: IPv4Address | IPv6Address | None, mac: str | None = None) -> None:
        """These are somebody else's from now on: have whoever was lent them do without. Raises: SetupError: it does not."""
        found = [self._holders[address] for address in addresses if address is not None and address in self._holders]
        if mac is not None:
            found += [ahead for ahead in self._holders.values() if ahead.given is not None and ahead.given.mac == mac]
        for ahead in dict.fromkeys(found):  # who has two of them, once
            self.give_back(ahead)  # what else it has is free
            ahead.withdraw()


def _addresses(ahead: Ahead) -> list[IPv4Address | IPv6Address]:
    given = ahead.given
    return [] if given is None else [address for address in given[:2] if address is not None]


def taken(ahead: Ahead | None) -> Requests | None:
    """The socket beside a pair that was made ahead; None: it was not, and whoever makes it now tells why."""
    if ahead is None:
        return None
    try:
        return ahead.take()
    except SetupError:
        return None
