"""Networks: published ports, subnets and addresses, as plain values. `sandbox.Network` makes one of them."""

from __future__ import annotations

from sandbox.net.addresses import choose_address, choose_subnet, mac_of, to_gateway, to_mac, to_subnet
from sandbox.net.offer import Offer
from sandbox.net.ports import HostPort, Port, parse_port, to_ports

__all__ = ["HostPort", "Offer", "Port", "choose_address", "choose_subnet", "mac_of", "parse_port", "to_gateway", "to_mac", "to_ports", "to_subnet"]
