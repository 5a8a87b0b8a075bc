"""Containers whose interface was made before they were asked for: they are as any others, and nobody else's."""

from __future__ import annotations

import os
import threading
import time
from contextlib import ExitStack
from ipaddress import IPv4Address
from typing import Any

import pytest

from sandbox import Container, Join, Network
from sandbox import _spares as spares_module
from sandbox._networks.ahead import Ahead
from sandbox._networks.membership import Membership
from sandbox._spares import Spare
from sandbox.errors import SetupError, UsageError
from sandbox.net.addresses import mac_of
from sandbox.net.rtnetlink import Requests, name_of_port
from tests.live.test_network import ask, serving
from tests.live.test_network_many import links
from tests.live.test_network_places import links_of, own_addresses
from tests.support import needs, patience

pytestmark = [needs("root", "userns", "program:ip"), pytest.mark.usefixtures("no_leftovers")]


def ready_of(net: Network) -> list[Spare]:
    found = spares_module.spares()
    keys = (net.live.key, net.live.plain_key)
    return [spare for kind, ready in found._ready.items() if kind.network in keys for spare in ready]


def make_ahead(net: Network | Join) -> None:
    """Have containers come and go until one of the next has its interface."""
    until = time.monotonic() + patience(60)
    while not any(spare.is_whole for spare in ready_of(net.network if isinstance(net, Join) else net)):
        assert time.monotonic() < until
        with Container(net=net) as c:
            c.exec(["true"])


def lent_of(net: Network) -> list[str]:
    """The addresses that those have which wait."""
    return [str(spare.extra.given.address) for spare in ready_of(net) if isinstance(spare.extra, Ahead) and spare.extra.given is not None]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[Ahead]:
    """What was made ahead and used."""
    found: list[Ahead] = []
    take = Ahead.take

    def noting(self: Ahead) -> Requests:
        found.append(self)
        return take(self)

    monkeypatch.setattr(Ahead, "take", noting)
    return found


def test_a_container_with_an_interface_made_ahead_is_as_any_other(used: list[Ahead]) -> None:
    with Network(internal=True, ipv6=True, subnet="10.77.7.0/24", mtu=1400) as net, Network(internal=True) as more, Container(net=net) as other:
        join = Join(net, address="10.77.7.99", mac="02:00:00:00:00:99", address6=f"{net.gateway6}9")
        make_ahead(join)
        used.clear()
        with Container(net=join) as c, serving(c):
            assert len(used) == 1
            assert own_addresses(c) == ["10.77.7.99", f"{net.gateway6}9"]
            link = links_of(c)["eth0"]
            assert (link["address"], link["mtu"], len(links_of(c))) == ("02:00:00:00:00:99", 1400, 1)
            assert ask(other, "10.77.7.99").exit_code == 0
            assert c.connect(more).interface == "eth1"
            c.disconnect(net)
            assert [*links_of(c)] == ["eth1"]
        assert [place.address for place in net.containers] == [other.address]


def test_an_interface_made_ahead_has_its_address_and_files_have_it_too(used: list[Ahead]) -> None:
    with Network(internal=True, ipv6=True) as net, Network(internal=True) as more, Container(net=net) as other:
        make_ahead(net)
        used.clear()
        lent = lent_of(net)
        with Container(net=net, name="somebody") as c, serving(c):
            assert len(used) == 1
            assert c.address in lent
            place = c.endpoints[net.name]
            assert own_addresses(c) == [place.address, place.address6]
            assert links_of(c)["eth0"]["address"] == place.mac
            assert f"{place.address}\t{c.spec.hostname}\n" in c.read_bytes("/etc/hosts").decode()
            assert net.gateway in c.read_bytes("/etc/resolv.conf").decode()
            assert ask(other, "somebody").exit_code == 0
            assert c.connect(more).interface == "eth1"
            c.disconnect(net)
            assert [*links_of(c)] == ["eth1"]
            assert place.address not in c.read_bytes("/etc/hosts").decode()
        assert [place.address for place in net.containers] == [other.address]


def test_an_address_that_waits_for_somebody_is_given_to_who_wants_it() -> None:
    with Network(internal=True, subnet="10.77.7.0/24") as net, Container(net=net) as other:
        make_ahead(net)
        holder = next(spare.extra for spare in ready_of(net) if spare.is_whole)
        assert isinstance(holder, Ahead)
        assert holder.given is not None
        lent, port = str(holder.given.address), name_of_port(holder.port)
        assert port in links(net)
        with Container(net=Join(net, address=lent, mac="02:00:00:00:00:99")) as c, serving(c):
            assert own_addresses(c) == [lent]
            assert ask(other, lent).exit_code == 0
            assert port not in links(net)
            with Container(net=net) as next_one, serving(next_one):
                assert next_one.address not in (lent, other.address)
                assert ask(c, str(next_one.address)).exit_code == 0


