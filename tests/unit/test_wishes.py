"""What a container asks of networks is checked before anything is touched."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from sandbox import Container, Join, Network, UsageError
from sandbox._networks.wishes import NONE, to_wishes


def test_a_container_without_networks_asks_for_nothing() -> None:
    assert to_wishes(None, (), ()) == (None, NONE)
    assert to_wishes("host", (), ()) == ("host", NONE)


def test_networks_are_given_alone_in_a_list_or_with_a_place() -> None:
    one, two = Network(internal=True), Network(internal=True)
    for given in (one, [one], (Join(one),)):
        word, wishes = to_wishes(given, (), ())
        assert (word, wishes.joins, wishes.is_connected) == (None, (Join(one),), True)
    join = Join(two, address="10.1.2.5", aliases=["db", "db.example"])
    assert to_wishes([one, join], (), ())[1].joins == (Join(one), join)
    assert join.aliases == ("db", "db.example")


def test_the_network_of_another_container_is_its() -> None:
    other = Container(net="host")
    word, wishes = to_wishes(other, (), ())
    assert (word, wishes.net_of) == ("host", other)


@pytest.mark.parametrize(
    ("net", "options"),
    [
        ([], {}),
        ([1], {}),
        (["host"], {}),
        (None, {"ports": [80]}),
        ("host", {"ports": [80]}),
        ("network", {"ports": ["x"]}),
        ("network", {"ports": "80"}),
        ("network", {"links": {"db": 1}}),
        ("network", {"links": ["db"]}),
        (7, {}),
        (None, {"dns": ["ns.example"]}),
        (None, {"dns": ["10.0.0.1"] * 4}),
        (None, {"dns_search": ["a b"]}),
        (None, {"extra_hosts": {"a\n": "10.0.0.1"}}),
        (None, {"extra_hosts": {"a": "ten"}}),
        (None, {"extra_hosts": ["a:10.0.0.1"]}),
    ],
)
def test_wrong_words_are_refused(net: Any, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Container(net=Network(internal=True) if net == "network" else net, **options)


def test_a_network_twice_is_refused() -> None:
    net = Network(internal=True)
    with pytest.raises(UsageError, match="twice"):
        Container(net=[net, Join(net)])


def test_a_name_for_a_place_is_a_host_name() -> None:
    for aliases in ("db", ["a b"], [""]):
        with pytest.raises(UsageError):
            Join(Network(internal=True), aliases=aliases)


def test_a_container_of_anothers_network_publishes_nothing_itself() -> None:
    with pytest.raises(UsageError, match="give them there"):
        Container(net=Container(), ports=[80])


def test_what_is_said_of_names_is_in_the_plan() -> None:
    spec = Container(dns=["10.0.0.53"], dns_search=["example.org"], extra_hosts={"db": "10.0.0.9"}).spec
    assert (spec.resolver.nameservers, spec.resolver.search, spec.resolver.hosts) == (("10.0.0.53",), ("example.org",), (("10.0.0.9", "db"),))


@pytest.mark.parametrize("links", [["db"], {"store": 5}, {"": "db"}, {"store": "a b"}, "db", ("db",), (1, 2)])
def test_links_of_a_join_are_names(links: Any) -> None:
    with pytest.raises(UsageError):
        Join(Network(internal=True), links=links)


def test_a_join_can_be_changed_and_keeps_its_links() -> None:
    join = Join(Network(internal=True), links={"store": "db"})
    assert evolve(join, address="10.1.2.5").links == join.links == (("store", "db"),)
