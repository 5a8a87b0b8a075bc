"""What networks can do on this host: tried in a switch that is made for it, and gone afterwards."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Callable
from typing import Final

from sandbox._networks.outlet import find_program
from sandbox._networks.switch import Switch
from sandbox._networks.uplink6 import CONF, check_forwarding
from sandbox.errors import SandboxError, SetupError, UnsupportedError
from sandbox.net.netlink import attribute, message
from sandbox.net.nft import Table, Transaction
from sandbox.net.offer import Offer
from sandbox.net.qdisc import probe
from sandbox.net.rtnetlink import Requests, ways_out

LINKS: Final = ("bridge", "veth", "ifb")
QUEUES: Final = ("tbf", "netem")
_NEWLINK: Final = 16
_MAKE: Final = 0x0605  # NLM_F_REQUEST | NLM_F_ACK | NLM_F_EXCL | NLM_F_CREATE
_IFNAME, _LINKINFO, _INFO_KIND = 3, 18, 1


def survey() -> Offer:
    """Ask. Takes about 10 ms."""
    outlet, lacking, closed6 = None, None, _closed6()
    try:
        outlet = find_program()
    except UnsupportedError as error:
        lacking = error
    try:
        switch = Switch()
    except SandboxError as error:
        return Offer(frozenset(), error, outlet, lacking, closed6)
    try:
        return Offer(frozenset(_kinds(switch)), None, outlet, lacking, closed6)
    finally:
        switch.close()


def _closed6() -> UnsupportedError | None:
    try:
        if os.path.exists(CONF):
            check_forwarding(ways_out(6))
    except UnsupportedError as error:
        return error
    return None


def _kinds(switch: Switch) -> list[str]:
    requests = Requests(switch.socket())
    try:
        tried: dict[str, Callable[[], object]] = {kind: lambda kind=kind: requests.send(_link(kind), kind) for kind in LINKS}  # type: ignore[misc]
        tried |= {kind: lambda kind=kind: requests.send(probe(kind), kind) for kind in QUEUES}  # type: ignore[misc]
        tried |= {"nf_tables": lambda: _make_table(switch, owner=False), "owner": lambda: _make_table(switch, owner=True)}
        return [kind for kind, attempt in tried.items() if _works(attempt)]
    finally:
        requests.close()


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except UnsupportedError:
        return False
    except SetupError as error:
        if error.errno == errno.EINVAL:  # a queue of a kind that it knows, without options
            return True
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise
    return True


def _link(kind: str) -> bytes:
    body = struct.pack("=BxHiII", 0, 0, 0, 0, 0) + attribute(_IFNAME, f"try-{kind}".encode() + b"\0")
    return message(_NEWLINK, _MAKE, body + attribute(_LINKINFO, attribute(_INFO_KIND, kind.encode() + b"\0")))


def _make_table(switch: Switch, *, owner: bool) -> None:
    with switch.filters() as kernel:
        kernel.commit(Transaction().add(Table("ip", f"try-{owner}", owner=owner)))
