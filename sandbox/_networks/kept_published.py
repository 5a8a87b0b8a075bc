"""The switch's part of published ports in a network that is kept, where several processes publish; see `published` for the whole.

Theory of operation
-------------------
Each process has its maps in a table with an owner, in the switch as in the host: ports of a process that is killed lead nowhere from then on.
Ports of the uplink that stand for published ones are given out under the lock of the network's directory, round and round, so that no two
processes mean different things by one. Which of them stand for something is known to the tables of their owners only: each marks what comes for
its own, and what nobody has marked is refused, flow or not, by the walls of the switch itself. (A mark is not carried from one namespace to
another.)
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from sandbox._networks.directories import is_alive
from sandbox._networks.filters import SharedFilters
from sandbox._networks.kept_outside import carry_loopback
from sandbox._networks.shortcut import marking
from sandbox._networks.uplink import KNOWN
from sandbox.errors import NetworkNotFoundError
from sandbox.net.kept import Published
from sandbox.net.nft import (
    IPV4,
    IPV6,
    PORT,
    PROTOCOL,
    Chain,
    Element,
    Nftables,
    Set,
    Table,
    Transaction,
    ct_original_dport,
    ct_original_protocol,
    dnat_to,
    iif,
    in_set,
    ip6_daddr,
    ip_daddr,
    l4proto,
    rule,
    set_mark,
    th_dport,
)
from sandbox.net.rtnetlink import UPLINK

if TYPE_CHECKING:
    from sandbox._networks.kept import KeptLive
    from sandbox._networks.published import Entry
    from sandbox._networks.uplink import Uplink

_DESTINATION: Final = -101
_MARKING: Final = -1  # before the switch's own walls
_numbers: Final = itertools.count(1)


class KeptGate(SharedFilters):
    """Of this process, in one network. The caller has the lock of all that is published."""

    def __init__(self, live: KeptLive, uplink: Uplink) -> None:
        # Not the uplink itself, by which gates are kept: it is to go.
        super().__init__(live.switch)
        self._directory, self._there, self._link = live.directory, uplink.there, uplink.name
        self._is_six = uplink.there.version == 6
        self._table = Table("ip6" if self._is_six else "ip", f"published-{os.getpid()}-{next(_numbers)}", owner=True)
        self._ports = Set(self._table, "ports", (PROTOCOL, PORT), data=(IPV6 if self._is_six else IPV4, PORT))
        self._open = Set(self._table, "open", (PROTOCOL, PORT))
        self._is_marking = False

    def numbers(self, count: int) -> list[int]:
        """Inner ports that nobody else has."""
        with self._directory.held():
            state, found = self._directory.written_state().with_inner(count)
            self._directory.write_state(state)
        return found

    def _make(self, filters: Nftables) -> None:
        inward = Chain(self._table, "inward", hook="prerouting", priority=_DESTINATION, type="nat")
        known = Chain(self._table, "known", hook="forward", priority=_MARKING)
        work = Transaction()
        for item in (self._table, self._ports, self._open, inward, known):
            work.add(item)
        work.add(rule(inward, [iif(UPLINK), (ip6_daddr if self._is_six else ip_daddr)(self._there), dnat_to(self._ports, l4proto, th_dport)]))
        work.add(rule(known, [iif(UPLINK), in_set(self._open, ct_original_protocol, ct_original_dport), set_mark(KNOWN)]))
        filters.commit(work)
        if self._is_marking:
            filters.commit(marking(self._table))

    def mark(self) -> None:
        """Have packets of flows that may take the short way be marked, whenever a port is published."""
        self._commit(marking(self._table))
        self._is_marking = True

    def add(self, entries: Iterable[Entry], address: IPv4Address | IPv6Address) -> None:
        made = tuple(entries)
        elements = [Element((entry.protocol, entry.inner), (address, entry.held.port.number)) for entry in made]
        self._commit(Transaction().add_elements(self._open, [Element(element.key) for element in elements]).add_elements(self._ports, elements))
        with self._directory.held():
            if not self._is_six:  # else `loopback6`
                carry_loopback(self._link, on=True)
            known = [Published(entry.held.key, str(entry.held.host), entry.inner) for entry in made]
            self._directory.write_state(self._directory.written_state().publishing(str(address), known))

    def remove(self, entries: Iterable[Entry]) -> None:
        made = tuple(entries)
        keys = [Element((entry.protocol, entry.inner)) for entry in made]
        self._commit(Transaction().delete_elements(self._ports, keys).delete_elements(self._open, keys))
        with suppress(NetworkNotFoundError), self._directory.held():  # it was removed by force
            state = self._directory.written_state().withdrawing({entry.inner for entry in made})
            self._directory.write_state(state)
            if not state.swept(is_alive).is_publishing:
                carry_loopback(self._link, on=False)
