"""Messages about neighbours: what pyroute2 reads in them."""

from __future__ import annotations

import sys
from ipaddress import ip_address
from typing import Any

import pytest

from sandbox.net.neighbours import forgotten, given_up_soon, known
from sandbox.net.netlink import attributes, messages


def read(message: bytes) -> dict[str, Any]:
    from pyroute2.netlink.rtnl.ndmsg import ndmsg  # pyright: ignore[reportMissingTypeStubs]

    found: Any = ndmsg(message)  # type: ignore[no-untyped-call]
    found.decode()
    assert found["header"]["length"] == len(message)
    return {"kind": found["header"]["type"], **{name: found[name] for name in ("family", "ifindex", "state")}, **dict(found["attrs"])}


@pytest.mark.parametrize(("address", "family"), [("10.1.2.3", 2), ("fd00::2:3", 10)])
def test_what_is_asked_of_the_kernel(address: str, family: int) -> None:
    about = {"family": family, "ifindex": 1001, "NDA_DST": address}
    told = read(known(1001, ip_address(address), "02:42:0a:01:02:03"))
    assert told == {"kind": 28, "state": 0x80, "NDA_LLADDR": "02:42:0a:01:02:03", **about}
    assert read(forgotten(1001, ip_address(address))) == {"kind": 29, "state": 0, **about}


@pytest.mark.parametrize(("version", "family", "name"), [(4, 2, b"arp_cache\0"), (6, 10, b"ndisc_cache\0")])
def test_how_long_an_interface_asks(version: int, family: int, name: bytes) -> None:
    (told,) = messages(given_up_soon(1001, version))
    assert (told.kind, told.body[:4]) == (67, bytes([family, 0, 0, 0]))
    found = dict(attributes(told.body[4:]))
    assert found.pop(1) == name
    parms = {kind: int.from_bytes(value, sys.byteorder) for kind, value in attributes(found.pop(6))}
    assert (parms, found) == ({1: 1001, 5: 10, 11: 1}, {})
