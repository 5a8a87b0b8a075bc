"""Messages of rtnetlink by which packets leave by an interface of their own: all, or those that are marked. Pure.

A mark is its table's number, and that of its rule (ip-rule(8)). The table goes with the interface; a rule stays, and leads to an empty table then.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from socket import AF_INET, AF_INET6
from typing import Final

from sandbox.net.netlink import CREATE, EXCL, REQUEST, attribute, message

_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, which of them change
_ADDRESS: Final = struct.Struct("=BBBBi")  # ifaddrmsg: family, length of the prefix, flags, scope, index
_ROUTE: Final = struct.Struct("=8BI")  # rtmsg: family, lengths of destination and source, tos, table, protocol, scope, type; flags
_RULE: Final = struct.Struct("=8BI")  # fib_rule_hdr: family, lengths of destination and source, tos, table, 2 of nothing, action; flags
_NEWLINK, _NEWADDR, _NEWROUTE, _NEWRULE, _DELRULE = 16, 20, 24, 32, 33
_NEW: Final = REQUEST | CREATE | EXCL
_UP: Final = 1  # IFF_UP
_IFLA_MTU, _IFA_ADDRESS, _IFA_LOCAL = 4, 1, 2
_RTA_OIF, _RTA_GATEWAY, _RTA_TABLE = 4, 5, 15
_BOOT, _UNICAST, _ONLINK = 3, 1, 4  # RTPROT_BOOT, RTN_UNICAST, RTNH_F_ONLINK
_NODAD: Final = 2  # IFA_F_NODAD: nobody is asked for a second whether he has it
MAIN: Final = 254  # RT_TABLE_MAIN: that of packets without a mark
_FRA_PRIORITY, _FRA_FWMARK, _FRA_TABLE, _FRA_FWMASK = 6, 10, 15, 16
_TO_TABLE: Final = 1  # FR_ACT_TO_TBL
_PRIORITY: Final = 1000  # before those of the main table (32766)


def way_out(index: int, address: IPv4Address | IPv6Address, gateway: IPv4Address | IPv6Address, *, mtu: int, mark: int) -> list[bytes]:
    """Give an interface its address, without a route to those near it; bring it up, and have what is marked leave by it, through *gateway*.

    mark: `MAIN`: what is for nobody near, marked or not.
    """
    family, flags = (AF_INET, 0) if address.version == 4 else (AF_INET6, _NODAD)
    number = attribute(_IFA_LOCAL, address.packed) + attribute(_IFA_ADDRESS, address.packed)
    route = _ROUTE.pack(family, 0, 0, 0, 0, _BOOT, 0, _UNICAST, _ONLINK)
    goal = attribute(_RTA_GATEWAY, gateway.packed) + attribute(_RTA_OIF, _u32(index)) + attribute(_RTA_TABLE, _u32(mark))
    return [
        message(_NEWADDR, _NEW, _ADDRESS.pack(family, address.max_prefixlen, flags, 0, index) + number),
        message(_NEWLINK, REQUEST, _LINK.pack(0, 0, index, _UP, _UP) + attribute(_IFLA_MTU, _u32(mtu))),
        message(_NEWROUTE, _NEW, route + goal),
    ]


def led(mark: int, version: int = 4) -> bytes:
    """Have what is marked looked for in its table. *version*: of IP."""
    return message(_NEWRULE, _NEW, _rule(mark, version))


def not_led(mark: int, version: int = 4) -> bytes:
    """No more. The kernel says ENOENT where it has no such rule."""
    return message(_DELRULE, REQUEST, _rule(mark, version))


def _rule(mark: int, version: int) -> bytes:
    head = _RULE.pack(AF_INET if version == 4 else AF_INET6, 0, 0, 0, 0, 0, 0, _TO_TABLE, 0)
    parts = ((_FRA_PRIORITY, _PRIORITY), (_FRA_FWMARK, mark), (_FRA_FWMASK, 0xFFFFFFFF), (_FRA_TABLE, mark))
    return head + b"".join(attribute(kind, _u32(value)) for kind, value in parts)


def _u32(value: int) -> bytes:
    return struct.pack("=I", value)