def test_spares_take_no_address_from_anybody_in_a_small_network() -> None:
    with Network(internal=True, subnet="10.77.7.0/29") as net, ExitStack() as stack:
        make_ahead(net)
        for _ in range(4):
            with Container(net=net):
                pass
        found = [stack.enter_context(Container(net=net)) for _ in range(5)]
        assert {c.address for c in found} == {f"10.77.7.{number}" for number in range(2, 7)}
        assert all(own_addresses(c) == [c.address] for c in found)
        with pytest.raises(UsageError, match="larger subnet"), Container(net=net):
            pass
        assert len(net.containers) == 5


def test_nobody_else_gets_an_interface_that_was_made_ahead() -> None:
    with Network(internal=True) as net, Network(internal=True) as another:
        make_ahead(net)
        before = len(ready_of(net))
        for _ in range(2):
            with Container() as c:
                assert links_of(c) == {}
            with Container(net=another) as c:
                assert own_addresses(c) == [c.address]
        assert len(ready_of(net)) == before


def test_a_closed_network_ends_what_was_made_ahead_for_it() -> None:
    with Network(internal=True) as net:
        make_ahead(net)
        mine = ready_of(net)
        found = spares_module.spares()
    assert all(spare.session.is_ending for spare in mine)
    assert not any(kind.network is not None for kind in found._ready)


def test_what_could_not_be_made_ahead_is_made_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with Network(internal=True) as net:
        make_ahead(net)

        def fail(self: Ahead) -> None:
            self.close()
            raise SetupError("as planned", 5, step="network")

        # The link is there, and in the way of the next one: whoever comes is told, and the one after that has a new spare.
        monkeypatch.setattr(Ahead, "take", fail)
        with pytest.raises(SetupError, match="make an interface"), Container(net=net):
            pass
        monkeypatch.undo()
        with Container(net=net) as c:
            assert own_addresses(c) == [c.address]
        assert net.containers == ()


def test_nobody_takes_a_spare_between_the_choice_of_an_address_and_its_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    with Network(internal=True) as net:
        make_ahead(net)
        free: list[bool] = []
        take = net.live.addresses.take

        def looking(*args: Any, **options: Any) -> Any:
            found = take(*args, **options)
            other = threading.Thread(target=look)
            other.start()
            other.join()
            return found

        def look() -> None:
            free.append(net.live.lock.acquire(blocking=False))
            if free[-1]:
                net.live.lock.release()

        monkeypatch.setattr(net.live.addresses, "take", looking)
        lent = lent_of(net)[0]
        with Container(net=Join(net, address=lent, mac="02:00:00:00:00:99")) as c, Container(net=net) as other:
            assert c.address == lent
            assert free
            assert not any(free)
            assert other.address != lent


def test_a_spare_whose_address_is_somebody_elses_by_now_is_refused() -> None:
    with Network(internal=True) as net:
        make_ahead(net)
        spare = next(spare for spare in ready_of(net) if spare.is_whole)
        ahead = spare.take_extra()
        assert isinstance(ahead, Ahead)
        assert ahead.given is not None
        net.live.addresses.take(ahead.given.address)
        with pytest.raises(SetupError, match="was lent"):
            ahead.take()


def test_a_mac_that_waits_for_somebody_is_given_to_who_wants_it() -> None:
    with Network(internal=True, subnet="10.77.7.0/24") as net:
        make_ahead(net)
        macs = [mac_of(IPv4Address(address)) for address in lent_of(net)]
        with Container(net=Join(net, mac=macs[0])) as c:
            assert links_of(c)["eth0"]["address"] == macs[0]
            for _ in macs:
                with Container(net=net) as other:
                    assert links_of(other)["eth0"]["address"] != macs[0]


def test_a_start_that_fails_before_its_first_place_gives_back_what_was_made_ahead(monkeypatch: pytest.MonkeyPatch, used: list[Ahead]) -> None:
    with Network(internal=True) as net:
        make_ahead(net)
        used.clear()
        closed: list[Ahead] = []
        close = Ahead.close

        def noting(self: Ahead) -> None:
            closed.append(self)
            close(self)
            assert self._asked is None

        def fail(*args: object, **options: object) -> None:
            raise SetupError("as planned", 5, step="network")

        monkeypatch.setattr(Ahead, "close", noting)
        monkeypatch.setattr(Membership, "_enter", fail)
        with pytest.raises(SetupError, match="as planned"), Container(net=net):
            pass
        monkeypatch.undo()
        assert (len(closed), used) == (1, [])
        with Container(net=net) as c:
            assert own_addresses(c) == [c.address]


def test_a_forked_child_lets_go_of_what_was_made_ahead() -> None:
    with Network(internal=True) as net:
        make_ahead(net)
        child = os.fork()
        if not child:
            os._exit(bool(spares_module._spares))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        with Container(net=net) as c:
            assert own_addresses(c) == [c.address]
