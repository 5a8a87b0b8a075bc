"""The walls around those members of a network that can make up frames: containers whose root may have NET_RAW or NET_ADMIN.

All others cannot name a source of IPv4 that they do not have, whatever options they set on a socket, and cost nothing here. Of IPv6 they can: in a
network that has it, each port lets in its container's address alone.
A port gets its rules while it is down: nothing goes through it before.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

from attrs import define, field

from sandbox.errors import BrokenError, SetupError, UnsupportedError
from sandbox.net.guard import chain_of, fence, hold6
from sandbox.net.nft import Nftables, Transaction
from sandbox.sec.capabilities import capability_mask

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandbox._networks.places import Place
    from sandbox._networks.switch import Switch
    from sandbox._spec import ContainerSpec

_RIGHTS: Final = capability_mask(("NET_ADMIN", "NET_RAW"))
_ABSENT: Final = (errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENOPROTOOPT)


def is_forger(spec: ContainerSpec) -> bool:
    """Whether programs of such a container can send what they like from its interface, or change that."""
    return bool(spec.security.bounding_mask(host_view=spec.host_view) & _RIGHTS)


@define(eq=False)
class Guard:
    """Of one network. The caller has the network's lock."""

    _switch: Switch
    _kernel: Nftables | None = None
    _fenced: set[Place] = field(factory=set["Place"])

    def fence(self, place: Place, *, forger: bool = True) -> None:
        """Hold its port to its addresses; of one who is no *forger*, to that of IPv6, if it has one.

        Raises: UnsupportedError: the kernel cannot; SetupError.
        """
        if not forger and place.address6 is None:
            return
        if self._kernel is None:
            self._kernel = self._switch.filters()
        try:
            if forger or place.address6 is None:
                self._kernel.commit(fence(place.port, place.endpoint.mac, place.address, place.address6))
            else:
                self._kernel.commit(hold6(place.port, place.address6))
        except SetupError as error:
            if error.errno not in _ABSENT:
                raise
            raise UnsupportedError(
                "networks: this kernel cannot keep a container with NET_ADMIN or NET_RAW, or of a network with IPv6, from taking others' addresses",
                feature="nf_tables of family netdev",
                remedy="modprobe nf_tables (CONFIG_NF_TABLES_NETDEV), or do not add these capabilities, and leave ipv6 out",
            ) from error
        self._fenced.add(place)

    def dismiss(self, place: Place) -> None:
        """Its port goes, or has gone. Once more is nothing."""
        if place in self._fenced and self._kernel is not None:
            self._fenced.discard(place)
            _remove(self._kernel, place.port)

    def forget(self, ports: Iterable[int]) -> None:
        """These have gone, whose walls somebody else has made, if there were any."""
        try:
            kernel = self._kernel = self._kernel or self._switch.filters()
        except UnsupportedError:  # then nobody has made any
            return
        except BrokenError:  # our helper was killed; the numbers of ports do not come again, so nobody is behind those walls
            return
        for port in ports:
            _remove(kernel, port)

    def close(self) -> None:
        """Close the socket; the rules are the switch's."""
        if self._kernel is not None:
            self._kernel.close()
        self._fenced.clear()


def _remove(kernel: Nftables, port: int) -> None:
    try:
        kernel.commit(Transaction().delete(chain_of(port)))
    except SetupError as error:
        if error.errno not in (errno.ENOENT, *_ABSENT):  # older kernels remove the chain with its interface
            raise
