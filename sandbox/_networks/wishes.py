"""What a container is to have of networks, as its caller says it: checked, and nothing done yet."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from attrs import define, evolve, field, frozen

from sandbox.errors import UsageError

if TYPE_CHECKING:
    from sandbox.container import Container
    from sandbox.image import Image
    from sandbox.net.ports import Port
    from sandbox.net.shape import Shape
    from sandbox.network import Network
    from sandbox.ns import Namespace


def _to_names(names: Iterable[str]) -> tuple[str, ...]:
    if names == ():
        return ()
    from sandbox.fs import to_host_name

    if isinstance(names, str):
        raise UsageError(f"aliases: give a list, [{names!r}]")
    return tuple(to_host_name(name, what="name in a network", most=253) for name in names)


def _to_named(links: Mapping[str, str] | tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of a name of one's own, and of the name that it stands for."""
    if links == ():
        return ()
    pairs: object = tuple(links.items()) if isinstance(links, Mapping) else links  # the caller may not be typed
    if not isinstance(pairs, tuple) or not all(map(_is_pair, cast("tuple[object, ...]", pairs))):
        raise UsageError(f"links: {links!r} is not a mapping of names to names in the network")
    given = dict(links)
    if not all(isinstance(name, str) for name in given.values()):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"links: {links!r}: names in the network are meant; Container(links=...) takes containers")
    return tuple(zip(_to_names(given), _to_names([*given.values()]), strict=True))


def _is_pair(value: object) -> bool:
    return isinstance(value, tuple) and len(cast("tuple[object, ...]", value)) == 2


def _to_address(value: Any, version: int) -> str | None:  # noqa: ANN401
    if value is None:
        return None
    from ipaddress import ip_address

    what = "address" if version == 4 else "address6"
    try:
        found = None if isinstance(value, (int, bytes)) else ip_address(value)
    except (ValueError, TypeError):
        found = None
    if found is None or found.version != version:
        raise UsageError(f"{what}: {value!r} is not an address of IPv{version}")
    return str(found)


def _to_address4(value: Any) -> str | None:  # noqa: ANN401
    return _to_address(value, 4)


def _to_address6(value: Any) -> str | None:  # noqa: ANN401
    return _to_address(value, 6)


def _to_mac(value: Any) -> str | None:  # noqa: ANN401
    if value is None:
        return None
    from sandbox.net import to_mac

    return to_mac(value)


def _to_shape(value: Any) -> Shape | None:  # noqa: ANN401
    if value is None:
        return None
    from sandbox.net.shape import to_shape

    return to_shape(value)


def _to_network(value: Network | str) -> Network:
    if not isinstance(value, str):
        return value
    from sandbox._networks.store import NetworkStore

    return NetworkStore().open(value)


@frozen(slots=False)
class Join:
    """A network that a container is to be in, and how: for ``Container(net=[Join(net, aliases=["db"])])``.

    network: a `Network`, or the name of one that is kept (`NetworkStore`). address: its address there; None: a free one. mac: of its interface;
    None: made of the address. aliases: names by which the others of that network find it, beside its own. address6: as *address*, in a
    network with IPv6.
    shape: how its packets pass there; None: as `Network` says, and ``Shape()`` for none in any case.
    links: ``{"store": "db"}``: names by which it alone finds others, and the names that those have in that network, whoever has them at a time,
    of whatever process. (`Container(links=)` is to one container, and has Docker's variables.)

    Raises: UsageError. Whether an address is free in the network is looked at when the container joins it.
    """

    network: Network = field(converter=_to_network)
    address: str | None = field(default=None, kw_only=True, converter=_to_address4)
    mac: str | None = field(default=None, kw_only=True, converter=_to_mac)
    aliases: tuple[str, ...] = field(default=(), kw_only=True, converter=_to_names)
    address6: str | None = field(default=None, kw_only=True, converter=_to_address6)
    shape: Shape | None = field(default=None, kw_only=True, converter=_to_shape)
    links: tuple[tuple[str, str], ...] = field(default=(), kw_only=True, converter=_to_named)


@define
class Wishes:
    """Of one container. *net_of*: the container or network namespace whose network it shares; *links*: (alias, container) pairs; *name*: its own.

    *shares*: namespaces of other kinds, and whose they are (`_sharing`). *kinds*: of all that it has of others, but the host's.
    """

    joins: tuple[Join, ...] = ()
    ports: tuple[Port, ...] = ()
    links: tuple[tuple[str, Container], ...] = ()
    net_of: Container | Namespace | None = None
    name: str | None = None
    shares: tuple[tuple[str, Any], ...] = ()
    kinds: tuple[str, ...] = ()

    @property
    def is_connected(self) -> bool:
        """Whether something is to be done for it when its container starts."""
        return bool(self.joins or self.ports or self.links)

    @property
    def joined(self) -> tuple[tuple[str, Any], ...]:
        """The namespaces that it is in from its beginning, and whose they are."""
        return self.shares if self.net_of is None else (("net", self.net_of), *self.shares)

    def with_exposed(self, wanted: bool, image: Image | None) -> Wishes:
        """These, with the ports that *image* exposes if they are *wanted*. Raises: UsageError."""
        if not wanted:
            return self
        if not self.joins:
            raise UsageError("publish_all: ports are published through a Network; give net=Network()")
        if image is None:
            raise UsageError("publish_all: the ports that an image exposes: this container is of no image; give ports=[80], say")
        from sandbox.net.ports import with_exposed

        return evolve(self, ports=with_exposed(self.ports, image.settings.exposed_ports))


