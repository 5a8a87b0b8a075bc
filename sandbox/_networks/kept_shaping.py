"""Shapes in networks that are kept: as in others (`shaping`), but that several processes make devices in one switch.

The block through which goes what comes from a container is numbered after the container's port, which nobody ever has again, and is removed with
the shape. The chains that lead to them are in a table of the process, which goes with it; blocks that it leaves when it is killed are
removed by whoever shapes next, or with the network.
"""

from __future__ import annotations

import errno
import itertools
import os
import struct
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Final

from sandbox._networks.shaping import FIRST_IFB, Shaping
from sandbox.errors import SetupError
from sandbox.net import netlink
from sandbox.net.nft import Table
from sandbox.net.rtnetlink import removal

if TYPE_CHECKING:
    from sandbox._networks.switch import Switch
    from sandbox.net.rtnetlink import Requests

_GETLINK: Final = 18  # RTM_GETLINK
_LISTING: Final = netlink.message(_GETLINK, netlink.REQUEST | netlink.DUMP, struct.pack("=BxHiII", 0, 0, 0, 0, 0))
_numbers: Final = itertools.count(1)


class KeptShaping(Shaping):
    """Of this process, in one network; the caller holds the network's lock. *ports*: of all containers that live in it."""

    def __init__(self, switch: Switch, requests: Requests, mtu: int, ports: Callable[[], Collection[int]]) -> None:
        super().__init__(switch, requests, mtu, table=Table("netdev", f"shaping-{os.getpid()}-{next(_numbers)}", owner=True))
        self._ports = ports

    def take_ifb(self, port: int) -> int:
        there = [struct.unpack_from("=i", body, 4)[0] for body in self._requests.ask(_LISTING, "list interfaces")]
        living = self._ports()  # behind that: who has come meanwhile is among them
        for index in there:
            if index >= FIRST_IFB and index - FIRST_IFB not in living:
                self.let_go(index)
        return self.make_ifb(FIRST_IFB + port)

    def let_go(self, index: int) -> None:
        try:
            self._requests.send(removal(index), "remove an intermediate functional block")
        except SetupError as error:
            if error.errno != errno.ENODEV:  # another one has swept it
                raise
