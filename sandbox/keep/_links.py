"""What a container takes of others that outlive their commands: a name of its own for them (``--link``), or their network."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from attrs import evolve

from sandbox import ContainerNotFoundError, SetupError, UnsupportedError, UsageError
from sandbox.keep._record import Config, State
from sandbox.keep._store import ContainerStore

if TYPE_CHECKING:
    from sandbox import Join
    from sandbox.ns import Namespace, Resident


def namespace_of(text: str) -> Namespace:
    """The network namespace of a container that is there.

    Raises: ContainerNotFoundError; UsageError: it is dead; UnsupportedError: without root's rights.
    """
    from sandbox.ns import Namespace

    with ContainerStore().open(text) as place:
        state = place.state()
        if not place.is_kept or not state.init:
            raise UsageError(f"--network container:{text}: that container is dead")
        try:
            found = Namespace.of(state.init, "net")
        except SetupError as error:
            if error.errno != errno.EACCES:
                raise
            raise _not_shared(text) from error
        if not place.is_kept:  # then the number may be another's by now
            raise UsageError(f"--network container:{text}: that container has just ended")
    return found


def _not_shared(text: str) -> UnsupportedError:
    return UnsupportedError(
        f"--network container:{text}: that network belongs to the container's own user namespace, "
        "which an ordinary user's second container cannot join",
        feature="a net namespace of another container",
        remedy="put both into one network (sandbox network create), or run as root",
    )


def resident_of(option: str, text: str) -> Resident:
    """The first process of a container that is there, whose namespaces another one is to share.

    Raises: ContainerNotFoundError; UsageError: it is dead.
    """
    from sandbox.ns import Resident

    with ContainerStore().open(text) as place:
        config, state = place.config(), place.state()
        if not place.is_kept or not state.init:
            raise UsageError(f"{option} container:{text}: that container is dead")
        found = Resident.of(state.init, hostname=str(config.options.get("hostname", "sandbox")))
        if not place.is_kept:  # then the number may be another's by now
            raise UsageError(f"{option} container:{text}: that container has just ended")
    return found


def with_links(options: Mapping[str, Any], links: Iterable[str]) -> dict[str, Any]:
    """*options* of `Container` with each ``NAME[:ALIAS]``: a name by which it finds that one at any time, and variables of the address of now.

    Raises: UsageError: one does not run, or is in none of the new one's networks.
    """
    found, store = dict(options), ContainerStore()
    own_name = str(options.get("name") or options.get("hostname") or "sandbox")
    for text in links:
        name, alias = _split(text)
        config, state = _running(store, name)
        net, address = _linked(found.get("net"), alias, config, state)
        from sandbox.network import link_variables

        pairs = link_variables(alias or config.name, own_name, address, _ports(config, state), config.options.get("env", {}).items())
        found |= {"net": net, "env": {**dict(pairs), **(found.get("env") or {})}}
    return found


def links_in(network: str, links: Iterable[str]) -> dict[str, str]:
    """What each ``NAME[:ALIAS]`` means in a kept network: the alias, and a name that is found there. The container need not be in there yet.

    Raises: UsageError: there is no such container, and nobody of the name in the network; NetworkNotFoundError.
    """
    return {alias or name: _name_in(network, name) for name, alias in map(_split, links)}


def _split(text: str) -> tuple[str, str]:
    name, colon, alias = text.partition(":")
    if not name or (colon and not alias):
        raise UsageError(f"--link: {text!r} is not NAME or NAME:ALIAS")
    return name, alias


def _name_in(network: str, name: str) -> str:
    """By which a container is found in *network*, now or later: who was renamed keeps the old name there."""
    from sandbox import NetworkStore

    inside: dict[int, list[str]] = {one["Pid"]: one["Names"] for one in NetworkStore().inspect(network)["Containers"].values()}
    try:
        with ContainerStore().open(name) as place:
            config, state = place.config(), place.state()
    except ContainerNotFoundError:
        if any(name.lower() in names for names in inside.values()):  # of another kind of process
            return name
        raise UsageError(f"--link: there is no container {name!r}, and nobody of this name in {network!r}; start it first") from None
    names = inside.get(state.init) or [config.name]
    return config.name if config.name.lower() in names else names[0]


def _running(store: ContainerStore, name: str) -> tuple[Config, State]:
    with store.open(name) as place:
        config, state = place.config(), place.state()
        if not place.is_kept or not state.is_up:
            raise UsageError(f"--link: container {config.name} does not run; start it first")
        return config, state


def _linked(net: object, alias: str, config: Config, state: State) -> tuple[list[Join], str]:
    """The networks of a new container, with the link in the one that both are in; and the other's address there."""
    from sandbox import Join

    joins = [item for item in cast("list[object]", net) if isinstance(item, Join)] if isinstance(net, list) else []
    for number, join in enumerate(joins):
        place: object = state.networks.get(join.network.name)
        if join.network.is_kept and isinstance(place, dict):
            links = {**dict(join.links), alias or config.name: _name_in(join.network.name, config.name)}
            address = str(cast("dict[str, object]", place).get("IPAddress"))
            return [*joins[:number], evolve(join, links=links), *joins[number + 1 :]], address
    raise UsageError(f"--link: container {config.name} is in none of this one's networks; put both into one that is kept (sandbox network create)")


def _ports(config: Config, state: State) -> list[str]:
    exposed = config.options.get("exposed", [])
    return [*(str(port) for port in cast("list[object]", exposed if isinstance(exposed, list) else [])), *state.ports]