NONE: Final = Wishes()


def to_wishes(net: Any, ports: Iterable[int | str | Port], links: Any, name: str | None = None) -> tuple[str | None, Wishes]:  # noqa: ANN401
    """Check what the caller says: the word for the plan (None: a network namespace of its own; ``"host"``), and the rest.

    Raises: UsageError.
    """
    word: str | None = None
    if ports == () and links == () and getattr(net, "IS_JOINED", False):  # a Network, which is what nearly all give
        wishes = Wishes((Join(net),))
    else:
        word, wishes = _to_wishes(net, ports, links)
    if name is None:
        return word, wishes
    from sandbox.fs import to_host_name

    return word, evolve(wishes, name=to_host_name(name, what="name", most=63))


def _to_wishes(net: Any, ports: Iterable[int | str | Port], links: Any) -> tuple[str | None, Wishes]:  # noqa: ANN401 - what is none of these is refused in words
    if net is None and ports == () and links == ():
        return None, NONE
    from sandbox.container import Container

    if isinstance(net, Container):
        if ports != () or links != ():
            raise UsageError("ports, links: a container that shares another's network has that one's; give them there")
        return net.spec.net, Wishes(net_of=net, kinds=("net",))
    if (namespace := _to_namespace(net)) is not None:
        if ports != () or links != ():
            raise UsageError("ports, links: whoever made the network namespace says what reaches it; or give net=Network()")
        return None, Wishes(net_of=namespace, kinds=("net",))
    joins = _to_joins(net)
    if joins is None:
        if ports != () or links != ():
            raise UsageError("ports, links: they go through a Network; give net=Network(), or a container of it")
        return cast("str | None", net), NONE
    from sandbox.net.ports import to_ports

    return None, Wishes(joins, to_ports(ports) if ports != () else (), _to_links(links))


def _to_namespace(net: Any) -> Namespace | None:  # noqa: ANN401
    """A network namespace that exists already; None: it is something else."""
    from sandbox.ns import Namespace

    if not isinstance(net, Namespace):
        return None
    if net.kind != "net":
        raise UsageError(f"net: {net!r} is a namespace of kind {net.kind!r}; give one of kind 'net'")
    with Namespace.own("net") as ours:
        if net == ours:
            raise UsageError("net: that namespace is this process's own; say net='host', which makes a container fit for it")
    return net


def _to_joins(net: Any) -> tuple[Join, ...] | None:  # noqa: ANN401
    """The networks; None: it is a word, or nothing that we know (which the spec refuses)."""
    from sandbox.network import Network

    if net == "none":
        raise UsageError("net: 'none' is a word of the command line; give net=None")
    if isinstance(net, (Network, Join)) or (isinstance(net, str) and net != "host"):
        net = [net]
    if not isinstance(net, (list, tuple)):
        return None
    if not net:
        raise UsageError("net: an empty list; give net=None for a container without networks")
    found: list[Join] = []
    for item in cast("Iterable[object]", net):
        join = to_join(item)
        if any(join.network.name == other.network.name for other in found):
            raise UsageError(f"net: {join.network.name!r} is there twice")
        found.append(join)
    return tuple(found)


def to_join(item: object) -> Join:
    """A network, its name if it is kept, or how to be in one. Raises: UsageError: it is none of these; NetworkNotFoundError."""
    from sandbox.network import Network

    join = item if isinstance(item, Join) else Join(item) if isinstance(item, (Network, str)) else None
    if join is None or not isinstance(join.network, Network):  # pyright: ignore[reportUnnecessaryIsInstance] - the caller may not be typed
        raise UsageError(f"net: {item!r} is neither a Network nor a Join of one")
    return join


def _to_links(links: Any) -> tuple[tuple[str, Container], ...]:  # noqa: ANN401
    if links == ():
        return ()
    from sandbox.container import Container

    given = cast("Mapping[str, Container]", links)
    if not isinstance(links, Mapping) or not all(isinstance(other, Container) for other in given.values()):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise UsageError(f"links: {links!r} is not a mapping of names to containers")
    return tuple(zip(_to_names(given), given.values(), strict=True))
