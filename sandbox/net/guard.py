"""What a port of a switch lets in from a container that can make up frames: its own addresses as sources, and what only members say to each other."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from sandbox.net._nft_wire import u32
from sandbox.net.netlink import HEAD, REQUEST, message
from sandbox.net.nft import (
    IPV6,
    Chain,
    Field,
    Kind,
    Statement,
    Table,
    Transaction,
    accept,
    arp_saddr_ether,
    arp_saddr_ip,
    drop,
    ether_saddr,
    ether_type,
    icmp_type,
    icmpv6_type,
    ip6_saddr,
    ip_saddr,
    rule,
    udp_sport,
)
from sandbox.net.rtnetlink import name_of_port

TABLE: Final = Table("netdev", "guard")
_IPV4, _ARP, _IPV6 = 0x0800, 0x0806, 0x86DD
_ARP_KIND: Final = Field("arp kind", Kind("integer", 4, 6), "payload", ((2, u32(1)), (3, u32(0)), (4, u32(6))))
_ARP_OF_IPV4: Final = bytes.fromhex("000108000604")  # Ethernet, IPv4, addresses of 6 and 4 bytes (RFC 826)
_ND_TARGET: Final = Field("nd target", IPV6, "payload", ((2, u32(2)), (3, u32(8)), (4, u32(16))), (("l4", "icmpv6"),))
_REDIRECT, _ROUTER = 5, 9  # of ICMP
_ROUTER6, _NEIGHBOUR6, _REDIRECT6 = 134, 136, 137  # of ICMPv6
_DHCP, _DHCP6 = 67, 547  # servers' ports; nobody in a network of ours is one

_LINK: Final = struct.Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, which of them change
_FLAGS_AT: Final = HEAD.size + 8
_NEWLINK, _SETLINK, _IFF_UP, _AF_BRIDGE = 16, 19, 1, 7
_PROTINFO, _LEARNING, _UNICAST_FLOOD = 0x800C, 8, 9  # IFLA_PROTINFO | NLA_F_NESTED, IFLA_BRPORT_*


def chain_of(port: int) -> Chain:
    """At the port itself, before the bridge looks at a frame: what goes to a bridge's own group addresses (STP, LLDP) comes by here as well."""
    return Chain(TABLE, name_of_port(port), hook="ingress", policy="drop", device=name_of_port(port))


def fence(port: int, mac: str, address: IPv4Address, address6: IPv6Address | None) -> Transaction:
    """Let in what says that it is from these addresses, and nothing that would give others a router, a neighbour or a DHCP server."""
    chain = chain_of(port)
    # By the type in the frame, not by what the kernel takes the packet for: that is the type behind a VLAN tag.
    v4, v6 = ether_type(_IPV4), ether_type(_IPV6)
    rules: list[list[Statement]] = [
        [ether_saddr.is_not(mac), drop],
        [ether_type(_ARP), _ARP_KIND(_ARP_OF_IPV4), arp_saddr_ether(mac), arp_saddr_ip(address), accept],
        [v4, icmp_type(_REDIRECT), drop],
        [v4, icmp_type(_ROUTER), drop],
        [v4, udp_sport(_DHCP), drop],
        [v4, ip_saddr(address), accept],
    ]
    if address6 is not None:
        rules += [[v6, icmpv6_type(kind), drop] for kind in (_ROUTER6, _REDIRECT6)]
        rules += [[v6, icmpv6_type(_NEIGHBOUR6), _ND_TARGET.is_not(address6), drop], [v6, udp_sport(_DHCP6), drop], [v6, ip6_saddr(address6), accept]]
    work = Transaction().add(TABLE, exist_ok=True).add(chain)
    for statements in rules:
        work.add(rule(chain, statements))
    return work


def hold6(port: int, address6: IPv6Address) -> Transaction:
    """Let in of IPv6 only what is from this address. IPv6 asks for no rights of who names a source that is not its own (IPV6_FREEBIND)."""
    chain = Chain(TABLE, name_of_port(port), hook="ingress", device=name_of_port(port))
    work = Transaction().add(TABLE, exist_ok=True).add(chain)
    return work.add(rule(chain, [ether_type(_IPV6), ip6_saddr.is_not(address6), drop]))


def without_up(link: bytes) -> bytes:
    """A request for a link, which does not bring it up."""
    return link[:_FLAGS_AT] + bytes(8) + link[_FLAGS_AT + 8 :]


def closed(port: int) -> bytes:
    """Bring a port down. Whoever still holds the namespace behind it can neither undo that, nor send or receive anything through it."""
    return message(_NEWLINK, REQUEST, _LINK.pack(0, 0, port, 0, _IFF_UP))


def opened(port: int) -> list[bytes]:
    """Bring a port up, of which the bridge learns no addresses, and to which it does not send what is for an address that it does not know."""
    more = struct.pack("=HHHHBxxxHHBxxx", 20, _PROTINFO, 5, _LEARNING, 0, 5, _UNICAST_FLOOD, 0)
    settings = message(_SETLINK, REQUEST, _LINK.pack(_AF_BRIDGE, 0, port, 0, 0) + more)
    up = message(_NEWLINK, REQUEST, _LINK.pack(0, 0, port, _IFF_UP, _IFF_UP))
    return [settings, up]
