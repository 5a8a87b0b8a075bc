"""What a new container takes of others that outlive their commands: their addresses under a name of its own (``--link``), or their network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from sandbox import UsageError
from sandbox.keep._record import Config, State
from sandbox.keep._store import ContainerStore

if TYPE_CHECKING:
    from sandbox.ns import Namespace


def namespace_of(text: str) -> Namespace:
    """The network namespace of a container that is there. Raises: ContainerNotFoundError; UsageError: it is dead."""
    from sandbox.ns import Namespace

    with ContainerStore().open(text) as place:
        state = place.state()
        if not place.is_kept or not state.init:
            raise UsageError(f"--network container:{text}: that container is dead")
        found = Namespace.of(state.init, "net")
        if not place.is_kept:  # then the number may be another's by now
            raise UsageError(f"--network container:{text}: that container has just ended")
    return found


def with_links(options: Mapping[str, Any], links: Iterable[str]) -> dict[str, Any]:
    """*options* of `Container` with the hosts and variables of each ``NAME[:ALIAS]``: of the addresses that those have now.

    Raises: UsageError: one does not run, or is in none of the new one's networks.
    """
    found, store = dict(options), ContainerStore()
    own_name = str(options.get("name") or options.get("hostname") or "sandbox")
    for text in links:
        name, colon, alias = text.partition(":")
        if not name or (colon and not alias):
            raise UsageError(f"--link: {text!r} is not NAME or NAME:ALIAS")
        config, state = _running(store, name)
        address = _address(options.get("net"), config, state)
        hosts: dict[str, str] = {**cast("dict[str, str]", found.get("extra_hosts", {})), (alias or config.name): address}
        from sandbox.network import link_variables

        pairs = link_variables(alias or config.name, own_name, address, _ports(config, state), config.options.get("env", {}).items())
        found |= {"extra_hosts": hosts, "env": {**dict(pairs), **(found.get("env") or {})}}
    return found


def _running(store: ContainerStore, name: str) -> tuple[Config, State]:
    with store.open(name) as place:
        config, state = place.config(), place.state()
        if not place.is_kept or not state.is_up:
            raise UsageError(f"--link: container {config.name} does not run; start it first")
        return config, state


def _address(net: object, config: Config, state: State) -> str:
    from sandbox import Join

    joins = [item for item in cast("list[object]", net) if isinstance(item, Join)] if isinstance(net, list) else []
    for join in joins:
        place: object = state.networks.get(join.network.name)
        if join.network.is_kept and isinstance(place, dict):
            return str(cast("dict[str, object]", place).get("IPAddress"))
    raise UsageError(f"--link: container {config.name} is in none of this one's networks; put both into one that is kept (sandbox network create)")


def _ports(config: Config, state: State) -> list[str]:
    exposed = config.options.get("exposed", [])
    return [*(str(port) for port in cast("list[object]", exposed if isinstance(exposed, list) else [])), *state.ports]
