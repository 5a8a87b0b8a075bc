"""The host's ``::1`` as an address at which ports are published.

Theory of operation
-------------------
For 127.0.0.1 the kernel has ``route_localnet``; for ``::1`` it has nothing: what comes in by an interface for it finds no way (the route to
``::1`` is loopback's, and is looked for with the interface: rt6_need_strict). Only the way back is the matter: out of the host such packets go
as others do. So

- what the host sends from ``::1`` to a network gets another source, an address of fd00::/8 that nobody has (`_Loopback.address`);
- what comes out of a network for that, and for nothing else, is handed to the interface ``lo`` as it arrives (family netdev, hook ingress,
  ``fwd``), as if it had been sent there: with the MAC of ``lo``, which is zero, so that it counts as the host's;
- conntrack then gives it its addresses back, whatever interface it comes by, and ``lo`` has the route to ``::1``.

No byte is copied by a process of ours, and nothing has to be started or ended. What conntrack does not know is dropped right behind it: so nothing
gets in this way but answers to what the host has begun. All of it is of the socket that `uplink`'s tables belong to, and goes with that.
"""

from __future__ import annotations

import secrets
import socket
import weakref
from contextlib import suppress
from ipaddress import IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandbox.errors import SetupError, UnsupportedError
from sandbox.net.nft import Chain, Table, Transaction, drop, forward, iifname, in_set, ip6_daddr, ip6_saddr, oifname, rule, set_ether_daddr, snat

if TYPE_CHECKING:
    from sandbox._networks.uplink import HostTable, Uplink

_LOOPBACK: Final = IPv6Network("::1/128")
_NO_MAC: Final = "00:00:00:00:00:00"
_SOURCE: Final = 99  # before others' source translation, as in `published`
_BEHIND_NAT: Final = -99  # nft's dstnat is -100


@define(eq=False)
class _Loopback:
    """Of one table of the host's. The caller has `published`'s lock."""

    table: Table
    address: IPv6Address
    carried: weakref.WeakSet[Uplink] = field(factory=weakref.WeakSet["Uplink"])

    @classmethod
    def make(cls, host: HostTable) -> _Loopback:
        found = cls(Table("netdev", host.table.name, owner=True), IPv6Address(b"\xfd" + secrets.token_bytes(15)))
        out = Chain(host.table, "published-from-loopback", hook="postrouting", priority=_SOURCE, type="nat")
        back = Chain(host.table, "published-to-loopback", hook="prerouting", priority=_BEHIND_NAT)
        work = Transaction().add(found.table).add(out).add(back)
        work.add(rule(back, [iifname("lo"), ip6_daddr(found.address), drop]))
        host.commit(work.add(rule(out, [in_set(host.links, oifname), ip6_saddr(_LOOPBACK), snat(str(found.address))])))
        return found

    def carry(self, uplink: Uplink) -> None:
        if uplink in self.carried:
            return
        chain = Chain(self.table, uplink.name, hook="ingress", device=uplink.name)
        work = Transaction().add(chain)
        work.add(rule(chain, [ip6_daddr(self.address), set_ether_daddr(_NO_MAC), forward(socket.if_nametoindex("lo"))]))
        uplink.host.commit(work)
        self.carried.add(uplink)
        uplink.undo.callback(_drop, uplink.host, chain)


def _drop(host: HostTable, chain: Chain) -> None:
    """Kernels from 6.16 on keep a chain whose interface has gone."""
    with suppress(SetupError):  # ENOENT: others take it with the interface
        host.commit(Transaction().delete(chain))


def carry(uplink: Uplink) -> None:
    """Have *uplink*, of IPv6, carry what is for the host's ``::1``. Once more is nothing.

    Raises: UnsupportedError: the kernel cannot hand packets to ``lo``.
    """
    try:
        found = _loopbacks.get(uplink.host)
        if found is None:
            found = _loopbacks[uplink.host] = _Loopback.make(uplink.host)
        found.carry(uplink)
    except (SetupError, UnsupportedError) as error:
        raise UnsupportedError(
            f"ports: this kernel cannot lead the host's ::1 into a network ({error})",
            feature="nft_fwd_netdev",
            remedy="modprobe nft_fwd_netdev (CONFIG_NFT_FWD_NETDEV), or publish at 0.0.0.0 or at an address of the host: '0.0.0.0:8080:80'",
        ) from error


_loopbacks: weakref.WeakKeyDictionary[HostTable, _Loopback] = weakref.WeakKeyDictionary()
