"""What the options of ``sandbox run`` about networks mean: words to the arguments of `Container`."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from sandbox import UsageError

if TYPE_CHECKING:
    from sandbox import Join, Network
    from sandbox.net import HostPort, Port

# Of --network name=..., and the argument of `Join`.
_OF_NETWORKS: Final = {"alias": "aliases", "ip": "address", "ip6": "address6", "mac-address": "mac"}
_NETNS: Final = "netns:"
_FREE: Final = " (at a free port of the host: standard error tells which)"
_CONTAINER: Final = "container:"
NEW: Final = "new"  # --network new: one for this run; what --publish means by itself too


def arguments(parsed: Namespace) -> dict[str, Any]:
    """What is said of networks; what is not said is left out. Links are `sandbox.keep.with_links`'s."""
    publish = getattr(parsed, "publish", [])
    net = _network(parsed, meant(vars(parsed)))
    found: dict[str, Any] = {"net": net}
    if _publishes(vars(parsed)) and not isinstance(net, list):
        raise UsageError(f"--publish: not with --network {parsed.network[0]}; without it, a network is made for this run; or give the name of one")
    if publish:
        found["ports"] = list(publish)
    if getattr(parsed, "publish_all", False):
        found["publish_all"] = True
    for option in ("dns", "dns_search"):
        if getattr(parsed, option, []):
            found[option] = list(getattr(parsed, option))
    if getattr(parsed, "add_host", []):
        found["extra_hosts"] = hosts(parsed.add_host)
    return found


def meant(said: Mapping[str, Any]) -> list[str]:
    """The words of ``--network``, or what is meant without any, of all that is said of networks."""
    return list(said.get("network") or ([NEW] if _publishes(said) else []))


def _publishes(said: Mapping[str, Any]) -> bool:
    return bool(said.get("publish") or said.get("publish_all"))


def new_networks(container: Mapping[str, Any]) -> list[Network]:
    """The networks that are to be made for this run, of what `arguments` gave."""
    net = container["net"]
    joins = cast("list[Join]", net) if isinstance(net, list) else []
    return [join.network for join in joins if not join.network.is_kept]


def explained(container: Mapping[str, Any]) -> list[str]:
    """A line for each network and what is said of the place in it, and for each port; of what `arguments` gave."""
    net = container["net"]
    joins = cast("list[Join]", net) if isinstance(net, list) else []
    found: list[str] = []
    for join in joins:
        said = {"address": join.address, "address6": join.address6, "mac": join.mac, "aliases": ",".join(join.aliases)}
        place = "".join(f" {name}={value}" for name, value in said.items() if value)
        found.append(f"network {join.network.name if join.network.is_kept else NEW}{place}")
    found += (f"publish {port}{_FREE if port.is_chosen_later else ''}" for port in _ports(container))
    return [*found, *([f"publish all ports of the image{_FREE}"] if container.get("publish_all") else [])]


def chosen_ports(container: Mapping[str, Any], ports: Mapping[str, Iterable[HostPort]]) -> list[str]:
    """Where a container is reached, by each port whose place on the host was not said: ``80/tcp -> 0.0.0.0:49153``, as `docker port`."""
    said = {(f"{port.number}/{port.protocol}", port.first) for port in _ports(container) if not port.is_chosen_later}
    return [f"{name} -> {place}" for name, places in ports.items() for place in places if (name, place.port) not in said]


def _ports(container: Mapping[str, Any]) -> tuple[Port, ...]:
    """What is to be published, of what `arguments` gave."""
    if not container.get("ports"):
        return ()
    from sandbox.net import to_ports

    return to_ports(container["ports"])


def hosts(lines: Iterable[str]) -> dict[str, str]:
    """``NAME:ADDRESS`` or ``NAME=ADDRESS``, an IPv6 address in brackets or not."""
    found: dict[str, str] = {}
    for line in lines:
        at = min((place for place in (line.find(":"), line.find("=")) if place > 0), default=0)
        name, address = line[:at], line[at + 1 :]
        if not name or not address:
            raise UsageError(f"--add-host: {line!r} is not NAME:ADDRESS")
        if address == "host-gateway":
            raise UsageError("--add-host: host-gateway is not offered: the host is not reached by an address of its own from every network")
        found[name] = address[1:-1] if address.startswith("[") and address.endswith("]") else address
    return found


def _network(parsed: Namespace, words: list[str]) -> Any:  # noqa: ANN401 - whatever `Container` takes
    """The networks of *words*, and what is said of the place in them."""
    place = _place(parsed)
    if place and len(words) > 1:
        raise UsageError(f"{place[0][0]}: of which network? With several, say it there: --network name=NAME,{place[0][1]}=...")
    if len(words) > 1 or (words and _is_network(words[0])):
        return [_join(word, {key: value for _, key, value in place}) for word in words]
    if place:
        raise UsageError(f"{place[0][0]}: only in a network; give --network new, or the name of one")
    return _mode(words[0]) if words else None


def _place(parsed: Namespace) -> list[tuple[str, str, Any]]:
    """What the options say of the place in the one network: the option, its word in --network name=..., and the value."""
    said = (
        ("--network-alias", "alias", "network_alias"), ("--ip", "ip", "ip"), ("--ip6", "ip6", "ip6"), ("--mac-address", "mac-address", "mac_address")
    )  # fmt: skip
    return [(option, key, value) for option, key, name in said if (value := getattr(parsed, name, None))]


def _is_network(word: str) -> bool:
    return word not in ("none", "host") and not word.startswith((_NETNS, _CONTAINER))


def _mode(word: str) -> Any:  # noqa: ANN401 - as above
    if word.startswith(_NETNS):
        from sandbox.ns import Namespace

        return Namespace.named("net", word.removeprefix(_NETNS))
    if word.startswith(_CONTAINER):
        from sandbox.keep import namespace_of

        return namespace_of(word.removeprefix(_CONTAINER))
    return None if word == "none" else word


def _join(word: str, place: Mapping[str, Any]) -> Join:
    """A network with a place in it: its name, or Docker's ``name=NAME,alias=ALIAS,ip=ADDRESS``."""
    if not _is_network(word):
        raise UsageError(f"--network: {word!r} goes with no other network")
    name, said = (word, dict(place)) if "=" not in word else _fields(word, place)
    if name in ("bridge", "default"):
        raise UsageError(f"--network: there is no {name!r} for all; 'new' is one for this run, `sandbox network create` makes one that is kept")
    from sandbox import Join, Network  # with all that networks need: a third of what a run without one takes

    given = {argument: said[key] for key, argument in _OF_NETWORKS.items() if key in said}
    return Join(Network() if name == NEW else name, **given)


def _fields(word: str, place: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if place:
        raise UsageError(f"--network: {word!r} says what the other options say too; say it in one place")
    said: dict[str, Any] = {}
    for part in word.split(","):
        key, equals, value = part.partition("=")
        if not equals or not value or key not in (*_OF_NETWORKS, "name"):
            raise UsageError(f"--network: {part!r} is none of name=, {'=, '.join(_OF_NETWORKS)}=")
        if key == "alias":
            said.setdefault(key, []).append(value)
        elif key in said:
            raise UsageError(f"--network: {key} is said twice in {word!r}")
        else:
            said[key] = value
    if "name" not in said:
        raise UsageError(f"--network: {word!r} has no name=")
    return said.pop("name"), said
