"""``sandbox network create|ls|inspect|rm|prune|connect|disconnect``: networks that are kept by name; Docker's words, options and output."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from sandbox import NetworkStore, UsageError
from sandbox.cli import kept, tables
from sandbox.cli.options import to_time
from sandbox.cli.outcome import complain, one_line, outcome
from sandbox.cli.parser import Parser, WrongUseError
from sandbox.net.kept import NetworkInfo

_COMMAND: Final = "sandbox network"
_MTU: Final = ("mtu", "com.docker.network.driver.mtu")
_FILTERS: Final = ("dangling", "driver", "id", "label", "name", "scope", "type")
_CHOICES: Final = {"dangling": ("true", "false", "1", "0"), "type": ("custom", "builtin")}
_SHORT: Final = 12  # digits of an id, as Docker shows them


def main(arguments: Sequence[str]) -> int:
    """Carry out what the command line says; return the exit code: 0, 1 something failed, 2 wrong use."""
    return outcome(_COMMAND, lambda: _carry_out(arguments), show=_shown)


def _carry_out(arguments: Sequence[str]) -> int:
    parsed = _parser().parse_args(list(arguments))
    carry_out: Callable[[argparse.Namespace], int] = parsed.carry_out
    return carry_out(parsed)


def _shown(text: str) -> str:
    return one_line(text.removeprefix("network: "))


def _complain(text: str) -> None:
    complain(_COMMAND, text, show=_shown)


def _parser() -> Parser:
    parser = Parser(prog=_COMMAND, description="Networks of containers that are kept by name, and outlive processes.", allow_abbrev=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=Parser)

    def command(name: str, carry_out: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        found = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        found.set_defaults(carry_out=carry_out)
        return found

    _add_create(command("create", _create, "make a network, and print its id"))
    listing = command("ls", _list, "list networks")
    listing.add_argument("--quiet", "-q", action="store_true", help="ids only")
    listing.add_argument("--no-trunc", action="store_true", help="whole ids")
    listing.add_argument("--filter", "-f", metavar="WHAT=VALUE", action="append", default=[], help=f"one of {', '.join(_FILTERS)}")
    tables.add_format(listing)
    inspect = command("inspect", _inspect, "print all that is known of networks, and who is in them, as JSON")
    inspect.add_argument("names", metavar="NETWORK", nargs="+")
    kept.add_inspect_format(inspect)
    remove = command("rm", _remove, "remove networks in which no container is")
    remove.add_argument("names", metavar="NETWORK", nargs="+")
    remove.add_argument("--force", "-f", action="store_true", help="one that is not there is no failure, nor one that is damaged")
    prune = command("prune", _prune, "remove all networks in which no container is")
    prune.add_argument("--force", "-f", action="store_true", help="do not ask")
    prune.add_argument("--filter", metavar="WHAT=VALUE", action="append", default=[], help="label=NAME[=TEXT]; until=24h: only what is older")
    joining = command("connect", _connect, "put a container that outlives its command into a network")
    joining.add_argument("--ip", metavar="ADDRESS", default="", help="its address there")
    joining.add_argument("--ip6", metavar="ADDRESS", default="", help="its address of IPv6 there")
    joining.add_argument("--mac-address", metavar="MAC", default="", help="of its interface there")
    joining.add_argument("--alias", metavar="NAME", action="append", default=[], help="by which others of the network find it, too")
    joining.add_argument("--link", metavar="CONTAINER[:ALIAS]", action="append", default=[], help="another one there by a name that it alone knows")
    leaving = command("disconnect", _disconnect, "take a container out of a network")
    for each in (joining, leaving):
        each.add_argument("network", metavar="NETWORK")
        each.add_argument("container", metavar="CONTAINER")
    return parser


def _connect(parsed: argparse.Namespace) -> int:
    from sandbox.keep import find, links_in

    found = find(parsed.container)
    links = links_in(parsed.network, parsed.link) if parsed.link else {}
    found.connect(parsed.network, address=parsed.ip, address6=parsed.ip6, mac=parsed.mac_address, aliases=parsed.alias, links=links)
    return 0


def _disconnect(parsed: argparse.Namespace) -> int:
    from sandbox.keep import find

    find(parsed.container).disconnect(parsed.network)
    return 0


def _add_create(create: argparse.ArgumentParser) -> None:
    create.add_argument("name", metavar="NAME")
    create.add_argument(
        "--subnet", metavar="10.1.2.0/24", action="append", default=[], help="without one: one that is in nobody's way; with --ipv6 another of that"
    )
    create.add_argument("--gateway", metavar="ADDRESS", help="the network's own address; without one: the first")
    create.add_argument("--internal", action="store_true", help="its containers reach one another only")
    allow = "whom its containers may reach outside, 10.0.0.5:5432 say; again for more; '' alone: nobody"
    create.add_argument("--allow", metavar="HOST[:PORT]", action="append", help=allow)
    create.add_argument("--ipv6", action="store_true", help="addresses of IPv6 too")
    create.add_argument("--label", metavar="NAME[=TEXT]", action="append", default=[], help="something to know it by")
    create.add_argument("--driver", "-d", metavar="bridge", default="bridge", help="bridge is the only one")
    create.add_argument("--opt", "-o", metavar="mtu=BYTES", action="append", default=[], help="the largest packet of its interfaces (1500)")


def _create(parsed: argparse.Namespace) -> int:
    if parsed.driver != "bridge":
        raise UsageError(f"--driver: {parsed.driver!r} is not offered; every network is a bridge")
    labels = dict(kept.pair("--label", text, needs_value=False) for text in parsed.label)
    subnets = _subnets(parsed.subnet)
    info = NetworkStore().create(
        parsed.name,
        subnet=subnets.get("subnet"),
        subnet6=subnets.get("subnet6"),
        gateway=parsed.gateway,
        internal=parsed.internal,
        mtu=_mtu(parsed.opt),
        labels=labels,
        ipv6=parsed.ipv6,
        allow=None if parsed.allow is None else [text for text in parsed.allow if text],
    )
    print(info.id)
    return 0


def _subnets(subnets: Iterable[str]) -> dict[str, str]:
    """One of each version, as Docker has it."""
    found: dict[str, str] = {}
    for text in subnets:
        name = "subnet6" if ":" in text else "subnet"
        if name in found:
            raise UsageError(f"--subnet: {found[name]} and {text}: a network has one of each version of IP")
        found[name] = text
    return found


def _mtu(options: Iterable[str]) -> int | None:
    found = None
    for text in options:
        name, value = kept.pair("--opt", text, needs_value=True)
        if name not in _MTU:
            raise UsageError(f"--opt: {name!r} is not an option of a network; there is mtu=BYTES")
        if not (value.isascii() and value.isdigit()) or len(value) > 9:
            raise UsageError(f"--opt: mtu: {value!r} is not a number of bytes")
        found = int(value)
    return found


# ---- Listing ----


def _list(parsed: argparse.Namespace) -> int:
    filters = [_to_filter(text) for text in parsed.filter]
    store = NetworkStore()
    found = [info for info in kept.listed(store, _complain) if _matches(info, filters, store)]
    if parsed.quiet:
        print("".join(f"{_id(info, whole=parsed.no_trunc)}\n" for info in found), end="")
    else:
        columns = {"NETWORK ID": "ID", "NAME": "Name", "DRIVER": "Driver", "SCOPE": "Scope"}
        tables.show([_row(info, whole=parsed.no_trunc) for info in found], columns, form=parsed.format)
    return 0


def _id(info: NetworkInfo, *, whole: bool) -> str:
    return info.id if whole else info.id[:_SHORT]


def _row(info: NetworkInfo, *, whole: bool) -> dict[str, str]:
    """What ``docker network ls --format json`` says, and the subnet."""
    return {
        "CreatedAt": info.created_at,
        "Driver": "bridge",
        "ID": _id(info, whole=whole),
        "IPv4": "true",
        "IPv6": str(bool(info.subnet6)).lower(),
        "Internal": str(info.internal).lower(),
        "Labels": ",".join(f"{name}={text}" for name, text in info.labels.items()),
        "Name": info.name,
        "Scope": "local",
        "Subnet": info.subnet,
    }


def _to_filter(text: str) -> tuple[str, str]:
    name, value = kept.pair("--filter", text, needs_value=True)
    if name not in _FILTERS:
        raise WrongUseError(f"--filter: {name!r} is unknown; there are {', '.join(_FILTERS)}")
    if name in _CHOICES and value not in _CHOICES[name]:
        raise WrongUseError(f"--filter: {name}={value!r} is none of {', '.join(_CHOICES[name])}")
    return name, value


def _matches(info: NetworkInfo, filters: Iterable[tuple[str, str]], store: NetworkStore) -> bool:
    """Docker's rule: of a kind, one value is enough; labels must all be there."""
    wanted: dict[str, list[str]] = {}
    for name, value in filters:
        wanted.setdefault(name, []).append(value)
    tests: dict[str, Callable[[str], bool]] = {
        "dangling": lambda value: kept.is_dangling(lambda: store.containers(info.name)) == (value in ("true", "1")),
        "driver": lambda value: value == "bridge",
        "id": lambda value: value in info.id,
        "name": lambda value: value in info.name,
        "scope": lambda value: value == "local",
        "type": lambda value: value == "custom",
    }
    labels = wanted.pop("label", [])
    return all(map(info.has_label, labels)) and all(any(map(tests[name], values)) for name, values in wanted.items())


def _inspect(parsed: argparse.Namespace) -> int:
    return kept.inspect(parsed.names, NetworkStore().inspect, _complain, form=parsed.format)


# ---- Removing ----


def _remove(parsed: argparse.Namespace) -> int:
    return kept.remove(parsed.names, NetworkStore(), _complain, force=parsed.force)


def _prune(parsed: argparse.Namespace) -> int:
    label = before = None
    for text in parsed.filter:
        name, value = kept.pair("--filter", text, needs_value=True)
        if name not in ("label", "until") or (label if name == "label" else before) is not None:
            raise WrongUseError("--filter: there is one label=NAME[=TEXT], and one until=TIME")
        label, before = (value, before) if name == "label" else (label, time.time() - to_time("--filter until", value))
    if not parsed.force and not tables.agrees("This removes all networks in which no container is. Go on?"):
        return 0
    removed = NetworkStore().prune(label=label, before=before)
    if removed:
        print("Deleted Networks:", *removed, "", sep="\n")
    return 0

