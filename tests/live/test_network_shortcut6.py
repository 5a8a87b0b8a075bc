"""The short way of published ports by IPv6: as by IPv4, beside it."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from contextlib import contextmanager

import pytest

from sandbox import Container, Network, NetworkStore, Shape
from sandbox.net import shortcut
from tests.live.test_network_shortcut import ECHO, PORT, TALK, assert_withdrawal_refuses, client_of, echoing, exchange, share, talked
from tests.live.test_network_store import store as store  # noqa: PLC0414 - a fixture
from tests.netns import HOST, HOST6, PYTHON, alone, world
from tests.programs_of_bpf import corrects_ipv6
from tests.support import needs

pytestmark = [needs("root", "userns", "program:ip", "program:nft", "bpf"), pytest.mark.usefixtures("no_leftovers", "sums")]

ECHO6 = ECHO.replace('("", int(sys.argv[1]))', '("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True')


@pytest.fixture
def sums() -> None:
    if not corrects_ipv6():
        pytest.skip("a program cannot correct sums of IPv6 (Linux 6.16)")


@contextmanager
def serving(net: Network) -> Generator[Container]:
    """A container that sends back what comes to its port, by either version of IP."""
    with Container(net=net, ports=[f"{PORT}:{PORT}"]) as c, echoing(c, code=ECHO6):
        yield c


@alone
def test_most_packets_take_the_short_way_whoever_asks_by_either_version() -> None:
    with world(ipv6=True) as there, Network(ipv6=True) as net, serving(net) as c:
        for address in (HOST6, "::1"):
            with client_of(address) as client:
                assert max(share(net, c, lambda client=client: exchange(client, 50), "ip6")) < 0.3  # type: ignore[misc]
        with client_of(HOST) as client:
            assert max(share(net, c, lambda: exchange(client, 50))) < 0.3

        def talk() -> None:
            assert there.run(f"{PYTHON} -c {shlex.quote(f'exec({TALK!r})')} {HOST6} {PORT}") == (0, "")

        assert max(share(net, c, talk, "ip6")) < 0.3


@alone
def test_a_port_that_is_withdrawn_refuses_the_next_packet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcut, "LIFE_NS", 2_000_000_000)
    with world(ipv6=True), Network(ipv6=True) as net, serving(net) as c, client_of(HOST6) as client:
        talked(net, client, version=6)
        assert_withdrawal_refuses(c, client, publications=2)  # of each version of IP


@alone
def test_what_is_shaped_takes_the_long_way_by_both() -> None:
    with world(ipv6=True), Network(ipv6=True) as net, serving(net) as c, client_of(HOST) as four, client_of(HOST6) as six:
        c.shape(net, Shape("1G"))
        assert min(share(net, c, lambda: exchange(four, 20))) > 0.9
        assert min(share(net, c, lambda: exchange(six, 20), "ip6")) > 0.9
        c.shape(net, None)
        assert max(share(net, c, lambda: exchange(six, 50), "ip6")) < 0.3


@alone
@pytest.mark.needs("tcx")
def test_networks_that_are_kept_have_it_too(store: NetworkStore) -> None:
    with world(ipv6=True):
        store.create("shop", ipv6=True)
        with store.open("shop") as net, serving(net) as c:
            for address, family in ((HOST6, "ip6"), (HOST, "ip")):
                with client_of(address) as client:
                    assert max(share(net, c, lambda client=client: exchange(client, 50), family)) < 0.3  # type: ignore[misc, arg-type]
